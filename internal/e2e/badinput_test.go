//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"dkms2bin/internal/state"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gotest.tools/v3/assert"
)

func mustRun(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	assert.NilError(t, err, "%s %v\n%s", name, args, out)
	return string(out)
}

// smallDisk mounts a tmpfs of that size for the test.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	assert.NilError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size))
	t.Cleanup(func() { assert.NilError(t, unix.Unmount(dir, 0)) })
	return dir
}

// noTrees fails the test when a tree is left in a work directory.
func noTrees(t *testing.T, work string) {
	t.Helper()
	trees, err := filepath.Glob(filepath.Join(work, "trees", "*"))
	assert.NilError(t, err)
	hidden, err := filepath.Glob(filepath.Join(work, "trees", ".*"))
	assert.NilError(t, err)
	assert.Equal(t, len(trees)+len(hidden), 0, "%v %v", trees, hidden)
}

// TestBadRepositories: mkchroot says what is wrong, and rmchroot cleans up after
// it in the same pipe.
func TestBadRepositories(t *testing.T) {
	for _, row := range []struct {
		name string
		args []string
		env  []string
		code int
		says []string
	}{
		{
			"unreachable mirror",
			[]string{"--repo", "deb http://127.0.0.1:9/debian bookworm main"},
			nil, 1,
			[]string{"error: ", "http://127.0.0.1:9/debian", "Connection refused", "hint: "},
		},
		{"no such suite", []string{"--release", "nosuchsuite"}, nil, 1, []string{"error: ", "nosuchsuite", "hint: "}},
		{
			"missing keyring",
			[]string{"--repo", "deb [signed-by=/nonexistent.gpg] http://127.0.0.1:9/debian bookworm main"},
			nil, 1,
			[]string{"error: ", "/nonexistent.gpg"},
		},
		{
			"no maker",
			[]string{"--no-cache"},
			[]string{"PATH=" + onlyPrograms(t, "apt-get", "apt-config", "dpkg")},
			1,
			[]string{"error: ", "neither mmdebstrap nor debootstrap", "hint: apt-get install mmdebstrap"},
		},
		{"malformed repository", []string{"--repo", "http://example.org bookworm main"}, nil, 2, []string{"error: ", "hint: write it as 'deb "}},
		{"malformed kernel", []string{"--kver", "../../etc"}, nil, 2, []string{"error: ", "--kver"}},
		{"new kernels, and nothing to tell which", []string{"--kver", "new"}, nil, 2, []string{"error: --out-dir is required with --kver new: "}},
		{"unknown flag", []string{"--kvers", "6.1"}, nil, 2, []string{"error: ", "unknown flag --kvers", "hint: --help lists all flags"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			work := t.TempDir()
			r := command{name: "mkchroot", args: append([]string{"--work-dir", work}, row.args...), env: row.env}.run(t).mustExit(t, row.code).mustSay(t, row.says...)
			assert.Assert(t, r.doc != nil, "no document was handed on")
			for _, stage := range []string{"dkmsbuild", "rmchroot"} {
				r = command{name: stage, stdin: r.raw}.run(t).mustExit(t, row.code)
			}
			noTrees(t, work)
		})
	}
}

// TestWrongKeyring uses a keyring that does not sign the host's archive.
func TestWrongKeyring(t *testing.T) {
	t.Parallel()
	work := t.TempDir()
	sharedTree(t)
	r := shared.doc.Tree.Repositories[0]
	line := "deb [signed-by=/usr/share/keyrings/debian-archive-removed-keys.gpg] " + r.URI + " " + r.Suite + " " + strings.Join(r.Components, " ")
	got := command{name: "mkchroot", args: []string{"--work-dir", work, "--repo", line}}.run(t).
		mustExit(t, 1).mustSay(t, "error: ", "NO_PUBKEY", "hint: the repository is signed by a key that was not given")
	command{name: "rmchroot", stdin: got.raw}.run(t).mustExit(t, 1)
	noTrees(t, work)
}

