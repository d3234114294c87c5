//go:build e2e

package e2e

import (
	"dkms2bin/internal/deb"
	"dkms2bin/internal/state"
	"os"
	"path/filepath"
	"testing"

	"gotest.tools/v3/assert"
)

// TestLeftOvers: a source with something in it that an earlier build has left, or that
// PRE_BUILD may leave, is cleaned as its dkms.conf says, by a dkms that does so; another
// one has nothing to clean.
func TestLeftOvers(t *testing.T) {
	t.Parallel()
	const asked = "var/tmp/asked-to-clean"
	tidy, untidy, prepared := goodModule("tidy"), goodModule("untidy"), goodModule("prepared")
	for _, files := range []map[string]string{tidy, untidy, prepared} {
		files["dkms.conf"] += "CLEAN=\"touch /" + asked + "\"\n"
	}
	untidy["debian/.old.o.cmd"] = "cmd_old.o := false\n"
	prepared["dkms.conf"] += "PRE_BUILD=\"prepare\"\n"
	prepared["prepare"] = "#!/bin/sh\n"
	tree := sharedTree(t)
	kver := shared.doc.Kernels[0].Release
	r := command{name: "dkmsbuild", stdin: tree, args: []string{
		"--no-cache", "--kver", kver, "--dkms", source(t, "tidy", tidy), source(t, "untidy", untidy), source(t, "prepared", prepared),
	}}.run(t).mustExit(t, state.ExitDone)
	older := deb.CompareVersions(r.doc.Tree.DKMS, "3.1.8") < 0
	for name, want := range map[string]bool{"tidy": false, "untidy": older, "prepared": older} {
		_, err := os.Stat(filepath.Join(layerOf(t, r.doc, findBuild(t, r.doc, name, kver).Layer), asked))
		assert.Equal(t, err == nil, want, "%s: %v", name, err)
	}
}
