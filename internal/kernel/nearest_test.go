package kernel

import (
	"slices"
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
