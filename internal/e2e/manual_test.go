//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"gotest.tools/v3/assert"
)

var (
	helpOption   = regexp.MustCompile(`(?m)^  (?:-h, )?--([a-z-]+)`)
	manualItem   = regexp.MustCompile(`(?m)^\.It Fl .*`)
	manualOption = regexp.MustCompile(`(?:^\.It |, )?Fl -([a-z-]+)`)
)

// TestManuals holds each manual page against the --help of its program: both have the
// same flags, in alphabetical order in the page.
func TestManuals(t *testing.T) {
	top, err := filepath.Abs("../..")
	assert.NilError(t, err)
	for program, page := range map[string]string{
		"mkchroot": "cmd/mkchroot/mkchroot.8", "dkmsbuild": "cmd/dkmsbuild/dkmsbuild.8", "debextract": "cmd/debextract/debextract.8",
		"repoindex": "cmd/repoindex/repoindex.8", "rmchroot": "cmd/rmchroot/rmchroot.8", "dkms2bin": "scripts/dkms2bin.8",
		"dkms2bin-slurm": "scripts/dkms2bin-slurm.8",
	} {
		t.Run(program, func(t *testing.T) {
			r := command{name: program, args: []string{"--help"}}.run(t).mustExit(t, 0)
			flags := []string{"help"}
			for _, m := range helpOption.FindAllSubmatch(r.raw, -1) {
				flags = append(flags, string(m[1]))
			}
			slices.Sort(flags)
			flags = slices.Compact(flags)
			assert.Assert(t, len(flags) > 3, "%s", r.raw)
			text, err := os.ReadFile(filepath.Join(top, page))
			assert.NilError(t, err)
			var described []string
			for _, item := range manualItem.FindAll(text, -1) {
				for _, m := range manualOption.FindAllSubmatch(item, -1) {
					described = append(described, string(m[1]))
				}
			}
			assert.DeepEqual(t, described, flags)
		})
	}
}
