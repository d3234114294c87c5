package main

import (
	"crypto/sha256"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/sandbox"
	"dkms2bin/internal/state"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

// bookworm with backports, as apt-cache shows it: the newest of each first.
func bookworm() map[string][]apt.Candidate {
	c := func(name, version, arch, depends string) apt.Candidate {
		return apt.Candidate{Name: "linux-headers-" + name, Version: version, Architecture: arch, Depends: depends}
	}
	return map[string][]apt.Candidate{
		"linux-headers-amd64": {
			c("amd64", "6.12.57-1~bpo12+1", "amd64", "linux-headers-6.12.57+deb12-amd64 (= 6.12.57-1~bpo12+1)"),
			c("amd64", "6.1.192-2", "amd64", "linux-headers-6.1.0-56-amd64 (= 6.1.192-2)"),
		},
		"linux-headers-6.12.57+deb12-amd64": {c("6.12.57+deb12-amd64", "6.12.57-1~bpo12+1", "amd64", "linux-headers-6.12.57+deb12-common (= 6.12.57-1~bpo12+1)")},
		"linux-headers-6.12-amd64":          {c("6.12-amd64", "6.12.57-1~bpo12+1", "amd64", "linux-headers-6.12.57+deb12-amd64 (= 6.12.57-1~bpo12+1)")},
		"linux-headers-6.1.0-56-amd64":      {c("6.1.0-56-amd64", "6.1.192-2", "amd64", "linux-headers-6.1.0-56-common (= 6.1.192-2), linux-kbuild-6.1")},
		"linux-headers-6.1.0-9-amd64":       {c("6.1.0-9-amd64", "6.1.100-1", "amd64", "linux-headers-6.1.0-9-common (= 6.1.100-1), linux-kbuild-6.1")},
		"linux-headers-6.1.0-56-common":     {c("6.1.0-56-common", "6.1.192-2", "all", "")},
		"linux-headers-generic":             {c("generic", "6.8.0-100", "amd64", "linux-headers-generic-6.8 | linux-headers-none")},
		"linux-headers-generic-6.8":         {c("generic-6.8", "6.8.0-100", "amd64", "linux-headers-6.8.0-100, linux-headers-6.8.0-100-generic")},
		"linux-headers-6.8.0-100":           {c("6.8.0-100", "6.8.0-100", "all", "")},
		"linux-headers-6.8.0-100-generic":   {c("6.8.0-100-generic", "6.8.0-100", "amd64", "linux-headers-6.8.0-100")},
		"linux-headers-6.18.1-site":         {c("6.18.1-site", "6.18.1-3", "amd64", "")},
		"linux-headers-6.18.12-site":        {c("6.18.12-site", "6.18.12-1", "amd64", "")},
		"linux-headers-loop":                {c("loop", "1", "amd64", "linux-headers-other")},
		"linux-headers-other":               {c("other", "1", "amd64", "linux-headers-loop")},
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
		{"of a series", "6.12-amd64", nil, "6.12.57+deb12-amd64", ""},
		{"by way of another one, past those for all architectures", "generic", nil, "6.8.0-100-generic", ""},
		{"not to be had itself, and its kernels by their names", "amd64", map[string]string{"linux-headers-amd64": ""}, "6.12.57+deb12-amd64", ""},
		{"without a metapackage", "site", nil, "6.18.12-site", ""},
		{"no such package", "arm64", nil, "", "the repositories have no package linux-headers-arm64"},
		{"in circles", "loop", nil, "", "leads to no kernel's headers"},
		{"nowhere", "leaf", nil, "", "leads to no kernel's headers"},
		{"no flavour", "", nil, "", "no default kernel flavour is known"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := newOffer(bookworm(), preferred(tt.preferred), nil, "amd64").current(tt.flavour)
			if tt.err != "" {
				assert.ErrorContains(t, err, tt.err)
				return
			}
			assert.NilError(t, err)
			assert.Equal(t, got, tt.want)
		})
	}
}

