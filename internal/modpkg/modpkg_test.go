package modpkg

import (
	"bytes"
	"compress/gzip"
	"dkms2bin/internal/deb"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

// loopback is a package as debextract asks for it, on bookworm.
func loopback(t testing.TB) Spec {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "v4l2loopback.ko")
	assert.NilError(t, os.WriteFile(file, []byte("the module"), 0o600))
	return Spec{
		Module: "v4l2loopback", ModuleVersion: "0.12.7", Source: "v4l2loopback-dkms", SourceVersion: "0.12.7-2",
		Kernel: "6.1.0-56-amd64", KernelVersion: "6.1.192-2", BuiltUsing: []string{"v4l2loopback (= 0.12.7-2)", "linux (= 6.1.192-2)"},
		Modversions: true, ModulesPrefix: "/lib/modules", Distribution: "debian", Architecture: "amd64",
		Files: []string{file}, Licenses: []string{"GPL"},
		Copyright: []byte("The copyright file.\n"),
		Changelog: []byte("v4l2loopback (0.12.7-2) unstable; urgency=medium\n\n  * Changed.\n\n -- A B <a@example.org>  Sat, 25 Jun 2022 21:37:21 +0200\n"),
		Time:      time.Date(2022, 6, 25, 19, 37, 21, 0, time.UTC),
		Origin: Origin{
			Package: "v4l2loopback-dkms (= 0.12.7-2)", Digest: "5eed", Headers: "linux-headers-6.1.0-56-amd64 (= 6.1.192-2)",
			Compiler: "GCC: (Debian 12.2.0-14+deb12u1) 12.2.0", DKMS: "3.0.10-8", BuildPackages: []string{"libelf-dev (= 0.188-2.1)"},
			Program: "dkms2bin 1.0",
		},
	}
}

func with(s Spec, change func(*Spec)) Spec {
	change(&s)
	return s
}

func TestName(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ module, kernel, want string }{
		{"v4l2loopback", "6.1.0-56-amd64", "v4l2loopback-modules-6.1.0-56-amd64"},
		{"librem_ec_acpi", "6.1.0-56-amd64", "librem-ec-acpi-modules-6.1.0-56-amd64"},
		{"OpenRazer-Driver", "6.12.117+deb13-RT_amd64", "openrazer-driver-modules-6.12.117+deb13-rt-amd64"},
		{"r8168.ko", "5.15.0-91-generic", "r8168.ko-modules-5.15.0-91-generic"},
		{"a b/c", "6.1.0", "a-b-c-modules-6.1.0"},
		{"_x", "6.1.0", "x-modules-6.1.0"},
	} {
		got := Spec{Module: tt.module, Kernel: tt.kernel}.Name()
		assert.Equal(t, got, tt.want)
		assert.NilError(t, deb.ValidateName(got))
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	plain := Spec{Kernel: "6.1.0-56-amd64", KernelVersion: "6.1.192-2"}
	tests := []struct {
		name string
		spec Spec
		want string
	}{
		{"with a revision", with(plain, func(s *Spec) { s.SourceVersion = "0.12.7-2" }), "0.12.7-2+6.1.192.2"},
		{"security update", with(plain, func(s *Spec) { s.SourceVersion = "0.12.7-2+deb12u1" }), "0.12.7-2+deb12u1+6.1.192.2"},
		{"native", with(plain, func(s *Spec) { s.SourceVersion = "20220829" }), "20220829+6.1.192.2"},
		{"epoch", with(plain, func(s *Spec) { s.SourceVersion = "1:0.8-15" }), "1:0.8-15+6.1.192.2"},
		{"kernel with an epoch", with(plain, func(s *Spec) { s.SourceVersion, s.KernelVersion = "1.0-1", "2:6.1.192-2" }), "1.0-1+6.1.192.2"},
		{"kernel with hyphens", with(plain, func(s *Spec) { s.SourceVersion, s.KernelVersion = "1.0-1", "5.15.0-91.101-1" }), "1.0-1+5.15.0.91.101.1"},
		{"kernel of backports", with(plain, func(s *Spec) { s.SourceVersion, s.KernelVersion = "1.0-1", "6.12.57-1~bpo12+1" }), "1.0-1+6.12.57.1~bpo12+1"},
		{"no kernel package", with(plain, func(s *Spec) { s.SourceVersion, s.KernelVersion = "1.0-1", "" }), "1.0-1+6.1.0.56"},
		{"no kernel package, a release of its own", Spec{SourceVersion: "1.0-1", Kernel: "6.8.0rc1-site_2"}, "1.0-1+6.8.0"},
		{"suffix", with(plain, func(s *Spec) { s.SourceVersion, s.VersionSuffix = "1.0-1", "+site2" }), "1.0-1+6.1.192.2+site2"},
		{"source directory", with(plain, func(s *Spec) { s.ModuleVersion = "0.12.7" }), "0.12.7+6.1.192.2"},
		{"source directory, odd version", with(plain, func(s *Spec) { s.ModuleVersion = "v1.2-rc_3/x" }), "0~v1.2.rc.3.x+6.1.192.2"},
		{"source directory, git", with(plain, func(s *Spec) { s.ModuleVersion = "0.0~git20240408.aa96a9f+dfsg" }), "0.0~git20240408.aa96a9f+dfsg+6.1.192.2"},
		{"source directory, no version to speak of", with(plain, func(s *Spec) { s.ModuleVersion = "-" }), "0~+6.1.192.2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := tt.spec.Version()
			assert.Equal(t, got, tt.want)
			assert.NilError(t, deb.ValidateVersion(got))
		})
	}
}

