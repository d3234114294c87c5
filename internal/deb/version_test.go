package deb

import (
	"errors"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

// dpkgCompare asks dpkg.
func dpkgCompare(t *testing.T, a, b string) int {
	t.Helper()
	for _, op := range []struct {
		name string
		want int
	}{{"lt", -1}, {"eq", 0}, {"gt", 1}} {
		err := exec.Command("dpkg", "--compare-versions", a, op.name, b).Run()
		if err == nil {
			return op.want
		}
		if ee := (*exec.ExitError)(nil); !errors.As(err, &ee) {
			t.Fatalf("this test needs dpkg: %v", err)
		}
	}
	t.Fatalf("dpkg cannot compare %q and %q", a, b)
	return 0
}

func TestCompareVersions(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		a, b string
		want int
	}{
		{"1", "1", 0},
		{"1", "2", -1},
		{"1.10", "1.9", 1},
		{"1.0", "1.00", 0},
		{"1.0-0", "1.0", 0},
		{"0:1", "1", 0},
		{"1:1", "2", 1},
		{"00001:1", "1:1", 0},
		{"1~", "1", -1},
		{"1~~", "1~", -1},
		{"1~rc1", "1", -1},
		{"1~rc1-1", "1~rc1-1~bpo12+1", 1},
		{"1a", "1", 1},
		{"1a", "1+", -1},
		{"1.0-1-1", "1.0-1-2", -1}, // cut at the last hyphen
		{"1.0-2-1", "1.0-1-9", 1},
		{"0.12.7-2+6.1.192.2", "0.12.7-2+6.1.192.10", -1},
		{"0.12.7-2+k6", "0.12.7-2+deb12u1", 1},
		{"1.2.99999999999999999999999", "1.2.100000000000000000000000", -1}, // wider than 64 bits
		{"0~20220829+git", "0", -1},
		{"0.0~git20240408.aa96a9f+dfsg-1", "0.0~git20240408.aa96a9f-1", 1},
		{"1:2:3", "1:2:4", -1},
		{"1.a1", "1.a", 1},
		{"1.", "1", 1},
	} {
		t.Run(tc.a+" "+tc.b, func(t *testing.T) {
			t.Parallel()
			assert.Equal(t, CompareVersions(tc.a, tc.b), tc.want)
			assert.Equal(t, CompareVersions(tc.b, tc.a), -tc.want)
			assert.Equal(t, dpkgCompare(t, tc.a, tc.b), tc.want)
		})
	}
}

// randomVersion makes a valid version out of few characters, so that two of
// them often start alike.
func randomVersion(r *rand.Rand) string {
	run := func(chars string, n int) string {
		var b strings.Builder
		for range r.IntN(n) {
			b.WriteByte(chars[r.IntN(len(chars))])
		}
		return b.String()
	}
	s := run("01", 2) + "0" + run("019aZ~+.-", 6)
	if s[len(s)-1] == '-' {
		s += "1"
	}
	if r.IntN(3) == 0 {
		s += "-" + run("01a~+.", 4) + "0"
	}
	if r.IntN(4) == 0 {
		s = string("012"[r.IntN(3)]) + ":" + s
	}
	return s
}

func TestCompareVersionsRandom(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	for range 150 {
		a, b := randomVersion(r), randomVersion(r)
		assert.NilError(t, ValidateVersion(a))
		assert.Equal(t, CompareVersions(a, b), dpkgCompare(t, a, b), "%s %s", a, b)
	}
}

func TestValidateVersion(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		version, err string
	}{
		{"1", ""},
		{"1-1-a", ""},
		{"1~", ""},
		{"1:2:3", ""},
		{"1.0-a+b", ""},
		{"2147483647:1", ""},
		{"00001:1", ""},
		{"0.12.7-2+6.1.192.2", ""},
		{"", "it is empty"},
		{"1-", "the revision is empty"},
		{"1:", "nothing follows the epoch"},
		{":1", "the epoch is not a number"},
		{"a:1", "the epoch is not a number"},
		{"1.0-a:b", "the epoch is not a number"},
		{"99999999999:1", "the epoch is too big"},
		{"99999999999999999999999:1", "the epoch is too big"},
		{"2147483648:1", "the epoch is too big"},
		{"1:-1", "the upstream version is empty"},
		{"a1", "the upstream version does not start with a digit"},
		{"+1", "the upstream version does not start with a digit"},
		{"1:a", "the upstream version does not start with a digit"},
		{"1 2", `invalid character ' ' in the upstream version`},
		{"1_1", `invalid character '_' in the upstream version`},
		{"0:1-é", `invalid character 'Ã' in the revision`},
	} {
		t.Run(tc.version, func(t *testing.T) {
			t.Parallel()
			err := ValidateVersion(tc.version)
			dpkg := exec.Command("dpkg", "--validate-version", tc.version).Run()
			if tc.err == "" {
				assert.NilError(t, err)
				assert.NilError(t, dpkg)
				return
			}
			assert.ErrorContains(t, err, tc.err)
			assert.Assert(t, dpkg != nil, "dpkg accepts %q", tc.version)
		})
	}
}

func FuzzCompareVersions(f *testing.F) {
	for _, v := range []string{"1", "1:1.0-1", "1~rc1-1~bpo12+1", "0~20220829+git", "1-1-1", "", ":", "-", "a:1"} {
		f.Add(v, "1.0")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		c := CompareVersions(a, b)
		if c < -1 || c > 1 || CompareVersions(b, a) != -c {
			t.Fatalf("%q, %q: %d and %d", a, b, c, CompareVersions(b, a))
		}
		if CompareVersions(a, a) != 0 {
			t.Fatalf("%q is not equal to itself", a)
		}
		if ValidateVersion(a) == nil && CompareVersions(a+"~", a) >= 0 {
			t.Fatalf("%q: a tilde does not sort before", a)
		}
	})
}
