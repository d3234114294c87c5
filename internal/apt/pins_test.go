package apt

import (
	"bytes"
	"dkms2bin/internal/deb"
	"errors"
	"io"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

func TestPins(t *testing.T) {
	t.Parallel()
	debian := Source{URI: "http://example.org/debian", Suite: "bookworm", Components: []string{"main", "contrib"}}
	backports := Source{URI: "http://example.org/debian/", Suite: "bookworm-backports", Components: []string{"main"}, Priority: 600}
	const (
		debianMain    = "http://example.org/debian/\tbookworm\to=Debian\tl=Debian\ta=oldstable\tn=bookworm\tv=12.15\tc=main\n"
		debianContrib = "http://example.org/debian/\tbookworm\to=Debian\tl=Debian\ta=oldstable\tn=bookworm\tv=12.15\tc=contrib\n"
		backportsMain = "http://example.org/debian/\tbookworm-backports\to=Debian Backports\tl=Debian Backports\ta=oldstable-backports\tn=bookworm-backports\tv=$(VERSION)\tc=main\n"
		bare          = "\t./\to=$(ORIGIN)\tl=$(LABEL)\ta=$(SUITE)\tn=$(CODENAME)\tv=$(VERSION)\tc=$(COMPONENT)\n"
		stranger      = "http://example.com/\tx\to=Other\tl=$(LABEL)\ta=x\tn=x\tv=1\tc=main\n"
	)
	flat := func(uri string, priority int) Source {
		return Source{URI: uri, Suite: "./", Priority: priority}
	}
	tests := []struct {
		name     string
		sources  []Source
		targets  string
		want     []string // of the pins
		warnings int
	}{
		{"none", []Source{debian}, debianMain + debianContrib + stranger, nil, 0},
		{
			"by Release",
			[]Source{debian, backports},
			debianMain + backportsMain,
			[]string{"release o=Debian Backports,l=Debian Backports,a=oldstable-backports,n=bookworm-backports,c=main 600"},
			0,
		},
		{
			"each component",
			[]Source{{URI: debian.URI, Suite: "bookworm", Priority: 700}},
			debianMain + debianContrib,
			[]string{
				"release o=Debian,l=Debian,a=oldstable,n=bookworm,v=12.15,c=main 700",
				"release o=Debian,l=Debian,a=oldstable,n=bookworm,v=12.15,c=contrib 700",
			},
			0,
		},
		{
			"no Release",
			[]Source{debian, flat("http://vendor.example.org:8080/x", 1050)},
			debianMain + "http://vendor.example.org:8080/x/" + bare,
			[]string{`origin "vendor.example.org" 1050`},
			0,
		},
		{
			"no Release, local", []Source{debian, flat("copy:/run/x", 1050)}, debianMain + "copy:/run/x/" + bare, []string{`origin "" 1050`}, 0,
		},
		{
			"no Release, on the same server",
			[]Source{debian, flat("http://example.org/x", 1050)},
			debianMain + "http://example.org/x/" + bare,
			[]string{`origin "example.org" 1050`},
			1,
		},
		{
			"the same Release on another server",
			[]Source{debian, {URI: "http://mirror.example.net/", Suite: "bookworm", Priority: 100}},
			debianMain + strings.Replace(debianMain, "example.org/debian", "mirror.example.net", 1),
			[]string{`origin "mirror.example.net" 100`},
			0,
		},
		{
			"the same Release on the same server",
			[]Source{debian, {URI: "http://example.org/copy", Suite: "bookworm", Priority: 100}},
			debianMain + strings.Replace(debianMain, "org/debian", "org/copy", 1),
			[]string{"release o=Debian,l=Debian,a=oldstable,n=bookworm,v=12.15,c=main 100"},
			1,
		},
		{
			"a comma in a name",
			[]Source{flat("http://example.org/x", 900)},
			"http://example.org/x/\t./\to=A, B\tl=L\ta=$(SUITE)\tn=$(CODENAME)\tv=$(VERSION)\tc=$(COMPONENT)\n",
			[]string{"release l=L 900"},
			0,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			text, warnings := pins(tt.sources, parseTargets(tt.sources, tt.targets))
			var got []string
			for _, stanza := range strings.Split(string(text), "\n\n")[1:] {
				lines := strings.Split(stanza, "\n")
				assert.Equal(t, lines[0], "Package: *")
				got = append(got, strings.TrimPrefix(lines[1], "Pin: ")+" "+strings.TrimPrefix(lines[2], "Pin-Priority: "))
			}
			assert.DeepEqual(t, got, tt.want)
			assert.Equal(t, len(warnings), tt.warnings, "%v", warnings)
		})
	}
}

// FuzzParseTargets: fields of foreign Release files make pins that are lines of
// preferences, whatever is in them.
func FuzzParseTargets(f *testing.F) {
	sources := []Source{{URI: "http://example.org/a", Suite: "x", Priority: 1001}, {URI: "http://example.org/b", Suite: "./", Priority: 50}}
	f.Add("http://example.org/a\tx\to=Debian\tl=$(LABEL)\ta=stable\n")
	f.Add("http://example.org/b\t./\t\t=\to=a,b\n\nhttp://example.org/a/\tx\tn=x\r\n")
	f.Fuzz(func(t *testing.T, out string) {
		for _, target := range parseTargets(sources, out) {
			assert.Assert(t, target.source < len(sources))
		}
		preferences, _ := pins(sources, parseTargets(sources, out))
		s := deb.NewReader(bytes.NewReader(preferences))
		for {
			stanza, err := s.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil && strings.Contains(err.Error(), "NUL byte") {
				break // apt prints none
			}
			assert.NilError(t, err)
			assert.Equal(t, len(stanza), 3)
		}
	})
}
