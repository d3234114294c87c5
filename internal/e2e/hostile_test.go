//go:build e2e

package e2e

import (
	"dkms2bin/internal/state"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

// TestSpoilsNoOther builds packages that do their worst beside a good one, which
// must come out as if it were alone.
func TestSpoilsNoOther(t *testing.T) {
	t.Parallel()
	tree := sharedTree(t)
	kver := shared.doc.Kernels[0].Release
	rows := []struct {
		name, conf string
		files      map[string]string
		reason     string
	}{
		{name: "killer", conf: `MAKE[0]="sh kill"`, files: map[string]string{"kill": "for s in TERM HUP INT QUIT SEGV ABRT KILL STOP; do kill -$s 1; done; exit 1\n"}},
		{name: "fifo", conf: `MAKE[0]="sh fifo"`, files: map[string]string{"fifo": "rm -f ../build/make.log; mkfifo ../build/make.log; kill -9 $PPID; kill -9 -1\n"}},
		{name: "links", conf: `POST_BUILD="links.sh"`, files: map[string]string{"links.sh": "#!/bin/sh\nln -s / ../tarball\n"}},
		{name: "sleeper", conf: "sleep 314159", reason: "timed out after 20s"},
		{name: "leaker", conf: `MAKE[0]="ls /proc/self/fd/9/etc"`, reason: "No such file or directory"},
		{name: "script", conf: `MAKE[0]="touch /host-was-here; insmod x.ko; mount -t tmpfs x /mnt; false"`},
	}
	args := []string{"--kver", kver, "--timeout", "20s", "--dkms"}
	for _, row := range rows {
		files := goodModule(row.name)
		files["dkms.conf"] += row.conf + "\n"
		for name, content := range row.files {
			files[name] = content
		}
		dir := source(t, row.name, files)
		for name := range row.files {
			assert.NilError(t, os.Chmod(filepath.Join(dir, name), 0o755))
		}
		args = append(args, dir)
	}
	args = append(args, "bbswitch-dkms")

	// A descriptor of the host's root is left open, as careless callers do.
	states := t.TempDir()
	in, out := filepath.Join(states, "in"), filepath.Join(states, "out")
	assert.NilError(t, os.WriteFile(in, tree, 0o644))
	cmd := exec.CommandContext(t.Context(), "sh", append([]string{
		"-c", `in=$1 out=$2; shift 2; exec "$@" <"$in" >"$out" 9</`, "sh", in, out, filepath.Join(bin, "dkmsbuild"),
	}, args...)...)
	text, _ := cmd.CombinedOutput()
	t.Logf("%s", text)
	assert.Equal(t, cmd.ProcessState.ExitCode(), state.ExitIncomplete)
	raw, err := os.ReadFile(out)
	assert.NilError(t, err)
	doc, err := state.Parse(raw)
	assert.NilError(t, err)
	assert.Equal(t, findBuild(t, doc, "bbswitch-dkms", kver).Status, state.Built)
	assert.Equal(t, len(doc.Builds), len(rows)+1)
	for _, row := range rows {
		for _, b := range doc.Builds {
			if b.Module == row.name || filepath.Base(b.Package) == row.name {
				assert.Equal(t, b.Status, state.Failed, row.name)
				assert.Assert(t, strings.Contains(b.Reason, row.reason), "%s: %s", row.name, b.Reason)
			}
		}
	}
	_, err = os.Stat("/host-was-here")
	assert.Assert(t, os.IsNotExist(err))
	assert.Equal(t, len(processes(endlessSleep)), 0)
}

// TestSameNames: directories may be called alike, packages not.
func TestSameNames(t *testing.T) {
	t.Parallel()
	tree := sharedTree(t)
	kver := shared.doc.Kernels[0].Release
	one, two := source(t, "src", goodModule("first")), source(t, "src", goodModule("second"))
	again := source(t, "other", goodModule("first"))
	r := command{name: "dkmsbuild", stdin: tree, args: []string{"--kver", kver, "--dkms", one, two, again}}.run(t).mustExit(t, state.ExitIncomplete)
	assert.DeepEqual(t, outcomes(r.doc), map[string]string{
		"first first " + kver:   "built",
		"second second " + kver: "built",
		again + "  " + kver:     "failed",
	})
	assert.Assert(t, strings.Contains(findBuild(t, r.doc, again, kver).Reason, one))
}
