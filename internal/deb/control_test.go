package deb

import (
	"testing"

	"gotest.tools/v3/assert"
)

func TestFilename(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, version, arch, want string }{
		{"foo", "1.0-1", "amd64", "foo_1.0-1_amd64.deb"},
		{"foo-modules-6.1.0-9-amd64", "1:0.12.7-2+6.1.192.2", "amd64", "foo-modules-6.1.0-9-amd64_0.12.7-2+6.1.192.2_amd64.deb"},
		{"foo", "1:2:3", "all", "foo_2:3_all.deb"},
		{"../etc/foo", "1 \x002", "a/b", ".._etc_foo_1__2_a_b.deb"},
	} {
		t.Run(tc.want, func(t *testing.T) {
			t.Parallel()
			s := Stanza{{"Package", tc.name}, {"Version", tc.version}, {"Architecture", tc.arch}}
			assert.Equal(t, Filename(s), tc.want)
		})
	}
}

func TestValidateNameAndArch(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"0ad", "a1", "libstdc++6", "a.b-c"} {
		assert.NilError(t, ValidateName(name))
	}
	for _, name := range []string{"", "a", "Ab", "a_b", "+ab", "-ab", "a b", "aé", "a/b"} {
		assert.ErrorContains(t, ValidateName(name), "invalid package name", name)
	}
	for _, arch := range []string{"amd64", "all", "kfreebsd-i386"} {
		assert.NilError(t, ValidateArch(arch))
	}
	for _, arch := range []string{"", "am_d64", "-x", "amd64 i386", "AMD64"} {
		assert.ErrorContains(t, ValidateArch(arch), "architecture", arch)
	}
}
