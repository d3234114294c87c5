//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"dkms2bin/internal/state"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gotest.tools/v3/assert"
)

var (
	bin     string // directory of the built programs
	scripts string // directory of the scripts
	workDir string // of all trees
	cacheTo string // the cache of all trees
)

// TestMain builds the programs and, when all is done, looks for what a test left
// behind: mounts, processes and trees.
func TestMain(m *testing.M) {
	if err := ownMounts(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: cannot have a mount namespace of its own:", err)
		os.Exit(1)
	}
	os.Exit(run(m))
}

// ownMounts starts the tests again in a mount namespace of their own, unless they
// are in one: what they mount is gone when they are, however they end.
func ownMounts() error {
	self, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	host, err := os.Readlink("/proc/1/ns/mnt")
	if err != nil || self != host { // another's namespace cannot be read without root
		return nil
	}
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		return err
	}
	return unix.Exec(unshare, append([]string{"unshare", "--mount", "--"}, os.Args...), os.Environ())
}

func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "e2e: these tests need root")
		return 1
	}
	top, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	// Below /var/tmp, since /tmp may be in memory, and trees are large.
	dir, err := os.MkdirTemp("/var/tmp", "dkms2bin-e2e-")
	if err != nil {
		panic(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { // programs are run as other users, too
		panic(err)
	}
	bin, scripts, workDir = filepath.Join(dir, "bin"), filepath.Join(dir, "scripts"), filepath.Join(dir, "work")
	// One that is given is kept, for the next run.
	given := os.Getenv("DKMS2BIN_CACHE_DIR")
	if cacheTo = given; given == "" {
		cacheTo = filepath.Join(dir, "cache")
		if err := os.Setenv("DKMS2BIN_CACHE_DIR", cacheTo); err != nil {
			panic(err)
		}
	}
	// As mkdeb builds them, so that there is less to do for it.
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin+"/", "./cmd/...")
	build.Dir, build.Env = top, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "e2e: %v\n%s", err, out)
		return 1
	}
	if out, err := exec.Command("cp", "-r", filepath.Join(top, "scripts"), scripts).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "e2e: %v\n%s", err, out)
		return 1
	}
	// What whoever started the tests ignores, as a shell does for jobs in the background,
	// the programs would ignore, too.
	for _, sig := range []os.Signal{unix.SIGINT, unix.SIGQUIT, unix.SIGHUP} {
		if signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
	documents.dir, documents.seen = filepath.Join(dir, "documents"), map[[sha256.Size]byte]bool{}
	if err := os.Mkdir(documents.dir, 0o755); err != nil {
		panic(err)
	}
	flag.Parse()
	if flag.Lookup("test.run").Value.String() == "" {
		go makeShared() // beside the tests that do without it
	}
	code := m.Run()
	if says := againstSchema(filepath.Join(top, "internal/state/document.schema.json")); says != "" {
		fmt.Fprintln(os.Stderr, "e2e:", says)
		code = 1
	}
	shared.Do(func() {}) // it may be in the making
	if shared.doc != nil && shared.doc.Tree != nil {
		if out, err := exec.Command(filepath.Join(bin, "rmchroot"), shared.doc.Tree.Path).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "e2e: cannot remove the shared tree: %v\n%s", err, out)
			code = 1
		}
	}
	left := leftBehind(workDir)
	if given == "" {
		// With all trees gone, nothing keeps anything in the cache.
		if out, err := exec.Command(filepath.Join(bin, "rmchroot"), "--cache").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "e2e: cannot empty the cache: %v\n%s", err, out)
			code = 1
		}
		left = append(left, leftInCache(cacheTo)...)
	}
	for _, left := range left {
		fmt.Fprintln(os.Stderr, "e2e: left behind:", left)
		code = 1
	}
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	return code
}

// leftBehind lists trees, mounts and sandbox processes that should be gone.
func leftBehind(work string) []string {
	var left []string
	if trees, err := os.ReadDir(filepath.Join(work, "trees")); err == nil {
		for _, t := range trees {
			left = append(left, "tree "+t.Name())
		}
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		for line := range strings.Lines(string(mounts)) {
			if strings.Contains(line, work) {
				left = append(left, "mount "+strings.TrimSpace(line))
			}
		}
	}
	for _, exe := range executables() {
		if strings.HasPrefix(exe, bin+"/") {
			left = append(left, "process of "+exe)
		}
	}
	return left
}

