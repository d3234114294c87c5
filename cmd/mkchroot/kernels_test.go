package main

import (
	"dkms2bin/internal/apt"
	"maps"
	"slices"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

// bookworm with backports, as apt-cache shows it: the newest of each first.
func bookworm() map[string][]apt.Candidate {
	c := func(name, version, arch, depends string) apt.Candidate {
		return apt.Candidate{Name: headersPrefix + name, Version: version, Architecture: arch, Depends: depends}
	}
	return map[string][]apt.Candidate{
		"linux-headers-amd64": {
			c("amd64", "6.12.57-1~bpo12+1", "amd64", "linux-headers-6.12.57+deb12-amd64 (= 6.12.57-1~bpo12+1)"),
			c("amd64", "6.1.192-2", "amd64", "linux-headers-6.1.0-56-amd64 (= 6.1.192-2)"),
		},
		"linux-headers-6.12.57+deb12-amd64": {c("6.12.57+deb12-amd64", "6.12.57-1~bpo12+1", "amd64", "linux-headers-6.12.57+deb12-common (= 6.12.57-1~bpo12+1)")},
		"linux-headers-6.1.0-56-amd64":      {c("6.1.0-56-amd64", "6.1.192-2", "amd64", "linux-headers-6.1.0-56-common (= 6.1.192-2), linux-kbuild-6.1")},
		"linux-headers-6.1.0-56-common":     {c("6.1.0-56-common", "6.1.192-2", "all", "")},
		"linux-headers-generic":             {c("generic", "6.8.0-100", "amd64", "linux-headers-generic-6.8 | linux-headers-none")},
		"linux-headers-generic-6.8":         {c("generic-6.8", "6.8.0-100", "amd64", "linux-headers-6.8.0-100, linux-headers-6.8.0-100-generic")},
		"linux-headers-6.8.0-100":           {c("6.8.0-100", "6.8.0-100", "all", "")},
		"linux-headers-6.8.0-100-generic":   {c("6.8.0-100-generic", "6.8.0-100", "amd64", "linux-headers-6.8.0-100")},
		"linux-headers-loop":                {c("loop", "1", "amd64", "linux-headers-loop")},
		"linux-headers-leaf":                {c("leaf", "1", "amd64", "libc6")},
	}
}

// preferred are the versions by name, the newest where more does not say else.
func preferred(more map[string]string) map[string]string {
	p := map[string]string{}
	for name, list := range bookworm() {
		p[name] = list[0].Version
	}
	maps.Copy(p, more)
	return p
}

func TestCurrentKernel(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, flavour string
		preferred     map[string]string
		want, err     string
	}{
		{"backports have a low priority", "amd64", map[string]string{"linux-headers-amd64": "6.1.192-2"}, "6.1.0-56-amd64", ""},
		{"backports are pinned up", "amd64", nil, "6.12.57+deb12-amd64", ""},
		{"what it depends on is not to be had", "amd64", map[string]string{"linux-headers-6.12.57+deb12-amd64": ""}, "", "leads to no kernel's headers"},
		{"by way of another one, past those for all architectures", "generic", nil, "6.8.0-100-generic", ""},
		{"not to be had itself", "amd64", map[string]string{"linux-headers-amd64": ""}, "", "the repositories have no package linux-headers-amd64"},
		{"no such package", "arm64", nil, "", "the repositories have no package linux-headers-arm64"},
		{"in circles", "loop", nil, "", "leads to no kernel's headers"},
		{"nowhere", "leaf", nil, "", "leads to no kernel's headers"},
		{"no flavour", "", nil, "", "no default kernel flavour is known"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := currentKernel(tt.flavour, candidates(bookworm(), preferred(tt.preferred)))
			if tt.err != "" {
				assert.ErrorContains(t, err, tt.err)
				return
			}
			assert.NilError(t, err)
			assert.Equal(t, got, tt.want)
		})
	}
}

func TestCandidates(t *testing.T) {
	t.Parallel()
	got := candidates(bookworm(), map[string]string{"linux-headers-amd64": "6.1.192-2", "linux-headers-loop": "2", "linux-headers-none": "1"})
	assert.Equal(t, strings.Join(slices.Sorted(maps.Keys(got)), " "), "linux-headers-amd64")
	assert.Equal(t, got["linux-headers-amd64"].Version, "6.1.192-2")
	assert.Equal(t, got["linux-headers-amd64"].Depends, "linux-headers-6.1.0-56-amd64 (= 6.1.192-2)")
}