// TestDebootstrap makes the base system with debootstrap where there is no
// mmdebstrap.
func TestDebootstrap(t *testing.T) {
	t.Parallel()
	if os.Getenv("DKMS2BIN_NIGHTLY") == "" {
		t.Skip("nightly only: it takes as long as all the others")
	}
	work, out := t.TempDir(), t.TempDir()
	env := []string{"PATH=" + onlyPrograms(t, "apt-get", "apt-config", "dpkg", "debootstrap")}
	r := command{name: "mkchroot", args: []string{"--work-dir", work}, env: env}.run(t).mustExit(t, 0)
	log, err := os.ReadFile(filepath.Join(r.doc.Tree.Path, "records", "mkchroot.log"))
	assert.NilError(t, err)
	assert.Assert(t, strings.Contains(string(log), "Base system installed successfully"))
	r = command{name: "dkmsbuild", stdin: r.raw, args: []string{"--dkms", "v4l2loopback-dkms"}}.run(t).mustExit(t, 0)
	r = command{name: "debextract", stdin: r.raw, args: []string{"--out-dir", out}}.run(t).mustExit(t, 0)
	assert.Equal(t, len(debFiles(t, out)), 1)
	command{name: "rmchroot", stdin: r.raw}.run(t).mustExit(t, 0)
	noTrees(t, work)
}

// onlyPrograms makes a directory for PATH with just these programs.
func onlyPrograms(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		path, err := exec.LookPath(name)
		assert.NilError(t, err)
		assert.NilError(t, os.Symlink(path, filepath.Join(dir, name)))
	}
	return dir
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	t.Run("tree", func(t *testing.T) {
		work := smallDisk(t, "100m")
		r := command{name: "mkchroot", args: []string{"--work-dir", work}}.run(t).mustExit(t, 1).mustSay(t, "no space left", "hint: ", "--work-dir")
		command{name: "rmchroot", stdin: r.raw}.run(t).mustExit(t, 1)
		noTrees(t, work)
	})
	t.Run("tree that fills up", func(t *testing.T) {
		work := smallDisk(t, "1200m")
		r := command{name: "mkchroot", args: []string{"--work-dir", work, "--no-cache", "--base", sharedBase(t)}}.run(t).mustExit(t, 0)
		fill := exec.Command("sh", "-c", `cat /dev/zero >"$1/fill"`, "sh", work)
		assert.Assert(t, fill.Run() != nil)
		built := command{name: "dkmsbuild", stdin: r.raw, args: []string{"--dkms", "bbswitch-dkms"}}.run(t)
		assert.Assert(t, built.code == state.ExitError || built.code == state.ExitIncomplete)
		assert.Assert(t, strings.Contains(strings.ToLower(built.stderr), "no space left on device"))
		assert.NilError(t, os.Remove(filepath.Join(work, "fill")))
		// With space again, the rerun does what is missing.
		built = command{name: "dkmsbuild", stdin: built.raw, args: []string{"--dkms", "bbswitch-dkms"}}.run(t).mustExit(t, 0)
		command{name: "rmchroot", stdin: built.raw}.run(t).mustExit(t, 0)
		noTrees(t, work)
	})
	t.Run("output directory", func(t *testing.T) {
		built := command{name: "dkmsbuild", stdin: sharedTree(t), args: []string{"--kver", shared.doc.Kernels[0].Release, "--dkms", "bbswitch-dkms"}}.run(t).mustExit(t, 0)
		out := smallDisk(t, "8k")
		command{name: "debextract", stdin: built.raw, args: []string{"--out-dir", out}}.run(t).mustExit(t, 1).mustSay(t, "no space left on device", out)
		left, err := filepath.Glob(filepath.Join(out, "*.deb"))
		assert.NilError(t, err)
		assert.Equal(t, len(left), 0)
		hidden, err := filepath.Glob(filepath.Join(out, ".*"))
		assert.NilError(t, err)
		assert.Equal(t, len(hidden), 0, "%v", hidden)
	})
}

