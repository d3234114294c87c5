package sandbox

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"gotest.tools/v3/assert"
)

// onCopies gives a root the place where it is put together by copying.
func onCopies(s Spec, dir string) Spec {
	s.Root.Copies = dir
	return s
}

// onOverlay makes a directory on an overlay, as in a container whose root is one.
func onOverlay(t *testing.T) string {
	t.Helper()
	outer := newBox(t)
	point := filepath.Join(outer.dir, "root")
	options := "lowerdir=" + outer.base() + ",upperdir=" + outer.upper() + ",workdir=" + filepath.Join(outer.dir, "work")
	assert.NilError(t, unix.Mount("overlay", point, "overlay", 0, options))
	t.Cleanup(func() { assert.NilError(t, unix.Unmount(point, 0)) })
	dir := filepath.Join(point, "var/box")
	assert.NilError(t, os.Mkdir(dir, 0o755))
	return dir
}

// changes are two runs in the same root.
var changes = []string{
	`echo new >/etc/new; echo more >>/etc/old; rm /etc/gone /etc/both; chown 7:8 /etc/new; chmod 4711 /etc/mode
	mkdir -p /var/lib/deep; chmod 700 /var/lib/deep; ln -s ../x /var/lib/deep/link; ln /etc/new /etc/hard; echo linked >>/etc/hard
	rm -r /etc/dir; mkdir /etc/dir; echo fresh >/etc/dir/fresh; rm -r /etc/dir2; echo file >/etc/dir2; rm /etc/file2; mkdir /etc/file2
	busybox mv /etc/moved /etc/moved2; busybox mkfifo /etc/fifo; ln -sf elsewhere /etc/link`,
	`echo again >>/etc/mode; rm /etc/dir2; mkdir /etc/dir2; echo y >/etc/dir2/y; rmdir /etc/file2; rm /var/lib/deep/link; rm -r /etc/dir; echo both >/etc/both; chmod 750 /etc/moved2; : >/etc/last`,
}

// seen is what a root looks like from inside.
const seen = `busybox find /etc /var -xdev | while read -r f; do
	stat -c '%n %f %u:%g %N' "$f"; [ -L "$f" ] || [ ! -f "$f" ] || cat "$f"; done | busybox sort`

// TestCopies: without overlayfs, a root looks as with it, and so does what is left of
// it for the next one: on an ordinary file system, and on one that takes no whiteouts.
func TestCopies(t *testing.T) {
	t.Parallel()
	look := map[string][]string{}
	for _, kind := range []string{"overlay", "copies", "copies on an overlay", "memory", "memory on an overlay"} {
		b := newBox(t)
		for _, file := range []string{"old", "gone", "both", "mode", "dir/one", "dir/two", "dir2/one", "file2", "moved/one", "moved/sub/two", "kept/one"} {
			write(t, filepath.Join(b.base(), "etc", file), file+"\n", 0o644)
		}
		assert.NilError(t, os.Symlink("somewhere", filepath.Join(b.base(), "etc/link")))
		before := contents(t, b.base())
		if strings.HasSuffix(kind, "on an overlay") {
			dir := onOverlay(t)
			assert.NilError(t, os.CopyFS(filepath.Join(dir, "base"), os.DirFS(b.base())))
			for _, name := range []string{"upper", "work", "root"} {
				assert.NilError(t, os.Mkdir(filepath.Join(dir, name), 0o755))
			}
			b = boxAt(dir)
			before = contents(t, b.base())
		}
		place := func(spec Spec, name string) Spec {
			if kind == "overlay" {
				return spec
			}
			if strings.HasPrefix(kind, "memory") {
				spec.Root.Memory = testMemory
				return spec
			}
			return onCopies(spec, filepath.Join(b.dir, name))
		}
		for _, script := range changes {
			_, err := output(t.Context(), place(b.sh("set -e; "+script), "copies"))
			assert.NilError(t, err, kind)
			out, err := output(t.Context(), place(b.sh(seen), "copies"))
			assert.NilError(t, err, kind)
			look[kind] = append(look[kind], out)
		}
		assert.DeepEqual(t, contents(t, b.base()), before)

		// What was left is a layer for the next run, which only reads.
		spec := readOnly(place(b.sh(seen), "view"))
		spec.Root.Layers = []string{b.upper(), b.base()}
		for range 2 {
			out, err := output(t.Context(), spec)
			assert.NilError(t, err, kind)
			look[kind] = append(look[kind], out)
		}
		_, err := output(t.Context(), func() Spec { s := spec; s.Args = []string{"touch", "/etc/x"}; return s }())
		assert.ErrorContains(t, err, "Read-only file system")

		// And one on which another is written to.
		upper, work := filepath.Join(b.dir, "upper2"), filepath.Join(b.dir, "work2")
		assert.NilError(t, os.Mkdir(upper, 0o755))
		assert.NilError(t, os.Mkdir(work, 0o755))
		for _, script := range []string{"rm /etc/old /etc/new; rm -r /etc/kept; mkdir /etc/kept; echo 2 >/etc/gone; " + seen, seen} {
			spec = place(b.sh(script), "copies2")
			spec.Root.Layers, spec.Root.Upper, spec.Root.Work = []string{b.upper(), b.base()}, upper, work
			out, err := output(t.Context(), spec)
			assert.NilError(t, err, kind)
			look[kind] = append(look[kind], out)
		}
		spec = readOnly(place(b.sh(seen), "view2"))
		spec.Root.Layers = []string{upper, b.upper(), b.base()}
		out, err := output(t.Context(), spec)
		assert.NilError(t, err, kind)
		look[kind] = append(look[kind], out)
	}
	assert.Assert(t, strings.Contains(look["overlay"][0], "/etc/new 81a4 7:8"), look["overlay"][0])
	for kind := range look {
		assert.DeepEqual(t, look[kind], look["overlay"])
	}
}

