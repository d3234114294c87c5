//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"dkms2bin/internal/repo"
	"dkms2bin/internal/rootfs"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gotest.tools/v3/assert"
)

// TestKilledAnywhere: whatever is killed, and whenever, no mount, no process, no
// half-written package or index is left, and rmchroot --stale brings the disk back to
// where it was, without touching a tree that lives. DKMS2BIN_KILLS is how many runs
// are killed.
func TestKilledAnywhere(t *testing.T) {
	t.Parallel()
	killRuns(t, t.TempDir(), rounds(4, 300))
}

// TestKilledInMemory is the same where what is written goes to memory first.
func TestKilledInMemory(t *testing.T) {
	t.Parallel()
	if os.Getenv("DKMS2BIN_NIGHTLY") == "" {
		t.Skip("nightly only: TestKilledAnywhere has all but where it is written")
	}
	killRuns(t, onOverlay(t), 100)
}

func killRuns(t *testing.T, dir string, runs int) {
	t.Helper()
	if n, err := strconv.Atoi(os.Getenv("DKMS2BIN_KILLS")); err == nil {
		runs = n
	}
	k := newKiller(t, dir)
	defer k.end(t)
	for i := range runs {
		k.round(t, i)
		if (i+1)%25 == 0 || i+1 == runs {
			k.report(t, i+1)
		}
	}
}

// busy is what a stage may take longer to end when others keep all cores busy.
const busy = 3 * time.Second

var stages = []string{"mkchroot", "dkmsbuild", "debextract", "repoindex", "rmchroot"}

// A killer runs the whole job for a small module, without network, again and again.
type killer struct {
	dir, bin           string // programs of its own, to tell their processes from others
	work, tmp, cache   string
	frontEnd, pipe     []string // commands; OUT stands for the output directory
	usual              map[string]time.Duration
	golden, before     map[string]string
	trees              []*rootfs.Tree
	counts             map[string]int
	stopped, gone      time.Duration // the longest
	early, swept, kept int
	between            int // runs in a pipe whose next stage did not have the document yet
}

func newKiller(t *testing.T, dir string) *killer {
	t.Helper()
	k := &killer{
		dir: dir, bin: filepath.Join(dir, "bin"), work: filepath.Join(dir, "work"), tmp: filepath.Join(dir, "tmp"),
		cache: filepath.Join(dir, "cache"), counts: map[string]int{},
	}
	mustRun(t, "cp", "-r", bin, scripts, dir)
	assert.NilError(t, errors.Join(os.Mkdir(k.tmp, 0o755), os.Mkdir(k.work, 0o755)))
	base, kver, mirror := sharedBase(t), currentKernel(t, "amd64"), filepath.Join(dir, "mirror")
	assert.NilError(t, os.MkdirAll(filepath.Join(mirror, "partial"), 0o755))
	mustRun(t, "apt-get", "-o", "Dir::State::status="+base+"/var/lib/dpkg/status", "-o", "Dir::Cache::archives="+mirror, "-o", "Debug::NoLocking=yes",
		"-o", "APT::Sandbox::User=root", "--download-only", "--no-install-recommends", "-y", "install", "linux-headers-"+kver)
	index(t, mirror, "mirror")
	first := []string{"--base", base, "--repo", "deb [trusted=yes] file:" + mirror + " ./", "--kver", kver, "--work-dir", k.work, "--cache-dir", k.cache}
	module := source(t, "mine", goodModule("mine"))
	k.frontEnd = append([]string{filepath.Join(dir, "scripts/dkms2bin"), "--dkms", module, "--out-dir", "OUT", "--index"}, first...)
	// The front end takes the build from the cache, the pipe makes it each time.
	pipe := `cd "$1"; module=$2 out=$3; shift 3; ./mkchroot "$@" | ./dkmsbuild --no-cache --dkms "$module" | ./debextract --out-dir "$out" | ./repoindex | ./rmchroot >/dev/null`
	k.pipe = append([]string{"sh", "-c", pipe, "sh", k.bin, module, "OUT"}, first...)

	k.usual = k.run(t, "golden")
	k.usual["mkchroot"] = min(k.usual["mkchroot"], time.Second) // from now on out of the cache
	k.golden = packageDigests(t, filepath.Join(dir, "golden"))
	assert.Equal(t, len(k.golden), 1)
	t.Logf("undisturbed, the stages take %v", k.usual)

	// One that is in use, and one that waits for its next stage.
	for _, close := range []bool{false, true} {
		tree, err := rootfs.Create(k.work)
		assert.NilError(t, err)
		assert.NilError(t, os.WriteFile(filepath.Join(tree.Path, "layers/precious"), []byte("precious"), 0o600))
		k.trees = append(k.trees, tree)
		if close {
			assert.NilError(t, tree.Close())
		}
	}
	k.before = k.listing(t)
	return k
}

