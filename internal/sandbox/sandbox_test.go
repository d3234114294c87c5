package sandbox

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

// roleVar makes the test binary play a part in a test instead of running the
// tests.
const roleVar = "SANDBOX_TEST_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVar); role != "" {
		os.Exit(play(role, os.Args[1:]))
	}
	os.Exit(m.Run())
}

// play is what a child process of a test does: it runs a command in the box
// whose directory is its first argument.
func play(role string, args []string) int {
	switch role {
	case "refuse mount", "refuse namespaces":
		fmt.Fprintln(os.Stderr, refuse(role))
		return 92
	case "probe":
		lack, err := Probe(context.Background(), filepath.Join(args[0], "root"), filepath.Join(args[0], "work"), testMemory)
		fmt.Printf("lack: %v\nerror: %v\n", lack, err)
		return 0
	}
	b := boxAt(args[0])
	spec := b.spec(args[1:]...)
	switch role {
	case "run":
	case "host", "real root":
		spec.Root, spec.Env, spec.RealRoot = Root{Host: true}, DefaultEnv(), role == "real root"
	case "memory":
		spec.Root.Memory = testMemory
	case "copies":
		spec.Root.Copies = filepath.Join(b.dir, "copies")
	case "in place":
		spec.Root, spec.Env = Root{InPlace: true, Upper: "/"}, DefaultEnv()
	case "terminal":
		tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 90
		}
		spec.Terminal = tty
	}
	spec.Stdout, spec.Stderr = os.Stdout, os.Stdout
	err := Run(context.Background(), spec)
	var exit *ExitError
	switch {
	case errors.As(err, &exit):
		return exit.Code
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		return 91
	}
	return 0
}

// testMemory is what runs of tests may write to memory.
const testMemory = 16 << 20

// A box is a tiny tree of busybox, with an empty writable layer over it.
type box struct{ dir string }

func boxAt(dir string) box { return box{dir} }

func (b box) base() string  { return filepath.Join(b.dir, "base") }
func (b box) upper() string { return filepath.Join(b.dir, "upper") }

// applets are the programs of the tree.
var applets = []string{
	"cat", "chmod", "chown", "chroot", "cp", "dd", "echo", "env", "grep", "head", "hostname", "id", "ip", "kill", "ln", "ls",
	"mkdir", "mknod", "mount", "nc", "readlink", "rm", "rmdir", "seq", "setsid", "sh", "sleep", "stat", "touch", "tty", "umount",
}

const busybox = "/bin/busybox"

// newBox makes a box. Sandboxes of trees need root.
func newBox(t testing.TB) box {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("the tests of sandboxes need root")
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatalf("the tests of sandboxes need a static busybox: apt-get install busybox-static (%v)", err)
	}
	b := boxAt(t.TempDir())
	for _, dir := range []string{"bin", "dev", "etc", "proc", "run", "sys", "tmp", "var"} {
		assert.NilError(t, os.MkdirAll(filepath.Join(b.base(), dir), 0o755))
	}
	for _, dir := range []string{"upper", "work", "root"} {
		assert.NilError(t, os.Mkdir(filepath.Join(b.dir, dir), 0o755))
	}
	write(t, filepath.Join(b.base(), "bin/busybox"), string(program), 0o755)
	for _, name := range applets {
		assert.NilError(t, os.Symlink("busybox", filepath.Join(b.base(), "bin", name)))
	}
	write(t, filepath.Join(b.base(), "etc/hosts"), "127.0.0.1 localhost\n", 0o644)
	return b
}

func write(t testing.TB, path, content string, mode fs.FileMode) {
	t.Helper()
	assert.NilError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	assert.NilError(t, os.WriteFile(path, []byte(content), mode))
	assert.NilError(t, os.Chmod(path, mode))
}

func (b box) spec(args ...string) Spec {
	return Spec{
		Root:       Root{Layers: []string{b.base()}, Upper: b.upper(), Work: filepath.Join(b.dir, "work")},
		Mountpoint: filepath.Join(b.dir, "root"),
		Args:       args, Env: []string{"PATH=/bin"},
	}
}

