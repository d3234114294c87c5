package dkms

import (
	"testing"

	"gotest.tools/v3/assert"
)

func TestParseStatus(t *testing.T) {
	t.Parallel()
	const k = "6.1.0-56-amd64"
	tests := []struct {
		line string
		want Status
	}{
		{"wireguard, 1.0.20210219: added", Status{"wireguard", "1.0.20210219", "", "", "added", ""}},
		{"acpi-call, 1.1.0, 5.10.0-46-amd64, x86_64: installed", Status{"acpi-call", "1.1.0", "5.10.0-46-amd64", "x86_64", "installed", ""}},
		{"acpi-call/1.2.2, 6.1.0-56-amd64, x86_64: installed", Status{"acpi-call", "1.2.2", k, "x86_64", "installed", ""}},
		{"librem_ec_acpi/0.9.1: added", Status{"librem_ec_acpi", "0.9.1", "", "", "added", ""}},
		{"openafs/0.0~git20240408.aa96a9f+dfsg, 6.1.0-56-amd64, x86_64: built", Status{"openafs", "0.0~git20240408.aa96a9f+dfsg", k, "x86_64", "built", ""}},
		{"a/1: broken", Status{"a", "1", "", "", "broken", ""}},
		{"a, 1, 6.1.0-56-amd64, x86_64: installed (original_module exists)", Status{"a", "1", k, "x86_64", "installed", "original_module exists"}},
		{
			"a, 1, 6.1.0-56-amd64, x86_64: installed (original_module exists) (WARNING! Diff between built and installed module!)",
			Status{"a", "1", k, "x86_64", "installed", "original_module exists; WARNING! Diff between built and installed module!"},
		},
		{
			"a/1, 6.1.0-56-amd64, x86_64: installed (Original modules exist)",
			Status{"a", "1", k, "x86_64", "installed", "Original modules exist"},
		},
		{
			"a/1, 6.12.117+deb13-amd64, x86_64: installed (Differences between built and installed modules)",
			Status{"a", "1", "6.12.117+deb13-amd64", "x86_64", "installed", "Differences between built and installed modules"},
		},
		{"a/1, 3.10.0, x86_64: installed-weak from 3.10.0-123", Status{"a", "1", "3.10.0", "x86_64", "installed-weak", ""}},
	}
	all := "\n"
	var want []Status
	for _, tt := range tests {
		got, err := ParseStatus(tt.line)
		assert.NilError(t, err, tt.line)
		assert.DeepEqual(t, got, []Status{tt.want})
		all += tt.line + "\r\n"
		want = append(want, tt.want)
	}
	got, err := ParseStatus(all)
	assert.NilError(t, err)
	assert.DeepEqual(t, got, want)
}

func TestParseStatusRefuses(t *testing.T) {
	t.Parallel()
	got, err := ParseStatus("")
	assert.NilError(t, err)
	assert.Equal(t, len(got), 0)
	for _, line := range []string{
		"readelf: Warning: Section '.comment' was not dumped because it does not exist",
		"a/1", "a: added", "a/1: flying", "a/1, k: built", "/1: added", "a/1/2: added", "a/1, k, a: built, really",
	} {
		_, err := ParseStatus("b/1: added\n" + line)
		assert.ErrorContains(t, err, "cannot read output of dkms status: unknown line", line)
	}
}

func FuzzParseStatus(f *testing.F) {
	f.Add("wireguard, 1.0.20210219: added\nacpi-call, 1.1.0, 5.10.0-46-amd64, x86_64: installed (original_module exists)\n")
	f.Add("acpi-call/1.2.2, 6.1.0-56-amd64, x86_64: installed\na/1: broken")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := ParseStatus(text)
		if err != nil {
			return
		}
		for _, s := range list {
			assert.Assert(t, s.Module != "" && s.Version != "" && s.State != "")
			assert.Equal(t, s.Kernel == "", s.Arch == "")
		}
	})
}