// leftInCache lists what an emptied cache should not have.
func leftInCache(cache string) []string {
	var left []string
	for _, dir := range []string{"entries", "making", "locks"} {
		files, _ := filepath.Glob(filepath.Join(cache, dir, "*"))
		left = append(left, files...)
	}
	return left
}

// executables lists what all processes run.
func executables() []string {
	var found []string
	links, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, l := range links {
		if exe, err := os.Readlink(l); err == nil {
			found = append(found, exe)
		}
	}
	return found
}

// descendants lists the command lines of a process's children and theirs.
func descendants(pid int) []string {
	children := map[int][]int{}
	lines := map[int]string{}
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		var child, parent int
		var status string
		after := text[bytes.LastIndexByte(text, ')')+1:]
		if _, err := fmt.Sscan(string(after), &status, &parent); err != nil {
			continue
		}
		if _, err := fmt.Sscan(string(text), &child); err != nil {
			continue
		}
		children[parent] = append(children[parent], child)
		line, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "cmdline"))
		lines[child] = strings.ReplaceAll(string(line), "\x00", " ")
	}
	var found []string
	var walk func(int)
	walk = func(p int) {
		for _, c := range children[p] {
			found = append(found, lines[c])
			walk(c)
		}
	}
	walk(pid)
	return found
}

// processes lists those whose command line contains text.
func processes(text string) []string {
	var found []string
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if line, err := os.ReadFile(f); err == nil && bytes.Contains(line, []byte(text)) {
			found = append(found, "process "+filepath.Dir(f)+" "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}

// A result is one run of a program.
type result struct {
	doc    *state.Document // nil when none was written
	raw    []byte
	stderr string
	code   int
}

// A command is a program to be run; the zero Stdin is /dev/null.
type command struct {
	name  string
	args  []string
	stdin []byte
	env   []string
	dir   string
	user  *syscall.Credential
}

// run runs one of the programs or scripts and waits for it.
func (c command) run(t *testing.T) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	cmd := c.command(ctx)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	r := result{raw: stdout.Bytes(), stderr: stderr.String(), code: cmd.ProcessState.ExitCode()}
	t.Logf("%s %s: exit %d\n%s", c.name, strings.Join(c.args, " "), r.code, r.stderr)
	if len(r.raw) > 0 && strings.HasPrefix(strings.TrimSpace(string(r.raw)), "{") {
		if r.doc, err = state.Parse(r.raw); err != nil {
			t.Fatalf("%s wrote no document: %v\n%s", c.name, err, r.raw)
		}
		assert.Equal(t, r.code, r.doc.ExitCode(), "the exit code is not that of the document")
		keepDocument(t, r.raw)
	}
	return r
}

func (c command) command(ctx context.Context) *exec.Cmd {
	path := c.name
	if !filepath.IsAbs(path) {
		path = filepath.Join(bin, c.name)
	}
	if _, err := os.Stat(path); err != nil {
		path = filepath.Join(scripts, c.name)
	}
	cmd := exec.CommandContext(ctx, path, c.args...)
	cmd.Env = append(os.Environ(), c.env...)
	cmd.Dir = c.dir
	if c.user != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.user}
	}
	if c.stdin != nil {
		cmd.Stdin = bytes.NewReader(c.stdin)
	}
	return cmd
}

func (r result) mustExit(t *testing.T, code int) result {
	t.Helper()
	assert.Equal(t, r.code, code, "stderr:\n%s", r.stderr)
	return r
}

func (r result) mustSay(t *testing.T, texts ...string) result {
	t.Helper()
	for _, text := range texts {
		assert.Assert(t, strings.Contains(r.stderr, text), "stderr does not say %q:\n%s", text, r.stderr)
	}
	return r
}

// encode gives a changed copy of a document.
func encode(t *testing.T, doc *state.Document, change func(*state.Document)) []byte {
	t.Helper()
	raw, err := doc.Encode()
	assert.NilError(t, err)
	copied, err := state.Parse(raw)
	assert.NilError(t, err)
	if change != nil {
		change(copied)
	}
	raw, err = copied.Encode()
	assert.NilError(t, err)
	return raw
}