// apt upgrades to what is later in this list of sources, kernels and suffixes.
func TestVersionsSort(t *testing.T) {
	t.Parallel()
	versions := []string{}
	for _, s := range []Spec{
		{SourceVersion: "0.12.7-2~bpo12+1", KernelVersion: "6.1.192-2"},
		{SourceVersion: "0.12.7-2", KernelVersion: "6.1.192-2~bpo11+1"},
		{SourceVersion: "0.12.7-2", KernelVersion: "6.1.192-2", VersionSuffix: "~test"},
		{SourceVersion: "0.12.7-2", KernelVersion: "6.1.192-2"},
		{SourceVersion: "0.12.7-2", KernelVersion: "6.1.192-2", VersionSuffix: "+site1"},
		{SourceVersion: "0.12.7-2", KernelVersion: "6.1.192-2", VersionSuffix: "+site10"},
		{SourceVersion: "0.12.7-2", KernelVersion: "6.1.192-10"},
		{SourceVersion: "0.12.7-2", KernelVersion: "6.1.200-1"},
		{SourceVersion: "0.12.7-2", KernelVersion: "6.12.57-1"},
		{SourceVersion: "0.12.7-2+deb12u1", KernelVersion: "6.1.192-2"}, // whatever the kernel
		{SourceVersion: "0.12.7-2.1", KernelVersion: "6.1.192-2"},
		{SourceVersion: "0.12.7-10", KernelVersion: "6.1.192-2"},
		{SourceVersion: "0.13.0-1", KernelVersion: "6.1.192-2"},
		{SourceVersion: "1:0.1-1", KernelVersion: "6.1.192-2"},
	} {
		versions = append(versions, s.Version())
	}
	for i := range versions[1:] {
		out, err := exec.CommandContext(t.Context(), "dpkg", "--compare-versions", versions[i], "lt", versions[i+1]).CombinedOutput()
		assert.NilError(t, err, "%s < %s: %s", versions[i], versions[i+1], out)
	}
}

// The packages of one kernel differ from those of the next by their names. Where
// a kernel of the same release is built anew, the version must grow.
func TestVersionsOfUnknownKernelsSort(t *testing.T) {
	t.Parallel()
	a, b := Spec{SourceVersion: "1.0-1", Kernel: "6.1.0-9-amd64"}.Version(), Spec{SourceVersion: "1.0-1", Kernel: "6.1.0-56-amd64"}.Version()
	out, err := exec.CommandContext(t.Context(), "dpkg", "--compare-versions", a, "lt", b).CombinedOutput()
	assert.NilError(t, err, "%s < %s: %s", a, b, out)
}

func TestDepends(t *testing.T) {
	t.Parallel()
	base := Spec{Kernel: "6.1.0-56-amd64", KernelVersion: "6.1.192-2", Modversions: true, Distribution: "debian"}
	tests := []struct {
		name string
		spec Spec
		want string
	}{
		{"Debian", base, "linux-image-6.1.0-56-amd64 | linux-image-6.1.0-56-amd64-unsigned"},
		{
			"Debian without MODVERSIONS", with(base, func(s *Spec) { s.Modversions = false }),
			"linux-image-6.1.0-56-amd64 (= 6.1.192-2) | linux-image-6.1.0-56-amd64-unsigned (= 6.1.192-2)",
		},
		{
			"Ubuntu", with(base, func(s *Spec) { s.Distribution, s.Kernel = "ubuntu", "5.15.0-91-generic" }),
			"linux-image-5.15.0-91-generic | linux-image-unsigned-5.15.0-91-generic",
		},
		{
			"Ubuntu without MODVERSIONS", with(base, func(s *Spec) {
				s.Distribution, s.Kernel, s.KernelVersion, s.Modversions = "ubuntu", "5.15.0-91-generic", "5.15.0-91.101", false
			}),
			"linux-image-5.15.0-91-generic (= 5.15.0-91.101) | linux-image-unsigned-5.15.0-91-generic (= 5.15.0-91.101)",
		},
		{
			"under their real names", with(base, func(s *Spec) {
				s.Images = []Image{{"proxmox-kernel-6.8.12-1-pve-signed", "6.8.12-1"}, {"proxmox-kernel-6.8.12-1-pve", "6.8.12-2"}}
			}),
			"proxmox-kernel-6.8.12-1-pve-signed | proxmox-kernel-6.8.12-1-pve",
		},
		{
			"each with its own version", with(base, func(s *Spec) {
				s.Images, s.Modversions = []Image{{"proxmox-kernel-6.8.12-1-pve-signed", "6.8.12-1"}, {"proxmox-kernel-6.8.12-1-pve", "6.8.12-2"}}, false
			}),
			"proxmox-kernel-6.8.12-1-pve-signed (= 6.8.12-1) | proxmox-kernel-6.8.12-1-pve (= 6.8.12-2)",
		},
		{
			"no version known", with(base, func(s *Spec) { s.Modversions, s.KernelVersion = false, "" }),
			"linux-image-6.1.0-56-amd64 | linux-image-6.1.0-56-amd64-unsigned",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			assert.Equal(t, tt.spec.image(), tt.want)
		})
	}
}

