package modpkg

import (
	"bytes"
	"dkms2bin/internal/deb"
	"fmt"
	"testing"

	"gotest.tools/v3/assert"
)

func setOf(t testing.TB) Set {
	t.Helper()
	return Set{
		Name: "site", Flavour: "amd64", Kernel: loopback(t), Time: loopback(t).Time, Program: "dkms2bin 1.0",
		Members: []Member{
			{"v4l2loopback-modules-6.1.0-56-amd64", "0.12.7-2+6.1.192.2", "0.12.7-2"},
			{"dahdi-modules-6.1.0-56-amd64", "1:2.11+6.1.192.2", "1:2.11"},
		},
	}
}

func TestSet(t *testing.T) {
	t.Parallel()
	p, err := setOf(t).Compose()
	assert.NilError(t, err)
	var control bytes.Buffer
	_, err = p.Control.WriteTo(&control)
	assert.NilError(t, err)
	assert.Equal(t, control.String(), `Package: site-amd64
Version: 6.1.192.2+2.11+0.12.7.2
Architecture: amd64
Maintainer: dkms2bin <dkms2bin@packages.invalid>
Depends: linux-image-6.1.0-56-amd64 | linux-image-6.1.0-56-amd64-unsigned, dahdi-modules-6.1.0-56-amd64 (= 1:2.11+6.1.192.2), v4l2loopback-modules-6.1.0-56-amd64 (= 0.12.7-2+6.1.192.2)
Section: metapackages
Priority: optional
Description: kernel and modules of the set site-amd64 (metapackage)
 This package depends on Linux 6.1.0-56-amd64 and on modules that were built
 for it ahead of time. A newer version of it comes only when all of them are
 there for a newer kernel.
 .
 Modules: dahdi, v4l2loopback.
`)
}

func TestSetImage(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ image, depends, recommends string }{
		{"depends", "linux-image-6.1.0-56-amd64 (= 6.1.192-2) | linux-image-6.1.0-56-amd64-unsigned (= 6.1.192-2), x (= 1)", ""},
		{"recommends", "x (= 1)", "linux-image-6.1.0-56-amd64 (= 6.1.192-2) | linux-image-6.1.0-56-amd64-unsigned (= 6.1.192-2)"},
		{"none", "x (= 1)", ""},
	} {
		s := setOf(t)
		s.Members = []Member{{"x", "1", "1"}}
		s.Kernel.ImageDependency, s.Kernel.Modversions = tt.image, false
		p, err := s.Compose()
		assert.NilError(t, err)
		assert.Equal(t, p.Control.Get("Depends"), tt.depends)
		assert.Equal(t, p.Control.Get("Recommends"), tt.recommends)
	}
}

// Each set is newer than the one before.
func TestSetVersionsSort(t *testing.T) {
	t.Parallel()
	type set struct {
		kernel  string
		sources []string
	}
	sets := []set{
		{"6.1.192-2", []string{"0.8-15", "0.12.7-2"}},
		{"6.1.192-2", []string{"0.8-15", "0.12.7-2+deb12u1"}},
		{"6.1.192-2", []string{"0.8-15", "0.12.8-1"}},
		{"6.1.192-2", []string{"0.8-15+deb12u1", "0.12.7-2"}},
		{"6.1.192-2", []string{"0.8-16", "0.12.7-2"}},
		{"6.1.192-2", []string{"0.10-1", "0.12.7-2"}},
		{"6.1.192-2", []string{"1.0~rc1-1", "0.12.7-2"}},
		{"6.1.192-2", []string{"1:1.0-1", "0.12.7-2"}},
		{"6.1.192-3", []string{"0.8-15", "0.12.7-2"}},
		{"6.1.195-1", []string{"0.8-15"}},
		{"6.12.57-1~bpo12+1", []string{"0.8-15", "0.12.7-2"}},
		{"6.12.57-1", []string{"0.8-15", "0.12.7-2"}},
	}
	before := ""
	for _, tt := range sets {
		s := setOf(t)
		s.Kernel.KernelVersion, s.Members = tt.kernel, nil
		for i, source := range tt.sources {
			s.Members = append(s.Members, Member{fmt.Sprintf("m%d-modules-6.1.0-56-amd64", i), "1", source})
		}
		version := s.Version()
		assert.NilError(t, deb.ValidateVersion(version))
		if before != "" {
			assert.Assert(t, deb.CompareVersions(version, before) > 0, "%s is not newer than %s", version, before)
			command(t, "dpkg", "--compare-versions", version, "gt", before)
		}
		before = version
	}
}

func TestSetNames(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, flavour, want string }{
		{"site", "cloud-amd64", "site-cloud-amd64"},
		{"site", "RT_amd64", "site-rt-amd64"},
		{"site", "", "site"},
	} {
		assert.Equal(t, Set{Name: tt.name, Flavour: tt.flavour}.PackageName(), tt.want)
	}
	for _, name := range []string{"site", "v4l2loopback-modules", "a2", "g++"} {
		assert.NilError(t, CheckSetName(name))
	}
	for _, name := range []string{"", "x", "Site", "a b", "-x", "a/b", "é"} {
		assert.ErrorContains(t, CheckSetName(name), "is no package name")
	}
}

func TestSetRefuses(t *testing.T) {
	t.Parallel()
	s := setOf(t)
	s.Members = nil
	for i := range 40 {
		s.Members = append(s.Members, Member{fmt.Sprintf("m%d", i), "1", "0.12.7-2"})
	}
	_, err := s.Compose()
	assert.ErrorContains(t, err, "cannot make the metapackage site-amd64: its version, with those of 40 packages in it, would have ")
	s = setOf(t)
	s.Name, s.Flavour = "site-modules", "686-pae"
	_, err = s.Compose()
	assert.ErrorContains(t, err, "that is the name of modules for a kernel 686-pae")
}