// TestBadKernel asks for one that the repositories do not have.
func TestBadKernel(t *testing.T) {
	t.Parallel()
	work := t.TempDir()
	wrong := strings.Replace(currentKernel(t, "amd64"), "-amd64", "9-amd64", 1)
	r := command{name: "mkchroot", args: []string{"--work-dir", work, "--base", sharedBase(t), "--kver", wrong}}.run(t).
		mustExit(t, 1).mustSay(t, "no headers for the kernel "+wrong, "hint: the nearest that they have: ", currentKernel(t, "amd64"))
	command{name: "rmchroot", stdin: r.raw}.run(t).mustExit(t, 1)
	noTrees(t, work)
}

func TestBadPackages(t *testing.T) {
	t.Parallel()
	tree := sharedTree(t)
	empty := t.TempDir()
	notDeb := filepath.Join(empty, "x.deb")
	assert.NilError(t, os.WriteFile(notDeb, []byte("not a package"), 0o644))
	for _, row := range []struct {
		request string
		code    int
		says    []string
	}{
		{"v4l2-loopback-dkms", 1, []string{"no package v4l2-loopback-dkms", "v4l2loopback-dkms"}},
		{"bbswitch-dkms=0.0", 1, []string{"no version 0.0 of bbswitch-dkms", "hint: of bbswitch-dkms they have "}},
		{"bbswitch-dkms-9~", 1, []string{"no package for bbswitch-dkms-9~", "bbswitch-dkms="}},
		{filepath.Join(empty, "nothing.deb"), 2, []string{"no such file"}},
		{notDeb, 1, []string{notDeb}},
		{empty, 2, []string{"holds no dkms.conf"}},
		{"two words", 2, []string{"a package name has no blanks"}},
	} {
		t.Run(row.request, func(t *testing.T) {
			// Nothing is built, not even the package that could be.
			r := command{name: "dkmsbuild", stdin: tree, args: []string{"--dkms", "bbswitch-dkms", row.request}}.run(t).mustExit(t, row.code).mustSay(t, row.says...)
			assert.Equal(t, len(r.doc.Builds), 0)
		})
	}
	t.Run("no module in it", func(t *testing.T) {
		r := command{name: "dkmsbuild", stdin: tree, args: []string{"--kver", shared.doc.Kernels[0].Release, "--dkms", "hello"}}.run(t).mustExit(t, state.ExitIncomplete)
		r.mustSay(t, "hello: cannot install it: it brings no DKMS module")
	})
}

func TestBadDocuments(t *testing.T) {
	good := string(encode(t, &state.Document{}, nil))
	for _, row := range []struct{ name, stdin, says string }{
		{"empty", "", "standard input is empty"},
		{"two documents", good + good, "more than one"},
		{"truncated", good[:len(good)/2], "not a dkms2bin document"},
		{"foreign", `{"version": 1, "apiVersion": "v1"}`, "not a dkms2bin document"},
		{"not JSON", "hello\n", "not a dkms2bin document"},
		{"another version", `{"version": 99}`, "has version 99"},
	} {
		for _, stage := range []string{"dkmsbuild", "debextract", "repoindex", "rmchroot"} {
			t.Run(row.name+" for "+stage, func(t *testing.T) {
				var args []string
				if stage == "debextract" {
					args = []string{"--out-dir", t.TempDir()}
				}
				stdin := []byte(row.stdin)
				r := command{name: stage, stdin: stdin, args: args}.run(t).mustExit(t, state.ExitUsage).mustSay(t, stage+": error: ", row.says)
				assert.Equal(t, len(r.raw), 0)
			})
		}
	}
	t.Run("tree is gone", func(t *testing.T) {
		gone := encode(t, &state.Document{
			Tree:    &state.Tree{Path: filepath.Join(t.TempDir(), "gone"), Suite: "bookworm", Base: "base"},
			Kernels: []state.Kernel{{Release: "6.1.0-1-amd64"}},
		}, nil)
		for _, stage := range []string{"dkmsbuild", "rmchroot"} {
			command{name: stage, stdin: gone}.run(t).mustExit(t, state.ExitUsage).mustSay(t, stage+": error: ", "gone", "hint: ")
		}
	})
	t.Run("not our tree", func(t *testing.T) {
		dir := t.TempDir()
		precious := filepath.Join(dir, "precious")
		assert.NilError(t, os.WriteFile(precious, nil, 0o644))
		command{name: "rmchroot", args: []string{dir}}.run(t).mustExit(t, state.ExitUsage).mustSay(t, "not a dkms2bin tree")
		_, err := os.Stat(precious)
		assert.NilError(t, err)
	})
}