func TestDependsOnOtherModules(t *testing.T) {
	t.Parallel()
	for relation, want := range map[string][2]string{
		"depends":    {"linux-image-6.1.0-56-amd64 | linux-image-6.1.0-56-amd64-unsigned, a (= 1), b (= 2)", ""},
		"recommends": {"a (= 1), b (= 2)", "linux-image-6.1.0-56-amd64 | linux-image-6.1.0-56-amd64-unsigned"},
		"none":       {"a (= 1), b (= 2)", ""},
	} {
		p, _ := compose(t, with(loopback(t), func(s *Spec) { s.ImageDependency, s.Depends = relation, []string{"a (= 1)", "b (= 2)"} }))
		assert.Equal(t, p.Control.Get("Depends"), want[0])
		assert.Equal(t, p.Control.Get("Recommends"), want[1])
	}
}

// compose composes the package, and returns what it installs by path.
func compose(t testing.TB, s Spec) (deb.Package, map[string]string) {
	t.Helper()
	p, err := s.Compose()
	assert.NilError(t, err)
	files := map[string]string{}
	for _, f := range p.Files {
		r, err := f.Open()
		assert.NilError(t, err)
		content, err := io.ReadAll(r)
		assert.NilError(t, err)
		assert.NilError(t, r.Close())
		assert.Equal(t, int64(len(content)), f.Size, f.Path)
		assert.Equal(t, f.Mode, os.FileMode(0o644), f.Path)
		if strings.HasSuffix(f.Path, ".gz") {
			content = gunzip(t, content)
		}
		files[f.Path] = string(content)
	}
	return p, files
}

func gunzip(t testing.TB, content []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(content))
	assert.NilError(t, err)
	text, err := io.ReadAll(r)
	assert.NilError(t, err)
	assert.Equal(t, r.Name, "")
	assert.Assert(t, r.ModTime.IsZero(), "%s", r.ModTime) // it would differ from run to run
	return text
}

func TestCompose(t *testing.T) {
	t.Parallel()
	s := loopback(t)
	p, files := compose(t, s)
	var control bytes.Buffer
	_, err := p.Control.WriteTo(&control)
	assert.NilError(t, err)
	assert.Equal(t, control.String(), `Package: v4l2loopback-modules-6.1.0-56-amd64
Source: v4l2loopback-dkms (0.12.7-2)
Version: 0.12.7-2+6.1.192.2
Architecture: amd64
Maintainer: dkms2bin <dkms2bin@packages.invalid>
Depends: linux-image-6.1.0-56-amd64 | linux-image-6.1.0-56-amd64-unsigned
Provides: v4l2loopback-modules (= 0.12.7-2+6.1.192.2)
Built-Using: v4l2loopback (= 0.12.7-2), linux (= 6.1.192-2)
Section: kernel
Priority: optional
Description: v4l2loopback kernel modules for Linux 6.1.0-56-amd64
 These modules were built ahead of time from v4l2loopback-dkms 0.12.7-2, so
 that the machines that use them need neither compiler nor kernel headers.
 .
 Modules: v4l2loopback.
`)
	doc := "/usr/share/doc/v4l2loopback-modules-6.1.0-56-amd64/"
	assert.DeepEqual(t, files, map[string]string{
		"/lib/modules/6.1.0-56-amd64/updates/dkms/v4l2loopback.ko": "the module",
		doc + "copyright": "The copyright file.\n",
		doc + "changelog.Debian.gz": "v4l2loopback-modules-6.1.0-56-amd64 (0.12.7-2+6.1.192.2) unstable; urgency=medium\n\n" +
			"  * Built from v4l2loopback-dkms 0.12.7-2 for Linux 6.1.0-56-amd64.\n\n" +
			" -- dkms2bin <dkms2bin@packages.invalid>  Sat, 25 Jun 2022 19:37:22 +0000\n\n" + string(s.Changelog),
		doc + "buildinfo": "Dkms-Package: v4l2loopback-dkms (= 0.12.7-2)\nDkms-Package-SHA256: 5eed\n" +
			"Module: v4l2loopback 0.12.7\nKernel: 6.1.0-56-amd64\nKernel-Headers: linux-headers-6.1.0-56-amd64 (= 6.1.192-2)\n" +
			"Compiler: GCC: (Debian 12.2.0-14+deb12u1) 12.2.0\nDkms: 3.0.10-8\nBuild-Packages: libelf-dev (= 0.188-2.1)\nMade-By: dkms2bin 1.0\n",
		"/usr/share/lintian/overrides/v4l2loopback-modules-6.1.0-56-amd64": "# The revision is that of the -dkms package, and the version of the kernel's package follows it.\n" +
			"v4l2loopback-modules-6.1.0-56-amd64: debian-revision-not-well-formed\n",
	})
	assert.Equal(t, p.Time, s.Time)
	assert.Equal(t, p.Control.Get("Conflicts")+p.Control.Get("Breaks"), "") // apt would remove kernels that provide the -dkms package
}

