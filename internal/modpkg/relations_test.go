package modpkg

import (
	"dkms2bin/internal/deb"
	"testing"

	"gotest.tools/v3/assert"
)

// The rows are real packages of Debian, but for the last ones.
func TestInherit(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, control string
		programs      bool
		want          map[string][]string
	}{
		{"nothing but dkms", "Depends: dkms (>= 2.1.0.0)\n", false, map[string][]string{}},
		{"bbswitch-dkms", "Depends: dkms (>= 2.1.0.0)\nSuggests: bumblebee\n", false, map[string][]string{"Suggests": {"bumblebee"}}},
		{
			"dahdi-dkms", "Depends: dkms (>= 3.0.11)\nPre-Depends: openssl, dkms, linux-headers-generic, gcc, libc6-dev | libc-dev\nRecommends: dahdi-linux\n", false,
			map[string][]string{"Recommends": {"dahdi-linux"}},
		},
		{
			"digimend-dkms", "Depends: dkms (>= 3.0.11), xserver-xorg-input-wacom\n", true,
			map[string][]string{"Depends": {"xserver-xorg-input-wacom"}},
		},
		{
			"iptables-netflow-dkms", "Depends: dkms (>= 3.0.11), libc6-dev, libxtables-dev, pkgconf, libc6 (>= 2.3.4)\nRecommends: iptables\nSuggests: irqtop, nfdump\n", true,
			map[string][]string{"Depends": {"libc6 (>= 2.3.4)"}, "Recommends": {"iptables"}, "Suggests": {"irqtop", "nfdump"}},
		},
		{
			"openafs-modules-dkms", "Depends: dkms (>= 3.0.11), perl:any, libc6-dev\nRecommends: openafs-client (>= 1.8.17~pre1-1)\n", false,
			map[string][]string{"Recommends": {"openafs-client (>= 1.8.17~pre1-1)"}},
		},
		{"its interpreter, with programs", "Depends: dkms, perl:any, python3\n", true, map[string][]string{"Depends": {"perl:any", "python3"}}},
		{
			"lime-forensics-dkms", "Depends: dkms\nRecommends: linux-headers-amd64 | linux-headers-686-pae\n  | linux-headers\n", false,
			map[string][]string{},
		},
		{
			"mimic-dkms", "Depends: dkms (>= 3.0.11), libelf1t64 (>= 0.144)\nRecommends: pahole, bubblewrap\nConflicts: mimic-modules\n", true,
			map[string][]string{"Depends": {"libelf1t64 (>= 0.144)"}, "Recommends": {"bubblewrap"}},
		},
		{
			"nvidia-kernel-dkms", "Depends: firmware-nvidia-gsp (= 550.163.01) | firmware-nvidia-gsp-550.163.01, nvidia-kernel-support--v1, dkms (>= 3.0.11)\nPre-Depends: nvidia-installer-cleanup\n", false,
			map[string][]string{"Depends": {"nvidia-installer-cleanup", "firmware-nvidia-gsp (= 550.163.01) | firmware-nvidia-gsp-550.163.01", "nvidia-kernel-support--v1"}},
		},
		{"modules of another package", "Depends: nvidia-kernel-dkms (>= 550) | nvidia-kernel-dkms-any (>= 550), dkms\n", false, map[string][]string{}},
		{
			"zfs-dkms", "Depends: dkms (>= 3.0.11), file, libc6-dev | libc-dev, lsb-release, libpython3-stdlib, debconf (>= 0.5) | debconf-2.0\n" +
				"Recommends: zfs-zed, linux-libc-dev (<< 7.3~)\nSuggests: debhelper\nBreaks: spl-dkms (<< 0.8.0~rc1), zfs-fuse (<< 2.4.4-1)\n", false,
			map[string][]string{"Recommends": {"zfs-zed"}, "Breaks": {"zfs-fuse (<< 2.4.4-1)"}},
		},
		{
			"ezurio-qcacld-2.0-dkms", "Depends: dkms\nBreaks: ezurio-qca-firmware (<< 0.0~git20230404.bad01ca-2~)\n", false,
			map[string][]string{"Breaks": {"ezurio-qca-firmware (<< 0.0~git20230404.bad01ca-2~)"}},
		},
		{"other sources of modules", "Conflicts: dahdi-dkms, ngcp-rtpengine-kernel-dkms\nBreaks: sl-modem-source (<< 2.9.11)\n", false, map[string][]string{}},
		{"odd commas and alternatives", "Depends: ,dkms,, a|b ,a|b, c [amd64], gcc | d\n", false, map[string][]string{"Depends": {"a|b", "c [amd64]"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			control, err := deb.ParseStanza([]byte("Package: x\n" + tt.control))
			assert.NilError(t, err)
			assert.DeepEqual(t, inherit(control, tt.programs), tt.want)
		})
	}
}

func TestRelations(t *testing.T) {
	t.Parallel()
	control, err := deb.ParseStanza([]byte("Package: mimic-dkms\nVersion: 0.7.0+ds-2\nProvides: mimic-modules (= 0.7.0+ds-2), mimic-any\n" +
		"Depends: dkms, udev\nRecommends: mimic\nConflicts: mimic-modules\n"))
	assert.NilError(t, err)
	const image = "linux-image-6.1.0-56-amd64 | linux-image-6.1.0-56-amd64-unsigned"
	own := "mimic-modules (= 0.12.7-2+6.1.192.2)"
	for _, tt := range []struct {
		name   string
		change func(*Spec)
		want   map[string][]string
	}{
		{"a source directory", func(s *Spec) { s.DKMS = nil }, map[string][]string{"Depends": {image}, "Provides": {own}}},
		{"nothing shipped", func(*Spec) {}, map[string][]string{"Depends": {image, "udev"}, "Recommends": {"mimic"}, "Provides": {own}}},
		{
			"recommended", func(s *Spec) { s.ImageDependency = "recommends" },
			map[string][]string{"Depends": {"udev"}, "Recommends": {image, "mimic"}, "Provides": {own}},
		},
		{"no image", func(s *Spec) { s.ImageDependency = "none" }, map[string][]string{"Depends": {"udev"}, "Recommends": {"mimic"}, "Provides": {own}}},
		{
			"something shipped", func(s *Spec) { s.Common = "mimic-modules-common (>= 0.7.0+ds-2)" },
			map[string][]string{"Depends": {image, "mimic-modules-common (>= 0.7.0+ds-2)"}, "Provides": {own}},
		},
		{
			"in its place", func(s *Spec) { s.ProvideDKMS = true },
			map[string][]string{"Depends": {image, "udev"}, "Recommends": {"mimic"}, "Provides": {own, "mimic-dkms (= 0.7.0+ds-2)", "mimic-any"}},
		},
		{
			"in the place of a source directory", func(s *Spec) { s.DKMS, s.ProvideDKMS = nil, true },
			map[string][]string{"Depends": {image}, "Provides": {own}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := loopback(t)
			s.Module, s.DKMS = "mimic", control
			tt.change(&s)
			assert.DeepEqual(t, s.relations(), tt.want)
		})
	}
}
