package kernel

import (
	"testing"

	"gotest.tools/v3/assert"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	facts := func(arch, vermagic string) Facts {
		a, _ := ArchOfDebian(arch)
		release := "6.1.0-56-" + arch
		return Facts{
			Release: release, Vermagic: release + " " + vermagic,
			Arch: a.Debian, Machine: a.Machine, Class: a.Class, Data: a.Data,
		}
	}
	amd64 := facts("amd64", "SMP preempt mod_unload modversions ")
	either := facts("amd64", "SMP preempt_rt mod_unload ")
	either.eitherPreempt = true
	unknown := Facts{Release: "6.1.0-56-xtensa", Vermagic: "6.1.0-56-xtensa SMP "}
	tests := []struct {
		name           string
		facts          Facts
		arch, vermagic string
		err            string
	}{
		{"same", amd64, "amd64", amd64.Vermagic, ""},
		{"no space at the end", amd64, "amd64", "6.1.0-56-amd64 SMP preempt mod_unload modversions", ""},
		{"word of the architecture", facts("arm64", "SMP mod_unload "), "arm64", "6.1.0-56-arm64 SMP mod_unload aarch64", ""},
		{"words of the architecture", facts("armhf", "SMP mod_unload "), "armhf", "6.1.0-56-armhf SMP mod_unload ARMv7 p2v8 ", ""},
		{"random layout", amd64, "amd64", amd64.Vermagic + "RANDSTRUCT_0123", ""},
		{"preempt or preempt_rt", either, "amd64", "6.1.0-56-amd64 SMP preempt mod_unload ", ""},
		{"preempt_rt or preempt", either, "amd64", "6.1.0-56-amd64 SMP preempt_rt mod_unload ", ""},
		{"architecture not known", unknown, "amd64", "6.1.0-56-xtensa SMP ", ""},
		{
			"other release", amd64, "amd64", "6.1.0-50-amd64 SMP preempt mod_unload modversions ",
			`module v4l2loopback.ko is built for 6.1.0-50-amd64 (vermagic "6.1.0-50-amd64 SMP preempt mod_unload modversions "), not for 6.1.0-56-amd64`,
		},
		{"longer release", amd64, "amd64", "6.1.0-56-amd64-x SMP preempt mod_unload modversions ", "is built for 6.1.0-56-amd64-x"},
		{
			"no modversions", amd64, "amd64", "6.1.0-56-amd64 SMP preempt mod_unload ",
			`module v4l2loopback.ko has vermagic "6.1.0-56-amd64 SMP preempt mod_unload ", but the kernel wants "6.1.0-56-amd64 SMP preempt mod_unload modversions ": it is built with another configuration`,
		},
		{"other preemption", amd64, "amd64", "6.1.0-56-amd64 SMP preempt_rt mod_unload modversions ", "another configuration"},
		{"none", amd64, "amd64", "", "module v4l2loopback.ko has no vermagic: it is not built for any kernel"},
		{"machine", amd64, "arm64", amd64.Vermagic, "module v4l2loopback.ko is for arm64, not for amd64"},
		{"class", amd64, "i386", amd64.Vermagic, "module v4l2loopback.ko is for i386, not for amd64"},
		{"byte order", facts("ppc64el", ""), "ppc64", "6.1.0-56-ppc64el ", "is for ppc64, not for ppc64el"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m, err := ReadModule(writeFile(t, "v4l2loopback.ko", testModule{arch: tt.arch, info: []string{"vermagic=" + tt.vermagic}}.build(t)))
			assert.NilError(t, err)
			err = tt.facts.Check(m)
			if tt.err == "" {
				assert.NilError(t, err)
				return
			}
			assert.ErrorContains(t, err, tt.err)
		})
	}
}

func TestNearest(t *testing.T) {
	t.Parallel()
	debian := []string{
		"6.1.0-49-amd64", "6.1.0-56-cloud-amd64", "6.1.0-56-amd64", "6.1.0-53-amd64", "6.12.95+deb12-amd64",
		"6.1.0-56-rt-amd64", "5.10.0-46-amd64", "6.1.0-56-amd64",
	}
	tests := []struct {
		want string
		have []string
		n    int
		list []string
	}{
		{"6.1.0-99-amd64", debian, 3, []string{"6.1.0-56-amd64", "6.1.0-53-amd64", "6.1.0-49-amd64"}},
		{"6.1.0-51-amd64", debian, 2, []string{"6.1.0-53-amd64", "6.1.0-49-amd64"}},
		{"6.1.0-56-cloud-amd64", debian, 2, []string{"6.1.0-56-cloud-amd64", "6.1.0-56-amd64"}},
		{"6.12.100+deb12-amd64", debian, 1, []string{"6.12.95+deb12-amd64"}},
		{"5.4.0-1-amd64", debian, 1, []string{"5.10.0-46-amd64"}},
		{"6.1.0-40-686-pae", []string{"6.1.0-40-686", "6.1.0-20-686-pae"}, 1, []string{"6.1.0-20-686-pae"}},
		{"6.12.9+deb13-686", []string{"6.12.9+deb13-686-pae", "6.12.1+deb13-686"}, 1, []string{"6.12.1+deb13-686"}},
		{"6.8.0-50-generic", []string{"6.8.0-45-generic", "6.8.0-1020-aws", "6.11.0-19-generic"}, 9, []string{"6.8.0-45-generic", "6.11.0-19-generic", "6.8.0-1020-aws"}},
		{"6.2.0-rc2-amd64", []string{"6.2.0-rc7-amd64", "6.2.0-rc3-amd64"}, 1, []string{"6.2.0-rc3-amd64"}},
		{"", debian, 0, []string{}},
		{"x", nil, 3, []string{}},
		{"99999999999999999999999-amd64", []string{"6.1.0-56-amd64"}, 1, []string{"6.1.0-56-amd64"}},
	}
	for _, tt := range tests {
		assert.DeepEqual(t, Nearest(tt.want, tt.have, tt.n), tt.list)
	}
}
