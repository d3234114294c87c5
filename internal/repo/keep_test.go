package repo

import (
	"dkms2bin/internal/deb"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

func TestKeep(t *testing.T) {
	t.Parallel()
	all := []string{ // name version [arch] [Field: value]...
		"a-modules-6.1.0-9-amd64 1",
		"a-modules-6.1.0-10-amd64 1",
		"a-modules-6.1.0-10-amd64 1.1",
		"a-modules-6.1.0-11-amd64 1",
		"b-modules-6.1.0-9-amd64 1",
		"a-modules-6.1.0-9-cloud-amd64 1",
		"a-modules-6.1.0-9-arm64 1 arm64",
		"a-modules-6.12.3+deb13-amd64 1",
		"other 1", "other 2",
		"meta 1 Depends: a-modules-6.1.0-9-amd64 (= 1), gone | b-modules",
		"meta 2 Depends: a-modules-6.12.3+deb13-amd64 (>= 1)",
	}
	for _, tc := range []struct {
		name string
		keep Keep
		gone string
	}{
		{"all", Keep{}, ""},
		{"kernels", Keep{Kernels: 2}, "a-modules-6.1.0-10-amd64=1.1 a-modules-6.1.0-10-amd64=1 b-modules-6.1.0-9-amd64=1"},
		{"versions", Keep{Versions: 1}, "a-modules-6.1.0-10-amd64=1 meta=1 other=1"},
		{"both", Keep{Kernels: 1, Versions: 1}, "a-modules-6.1.0-10-amd64=1.1 a-modules-6.1.0-10-amd64=1 a-modules-6.1.0-11-amd64=1 a-modules-6.1.0-9-amd64=1 b-modules-6.1.0-9-amd64=1 meta=1 other=1"},
		{"more than there are", Keep{Kernels: 100, Versions: 100}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for _, text := range all {
				words := strings.SplitN(text, " ", 3)
				c := control(words[0], words[1], "amd64")
				if len(words) > 2 {
					if name, value, ok := strings.Cut(words[2], ": "); ok {
						c.Set(name, value)
					} else {
						c.Set("Architecture", words[2])
					}
				}
				writeDeb(t, filepath.Join(dir, deb.Filename(c)), c, "")
			}
			opt := testOptions()
			opt.Keep = tc.keep
			res, err := index(t.Context(), dir, opt)
			assert.NilError(t, err)
			var gone []string
			for _, p := range res.Outdated {
				gone = append(gone, p.Name+"="+p.Version)
			}
			assert.Equal(t, strings.Join(gone, " "), tc.gone)
			assert.Equal(t, len(res.Packages), len(all)-len(gone))
			assert.Equal(t, strings.Count(read(t, dir, "Packages"), "\nFilename: "), len(res.Packages))
			old := res.OldKernels()
			assert.Equal(t, old("amd64", "6.1.0-8-amd64"), tc.name == "kernels" || tc.name == "both")
			assert.Assert(t, !old("amd64", "6.12.4+deb13-amd64") && !old("arm64", "6.1.0-8-arm64"))
		})
	}
}

func TestRelations(t *testing.T) {
	t.Parallel()
	got := relations("a (>= 1.0), b:any (<<2~) | c [amd64] <!nocheck>, , d(=1:2-3)")
	assert.Equal(t, fmt.Sprint(got), "[[{a >= 1.0}] [{b << 2~} {c  }] [{d = 1:2-3}]]")
	for _, tc := range []struct {
		operator, version, have string
		want                    bool
	}{
		{"", "", "", true},
		{"=", "1", "", false},
		{"=", "1", "1", true},
		{"<<", "1", "1", false},
		{"<=", "1", "1", true},
		{">=", "1", "1~rc1", false},
		{">>", "1", "1.1", true},
	} {
		assert.Equal(t, relation{"a", tc.operator, tc.version}.fulfilled(tc.have), tc.want, "%+v", tc)
	}
}

// FuzzRelations: what is read of a dependency is text of the field, and some version
// fulfils it or none does.
func FuzzRelations(f *testing.F) {
	f.Add("a (>= 1.0), b:any (<<2~) | c [amd64] <!nocheck>, , d(=1:2-3)", "1.0")
	f.Add("((=|,|a", "")
	f.Fuzz(func(t *testing.T, field, version string) {
		for _, alternatives := range relations(field) {
			assert.Assert(t, len(alternatives) > 0)
			for _, r := range alternatives {
				assert.Assert(t, r.name != "" && strings.Contains(field, r.name) && strings.Contains(field, r.version))
				if r.operator == "<<" || r.operator == ">=" {
					other := relation{r.name, map[string]string{"<<": ">=", ">=": "<<"}[r.operator], r.version}
					assert.Assert(t, version == "" || r.fulfilled(version) != other.fulfilled(version))
				}
			}
		}
	})
}