func TestComposeFromASourceDirectory(t *testing.T) {
	t.Parallel()
	s := loopback(t)
	dir := filepath.Dir(s.Files[0])
	s.Files = nil
	for _, name := range []string{"zeta.ko.xz", "alpha.ko", "my-beta.ko.zst"} {
		path := filepath.Join(dir, name)
		assert.NilError(t, os.WriteFile(path, []byte(name), 0o644))
		s.Files = append(s.Files, path)
	}
	s.Module, s.ModuleVersion, s.Source, s.SourceVersion = "My_Module", "1.0", "", ""
	s.Copyright, s.Changelog, s.Licenses, s.BuiltUsing = nil, nil, []string{"GPL v2", "Dual MIT/GPL", "GPL v2"}, nil
	s.License, s.Origin = []byte("Do what you like.\n"), Origin{}
	s.ModulesPrefix, s.Kernel, s.KernelVersion = "/usr/lib/modules", "6.12.57+deb13-amd64", "6.12.57-1"
	before := strings.Join(s.Files, " ")
	p, files := compose(t, s)
	assert.Equal(t, p.Control.Get("Package"), "my-module-modules-6.12.57+deb13-amd64")
	assert.Equal(t, p.Control.Get("Source"), "")
	assert.Equal(t, p.Control.Get("Built-Using"), "")
	assert.Equal(t, p.Control.Get("Version"), "1.0+6.12.57.1")
	assert.Assert(t, strings.HasSuffix(p.Control.Get("Description"), "\n Modules: alpha, my-beta, zeta."), p.Control.Get("Description"))
	doc := "/usr/share/doc/my-module-modules-6.12.57+deb13-amd64/"
	assert.DeepEqual(t, files, map[string]string{
		"/usr/lib/modules/6.12.57+deb13-amd64/updates/dkms/alpha.ko":       "alpha.ko",
		"/usr/lib/modules/6.12.57+deb13-amd64/updates/dkms/my-beta.ko.zst": "my-beta.ko.zst",
		"/usr/lib/modules/6.12.57+deb13-amd64/updates/dkms/zeta.ko.xz":     "zeta.ko.xz",
		doc + "copyright": "These kernel modules were built from My_Module 1.0.\n\nIts source came without a copyright file. " +
			"The modules declare the license: Dual MIT/GPL, GPL v2.\n\n" +
			"The license of the source is in the file COPYING.gz beside this one.\n\n" +
			"The GNU General Public License, version 2, is in\n/usr/share/common-licenses/GPL-2.\n",
		doc + "COPYING.gz": "Do what you like.\n",
		doc + "buildinfo":  "Module: My_Module 1.0\nKernel: 6.12.57+deb13-amd64\n",
		"/usr/share/lintian/overrides/my-module-modules-6.12.57+deb13-amd64": "# There was no copyright file to take over.\n" +
			"my-module-modules-6.12.57+deb13-amd64: copyright-without-copyright-notice\n" +
			"# The license of the source, word for word as it came.\n" +
			"my-module-modules-6.12.57+deb13-amd64: extra-license-file\n",
		doc + "changelog.gz": "my-module-modules-6.12.57+deb13-amd64 (1.0+6.12.57.1) unstable; urgency=medium\n\n" +
			"  * Built from My_Module 1.0 for Linux 6.12.57+deb13-amd64.\n\n" +
			" -- dkms2bin <dkms2bin@packages.invalid>  Sat, 25 Jun 2022 19:37:22 +0000\n",
	})
	assert.Equal(t, strings.Join(s.Files, " "), before)
}

// Releases may have what packages' names may not.
func TestImageNames(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ distribution, want string }{
		{"debian", "linux-image-6.12.117+deb13-rt-site-2 | linux-image-6.12.117+deb13-rt-site-2-unsigned"},
		{"ubuntu", "linux-image-6.12.117+deb13-rt-site-2 | linux-image-unsigned-6.12.117+deb13-rt-site-2"},
	} {
		s := with(loopback(t), func(s *Spec) { s.Kernel, s.Distribution = "6.12.117+deb13-RT-Site_2", tt.distribution })
		p, files := compose(t, s)
		assert.Equal(t, p.Control.Get("Depends"), tt.want)
		assert.Equal(t, files["/lib/modules/6.12.117+deb13-RT-Site_2/updates/dkms/v4l2loopback.ko"], "the module")
	}
}

func TestComposeRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		change func(*Spec)
		want   string
	}{
		{"no modules", func(s *Spec) { s.Files = nil }, "there are no modules"},
		{"a module that is gone", func(s *Spec) { s.Files = []string{"/nowhere/x.ko"} }, "/nowhere/x.ko: no such file"},
		{"a module of no letters", func(s *Spec) { s.Module = "é" }, "invalid package name"},
		{"a kernel that would end up in scripts", func(s *Spec) { s.Kernel = "6.1.0; reboot" }, "invalid package name"},
		{"a kernel of several lines", func(s *Spec) { s.Kernel = "6.1.0\nreboot" }, "invalid package name"},
		{"a kernel that leads elsewhere", func(s *Spec) { s.Kernel = "../../etc" }, "invalid package name"},
		{"a version that is none", func(s *Spec) { s.SourceVersion = "1.0 beta" }, "1.0 beta"},
		{"a suffix that is none", func(s *Spec) { s.VersionSuffix = "+a b" }, "+a b"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := with(loopback(t), tt.change).Compose()
			assert.ErrorContains(t, err, tt.want)
			assert.ErrorContains(t, err, "cannot make a package of ")
		})
	}
}

func TestWrapText(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 100)
	for _, tt := range []struct{ in, want string }{
		{"", ""},
		{"one", "one"},
		{"  one \n two ", "one two"},
		{strings.Repeat("word ", 17), strings.Repeat("word ", 14) + "word\n word word"},
		{"a " + long + " b", "a\n " + long + "\n b"},
		{strings.Repeat("x", 78) + " y", strings.Repeat("x", 78) + "\n y"},
		{strings.Repeat("x", 76) + " y z", strings.Repeat("x", 76) + " y\n z"},
	} {
		assert.Equal(t, wrapText(tt.in), tt.want)
	}
}

func TestChangelogTime(t *testing.T) {
	t.Parallel()
	entry := func(date string) string {
		return "x (1) unstable; urgency=medium\n\n  * Changed.\n\n -- A B <a@example.org>  " + date + "\n"
	}
	tests := []struct {
		name, text string
		want       time.Time
	}{
		{"empty", "", time.Time{}},
		{"one", entry("Sat, 25 Jun 2022 21:37:21 +0200"), time.Date(2022, 6, 25, 19, 37, 21, 0, time.UTC)},
		{"the newest is the first", entry("Sun, 02 Jul 2023 08:00:00 -0500") + "\n" + entry("Sat, 25 Jun 2022 21:37:21 +0200"), time.Date(2023, 7, 2, 13, 0, 0, 0, time.UTC)},
		{"day of one digit", entry("Sun, 2 Jul 2023 08:00:00 +0000"), time.Date(2023, 7, 2, 8, 0, 0, 0, time.UTC)},
		{"padded", entry("Sun,  2 Jul 2023 08:00:00 +0000"), time.Date(2023, 7, 2, 8, 0, 0, 0, time.UTC)},
		{"a comment after it", entry("Sun, 02 Jul 2023 08:00:00 +0000 "), time.Date(2023, 7, 2, 8, 0, 0, 0, time.UTC)},
		{"not a date", entry("yesterday"), time.Time{}},
		{"no sign-off", "x (1) unstable; urgency=medium\n\n  * -- not > one\n", time.Time{}},
		{"a > in the text", "  * a > b\n" + entry("Sun, 02 Jul 2023 08:00:00 +0000"), time.Date(2023, 7, 2, 8, 0, 0, 0, time.UTC)},
		{"the first day", entry("Tue, 01 Jan 1980 00:00:00 +0000"), time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)},
		{"before there was Debian", entry("Tue, 01 Jan 1980 00:30:00 +0100"), time.Time{}},
		{"the epoch", entry("Thu, 01 Jan 1970 00:00:00 +0000"), time.Time{}},
		{"before the epoch", entry("Wed, 31 Dec 1969 23:00:00 +0000"), time.Time{}},
		{"the last day", entry("Fri, 31 Dec 2100 23:59:59 +0000"), time.Date(2100, 12, 31, 23, 59, 59, 0, time.UTC)},
		{"far ahead", entry("Sat, 01 Jan 2101 00:00:00 +0000"), time.Time{}},
		{"more than ar holds", entry("Fri, 31 Dec 9999 23:59:59 +0000"), time.Time{}},
		{"binary", "\x1f\x8b\x00\xff", time.Time{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			assert.Assert(t, ChangelogTime([]byte(tt.text)).Equal(tt.want), "%s", ChangelogTime([]byte(tt.text)))
		})
	}
	s := loopback(t)
	_, files := compose(t, s)
	for path, content := range files {
		if strings.HasSuffix(path, "changelog.Debian.gz") { // newer than what it was made from, and the next one's time
			assert.Equal(t, ChangelogTime([]byte(content)), s.Time.Add(time.Second))
		}
	}
}

// command runs one of dpkg's programs.
func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	out, err := cmd.CombinedOutput()
	assert.NilError(t, err, "%s %v: %s", name, args, out)
	return string(out)
}

