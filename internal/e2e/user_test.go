//go:build e2e

package e2e

import (
	"dkms2bin/internal/state"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"gotest.tools/v3/assert"
)

var users atomic.Int64

// newUser makes a user of the host with subordinate IDs, and a home directory where
// there is room for trees.
func newUser(t *testing.T) (cred *syscall.Credential, home string) {
	t.Helper()
	name := fmt.Sprintf("dkms2bin-e%d-%d", os.Getpid(), users.Add(1))
	home = filepath.Join(filepath.Dir(bin), name)
	mustRun(t, "useradd", "--create-home", "--home-dir", home, name)
	t.Cleanup(func() { mustRun(t, "userdel", "--remove", name) })
	u, err := user.Lookup(name)
	assert.NilError(t, err)
	uid, err := strconv.Atoi(u.Uid)
	assert.NilError(t, err)
	gid, err := strconv.Atoi(u.Gid)
	assert.NilError(t, err)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, home
}

// TestOrdinaryUser: all stages as a user of the host, with the bytes that root
// gets.
func TestOrdinaryUser(t *testing.T) {
	t.Parallel()
	tree := sharedTree(t)
	kver := shared.doc.Kernels[0].Release
	files := goodModule("mine")
	files["dkms.conf"] += "POST_BUILD=\"owners.sh\"\n"
	files["owners.sh"] = "#!/bin/sh\ntouch theirs closed; chown 33:42 theirs; mkdir -p /var/closed/dir; touch /var/closed/dir/file; chown -R 33:33 /var/closed; chmod 700 /var/closed\n"
	dir := source(t, "mine", files)
	assert.NilError(t, os.Chmod(filepath.Join(dir, "owners.sh"), 0o755))

	cred, home := newUser(t)
	env := []string{"HOME=" + home, "XDG_CACHE_HOME=", "DKMS2BIN_CACHE_DIR="}
	run := func(name string, stdin []byte, args ...string) result {
		return command{name: name, stdin: stdin, args: args, env: env, dir: "/", user: cred}.run(t)
	}
	// Only the user may read it. Modes and times of a source directory count.
	own := filepath.Join(home, "mine")
	assert.NilError(t, os.Chmod(dir, 0o700))
	mustRun(t, "cp", "-a", dir, own)
	mustRun(t, "chown", "-R", fmt.Sprintf("%d:%d", cred.Uid, cred.Gid), own)

	args := []string{"--kver", kver}
	if os.Getenv("DKMS2BIN_NIGHTLY") == "" { // by night, a base system of the user's own
		base := filepath.Join(home, "base.tar")
		mustRun(t, "tar", "-C", filepath.Join(shared.doc.Tree.Path, "layers", shared.doc.Tree.Base)+"/", "-cf", base, ".")
		args = append(args, "--base", base)
	}
	made := run("mkchroot", nil, args...).mustExit(t, state.ExitDone)
	assert.Equal(t, filepath.Dir(made.doc.Tree.Path), filepath.Join(home, ".cache/dkms2bin/trees"))
	built := run("dkmsbuild", made.raw, "--dkms", "bbswitch-dkms", own).mustExit(t, state.ExitDone)
	extracted := run("debextract", built.raw, "--out-dir", filepath.Join(home, "out")).mustExit(t, state.ExitDone)
	run("rmchroot", extracted.raw).mustExit(t, state.ExitDone)
	noTrees(t, filepath.Join(home, ".cache/dkms2bin"))

	out := t.TempDir()
	r := command{name: "dkmsbuild", stdin: tree, args: []string{"--kver", kver, "--dkms", "bbswitch-dkms", dir}}.run(t).mustExit(t, state.ExitDone)
	command{name: "debextract", stdin: r.raw, args: []string{"--out-dir", out}}.run(t).mustExit(t, state.ExitDone)
	assert.Equal(t, len(debFiles(t, out)), 2)
	for _, deb := range debFiles(t, out) {
		text, err := exec.Command("cmp", deb, filepath.Join(home, "out", filepath.Base(deb))).CombinedOutput()
		assert.NilError(t, err, "%s", text)
	}
	assert.Assert(t, !strings.Contains(string(extracted.raw), "\"error\""), "%s", extracted.raw)
}
