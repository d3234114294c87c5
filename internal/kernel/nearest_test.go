package kernel

import (
	"slices"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

func TestCompareReleases(t *testing.T) {
	t.Parallel()
	ordered := []string{
		"4.19.0-27-amd64", "5.10.0-9-amd64", "5.10.0-10-amd64", "6.1.0-0.deb11.5-amd64", "6.1.0-9-amd64", "6.1.0-56-amd64",
		"6.9.12-custom", "6.10-rc3-amd64", "6.10-amd64", "6.10.1", "6.12.9+deb13-amd64", "6.12.10+deb13-amd64",
	}
	for i, a := range ordered {
		for j, b := range ordered {
			want := 0
			switch {
			case i < j:
				want = -1
			case i > j:
				want = 1
			}
			assert.Equal(t, CompareReleases(a, b), want, "%s %s", a, b)
		}
	}
	assert.Equal(t, CompareReleases("6.1.0-9-amd64", "6.1.0-9-cloud-amd64"), 0)
	list := slices.Clone(ordered)
	slices.Reverse(list)
	slices.SortFunc(list, CompareReleases)
	assert.DeepEqual(t, list, ordered)
}

func TestFlavour(t *testing.T) {
	t.Parallel()
	for release, want := range map[string]string{
		"6.1.0-56-amd64":           "amd64",
		"6.1.0-56-cloud-amd64":     "cloud-amd64",
		"6.1.0-56-686-pae":         "686-pae",
		"6.12.9+deb13-cloud-amd64": "cloud-amd64",
		"6.1.0-0.deb11.5-rt-amd64": "rt-amd64",
		"6.8.0-64-generic":         "generic",
		"5.15.0-91-generic-64k":    "generic-64k",
		"6.10-rc3-amd64":           "amd64",
		"6.10.1":                   "",
		"6.9.12-custom":            "custom",
	} {
		assert.Equal(t, Flavour(release), want, release)
	}
}

// FuzzCompareReleases: it is an order, and a kernel is as new as itself.
func FuzzCompareReleases(f *testing.F) {
	for _, name := range []string{"6.1.0-56-amd64", "6.12.95+deb12-cloud-amd64", "5.15.0-1084-azure", "6.10-rc7-amd64", "", "-", "99999999999999999999.1"} {
		f.Add(name, "6.1.0-56-amd64", "6.1")
	}
	f.Fuzz(func(t *testing.T, a, b, c string) {
		assert.Equal(t, CompareReleases(a, a), 0)
		assert.Equal(t, CompareReleases(a, b), -CompareReleases(b, a))
		if CompareReleases(a, b) <= 0 && CompareReleases(b, c) <= 0 {
			assert.Assert(t, CompareReleases(a, c) <= 0)
		}
		assert.Assert(t, strings.HasSuffix(a, Flavour(a)))
	})
}