func (k *killer) end(t *testing.T) {
	t.Helper()
	for _, tree := range k.trees {
		assert.NilError(t, errors.Join(tree.Close(), tree.Remove()))
	}
	command{name: "rmchroot", args: []string{"--cache", "--cache-dir", k.cache}}.run(t).mustExit(t, 0)
	noTrees(t, k.work)
}

func packageDigests(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, path := range debFiles(t, dir) {
		found[filepath.Base(path)] = fmt.Sprintf("%x", fileSum(t, path))
	}
	return found
}

// start starts the job, with its packages in a directory of that name.
func (k *killer) start(t *testing.T, args []string, out string) *exec.Cmd {
	t.Helper()
	args = slices.Clone(args)
	for i, arg := range args {
		if arg == "OUT" {
			args[i] = filepath.Join(k.dir, out)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "TMPDIR="+k.tmp)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Stderr = &bytes.Buffer{}
	cmd.WaitDelay = 10 * time.Second // what is left may hold its stderr
	assert.NilError(t, cmd.Start())
	return cmd
}

// children are the processes of the stages that a process has started.
func (k *killer) children(pid int) map[string]int {
	found := map[string]int{}
	list, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	for _, field := range strings.Fields(string(list)) {
		exe, _ := os.Readlink("/proc/" + field + "/exe")
		line, _ := os.ReadFile("/proc/" + field + "/cmdline")
		if filepath.Dir(exe) == k.bin && !bytes.Contains(line, []byte("\x00--check\x00")) {
			found[filepath.Base(exe)], _ = strconv.Atoi(field)
		}
	}
	return found
}

// run lets the front end come to its end, and says how long each stage took.
func (k *killer) run(t *testing.T, out string) map[string]time.Duration {
	t.Helper()
	cmd := k.start(t, k.frontEnd, out)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	took, began := map[string]time.Duration{}, map[string]time.Time{}
	for {
		select {
		case err := <-ended:
			assert.NilError(t, err, "%s", cmd.Stderr)
			return took
		case <-time.After(2 * time.Millisecond):
			for stage := range k.children(cmd.Process.Pid) {
				if began[stage].IsZero() {
					began[stage] = time.Now()
				}
				took[stage] = time.Since(began[stage])
			}
		}
	}
}

// family are the descendants of a process, with the time when each began.
func family(pid int) map[int]string {
	found := map[int]string{pid: startOf(pid)}
	list, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	for _, field := range strings.Fields(string(list)) {
		child, _ := strconv.Atoi(field)
		maps.Copy(found, family(child))
	}
	return found
}

// startOf is when a process began, "" when it is gone or a zombie.
func startOf(pid int) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return ""
	}
	return fields[19]
}