func TestBadOutputDirectory(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	assert.NilError(t, os.WriteFile(file, nil, 0o644))
	doc := encode(t, &state.Document{}, nil)
	command{name: "debextract", stdin: doc, args: []string{"--out-dir", file}}.run(t).mustExit(t, state.ExitUsage).mustSay(t, "not a directory")
	command{name: "debextract", stdin: doc}.run(t).mustExit(t, state.ExitUsage).mustSay(t, "--out-dir is required")
	readOnly := smallDisk(t, "1m")
	assert.NilError(t, unix.Mount("", readOnly, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	command{name: "debextract", stdin: doc, args: []string{"--out-dir", readOnly}}.run(t).mustExit(t, state.ExitUsage).mustSay(t, "read-only file system")
	command{name: "repoindex", args: []string{readOnly}}.run(t).mustExit(t, state.ExitError).mustSay(t, "read-only file system")
	command{name: "repoindex", args: []string{filepath.Join(dir, "nothing")}}.run(t).mustExit(t, state.ExitUsage)
	// The front end notices before it makes a chroot.
	r := command{name: "dkms2bin", args: []string{"--dkms", "bbswitch-dkms", "--out-dir", file, "--work-dir", filepath.Join(dir, "work")}}.run(t).mustExit(t, state.ExitUsage)
	assert.Assert(t, !strings.Contains(r.stderr, "creating chroot"))
}

func TestBadArchives(t *testing.T) {
	t.Parallel()
	sharedTree(t)
	dir := t.TempDir()
	headers := shared.doc.Kernels[0].Facts
	empty := filepath.Join(dir, "empty.tar.gz")
	mustRun(t, "tar", "-czf", empty, "-T", "/dev/null")
	source := filepath.Join(dir, "dkms_main_tree")
	assert.NilError(t, os.MkdirAll(source, 0o755))
	noModules := filepath.Join(dir, "none.tar.gz")
	mustRun(t, "tar", "-C", dir, "-czf", noModules, "dkms_main_tree")
	garbage := filepath.Join(dir, "garbage")
	assert.NilError(t, os.WriteFile(garbage, []byte("garbage"), 0o644))
	for _, archive := range []string{empty, noModules, garbage, filepath.Join(dir, "missing")} {
		t.Run(filepath.Base(archive), func(t *testing.T) {
			out := t.TempDir()
			command{name: "debextract", args: []string{"--out-dir", out, "--headers", headers, archive}}.run(t).mustExit(t, state.ExitError).mustSay(t, "error: ", archive)
			assert.Equal(t, len(debFiles(t, out)), 0)
		})
	}
	command{name: "debextract", args: []string{"--out-dir", dir, empty}}.run(t).mustExit(t, state.ExitUsage).mustSay(t, "--headers is required")
}

// TestEndlessBuild: a build that never ends is ended, with everything in it.
func TestEndlessBuild(t *testing.T) {
	t.Parallel()
	dir := source(t, "endless", endlessModule("endless", "314158"))
	start := time.Now()
	r := command{name: "dkmsbuild", stdin: sharedTree(t), args: []string{"--kver", shared.doc.Kernels[0].Release, "--timeout", "20s", "--dkms", dir, "bbswitch-dkms"}}.
		run(t).mustExit(t, state.ExitIncomplete).mustSay(t, "cannot build endless 1.0", "timed out after 20s")
	assert.Assert(t, time.Since(start) < 2*time.Minute)
	assert.Equal(t, findBuild(t, r.doc, "bbswitch-dkms", shared.doc.Kernels[0].Release).Status, state.Built, "one package that fails spoils no other")
	assert.Equal(t, len(processes("sleep\x00314158")), 0)
}

// TestInterrupt: Ctrl-C in a pipe reaches every stage at once, and the document
// still arrives at the end.
func TestInterrupt(t *testing.T) {
	dir := source(t, "waiting", endlessModule("waiting", "314159"))
	out := t.TempDir()
	states := t.TempDir()
	assert.NilError(t, os.WriteFile(filepath.Join(states, "1"), sharedTree(t), 0o644))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	script := `cd "$1"; "$2/dkmsbuild" --kver "$3" --dkms "$4" <1 2>err | "$2/debextract" --out-dir "$5" >2 2>>err`
	cmd := exec.CommandContext(ctx, "bash", "-c", script, "bash", states, bin, shared.doc.Kernels[0].Release, dir, out)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	assert.NilError(t, cmd.Start())
	waitFor(t, func() bool { return len(processes("sleep\x00314159")) > 0 })
	started := time.Now()
	assert.NilError(t, unix.Kill(-cmd.Process.Pid, unix.SIGINT))
	_ = cmd.Wait()
	assert.Assert(t, time.Since(started) < 5*time.Second)
	raw, err := os.ReadFile(filepath.Join(states, "2"))
	assert.NilError(t, err)
	doc, err := state.Parse(raw)
	assert.NilError(t, err)
	keepDocument(t, raw)
	assert.Equal(t, doc.ExitCode(), state.ExitInterrupted)
	assert.Equal(t, doc.Error.Stage, "dkmsbuild")
	assert.Equal(t, len(processes("sleep\x00314159")), 0)
	// Run again on it, the stage clears its error.
	assert.NilError(t, os.WriteFile(filepath.Join(dir, "dkms.conf"), []byte(goodModule("waiting")["dkms.conf"]), 0o644))
	command{name: "dkmsbuild", stdin: raw, args: []string{"--kver", shared.doc.Kernels[0].Release, "--dkms", dir}}.run(t).mustExit(t, 0)
}

// TestInterruptedReading: a stage that is interrupted before it has the document
// hands that on, too.
func TestInterruptedReading(t *testing.T) {
	document := sharedTree(t)
	for _, c := range []command{
		{name: "dkmsbuild", args: []string{"--dkms", "bbswitch-dkms"}},
		{name: "debextract", args: []string{"--out-dir", t.TempDir()}},
		{name: "repoindex"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		cmd := c.command(ctx)
		var stdout, stderr bytes.Buffer
		cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, &stdout, &stderr
		stdin, err := cmd.StdinPipe()
		assert.NilError(t, err)
		assert.NilError(t, cmd.Start())
		// More than a pipe holds: the program reads.
		_, err = stdin.Write(bytes.Repeat([]byte(" "), 1<<18))
		assert.NilError(t, err)
		assert.NilError(t, cmd.Process.Signal(unix.SIGINT))
		time.Sleep(100 * time.Millisecond) // the signal may be on its way; later is no less right
		_, err = stdin.Write(document)
		assert.NilError(t, err)
		assert.NilError(t, stdin.Close())
		_ = cmd.Wait()
		assert.Equal(t, cmd.ProcessState.ExitCode(), state.ExitInterrupted, stderr.String())
		doc, err := state.Parse(stdout.Bytes())
		assert.NilError(t, err, stderr.String())
		assert.Equal(t, doc.Error.Stage, c.name)
	}
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for range 1200 {
		if done() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("it did not come to pass within a minute")
}