// shared is the tree that tests share. Nothing in it is changed but what dkmsbuild adds.
var shared struct {
	sync.Once
	doc *state.Document
	err error
}

// makeShared makes the shared tree, for the default kernel and its cloud flavour, unless
// it is there, or waits until it is.
func makeShared() {
	shared.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
		defer cancel()
		args := []string{"--work-dir", workDir, "--kver"}
		for _, flavour := range []string{"amd64", "cloud-amd64"} {
			kver, err := kernelOf(flavour)
			if err != nil {
				shared.err = err
				return
			}
			args = append(args, kver)
		}
		var stderr bytes.Buffer
		cmd := command{name: "mkchroot", args: args}.command(ctx)
		cmd.Stderr = &stderr
		raw, err := cmd.Output()
		if err != nil {
			shared.err = fmt.Errorf("%w\n%s", err, &stderr)
		}
		if doc, err := state.Parse(raw); err == nil {
			shared.doc = doc
		}
	})
}

// sharedTree is the document of the shared tree.
func sharedTree(t *testing.T) []byte {
	t.Helper()
	makeShared()
	assert.NilError(t, shared.err)
	raw := encode(t, shared.doc, nil)
	keepDocument(t, raw)
	return raw
}

// currentKernel asks the host's apt what the header metapackage depends on.
func currentKernel(t *testing.T, flavour string) string {
	t.Helper()
	kver, err := kernelOf(flavour)
	assert.NilError(t, err)
	return kver
}

func kernelOf(flavour string) (string, error) {
	out, err := exec.Command("apt-cache", "depends", "linux-headers-"+flavour).Output()
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(out)) {
		if _, release, ok := strings.Cut(strings.TrimSpace(line), "Depends: linux-headers-"); ok {
			return release, nil
		}
	}
	return "", fmt.Errorf("linux-headers-%s depends on no headers:\n%s", flavour, out)
}

// outcomes maps "package module kernel" to the status of its build.
func outcomes(doc *state.Document) map[string]string {
	out := map[string]string{}
	for _, b := range doc.Builds {
		out[strings.Join([]string{b.Package, b.Module, b.Kernel}, " ")] = b.Status
	}
	return out
}

func findBuild(t *testing.T, doc *state.Document, pkg, kernel string) state.Build {
	t.Helper()
	i := slices.IndexFunc(doc.Builds, func(b state.Build) bool { return b.Package == pkg && b.Kernel == kernel })
	assert.Assert(t, i >= 0, "no build of %s for %s", pkg, kernel)
	return doc.Builds[i]
}

// debFiles lists the packages in a directory.
func debFiles(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	assert.NilError(t, err)
	return found
}

// source makes a source directory of a small DKMS module out of files.
func source(t *testing.T, name string, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	for file, content := range files {
		path := filepath.Join(dir, file)
		assert.NilError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		assert.NilError(t, os.WriteFile(path, []byte(content), 0o644))
	}
	return dir
}

// goodModule is a module that builds on every kernel.
func goodModule(name string) map[string]string {
	return map[string]string{
		"dkms.conf":  fmt.Sprintf("PACKAGE_NAME=%q\nPACKAGE_VERSION=\"1.0\"\nBUILT_MODULE_NAME[0]=%q\nDEST_MODULE_LOCATION[0]=\"/updates\"\nAUTOINSTALL=\"yes\"\n", name, name),
		"Makefile":   fmt.Sprintf("obj-m := %s.o\n", name),
		name + ".c":  "#include <linux/module.h>\nstatic int __init good_init(void) { return 0; }\nmodule_init(good_init);\nMODULE_LICENSE(\"GPL\");\n",
		"COPYING":    "The license of the test module.\n",
		"debian/nil": "",
	}
}

// endlessModule is a module whose build never ends, and leaves a daemon. Tests that run
// side by side have it sleep for times of their own, to know theirs.
func endlessModule(name, seconds string) map[string]string {
	files := goodModule(name)
	files["dkms.conf"] += "MAKE[0]=\"sh endless\"\n"
	files["endless"] = "setsid sleep " + seconds + " & sleep " + seconds + "\n"
	return files
}