// TestCopyLayer: a layer of an ordinary file system hides on an overlay what it has
// hidden before.
func TestCopyLayer(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	for _, file := range []string{"gone", "dir/one", "kept/one", "kept/two"} {
		write(t, filepath.Join(b.base(), "etc", file), file+"\n", 0o644)
	}
	_, err := output(t.Context(), b.sh("set -e; rm -r /etc/gone /etc/kept/one /etc/dir; mkdir /etc/dir; echo more >>/etc/kept/two; chown 7:8 /etc/kept/two"))
	assert.NilError(t, err)
	look := func(layer string) string {
		spec := readOnly(b.sh(seen))
		spec.Root.Layers = []string{layer, b.base()}
		out, err := output(t.Context(), spec)
		assert.NilError(t, err)
		return out
	}
	copied := onOverlay(t)
	assert.NilError(t, CopyLayer(t.Context(), b.upper(), copied))
	want := look(b.upper())
	assert.Assert(t, strings.Contains(want, "/etc/kept/two 81a4 7:8") && !strings.Contains(want, "one") && !strings.Contains(want, "gone"), want)
	assert.Equal(t, look(copied), want)
}

// TestCopiesTakeOnlyChanges: what did not change is not in the layer that is left.
func TestCopiesTakeOnlyChanges(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	write(t, filepath.Join(b.base(), "etc/old"), "old\n", 0o644)
	write(t, filepath.Join(b.base(), "etc/gone"), "gone\n", 0o644)
	copies := filepath.Join(b.dir, "copies")
	for range 2 {
		_, err := output(t.Context(), onCopies(b.sh("cat /etc/hosts; echo more >>/etc/old; rm -f /etc/gone; mkdir -p /var/lib"), copies))
		assert.NilError(t, err)
	}
	assert.DeepEqual(t, contents(t, b.upper()), map[string]string{
		"etc": "drwxr-xr-x", "etc/old": "-rw-r--r-- old\nmore\nmore\n", "etc/gone": "Dc---------", "var": "drwxr-xr-x", "var/lib": "drwxr-xr-x",
	})
	// A run that is stopped in time leaves what it had done; one that is cancelled does not matter.
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := output(ctx, onCopies(b.sh("echo late >/etc/late; sleep 60"), copies))
	assert.ErrorIs(t, err, context.DeadlineExceeded)
	assert.Equal(t, contents(t, b.upper())["etc/late"], "-rw-r--r-- late\n")
}

// TestProbe: what overlayfs can be used for is found by trying it.
func TestProbe(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	probe := func(dir string, memory int64) (*Lack, error) {
		try := filepath.Join(dir, "try")
		assert.NilError(t, os.Mkdir(try, 0o755))
		lack, err := Probe(t.Context(), filepath.Join(b.dir, "root"), try, memory)
		left, readErr := os.ReadDir(try)
		assert.NilError(t, readErr)
		assert.Equal(t, len(left), 0)
		return lack, err
	}
	lack, err := probe(b.dir, testMemory)
	assert.NilError(t, err)
	assert.Assert(t, lack == nil, lack)
	const upper = "that lies on an overlay itself, as in a container: put it on a volume"
	for memory, want := range map[int64]string{testMemory: "", 0: "there is too little"} {
		lack, err = probe(onOverlay(t), memory)
		assert.NilError(t, err)
		assert.Assert(t, strings.Contains(lack.Upper, upper), lack)
		assert.Equal(t, lack.Memory, want)
	}
	assert.Assert(t, !mounted(t, b.dir))
}

// refuse is a container engine whose filter of system calls forbids mounts, or new user
// namespaces. It goes on as the role "probe".
func refuse(role string) error {
	runtime.LockOSThread()
	var p program
	p.load(offsetNumber)
	switch role {
	case "refuse mount":
		p.when(unix.BPF_JEQ, unix.SYS_MOUNT, errno(unix.EPERM))
	case "refuse namespaces":
		other := p.jump(unix.BPF_JEQ, unix.SYS_CLONE, ifNot)
		p.load(argument(0))
		p.when(unix.BPF_JSET, unix.CLONE_NEWUSER, errno(unix.EPERM))
		p.here(other)
		p.load(offsetNumber)
		p.when(unix.BPF_JEQ, unix.SYS_CLONE3, errno(unix.ENOSYS)) // its flags are in memory
	}
	p.ret(unix.SECCOMP_RET_ALLOW)
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	if err := errors.Join(unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
		unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0), os.Setenv(roleVar, "probe")); err != nil {
		return err
	}
	return unix.Exec("/proc/self/exe", os.Args, os.Environ())
}

// TestProbeInContainers: where an engine forbids what is needed, the error says which of
// its options allows it.
func TestProbeInContainers(t *testing.T) {
	t.Parallel()
	for role, want := range map[string]string{
		"refuse mount":      "the container that this runs in forbids mounts, which docker run --security-opt seccomp=unconfined",
		"refuse namespaces": "the container or service that this runs in filters system calls: it must allow unshare and mount, as docker run --security-opt seccomp=unconfined",
	} {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", newBox(t).dir)
		cmd.Env = append(os.Environ(), roleVar+"="+role)
		out, err := cmd.CombinedOutput()
		assert.NilError(t, err, "%s", out)
		assert.Assert(t, strings.Contains(string(out), want) && strings.Contains(string(out), "mkchroot --in-place does without"), "%s: %s", role, out)
		assert.Assert(t, strings.Contains(string(out), "lack: <nil>\n"), "%s", out)
	}
}