// sh is a spec that runs a shell script.
func (b box) sh(script string) Spec { return b.spec("sh", "-c", script) }

// readOnly takes the writable layer away.
func readOnly(s Spec) Spec {
	s.Root.Upper, s.Root.Work = "", ""
	return s
}

// host is a spec with the host's root.
func (b box) host(script string) Spec {
	s := b.spec("sh", "-c", script)
	s.Root, s.Env = Root{Host: true}, DefaultEnv()
	return s
}

// output runs spec and returns what it printed.
func output(ctx context.Context, spec Spec) (string, error) {
	var out bytes.Buffer
	spec.Stdout, spec.Stderr = &out, &out
	err := Run(ctx, spec)
	return out.String(), err
}

// contents lists all below dir as path and kind, mode and content.
func contents(t testing.TB, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	assert.NilError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text := info.Mode().String()
		switch {
		case info.Mode().IsRegular():
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if len(content) > 1<<10 {
				content = fmt.Appendf(nil, "%x", sha256.Sum256(content))
			}
			text += " " + string(content)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text += " " + target
		}
		name, err := filepath.Rel(dir, path)
		found[name] = text
		return err
	}))
	return found
}

// processes lists those with arg among their arguments.
func processes(t testing.TB, arg string) []string {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	assert.NilError(t, err)
	var found []string
	for _, path := range lines {
		line, err := os.ReadFile(path)
		if err == nil && slices.Contains(strings.Split(string(line), "\x00"), arg) {
			found = append(found, path)
		}
	}
	return found
}

var sleeps struct {
	sync.Mutex
	n int
}

// longSleep is an argument for sleep(1) that no other process has: longer than
// any test, but not for ever where a test fails.
func longSleep() string {
	sleeps.Lock()
	defer sleeps.Unlock()
	sleeps.n++
	return fmt.Sprintf("30.%d%04d", os.Getpid(), sleeps.n)
}

// eventually waits until ok.
func eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %s still not so: %s", limit, what)
		}
	}
}

func mounted(t testing.TB, dir string) bool {
	t.Helper()
	info, err := os.ReadFile("/proc/self/mountinfo")
	assert.NilError(t, err)
	return strings.Contains(string(info), dir)
}

func TestExit(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	for _, root := range []struct {
		name string
		spec func(string) Spec
	}{{"tree", b.sh}, {"host", b.host}} {
		for _, tt := range []struct {
			name, script string
			want         ExitError
			message      string
		}{
			{name: "success", script: "echo fine"},
			{"status", "exit 3", ExitError{Code: 3}, "exit status 3"},
			{"signal", "kill -9 $$", ExitError{Code: -1, Signal: syscall.SIGKILL}, "killed by killed"},
			{"tail", "echo one; echo two >&2; echo; echo '  three '; exit 1", ExitError{Code: 1, Tail: "one | two | three"}, "exit status 1: one | two | three"},
			{"long tail", "seq 100000; exit 7", ExitError{Code: 7, Tail: "99997 | 99998 | 99999 | 100000"}, "exit status 7: 99997 | 99998 | 99999 | 100000"},
		} {
			t.Run(root.name+" "+tt.name, func(t *testing.T) {
				spec := root.spec(tt.script)
				if root.name == "tree" {
					spec = readOnly(spec)
				}
				_, err := output(t.Context(), spec)
				if tt.message == "" {
					assert.NilError(t, err)
					return
				}
				var exit *ExitError
				assert.Assert(t, errors.As(err, &exit), "%v", err)
				tt.want.Args = spec.Args
				assert.DeepEqual(t, *exit, tt.want)
				assert.Equal(t, err.Error(), "sh -c "+tt.script+": "+tt.message)
			})
		}
	}
}