// round kills one run, at a moment in the usual time of one of its stages.
func (k *killer) round(t *testing.T, i int) {
	t.Helper()
	// The first two are where most of the time goes.
	when, whom := append(stages, "mkchroot", "dkmsbuild", "mkchroot", "dkmsbuild")[rand.N(len(stages)+4)], []string{"stage", "stage", "front end", "group"}[rand.N(4)]
	signal := unix.SIGKILL
	if i%4 == 3 {
		signal = []unix.Signal{unix.SIGINT, unix.SIGTERM}[rand.N(2)]
	}
	args, piped := k.frontEnd, i%5 == 4
	if piped {
		args, whom = k.pipe, []string{"stage", "group"}[rand.N(2)]
	}
	delay := time.Duration(rand.Float64() * float64(k.usual[when]))
	what := fmt.Sprintf("run %d: %v to the %s, %v after the beginning of %s, piped %v", i, signal, whom, delay, when, piped)
	out := fmt.Sprintf("out-%d", i)
	cmd := k.start(t, args, out)
	pid := cmd.Process.Pid
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	target := k.await(pid, when, piped)
	time.Sleep(delay)
	relatives := family(pid)
	alive := target != 0 && startOf(target) != ""
	if !alive {
		k.early++ // it had come to its end, as others leave it more of the cores than before
		k.usual[when] = max(k.usual[when]*3/4, 10*time.Millisecond)
	}
	var err error
	switch whom {
	case "stage":
		if target != 0 {
			err = unix.Kill(target, signal)
		}
	case "front end":
		err = unix.Kill(pid, signal)
	case "group":
		err = unix.Kill(-pid, signal)
	}
	if !errors.Is(err, unix.ESRCH) {
		assert.NilError(t, err, what)
	}
	sent := time.Now()
	for whom == "stage" && target != 0 && startOf(target) != "" {
		if time.Since(sent) > time.Minute {
			t.Fatalf("%s: it is still there after a minute", what)
		}
		time.Sleep(time.Millisecond)
	}
	took := time.Since(sent)
	<-ended
	if whom != "stage" {
		took = time.Since(sent)
	}
	code := cmd.ProcessState.ExitCode()
	k.counts[fmt.Sprintf("%-9s %s", unix.SignalName(signal), whom)]++
	k.counts["during    "+when]++
	what = fmt.Sprintf("%s: exit status %d after %v\n%s", what, code, took, cmd.Stderr)
	if signal != unix.SIGKILL && when != "rmchroot" {
		k.stopped = max(k.stopped, took)
		assert.Assert(t, took < 2*time.Second+busy, what)
		if alive && whom != "stage" && !piped {
			assert.Equal(t, code, 130, what)
		}
	}
	k.nobody(t, what, relatives)
	k.whole(t, what, out)
	k.sweep(t, what, piped && signal == unix.SIGKILL)
	mustRun(t, "rm", "-rf", filepath.Join(k.dir, out))
}

// await waits for a stage's process. In a pipe all begin together, so it waits as
// long as those before it usually take.
func (k *killer) await(pid int, stage string, piped bool) int {
	for startOf(pid) != "" {
		if child := k.children(pid)[stage]; child != 0 {
			if piped {
				for _, before := range stages[:slices.Index(stages, stage)] {
					time.Sleep(k.usual[before])
				}
			}
			return child
		}
		time.Sleep(time.Millisecond)
	}
	return 0
}

