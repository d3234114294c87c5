package dkms

import (
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

func TestAdded(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 128)
	tests := []struct {
		name  string
		files map[string]string
		want  []Module
		err   string
	}{
		{"none", nil, nil, ""},
		{
			"two",
			map[string]string{"b/0.0~git2024+dfsg#1:2/source": "-> /usr/src/b-1", "a_A-a/1.0/source": "-> /usr/src/a", "a_A-a/2.0/build": "dir", "dkms_dbversion": ""},
			[]Module{{"a_A-a", "1.0"}, {"b", "0.0~git2024+dfsg#1:2"}},
			"",
		},
		{"long", map[string]string{long + "/" + long + "/source": "dir"}, []Module{{long, long}}, ""},
		{"too long", map[string]string{long + "x/1/source": "dir"}, nil, long + `x" is not usable`},
		{"a line break", map[string]string{"m/1\n2/source": "dir"}, nil, `"1\n2" is not usable as the name or version of a module`},
		{"an escape sequence", map[string]string{"\x1b[2J/1/source": "dir"}, nil, `"\x1b[2J" is not usable`},
		{"a blank", map[string]string{"a b/1/source": "dir"}, nil, `"a b" is not usable`},
		{"an option", map[string]string{"--all/1/source": "dir"}, nil, `"--all" is not usable`},
		{"a shell's", map[string]string{"m/$(reboot)/source": "dir"}, nil, `"$(reboot)" is not usable`},
		{"not UTF-8", map[string]string{"m\xff/1/source": "dir"}, nil, `"m\xff" is not usable`},
		{"odd, but not registered", map[string]string{"a b/1/build": "dir", "fifo": "fifo"}, nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			files := map[string]string{}
			for name, what := range tt.files {
				files[state+"/"+name] = what
			}
			_, dir := layerOf(t, files)
			soon(t, func() {
				got, err := Added(dir)
				if tt.err == "" {
					assert.Check(t, err == nil, "%v", err)
				} else {
					assert.Check(t, err != nil && strings.Contains(err.Error(), tt.err), "%v", err)
				}
				assert.Check(t, len(got) == len(tt.want))
				for i := range got {
					assert.Check(t, got[i] == tt.want[i], "%v", got[i])
				}
			})
		})
	}
}

func TestAddedWithAFifoInPlace(t *testing.T) {
	t.Parallel()
	_, dir := layerOf(t, map[string]string{state: "fifo"})
	soon(t, func() {
		_, err := Added(dir)
		assert.Check(t, err != nil)
	})
}

func TestPristine(t *testing.T) {
	const source = "usr/src/m-1/"
	_, base := layerOf(t, map[string]string{"usr/src/linux/a.o": ""})
	for name, test := range map[string]struct {
		files map[string]string
		want  bool
	}{
		"source alone":            {map[string]string{source + "dkms.conf": "", source + "sub/m.c": "", source + "m.om": "", source + "cmd": ""}, true},
		"an object":               {map[string]string{source + "dkms.conf": "", source + "sub/m.o": ""}, false},
		"a module":                {map[string]string{source + "m.ko": ""}, false},
		"what kbuild notes":       {map[string]string{source + ".m.o.cmd": ""}, false},
		"symbols":                 {map[string]string{source + "Module.symvers": ""}, false},
		"a directory of builds":   {map[string]string{source + ".tmp_versions": "dir"}, false},
		"those of another module": {map[string]string{source + "m.c": "", "usr/src/m-2/m.o": ""}, true},
		"a link":                  {map[string]string{"usr/src/m-1": "-> m", "usr/src/m/m.o": ""}, false},
		"a deep one":              {map[string]string{source + strings.Repeat("d/", 20) + "m.c": ""}, true},
		"too deep a one":          {map[string]string{source + strings.Repeat("d/", 40) + "m.c": ""}, false},
		"no source":               {map[string]string{"usr/src/m-2/m.c": ""}, false},
	} {
		t.Run(name, func(t *testing.T) {
			_, layer := layerOf(t, test.files)
			assert.Equal(t, pristine([]string{layer, base}, mod), test.want)
			assert.Equal(t, pristine([]string{base, layer}, mod), test.want)
		})
	}
	_, layer := layerOf(t, map[string]string{source + "m.c": ""})
	assert.Assert(t, !pristine([]string{layer, "/nowhere"}, mod))
}