func TestNewOffer(t *testing.T) {
	t.Parallel()
	present := map[string]apt.Candidate{
		"6.1.0-56-amd64": {Name: "linux-headers-6.1.0-56-amd64", Version: "1"},
		"6.6.1-HOME_1":   {Name: "home-kernel", Version: "1"},
	}
	o := newOffer(bookworm(), preferred(map[string]string{"linux-headers-6.1.0-9-amd64": "", "linux-headers-amd64": "6.1.192-2"}), present, "amd64")
	assert.DeepEqual(t, o.releases(), []string{"6.1.0-56-amd64", "6.12.57+deb12-amd64", "6.18.1-site", "6.18.12-site", "6.6.1-home-1", "6.8.0-100-generic"})
	assert.Equal(t, o.usable["linux-headers-amd64"].Depends, "linux-headers-6.1.0-56-amd64 (= 6.1.192-2)")
	assert.Equal(t, o.usable["linux-headers-6.1.0-56-amd64"].Version, "6.1.192-2")
	for release, want := range map[string]string{
		"6.6.1-HOME_1":        "home-kernel",
		"6.1.0-9-amd64":       "apt has no version of linux-headers-6.1.0-9-amd64 that may be installed",
		"6.12-amd64":          "the repositories have no headers for the kernel 6.12-amd64",
		"6.1.0-56-common":     "the repositories have no headers for the kernel 6.1.0-56-common",
		"6.1.0-56":            "the repositories have no headers for the kernel 6.1.0-56",
		"6.12.57+deb12-amd64": "linux-headers-6.12.57+deb12-amd64",
	} {
		found, err := o.headersOf(release)
		if err != nil {
			assert.Equal(t, err.Error(), want)
			continue
		}
		assert.Equal(t, len(found), 1, release)
		assert.Equal(t, found[0].Name, want)
	}
	assert.DeepEqual(t, o.series("6.18.1-site"), []string{"6.18.12-site", "6.18.1-site"})
}

func TestFresh(t *testing.T) {
	t.Parallel()
	const a, b, c, d = "6.1.0-56-amd64", "6.1.0-55-amd64", "6.1.0-9-amd64", "6.1.0-57-amd64"
	tests := []struct {
		name  string
		there []string
		keep  int
		want  []string
	}{
		{"none there", nil, 0, []string{a, b, c}},
		{"the newest there", []string{a}, 0, []string{b, c}},
		{"all there", []string{a, b, c}, 0, nil},
		{"only some count", nil, 2, []string{a, b}},
		{"what was removed is not new again", []string{a, b}, 2, nil},
		{"a newer one than the repositories' counts", []string{d}, 2, []string{a}},
		{"one of another flavour does not", []string{"6.1.0-57-cloud-amd64"}, 2, []string{a, b}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			there := map[string]bool{}
			for _, r := range tt.there {
				there[r] = true
			}
			assert.DeepEqual(t, fresh([]string{a, b, c}, there, tt.keep), tt.want)
		})
	}
}

func TestKernelsWithPackages(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{
		"x-modules-6.1.0-56-amd64_1.0-1+6.1.192.2_amd64.deb",
		"sub/y-modules-6.1.0-55-amd64_1_amd64.deb",
		"x-modules-6.1.0-54-arm64_1_arm64.deb",
		"linux-image-6.1.0-53-amd64_1_amd64.deb",
		"x-modules-amd64_1_amd64.deb",
		".dkms2bin/x-modules-6.1.0-52-amd64_1_amd64.deb",
		".x-modules-6.1.0-51-amd64_1_amd64.deb",
		"x-modules-6.1.0-50-amd64_1_amd64.deb.part",
	} {
		write(t, filepath.Join(dir, name), "")
	}
	found, err := kernelsWithPackages(dir, "amd64")
	assert.NilError(t, err)
	assert.DeepEqual(t, found, map[string]bool{"6.1.0-56-amd64": true, "6.1.0-55-amd64": true})
	found, err = kernelsWithPackages(filepath.Join(dir, "none"), "amd64")
	assert.NilError(t, err)
	assert.Equal(t, len(found), 0)
}

