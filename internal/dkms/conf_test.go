package dkms

import (
	"slices"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

func TestParseConf(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, out string
		want      Conf
	}{
		{"nothing", "", Conf{}},
		{"cut off", "post.sh\x00", Conf{}},
		{"no needs", "\x00\x00keeps\x00", Conf{}},
		{"an old dkms", "post.sh -a b\x00\x00drops\x00", Conf{PostBuild: "post.sh -a b", DropsSymbols: true}},
		{"a script before", "post.sh\x00pre.sh x\x00drops\x00a\x00", Conf{PreBuild: true, PostBuild: "post.sh", DropsSymbols: true, BuildDepends: []string{"a"}}},
		{"blanks", "\x00 \r\x00keeps\x00", Conf{}},
		{"needs", "\x00\x00keeps\x00nvidia\x00spl\x00", Conf{BuildDepends: []string{"nvidia", "spl"}}},
		{"several in one, and twice", "\x00\x00keeps\x00a b\x00b\x00", Conf{BuildDepends: []string{"a", "b"}}},
		{"a line end of DOS", "post.sh\r\x00\x00keeps\x00a\r\x00", Conf{PostBuild: "post.sh", BuildDepends: []string{"a"}}},
		{"no names of modules", "\x00\x00keeps\x00../a\x00-x\x00\x1b[31m\x00\x00", Conf{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			assert.DeepEqual(t, parseConf(tt.out), tt.want)
		})
	}
}

// Whatever a dkms.conf says, only names that modules can have come out of it.
func FuzzParseConf(f *testing.F) {
	for _, seed := range []string{"", "post.sh a\x00pre\x00drops\x00a\x00b c\x00", "\x00\x00keeps\x00../x\x00", "\x00\x00\x00", "a\x00b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, out string) {
		names := parseConf(out).BuildDepends
		for i, name := range names {
			assert.Assert(t, saneName().MatchString(name) && !slices.Contains(names[:i], name))
			assert.Assert(t, strings.Contains(out, name))
		}
	})
}