// nobody waits until nothing of the run is alive, which must be soon.
func (k *killer) nobody(t *testing.T, what string, relatives map[int]string) {
	t.Helper()
	since := time.Now()
	for {
		var left []string
		for pid, start := range relatives {
			if start != "" && startOf(pid) == start {
				line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
				left = append(left, strings.ReplaceAll(string(line), "\x00", " "))
			}
		}
		for _, exe := range executables() {
			if filepath.Dir(exe) == k.bin {
				left = append(left, exe)
			}
		}
		if len(left) == 0 {
			k.gone = max(k.gone, time.Since(since))
			break
		}
		if time.Since(since) > time.Minute {
			t.Fatalf("%s\nis alive: %q", what, left)
		}
		time.Sleep(5 * time.Millisecond)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	assert.NilError(t, err)
	assert.Assert(t, !strings.Contains(string(mounts), k.dir), "%s\n%s", what, mounts)
}

// whole looks at what the run has left for others.
func (k *killer) whole(t *testing.T, what, out string) {
	t.Helper()
	dir := filepath.Join(k.dir, out)
	found, err := filepath.Glob(filepath.Join(dir, "*.deb*"))
	assert.NilError(t, err)
	for _, path := range found {
		assert.Equal(t, fmt.Sprintf("%x", fileSum(t, path)), k.golden[filepath.Base(path)], "%s\n%s", what, path)
		k.kept++
	}
	if _, err := os.Stat(filepath.Join(dir, "Release")); err == nil {
		v, err := repo.Verify(t.Context(), dir, nil)
		assert.NilError(t, err, what)
		assert.Equal(t, len(v.Problems), 0, "%s\n%v", what, v.Problems)
	}
}

// sweep removes what the run has left for nobody.
//
// In a pipe, a stage that is killed before it has its document leaves the tree as one
// that waits for its next stage, with the document in it. That goes with --older-than.
func (k *killer) sweep(t *testing.T, what string, between bool) {
	t.Helper()
	if !maps.Equal(k.listing(t), k.before) {
		k.swept++
	}
	// One that was killed before it locked its folder left it empty, and only time
	// tells that.
	long := time.Now().Add(-time.Hour)
	folders, _ := filepath.Glob(filepath.Join(k.tmp, "dkms2bin.*"))
	for _, folder := range folders {
		if inside, _ := os.ReadDir(folder); len(inside) == 0 {
			assert.NilError(t, os.Chtimes(folder, long, long))
		}
	}
	cmd := exec.Command(filepath.Join(k.bin, "rmchroot"), "--stale", "--work-dir", k.work, "--cache-dir", k.cache)
	cmd.Env = append(os.Environ(), "TMPDIR="+k.tmp)
	text, err := cmd.CombinedOutput()
	assert.NilError(t, err, "%s\n%s", what, text)
	if between {
		trees, err := os.ReadDir(filepath.Join(k.work, "trees"))
		assert.NilError(t, err)
		for _, tree := range trees {
			path := filepath.Join(k.work, "trees", tree.Name())
			if !slices.ContainsFunc(k.trees, func(t *rootfs.Tree) bool { return t.Path == path }) {
				k.between++
				command{name: "rmchroot", args: []string{path}}.run(t).mustExit(t, 0)
			}
		}
	}
	if now := k.listing(t); !maps.Equal(now, k.before) {
		t.Fatalf("%s\n%sis left: %s\nis missing: %s", what, text, minus(now, k.before), minus(k.before, now))
	}
}

func minus(a, b map[string]string) []string {
	var list []string
	for path, info := range a {
		if b[path] != info {
			list = append(list, path+" "+info)
		}
	}
	slices.Sort(list)
	return list[:min(len(list), 20)]
}

// listing is the disk, as far as runs change it: trees, temporary files, and what is
// half made in the cache.
func (k *killer) listing(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, top := range []string{k.work, k.tmp, filepath.Join(k.cache, "making")} {
		assert.NilError(t, filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			found[path] = info.Mode().String()
			if !d.IsDir() {
				found[path] += fmt.Sprint(info.Size(), info.ModTime())
			}
			return nil
		}))
	}
	return found
}

func (k *killer) report(t *testing.T, runs int) {
	t.Helper()
	for _, key := range slices.Sorted(maps.Keys(k.counts)) {
		t.Logf("%s: %d", key, k.counts[key])
	}
	t.Logf("%d runs: %d had come to the end of what was to be killed; after %d there was something for rmchroot --stale; "+
		"%d whole packages; %d pipes were broken before the next stage had the document; SIGINT and SIGTERM were obeyed within %v, all processes gone within %v; lost or left: none",
		runs, k.early, k.swept, k.kept, k.between, k.stopped.Round(time.Millisecond), k.gone.Round(time.Millisecond))
}