func writeDeb(t testing.TB, s Spec) string {
	t.Helper()
	p, err := s.Compose()
	assert.NilError(t, err)
	path := filepath.Join(t.TempDir(), deb.Filename(p.Control))
	f, err := os.Create(path)
	assert.NilError(t, err)
	assert.NilError(t, deb.Write(f, p))
	assert.NilError(t, f.Close())
	return path
}

func TestDpkgReadsIt(t *testing.T) {
	t.Parallel()
	s := loopback(t)
	path := writeDeb(t, s)
	assert.Equal(t, filepath.Base(path), "v4l2loopback-modules-6.1.0-56-amd64_0.12.7-2+6.1.192.2_amd64.deb")

	info := command(t, "dpkg-deb", "-W", "--showformat", "${Package}|${Version}|${Architecture}|${source:Package}|${source:Version}|${Provides}|${Section}|${Installed-Size}\n", path)
	assert.Equal(t, info, "v4l2loopback-modules-6.1.0-56-amd64|0.12.7-2+6.1.192.2|amd64|v4l2loopback-dkms|0.12.7-2|"+
		"v4l2loopback-modules (= 0.12.7-2+6.1.192.2)|kernel|"+fmt.Sprint(installedSize(t, path))+"\n")
	var listed []string
	for line := range strings.Lines(command(t, "dpkg-deb", "-c", path)) {
		f := strings.Fields(line)
		listed = append(listed, f[0]+" "+f[1]+" "+f[3]+" "+f[len(f)-1])
	}
	doc := "./usr/share/doc/v4l2loopback-modules-6.1.0-56-amd64/"
	assert.DeepEqual(t, listed, []string{
		"drwxr-xr-x root/root 2022-06-25 ./",
		"drwxr-xr-x root/root 2022-06-25 ./lib/",
		"drwxr-xr-x root/root 2022-06-25 ./lib/modules/",
		"drwxr-xr-x root/root 2022-06-25 ./lib/modules/6.1.0-56-amd64/",
		"drwxr-xr-x root/root 2022-06-25 ./lib/modules/6.1.0-56-amd64/updates/",
		"drwxr-xr-x root/root 2022-06-25 ./lib/modules/6.1.0-56-amd64/updates/dkms/",
		"-rw-r--r-- root/root 2022-06-25 ./lib/modules/6.1.0-56-amd64/updates/dkms/v4l2loopback.ko",
		"drwxr-xr-x root/root 2022-06-25 ./usr/",
		"drwxr-xr-x root/root 2022-06-25 ./usr/share/",
		"drwxr-xr-x root/root 2022-06-25 ./usr/share/doc/",
		"drwxr-xr-x root/root 2022-06-25 " + doc,
		"-rw-r--r-- root/root 2022-06-25 " + doc + "buildinfo",
		"-rw-r--r-- root/root 2022-06-25 " + doc + "changelog.Debian.gz",
		"-rw-r--r-- root/root 2022-06-25 " + doc + "copyright",
		"drwxr-xr-x root/root 2022-06-25 ./usr/share/lintian/",
		"drwxr-xr-x root/root 2022-06-25 ./usr/share/lintian/overrides/",
		"-rw-r--r-- root/root 2022-06-25 ./usr/share/lintian/overrides/v4l2loopback-modules-6.1.0-56-amd64",
	})

	dir := t.TempDir()
	command(t, "dpkg-deb", "-R", path, dir)
	var scripts []string
	entries, err := os.ReadDir(filepath.Join(dir, "DEBIAN"))
	assert.NilError(t, err)
	for _, e := range entries {
		info, err := e.Info()
		assert.NilError(t, err)
		scripts = append(scripts, e.Name()+" "+info.Mode().String())
	}
	assert.DeepEqual(t, scripts, []string{"control -rw-r--r--", "md5sums -rw-r--r--", "postinst -rwxr-xr-x", "postrm -rwxr-xr-x"})
	check := exec.Command("md5sum", "--check", "--strict", "DEBIAN/md5sums")
	check.Dir = dir
	out, err := check.CombinedOutput()
	assert.NilError(t, err, "%s", out)
	assert.Equal(t, strings.Count(string(out), ": OK\n"), 5, "%s", out)

	changelog, err := os.ReadFile(filepath.Join(dir, doc, "changelog.Debian.gz"))
	assert.NilError(t, err)
	plain := filepath.Join(dir, "changelog")
	assert.NilError(t, os.WriteFile(plain, gunzip(t, changelog), 0o644))
	parsed := command(t, "dpkg-parsechangelog", "--all", "-l", plain, "--show-field", "Version,Date,Timestamp,Maintainer")
	assert.Assert(t, !strings.Contains(parsed, "warning"), parsed)
	assert.Equal(t, command(t, "dpkg-parsechangelog", "-l", plain, "--show-field", "Version"), "0.12.7-2+6.1.192.2\n")
	assert.Equal(t, command(t, "dpkg-parsechangelog", "-l", plain, "--show-field", "Timestamp"), fmt.Sprintf("%d\n", s.Time.Unix()+1))
}