func TestCannotRun(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	write(t, filepath.Join(b.base(), "etc/plain"), "text", 0o644)
	tests := []struct {
		name   string
		change func(*Spec)
		want   string
	}{
		{"no command", func(s *Spec) { s.Args = nil }, "no command"},
		{"unknown command", func(s *Spec) { s.Args = []string{"no-such-command"} }, "no-such-command: executable file not found"},
		{"no PATH", func(s *Spec) { s.Env = nil }, "sh: executable file not found"},
		{"not below PATH", func(s *Spec) { s.Env = []string{"PATH=/etc:/var"} }, "sh: executable file not found"},
		{"not executable", func(s *Spec) { s.Args = []string{"/etc/plain"} }, "cannot start /etc/plain: permission denied"},
		{"no such working directory", func(s *Spec) { s.Dir = "/nowhere" }, "cannot start /bin/sh"},
		{"no layers", func(s *Spec) { s.Root = Root{} }, "no layers"},
		{"missing layer", func(s *Spec) { s.Root.Layers = append(s.Root.Layers, b.dir+"/gone") }, b.dir + "/gone: no such file"},
		{"missing mount point", func(s *Spec) { s.Mountpoint = b.dir + "/gone" }, "cannot mount an overlay"},
		{"missing source of a bind", func(s *Spec) { s.Binds = []Bind{{Source: b.dir + "/gone", Target: "/etc"}} }, b.dir + "/gone"},
		{"missing target of a bind", func(s *Spec) { s.Binds = []Bind{{Source: b.dir, Target: "/etc/gone"}} }, "/etc/gone: no such file"},
		{"missing target of a file", func(s *Spec) { s.Files = []File{{Target: "/etc/gone"}} }, "/etc/gone: no such file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			spec := b.sh("echo it ran")
			tt.change(&spec)
			out, err := output(t.Context(), spec)
			assert.ErrorContains(t, err, tt.want)
			assert.ErrorContains(t, err, "cannot run ")
			var exit *ExitError
			assert.Assert(t, !errors.As(err, &exit))
			assert.Equal(t, out, "")
			assert.Assert(t, !mounted(t, b.dir))
		})
	}
}

func TestWritesLandInUpper(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	write(t, filepath.Join(b.base(), "etc/old"), "old\n", 0o644)
	write(t, filepath.Join(b.base(), "etc/gone"), "gone\n", 0o644)
	before := contents(t, b.base())
	_, err := output(t.Context(), b.sh(`
		echo new >/etc/new; echo more >>/etc/old; rm /etc/gone
		mkdir -p /var/lib/deep; chmod 700 /var/lib/deep; ln -s ../x /var/lib/deep/link; chown 7:8 /etc/new
		echo x >/dev/shm/x; echo x >/run/x`))
	assert.NilError(t, err)
	assert.DeepEqual(t, contents(t, b.base()), before)
	assert.DeepEqual(t, contents(t, b.upper()), map[string]string{
		"etc": "drwxr-xr-x", "etc/new": "-rw-r--r-- new\n", "etc/old": "-rw-r--r-- old\nmore\n", "etc/gone": "Dc---------",
		"var": "drwxr-xr-x", "var/lib": "drwxr-xr-x", "var/lib/deep": "drwx------", "var/lib/deep/link": "Lrwxrwxrwx ../x",
	})

	// What was left is a layer for the next run.
	next := newBox(t)
	spec := next.sh("cat /etc/new /etc/old; ls /etc; stat -c %u:%g /etc/new")
	spec.Root.Layers = []string{b.upper(), b.base()}
	out, err := output(t.Context(), spec)
	assert.NilError(t, err)
	assert.Equal(t, out, "new\nold\nmore\nhosts\nnew\nold\n7:8\n")
}

// TestNoSync: no command waits for the disk, the second in the same directories neither.
func TestNoSync(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	for range 2 {
		out, err := output(t.Context(), b.sh("echo >>/etc/new; grep '^overlay / ' /proc/self/mounts"))
		assert.NilError(t, err)
		assert.Assert(t, strings.Contains(out, "volatile"), out)
	}
	assert.Equal(t, contents(t, b.upper())["etc/new"], "-rw-r--r-- \n\n")
}

func TestOutside(t *testing.T) {
	t.Parallel()
	binds := []Bind{{Source: "/a", Target: "/run/r-1"}, {Source: "/b", Target: "/run/r-10"}}
	assert.Equal(t, Outside("copy:/run/r-10/x and file:/run/r-1/y, not /run/r", binds), "copy:/b/x and file:/a/y, not /run/r")
}