// archive is an apt, in a sandbox, that knows the packages and nothing else.
func archive(t *testing.T, packages string) apt.Inside {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("the tests of apt in a sandbox need root")
	}
	const seenAs = "/tmp/apt"
	dir := t.TempDir()
	for _, d := range []string{"etc/preferences.d", "etc/trusted.gpg.d", "state/lists/partial", "cache/archives/partial"} {
		assert.NilError(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	write(t, filepath.Join(dir, "state/status"), "")
	write(t, filepath.Join(dir, "repo/dists/one/main/binary-amd64/Packages"), packages)
	write(t, filepath.Join(dir, "repo/dists/one/Release"), fmt.Sprintf(
		"Architectures: amd64\nComponents: main\nDate: Sat, 01 Nov 2025 00:00:00 UTC\nSHA256:\n %x %d main/binary-amd64/Packages\n", sha256.Sum256([]byte(packages)), len(packages)))
	write(t, filepath.Join(dir, "etc/sources.list"), "deb [trusted=yes] copy:"+seenAs+"/repo one main\n")
	write(t, filepath.Join(dir, "apt.conf"), strings.ReplaceAll(`Dir::Etc "DIR/etc"; Dir::State "DIR/state"; Dir::State::status "DIR/state/status"; Dir::Cache "DIR/cache";
APT::Sandbox::User "root"; APT::Architecture "amd64"; APT::Architectures { "amd64"; }; Debug::NoLocking "true";
`, "DIR", seenAs)+apt.Config)
	inside := apt.Inside{Spec: sandbox.Spec{
		Root: sandbox.Root{Host: true}, Mountpoint: t.TempDir(),
		Env:   append(sandbox.DefaultEnv(), "APT_CONFIG="+seenAs+"/apt.conf"),
		Binds: []sandbox.Bind{{Source: dir, Target: seenAs, Write: true}},
	}}
	assert.NilError(t, inside.Update(t.Context()))
	return inside
}

// pkg describes packages of one version, each as "NAME[:all] [FIELD: value; ...]".
func pkg(version string, packages ...string) string {
	var b strings.Builder
	for _, p := range packages {
		name, fields, _ := strings.Cut(p, " ")
		name, all, _ := strings.Cut(name, ":")
		arch := "amd64"
		if all != "" {
			arch = all
		}
		fmt.Fprintf(&b, "Package: %s\nVersion: %s\nArchitecture: %s\n", name, version, arch)
		if !strings.Contains(fields, "Description: ") {
			b.WriteString("Description: x\n")
		}
		for field := range strings.SplitSeq(fields, "; ") {
			if field != "" {
				b.WriteString(field + "\n")
			}
		}
		fmt.Fprintf(&b, "Filename: pool/%s.deb\nSize: 4\nSHA256: %064d\n\n", name, 1)
	}
	return b.String()
}

// The names of distributions and vendors, as far as apt can tell them.
func TestKernelNames(t *testing.T) {
	t.Parallel()
	meta := func(name, to string) string { return "linux-headers-" + name + " Depends: linux-headers-" + to }
	ubuntu := func(version, abi, flavour string) string {
		return pkg(version, "linux-headers-"+abi+":all", "linux-headers-"+abi+"-"+flavour+" Depends: linux-headers-"+abi+", libc6 (>= 2.34)",
			"linux-image-"+abi+"-"+flavour, "linux-image-unsigned-"+abi+"-"+flavour, "linux-image-"+abi+"-"+flavour+"-dbgsym",
			"linux-modules-"+abi+"-"+flavour, "linux-modules-extra-"+abi+"-"+flavour, "linux-buildinfo-"+abi+"-"+flavour)
	}
	xenial := pkg("4.4.0-210.242", "linux-headers-4.4.0-210:all", "linux-headers-4.4.0-210-generic Depends: linux-headers-4.4.0-210",
		"linux-headers-4.4.0-210-lowlatency Depends: linux-headers-4.4.0-210", "linux-image-4.4.0-210-generic", "linux-image-extra-4.4.0-210-generic",
		"linux-signed-image-4.4.0-210-generic Depends: linux-image-4.4.0-210-generic") +
		pkg("4.4.0.210.216", meta("generic", "4.4.0-210-generic"), meta("lowlatency", "4.4.0-210-lowlatency"), meta("virtual", "4.4.0-210-generic")) +
		pkg("4.15.0.142.137", meta("generic-hwe-16.04", "4.15.0-142-generic")) + ubuntu("4.15.0-142.146~16.04.1", "4.15.0-142", "generic")
	jammy := ubuntu("5.15.0-91.101", "5.15.0-91", "generic") + ubuntu("5.15.0-88.98", "5.15.0-88", "generic") + ubuntu("5.15.0-91.101", "5.15.0-91", "lowlatency") +
		ubuntu("6.8.0-52.53~22.04.1", "6.8.0-52", "generic") +
		pkg("5.15.0.91.88", meta("generic", "5.15.0-91-generic"), meta("lowlatency", "5.15.0-91-lowlatency")) +
		pkg("6.8.0-52.53~22.04.1", meta("generic-hwe-22.04", "6.8.0-52-generic"))
	noble := pkg("6.14.0-29.29~24.04.1", "linux-headers-6.14.0-29-generic Depends: linux-hwe-6.14-headers-6.14.0-29", "linux-hwe-6.14-headers-6.14.0-29:all",
		"linux-image-6.14.0-29-generic", "linux-image-unsigned-6.14.0-29-generic") + ubuntu("6.8.0-100.100", "6.8.0-100", "generic") +
		pkg("6.8.0-100.100", meta("generic", "6.8.0-100-generic")) + pkg("6.14.0-29.29~24.04.1", meta("generic-hwe-24.04", "6.14.0-29-generic"))
	debian := pkg("6.1.192-2", "linux-headers-6.1.0-56-amd64 Depends: linux-headers-6.1.0-56-common (= 6.1.192-2)", "linux-headers-6.1.0-56-common:all",
		"linux-headers-6.1.0-56-cloud-amd64 Depends: linux-headers-6.1.0-56-common (= 6.1.192-2)", "linux-headers-6.1.0-56-rt-amd64",
		"linux-image-6.1.0-56-amd64", "linux-image-6.1.0-56-amd64-unsigned", "linux-image-6.1.0-56-amd64-dbg", "linux-image-6.1.0-56-cloud-amd64",
		meta("amd64", "6.1.0-56-amd64 (= 6.1.192-2)"), meta("cloud-amd64", "6.1.0-56-cloud-amd64 (= 6.1.192-2)"))
	vendors := debian +
		pkg("6.8.12-1", "proxmox-headers-6.8.12-1-pve", "proxmox-headers-6.8:all Depends: proxmox-headers-6.8.12-1-pve", "proxmox-kernel-6.8.12-1-pve-signed", "proxmox-kernel-6.8.12-1-pve") +
		pkg("6.2.16-20", "pve-headers-6.2.16-20-pve", "pve-kernel-6.2.16-20-pve") +
		pkg("24.2.1", "linux-headers-current-sunxi64 Description: Armbian Linux current headers 6.6.16-current-sunxi64", "linux-image-current-sunxi64", "linux-dtb-current-sunxi64") +
		pkg("7", "acme-dev-headers Provides: linux-headers-6.9.1-acme, linux-headers", "acme-vmlinux Provides: linux-image-6.9.1-acme") +
		pkg("6.10.3-1", "linux-headers-6.10.3-site-1", "linux-image-6.10.3-site-1", "linux-libc-dev") +
		pkg("1", "linux-headers-6.11.1-bare", "linux-headers-6.12.1-other Depends: libc6", "other-headers-6.12.1-other")
	for name, tt := range map[string]struct {
		packages, distribution string
		want                   selection
		headers, images, err   string // by release: "RELEASE=PACKAGE ..."
	}{
		"Debian":                          {debian, "debian", selection{}, "6.1.0-56-amd64=linux-headers-6.1.0-56-amd64", "linux-image-6.1.0-56-amd64 linux-image-6.1.0-56-amd64-unsigned", ""},
		"Debian, cloud":                   {debian, "debian", selection{flavour: "cloud-amd64"}, "6.1.0-56-cloud-amd64=linux-headers-6.1.0-56-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64", ""},
		"Debian, rt, its image not there": {debian, "debian", selection{releases: []string{"6.1.0-56-rt-amd64"}}, "6.1.0-56-rt-amd64=linux-headers-6.1.0-56-rt-amd64", "", ""},
		"xenial":                          {xenial, "ubuntu", selection{}, "4.4.0-210-generic=linux-headers-4.4.0-210-generic", "linux-image-4.4.0-210-generic", ""},
		"xenial, by way of virtual":       {xenial, "ubuntu", selection{flavour: "virtual"}, "4.4.0-210-generic=linux-headers-4.4.0-210-generic", "linux-image-4.4.0-210-generic", ""},
		"xenial, HWE":                     {xenial, "ubuntu", selection{flavour: "generic-hwe-16.04"}, "4.15.0-142-generic=linux-headers-4.15.0-142-generic", "linux-image-4.15.0-142-generic linux-image-unsigned-4.15.0-142-generic", ""},
		"jammy":                           {jammy, "ubuntu", selection{}, "5.15.0-91-generic=linux-headers-5.15.0-91-generic", "linux-image-5.15.0-91-generic linux-image-unsigned-5.15.0-91-generic", ""},
		"jammy, lowlatency":               {jammy, "ubuntu", selection{flavour: "lowlatency"}, "5.15.0-91-lowlatency=linux-headers-5.15.0-91-lowlatency", "linux-image-5.15.0-91-lowlatency linux-image-unsigned-5.15.0-91-lowlatency", ""},
		"jammy, all of the series":        {jammy, "ubuntu", selection{fresh: true, outDir: "/nonexistent"}, "5.15.0-91-generic=linux-headers-5.15.0-91-generic 5.15.0-88-generic=linux-headers-5.15.0-88-generic", "linux-image-5.15.0-91-generic linux-image-unsigned-5.15.0-91-generic", ""},
		"jammy, HWE, all":                 {jammy, "ubuntu", selection{fresh: true, outDir: "/nonexistent", flavour: "generic-hwe-22.04"}, "6.8.0-52-generic=linux-headers-6.8.0-52-generic", "linux-image-6.8.0-52-generic linux-image-unsigned-6.8.0-52-generic", ""},
		"noble, HWE":                      {noble, "ubuntu", selection{flavour: "generic-hwe-24.04"}, "6.14.0-29-generic=linux-headers-6.14.0-29-generic", "linux-image-6.14.0-29-generic linux-image-unsigned-6.14.0-29-generic", ""},
		"Proxmox":                         {vendors, "debian", selection{releases: []string{"6.8.12-1-pve"}}, "6.8.12-1-pve=proxmox-headers-6.8.12-1-pve", "proxmox-kernel-6.8.12-1-pve-signed proxmox-kernel-6.8.12-1-pve", ""},
		"Proxmox, by flavour":             {vendors, "debian", selection{flavour: "pve"}, "6.8.12-1-pve=proxmox-headers-6.8.12-1-pve", "proxmox-kernel-6.8.12-1-pve-signed proxmox-kernel-6.8.12-1-pve", ""},
		"older Proxmox":                   {vendors, "debian", selection{releases: []string{"6.2.16-20-pve"}}, "6.2.16-20-pve=pve-headers-6.2.16-20-pve", "pve-kernel-6.2.16-20-pve", ""},
		"no release in the names":         {vendors, "debian", selection{releases: []string{"6.6.16-current-sunxi64"}}, "6.6.16-current-sunxi64=linux-headers-current-sunxi64", "linux-image-current-sunxi64", ""},
		"provided":                        {vendors, "debian", selection{releases: []string{"6.9.1-acme"}}, "6.9.1-acme=acme-dev-headers", "acme-vmlinux", ""},
		"deb-pkg, with a capital and an underscore": {vendors, "debian", selection{releases: []string{"6.10.3-SITE_1"}}, "6.10.3-SITE_1=linux-headers-6.10.3-site-1", "linux-image-6.10.3-site-1", ""},
		"no image":               {vendors, "debian", selection{releases: []string{"6.11.1-bare"}}, "6.11.1-bare=linux-headers-6.11.1-bare", "", ""},
		"two of a name":          {vendors, "debian", selection{releases: []string{"6.12.1-other"}}, "6.12.1-other=linux-headers-6.12.1-other,other-headers-6.12.1-other", "", ""},
		"new beside a named one": {vendors, "debian", selection{releases: []string{"6.11.1-bare"}, fresh: true, outDir: "/nonexistent"}, "6.11.1-bare=linux-headers-6.11.1-bare 6.1.0-56-amd64=linux-headers-6.1.0-56-amd64", "", ""},
		"unknown":                {debian, "debian", selection{releases: []string{"6.1.0-57-amd64"}}, "", "", "the repositories have no headers for the kernel 6.1.0-57-amd64 (the nearest that they have: 6.1.0-56-amd64, 6.1.0-56-cloud-amd64, 6.1.0-56-rt-amd64)"},
		"unknown flavour":        {debian, "debian", selection{flavour: "pve"}, "", "", "the repositories have no package linux-headers-pve (name a kernel with --kver; there are: 6.1.0-56-amd64, 6.1.0-56-cloud-amd64, 6.1.0-56-rt-amd64)"},
		"none at all":            {pkg("1", "bash"), "debian", selection{releases: []string{"6.1.0-57-amd64"}}, "", "", "the repositories have no headers for the kernel 6.1.0-57-amd64 (they have none for any kernel: is the right repository among them?)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inside := archive(t, tt.packages)
			all, err := inside.Names(t.Context())
			assert.NilError(t, err)
			offered, err := askHeaders(t.Context(), inside, all)
			assert.NilError(t, err)
			targets, err := findKernels(offered.offer("amd64"), &state.Tree{Distribution: tt.distribution, Architecture: "amd64"}, tt.want)
			if tt.err != "" {
				assert.Assert(t, err != nil)
				assert.Equal(t, fmt.Sprintf("%v (%s)", err, diag.Hint(err)), tt.err)
				return
			}
			assert.NilError(t, err)
			var headers []string
			for _, target := range targets {
				var names []string
				for _, c := range target.headers {
					names = append(names, c.Name)
				}
				headers = append(headers, target.Release+"="+strings.Join(names, ","))
				assert.Equal(t, target.Requested, slices.Contains(tt.want.releases, target.Release))
			}
			assert.Equal(t, strings.Join(headers, " "), tt.headers)
			k := targets[0].Kernel
			k.Headers, k.Version = targets[0].headers[0].Name, targets[0].headers[0].Version
			images, err := findImages(t.Context(), inside, inside, all, k, "amd64")
			assert.NilError(t, err)
			var names []string
			for _, image := range images {
				names = append(names, image.Package)
				assert.Assert(t, image.Version != "")
			}
			assert.Equal(t, strings.Join(names, " "), tt.images)
		})
	}
}