// installedSize is what dpkg-deb's documentation asks for: KiB of each file
// rounded up, and one for each directory.
func installedSize(t testing.TB, path string) int64 {
	t.Helper()
	dir := t.TempDir()
	command(t, "dpkg-deb", "-x", path, dir)
	var kib int64
	assert.NilError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.IsDir() {
			kib++
		} else {
			kib += (info.Size() + 1023) / 1024
		}
		return nil
	}))
	return kib
}

// Same input, same bytes, wherever the files lie and whenever they were made.
func TestReproducible(t *testing.T) {
	t.Parallel()
	a, b := loopback(t), loopback(t)
	assert.NilError(t, os.Chtimes(b.Files[0], time.Unix(1, 0), time.Unix(1, 0)))
	assert.NilError(t, os.Chmod(b.Files[0], 0o755))
	b.Time = b.Time.In(time.FixedZone("elsewhere", 3600))
	first, err := os.ReadFile(writeDeb(t, a))
	assert.NilError(t, err)
	second, err := os.ReadFile(writeDeb(t, b))
	assert.NilError(t, err)
	assert.Assert(t, bytes.Equal(first, second))
}

func TestScripts(t *testing.T) {
	t.Parallel()
	s := loopback(t)
	s.Kernel = "6.12.117+deb13-amd64"
	p, err := s.Compose()
	assert.NilError(t, err)
	tests := []struct {
		name   string
		script string
		args   []string
		kernel bool
		depmod string // its exit status, "" where there is none
		ran    string
		code   int
	}{
		{"installed", "postinst", []string{"configure", ""}, true, "0", "-a 6.12.117+deb13-amd64\n", 0},
		{"upgraded", "postinst", []string{"configure", "0.12.7-1"}, true, "0", "-a 6.12.117+deb13-amd64\n", 0},
		{"installed before the kernel", "postinst", []string{"configure", ""}, false, "0", "", 0},
		{"installed without depmod", "postinst", []string{"configure", ""}, true, "", "", 0},
		{"depmod fails", "postinst", []string{"configure", ""}, true, "3", "-a 6.12.117+deb13-amd64\n", 3},
		{"upgrade aborted", "postinst", []string{"abort-upgrade", "0.12.7-3"}, true, "0", "", 0},
		{"removal aborted", "postinst", []string{"abort-remove"}, true, "0", "", 0},
		{"triggered", "postinst", []string{"triggered", "x"}, true, "0", "", 0},
		{"removed", "postrm", []string{"remove"}, true, "0", "-a 6.12.117+deb13-amd64\n", 0},
		{"removed after the kernel", "postrm", []string{"remove"}, false, "0", "", 0},
		{"removed, no depmod", "postrm", []string{"remove"}, true, "", "", 0},
		{"purged", "postrm", []string{"purge"}, true, "0", "", 0},
		{"to be upgraded", "postrm", []string{"upgrade", "0.12.7-3"}, true, "0", "", 0},
		{"disappears", "postrm", []string{"disappear", "x", "1"}, true, "0", "", 0},
		{"installation aborted", "postrm", []string{"abort-install"}, true, "0", "", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			// The scripts know one absolute path; the rest is as dpkg runs them.
			text := p.Scripts[tt.script]
			assert.Assert(t, strings.HasPrefix(text, "#!/bin/sh\n"))
			assert.Assert(t, strings.Contains(text, " /lib/modules/6.12.117+deb13-amd64/"), text)
			script := filepath.Join(dir, tt.script)
			assert.NilError(t, os.WriteFile(script, []byte(strings.ReplaceAll(text, " /lib/modules/", " "+dir+"/modules/")), 0o755))
			command(t, "sh", "-n", script)
			if tt.kernel {
				assert.NilError(t, os.MkdirAll(filepath.Join(dir, "modules", s.Kernel), 0o755))
				assert.NilError(t, os.WriteFile(filepath.Join(dir, "modules", s.Kernel, "modules.builtin"), nil, 0o644))
			}
			bin := filepath.Join(dir, "bin")
			assert.NilError(t, os.Mkdir(bin, 0o755))
			if tt.depmod != "" {
				assert.NilError(t, os.WriteFile(filepath.Join(bin, "depmod"), []byte("#!/bin/sh\necho \"$*\" >>"+dir+"/ran\nexit "+tt.depmod+"\n"), 0o755))
			}
			cmd := exec.CommandContext(t.Context(), script, tt.args...)
			cmd.Env = []string{"PATH=" + bin}
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				err = nil
			}
			assert.NilError(t, err)
			assert.Equal(t, cmd.ProcessState.ExitCode(), tt.code)
			assert.Equal(t, string(out), "")
			ran, err := os.ReadFile(filepath.Join(dir, "ran"))
			if tt.ran != "" {
				assert.NilError(t, err)
			}
			assert.Equal(t, string(ran), tt.ran)
		})
	}
	for name, text := range p.Scripts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), name)
			assert.NilError(t, os.WriteFile(path, []byte(text), 0o755))
			command(t, "sh", "-n", path)
		})
	}
	assert.Equal(t, len(p.Scripts), 2)
}

// The initramfs of that kernel alone is refreshed, by whatever makes it, and only
// where there is one.
func TestInitramfs(t *testing.T) {
	t.Parallel()
	const kernel = "6.12.117+deb13-amd64"
	s := loopback(t)
	s.Kernel, s.Initramfs = kernel, true
	p, err := s.Compose()
	assert.NilError(t, err)
	const update, dracut = "update-initramfs -u -k " + kernel + "\n", "dracut --quiet --force DIR/boot/initrd.img-" + kernel + " " + kernel + "\n"
	tests := []struct {
		name     string
		script   string
		args     []string
		kernel   bool
		image    bool
		programs []string
		ran      string // after depmod
		code     int
	}{
		{"initramfs-tools", "postinst", []string{"configure", ""}, true, true, []string{"update-initramfs"}, update, 0},
		{"dracut of Debian 12", "postinst", []string{"configure", ""}, true, true, []string{"dracut"}, dracut, 0},
		{"dracut with update-initramfs", "postinst", []string{"configure", ""}, true, true, []string{"dracut", "update-initramfs"}, update, 0},
		{"neither", "postinst", []string{"configure", ""}, true, true, nil, "", 0},
		{"no initramfs", "postinst", []string{"configure", ""}, true, false, []string{"update-initramfs"}, "", 0},
		{"no kernel", "postinst", []string{"configure", ""}, false, true, []string{"update-initramfs"}, "", 0},
		{"removed", "postrm", []string{"remove"}, true, true, []string{"update-initramfs"}, update, 0},
		{"purged", "postrm", []string{"purge"}, true, true, []string{"update-initramfs"}, "", 0},
		{"it fails", "postinst", []string{"configure", ""}, true, true, []string{"false:update-initramfs"}, update, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			write := func(path, text string) {
				t.Helper()
				path = filepath.Join(dir, path)
				assert.NilError(t, os.MkdirAll(filepath.Dir(path), 0o755))
				assert.NilError(t, os.WriteFile(path, []byte(text), 0o755))
			}
			text := strings.ReplaceAll(p.Scripts[tt.script], " /lib/modules/", " "+dir+"/lib/modules/")
			write("script", strings.ReplaceAll(text, " /boot/", " "+dir+"/boot/"))
			if tt.kernel {
				write("lib/modules/"+kernel+"/modules.builtin", "")
			}
			if tt.image {
				write("boot/initrd.img-"+kernel, "")
			}
			for _, program := range append(tt.programs, "depmod") {
				name, code := program, "0"
				if failing, ok := strings.CutPrefix(program, "false:"); ok {
					name, code = failing, "1"
				}
				write("bin/"+name, "#!/bin/sh\necho \""+name+" $*\" >>"+dir+"/ran\nexit "+code+"\n")
			}
			cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "script"), tt.args...)
			cmd.Env = []string{"PATH=" + dir + "/bin"}
			out, _ := cmd.CombinedOutput()
			assert.Equal(t, string(out), "")
			assert.Equal(t, cmd.ProcessState.ExitCode(), tt.code)
			ran, err := os.ReadFile(filepath.Join(dir, "ran"))
			if err != nil {
				assert.ErrorIs(t, err, os.ErrNotExist)
			}
			after := strings.TrimPrefix(string(ran), "depmod -a "+kernel+"\n")
			assert.Equal(t, after, strings.ReplaceAll(tt.ran, "DIR", dir))
			assert.Equal(t, after != string(ran), tt.kernel && tt.args[0] != "purge")
		})
	}
}

// FuzzChangelogTime: a time out of a foreign changelog is one that a package may have.
func FuzzChangelogTime(f *testing.F) {
	for _, date := range []string{"Mon, 02 Jan 2006 15:04:05 +0000", "Mon,  2 Jan 2006 15:04:05 -0930", "Mon, 2 Jan 0001 15:04:05 +2359", "x"} {
		f.Add([]byte("foo (1.0-1) unstable; urgency=low\n\n  * x\n\n -- A B <a@example.org>  " + date + "\n"))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		at := ChangelogTime(text)
		assert.Assert(t, at.IsZero() || at.Year() >= 1980 && at.Year() <= 2100)
	})
}

// FuzzInherit: relations of a foreign package become fields that can be written.
func FuzzInherit(f *testing.F) {
	f.Add("dkms (>= 2.1), libc6-dev | libc-dev, python3:any", "a (= 1),, | b [amd64] <!x>")
	f.Add(" ,|(", "x-dkms\n y")
	f.Fuzz(func(t *testing.T, depends, virtual string) {
		control, err := deb.ParseStanza([]byte("Package: x-dkms\nVersion: 1\nDepends: " + depends + "\nProvides: " + virtual + "\n"))
		if err != nil {
			return
		}
		for _, programs := range []bool{false, true} {
			for field, groups := range inherit(control, programs) {
				_, err := deb.Stanza{{Name: field, Value: strings.Join(groups, ", ")}}.AppendTo(nil)
				assert.NilError(t, err)
			}
		}
		_, err = deb.Stanza{{Name: "Provides", Value: strings.Join(provides(control), ", ")}}.AppendTo(nil)
		assert.NilError(t, err)
	})
}
