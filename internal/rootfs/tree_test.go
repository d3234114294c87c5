package rootfs

import (
	"bufio"
	"context"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/sandbox"
	"dkms2bin/internal/scratch"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gotest.tools/v3/assert"
)

// roleVar makes the test binary use the tree that is its argument, until its
// stdin ends.
const roleVar = "ROOTFS_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVar) {
	case "":
		os.Exit(m.Run())
	case "cache":
		fmt.Println(makeForever(os.Args[1]))
		os.Exit(1)
	}
	t, err := Open(os.Args[1])
	if err == nil {
		err = t.Use()
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("in use")
	_, err = io.Copy(io.Discard, os.Stdin)
	if err = errors.Join(err, t.Close()); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// user is another process that uses the tree.
type user struct {
	*exec.Cmd
	stdin io.Closer
}

func useElsewhere(t *testing.T, path string) user {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", path)
	cmd.Env = append(os.Environ(), roleVar+"=use", "GORACE=atexit_sleep_ms=0")
	stdin, err := cmd.StdinPipe()
	assert.NilError(t, err)
	stdout, err := cmd.StdoutPipe()
	assert.NilError(t, err)
	assert.NilError(t, cmd.Start())
	line, err := bufio.NewReader(stdout).ReadString('\n')
	assert.NilError(t, err)
	assert.Equal(t, line, "in use\n")
	return user{cmd, stdin}
}

func (u user) end(t *testing.T) {
	t.Helper()
	assert.NilError(t, u.stdin.Close())
	assert.NilError(t, u.Wait())
}

func (u user) kill(t *testing.T) {
	t.Helper()
	assert.NilError(t, u.Process.Kill())
	assert.ErrorContains(t, u.Wait(), "signal: killed")
}

// create makes a tree that nobody uses any more.
func create(t *testing.T, workDir string) *Tree {
	t.Helper()
	tree, err := Create(workDir)
	assert.NilError(t, err)
	assert.NilError(t, tree.Close())
	return tree
}

// list is all below dir, with its mode.
func list(t *testing.T, dir string) map[string]string {
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
		name, err := filepath.Rel(dir, path)
		found[name] = info.Mode().String()
		return err
	}))
	return found
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	assert.NilError(t, err)
	found := []string{}
	for _, e := range entries {
		found = append(found, e.Name())
	}
	return found
}

func write(t *testing.T, path, content string) {
	t.Helper()
	assert.NilError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	assert.NilError(t, os.WriteFile(path, []byte(content), 0o644))
}

func TestWorkDir(t *testing.T) {
	t.Parallel()
	asked, err := WorkDir("some/where")
	assert.NilError(t, err)
	assert.Assert(t, filepath.IsAbs(asked) && strings.HasSuffix(asked, "/some/where"), asked)
	dir, err := WorkDir("")
	assert.NilError(t, err)
	if os.Geteuid() == 0 {
		assert.Equal(t, dir, "/var/cache/dkms2bin")
	} else {
		assert.Equal(t, filepath.Base(dir), "dkms2bin")
		assert.Assert(t, filepath.IsAbs(dir))
	}
}

func TestCreate(t *testing.T) {
	t.Parallel()
	work := filepath.Join(t.TempDir(), "not", "there yet")
	tree, err := Create(work)
	assert.NilError(t, err)
	assert.Equal(t, filepath.Dir(tree.Path), filepath.Join(work, "trees"))
	assert.DeepEqual(t, names(t, filepath.Join(work, "trees")), []string{filepath.Base(tree.Path)})
	marks := names(t, filepath.Join(tree.Path, "busy"))
	assert.Equal(t, len(marks), 1)
	assert.DeepEqual(t, list(t, tree.Path), map[string]string{
		"apt": "drwxr-xr-x", "busy": "drwxr-xr-x", "busy/" + marks[0]: "-rw-------", "documents": "drwxr-xr-x", "dkms2bin-tree": "-rw-r--r--", "layers": "drwx------",
		"lock": "-rw-r--r--", "records": "drwxr-xr-x", "root": "drwxr-xr-x", "scratch": "drwx------",
	})
	assert.Equal(t, tree.Mountpoint(), filepath.Join(tree.Path, "root"))
	assert.Equal(t, tree.Apt(), filepath.Join(tree.Path, "apt"))
	assert.NilError(t, tree.Close())
	assert.DeepEqual(t, names(t, filepath.Join(tree.Path, "busy")), []string{})
	assert.NilError(t, tree.Close()) // again is nothing

	other := create(t, work)
	assert.Assert(t, other.Path != tree.Path)
	opened, err := Open(tree.Path)
	assert.NilError(t, err)
	assert.Equal(t, opened.Path, tree.Path)
}

// /var/cache may be a link to a larger disk.
func TestCreateThroughALink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	assert.NilError(t, os.Mkdir(filepath.Join(dir, "real"), 0o755))
	assert.NilError(t, os.Symlink("real", filepath.Join(dir, "link")))
	tree := create(t, filepath.Join(dir, "link"))
	assert.Equal(t, filepath.Dir(tree.Path), filepath.Join(dir, "real", "trees"))
	_, err := Open(tree.Path)
	assert.NilError(t, err)
	assert.NilError(t, tree.Remove())
}

func TestCannotCreate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), "")
	_, err := Create(filepath.Join(dir, "file"))
	assert.ErrorContains(t, err, "cannot create a tree in "+filepath.Join(dir, "file")+": ")
	assert.DeepEqual(t, names(t, dir), []string{"file"})
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tree := create(t, dir)
	write(t, filepath.Join(dir, "file"), "")
	write(t, filepath.Join(dir, "foreign", "file"), "")
	write(t, filepath.Join(dir, "older", markerName), "dkms2bin build tree, layout 0\n")
	write(t, filepath.Join(dir, "empty", markerName), "")
	assert.NilError(t, os.Symlink(tree.Path, filepath.Join(dir, "link")))
	assert.NilError(t, os.Symlink("trees", filepath.Join(dir, "parent")))
	home, err := os.UserHomeDir()
	assert.NilError(t, err)
	tests := []struct {
		name, path, want string
		noTree           bool
	}{
		{"missing", filepath.Join(dir, "missing"), "no such file", true},
		{"a file", filepath.Join(dir, "file"), "it is no directory", true},
		{"a foreign directory", filepath.Join(dir, "foreign"), "it has no file dkms2bin-tree", true},
		{"the root", "/", "it has no file dkms2bin-tree", true},
		{"a home", home, "it has no file dkms2bin-tree", true},
		{"a mount point", "/proc", "it has no file dkms2bin-tree", true},
		{"another layout", filepath.Join(dir, "older"), `that this version knows: dkms2bin-tree says "dkms2bin build tree, layout 0"`, true},
		{"an empty marker", filepath.Join(dir, "empty"), `says ""`, true},
		{"a link", filepath.Join(dir, "link"), "the path leads through a link to " + tree.Path, true},
		{"through a link", filepath.Join(dir, "parent", filepath.Base(tree.Path)), "the path leads through a link to " + tree.Path, true},
		{"relative", "trees", "its path is not absolute", false},
		{"empty", "", "its path is not absolute", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := Open(tt.path)
			assert.ErrorContains(t, err, tt.want)
			assert.ErrorContains(t, err, "cannot open the tree "+tt.path+": ")
			assert.Equal(t, errors.Is(err, ErrNoTree), tt.noTree)
		})
	}
	_, err = Open(tree.Path + "/")
	assert.NilError(t, err)
}

func TestTreeInUseStays(t *testing.T) {
	t.Parallel()
	tree := create(t, t.TempDir())
	refused := func() {
		t.Helper()
		again, err := Open(tree.Path)
		assert.NilError(t, err)
		err = again.Remove()
		assert.ErrorIs(t, err, ErrBusy)
		assert.Assert(t, diag.Hint(err) != "")
		_, err = os.Stat(filepath.Join(tree.Path, markerName))
		assert.NilError(t, err)
	}
	// By this process, also when it asks itself.
	assert.NilError(t, tree.Use())
	refused()
	assert.ErrorIs(t, tree.Remove(), ErrBusy)
	// By another process as well.
	other := useElsewhere(t, tree.Path)
	assert.Equal(t, len(names(t, filepath.Join(tree.Path, "busy"))), 2)
	assert.NilError(t, tree.Close())
	refused()
	assert.Equal(t, len(names(t, filepath.Join(tree.Path, "busy"))), 1)
	other.end(t)
	assert.Equal(t, len(names(t, filepath.Join(tree.Path, "busy"))), 0)

	assert.NilError(t, tree.Remove())
	assert.DeepEqual(t, names(t, filepath.Dir(tree.Path)), []string{})
	_, err := Open(tree.Path)
	assert.ErrorIs(t, err, ErrNoTree)
	assert.ErrorIs(t, tree.Use(), fs.ErrNotExist)
}

// A dead process's mark makes the tree stale, until somebody uses it again.
func TestMarksOfTheDead(t *testing.T) {
	t.Parallel()
	work := t.TempDir()
	tree := create(t, work)
	useElsewhere(t, tree.Path).kill(t)
	assert.Equal(t, len(names(t, filepath.Join(tree.Path, "busy"))), 1)
	stale, err := Stale(work, 0, "")
	assert.NilError(t, err)
	assert.Equal(t, len(stale), 1)

	assert.NilError(t, tree.Use())
	assert.Equal(t, len(names(t, filepath.Join(tree.Path, "busy"))), 1)
	// A second user leaves the first one's mark alone.
	again, err := Open(tree.Path)
	assert.NilError(t, err)
	assert.NilError(t, again.Use())
	assert.Equal(t, len(names(t, filepath.Join(tree.Path, "busy"))), 2)
	assert.NilError(t, again.Close())
	assert.NilError(t, tree.Close())
	stale, err = Stale(work, 0, "")
	assert.NilError(t, err)
	assert.Equal(t, len(stale), 0)
}

func paths(trees []*Tree) []string {
	found := []string{}
	for _, t := range trees {
		found = append(found, t.Path)
	}
	return found
}

func TestStale(t *testing.T) {
	t.Parallel()
	work := t.TempDir()
	parent := filepath.Join(work, "trees")
	idle := create(t, work)
	old := create(t, work)
	then := time.Now().Add(-48 * time.Hour)
	for _, name := range []string{"busy", "documents", "layers"} {
		assert.NilError(t, os.Chtimes(filepath.Join(old.Path, name), then, then))
	}
	killed := create(t, work)
	useElsewhere(t, killed.Path).kill(t)
	inUse := create(t, work)
	other := useElsewhere(t, inUse.Path)
	oldInUse := create(t, work)
	assert.NilError(t, oldInUse.Use())
	for _, name := range []string{"busy", "documents", "layers"} {
		assert.NilError(t, os.Chtimes(filepath.Join(oldInUse.Path, name), then, then))
	}
	// A removal that was interrupted: the marker may be gone, and so the lock.
	half := create(t, work)
	halfPath := filepath.Join(parent, removingTag+filepath.Base(half.Path))
	assert.NilError(t, os.Rename(half.Path, halfPath))
	bare := filepath.Join(parent, removingTag+"bare")
	write(t, filepath.Join(bare, "layers/x/file"), "")
	// Not ours.
	write(t, filepath.Join(parent, "foreign", "busy", "1"), "")
	write(t, filepath.Join(parent, "file"), "")
	assert.NilError(t, os.Symlink(killed.Path, filepath.Join(parent, "link")))

	for _, tt := range []struct {
		name      string
		olderThan time.Duration
		want      []string
	}{
		{"stale", 0, []string{halfPath, bare, killed.Path}},
		{"old", 24 * time.Hour, []string{halfPath, bare, old.Path, killed.Path}},
		{"very old", 72 * time.Hour, []string{halfPath, bare, killed.Path}},
		{"all that are idle", time.Nanosecond, []string{halfPath, bare, idle.Path, old.Path, killed.Path}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			stale, err := Stale(work, tt.olderThan, "")
			assert.NilError(t, err)
			got, want := map[string]bool{}, map[string]bool{}
			for _, p := range paths(stale) {
				got[p] = true
			}
			for _, p := range tt.want {
				want[p] = true
			}
			assert.DeepEqual(t, got, want)
		})
	}

	stale, err := Stale(work, time.Nanosecond, "")
	assert.NilError(t, err)
	for _, tree := range stale {
		assert.NilError(t, tree.Remove())
	}
	assert.NilError(t, oldInUse.Close())
	other.end(t)
	left := map[string]bool{}
	for _, n := range names(t, parent) {
		left[n] = true
	}
	assert.DeepEqual(t, left, map[string]bool{
		filepath.Base(inUse.Path): true, filepath.Base(oldInUse.Path): true, "foreign": true, "file": true, "link": true,
	})
}

func TestStaleWithoutTrees(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, work := range []string{dir, filepath.Join(dir, "gone")} {
		stale, err := Stale(work, 0, "")
		assert.NilError(t, err)
		assert.Equal(t, len(stale), 0)
	}
	write(t, filepath.Join(dir, "trees"), "not a directory")
	_, err := Stale(dir, 0, "")
	assert.ErrorContains(t, err, "cannot look for stale trees in "+dir)
}

// A tree that is just being made is not taken for one that is half removed.
func TestStaleWhileCreating(t *testing.T) {
	t.Parallel()
	work := t.TempDir()
	var done atomic.Bool
	var trees []*Tree
	var createErr error
	var wg sync.WaitGroup
	wg.Go(func() {
		defer done.Store(true)
		for range 100 {
			tree, err := Create(work)
			if err != nil {
				createErr = err
				return
			}
			trees = append(trees, tree)
		}
	})
	for !done.Load() {
		stale, err := Stale(work, time.Nanosecond, "")
		assert.Check(t, err)
		assert.Check(t, len(stale) == 0, "%v", paths(stale))
	}
	wg.Wait()
	assert.NilError(t, createErr)
	for _, tree := range trees {
		assert.NilError(t, tree.Close())
	}
}

// Links and odd files of a tree are foreign: removal stays inside.
func TestRemoveStaysInside(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	outside := filepath.Join(dir, "outside")
	write(t, filepath.Join(outside, "dir/file"), "")
	before := list(t, outside)
	tree := create(t, filepath.Join(dir, "work"))
	layer := tree.LayerPath("layer")
	write(t, filepath.Join(layer, "deep/er/file"), "")
	for name, target := range map[string]string{"absolute": outside, "relative": "../../../../../outside", "file": outside + "/dir/file", "loop": "loop", "deep/root": "/"} {
		assert.NilError(t, os.Symlink(target, filepath.Join(layer, name)))
	}
	assert.NilError(t, unix.Mkfifo(filepath.Join(layer, "fifo"), 0o600))
	write(t, filepath.Join(layer, "closed/file"), "")
	if os.Geteuid() == 0 {
		assert.NilError(t, os.Chmod(filepath.Join(layer, "closed"), 0)) // as overlayfs leaves its work directory
	}
	assert.NilError(t, tree.Remove())
	assert.DeepEqual(t, list(t, outside), before)
	assert.DeepEqual(t, names(t, filepath.Join(dir, "work/trees")), []string{})
}

func TestTreeWithMountsStays(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Fatal("mounting needs root")
	}
	tree := create(t, filepath.Join(t.TempDir(), "a b\tc\\d"))
	point := filepath.Join(tree.Path, "root")
	assert.NilError(t, unix.Mount("tmpfs", point, "tmpfs", 0, "size=64k"))
	err := tree.Remove()
	assert.Check(t, unix.Unmount(point, 0) == nil)
	assert.ErrorContains(t, err, "something is mounted in it: "+point)
	assert.Assert(t, diag.Hint(err) != "")
	_, err = Open(tree.Path)
	assert.NilError(t, err)
	assert.NilError(t, tree.Remove())
}

func TestRecord(t *testing.T) {
	t.Parallel()
	tree := create(t, t.TempDir())
	for range 2 {
		dir, err := tree.Record("headers-x")
		assert.NilError(t, err)
		assert.Equal(t, dir, filepath.Join(tree.Path, "records", "headers-x"))
	}
	assert.DeepEqual(t, list(t, filepath.Join(tree.Path, "records")), map[string]string{"headers-x": "drwxr-xr-x"})
}

// scratchDirs are the unfinished layers of the tree.
func scratchDirs(t *testing.T, tree *Tree) []string {
	t.Helper()
	found := []string{}
	entries, err := os.ReadDir(filepath.Join(tree.Path, "scratch"))
	assert.NilError(t, err)
	for _, e := range entries {
		if e.IsDir() {
			found = append(found, e.Name())
		}
	}
	return found
}

func TestMakeLayer(t *testing.T) {
	t.Parallel()
	tree := create(t, t.TempDir())
	fill := func(content string) func(sandbox.Root) error {
		return func(root sandbox.Root) error {
			assert.Assert(t, !tree.HasLayer("new"), "it must not be there before it is whole")
			return os.WriteFile(filepath.Join(root.Upper, "file"), []byte(content), 0o644)
		}
	}
	var seen sandbox.Root
	assert.NilError(t, tree.MakeLayer(t.Context(), LayerSpec{Name: "new", On: []string{"top", "base"}, Make: func(root sandbox.Root) error {
		seen = root
		for _, dir := range []string{root.Upper, root.Work} {
			info, err := os.Stat(dir)
			assert.NilError(t, err)
			assert.Equal(t, info.Mode(), fs.ModeDir|0o755)
			assert.Equal(t, len(names(t, dir)), 0)
		}
		return fill("first")(root)
	}}))
	assert.DeepEqual(t, seen.Layers, []string{tree.LayerPath("top"), tree.LayerPath("base")})
	assert.Assert(t, tree.HasLayer("new"))
	content := func() string {
		text, err := os.ReadFile(filepath.Join(tree.LayerPath("new"), "file"))
		assert.NilError(t, err)
		return string(text)
	}
	assert.Equal(t, content(), "first")
	assert.DeepEqual(t, scratchDirs(t, tree), []string{})

	// It is there.
	never := func(sandbox.Root) error { return errors.New("made again") }
	assert.NilError(t, tree.MakeLayer(t.Context(), LayerSpec{Name: "new", Make: never}))
	assert.Equal(t, content(), "first")

	broken := errors.New("the disk is full")
	// A failure leaves nothing.
	err := tree.MakeLayer(t.Context(), LayerSpec{Name: "other", Make: func(root sandbox.Root) error {
		write(t, filepath.Join(root.Upper, "dir/file"), "")
		write(t, filepath.Join(root.Work, "dir/file"), "")
		return broken
	}})
	assert.ErrorIs(t, err, broken)
	assert.Error(t, err, "the disk is full") // as it is
	assert.Assert(t, !tree.HasLayer("other"))
	assert.DeepEqual(t, names(t, filepath.Join(tree.Path, "layers")), []string{"new"})
	assert.DeepEqual(t, scratchDirs(t, tree), []string{})

	// A file is no layer.
	write(t, tree.LayerPath("file"), "")
	assert.Assert(t, !tree.HasLayer("file") && !tree.HasLayer("") && !tree.HasLayer("gone"))
}

func TestMakersOfTheSameLayer(t *testing.T) {
	t.Parallel()
	path := create(t, t.TempDir()).Path
	var made, atOnce atomic.Int32
	errs := make([]error, 8)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			tree, err := Open(path) // as another process would
			if err != nil {
				errs[i] = err
				return
			}
			errs[i] = tree.MakeLayer(t.Context(), LayerSpec{Name: "one", Make: func(root sandbox.Root) error {
				if atOnce.Add(1) > 1 {
					return errors.New("two at once")
				}
				defer atOnce.Add(-1)
				time.Sleep(50 * time.Millisecond)
				return os.WriteFile(filepath.Join(root.Upper, "file"), []byte(fmt.Sprint(made.Add(1))), 0o644)
			}})
			if !tree.HasLayer("one") {
				errs[i] = errors.Join(errs[i], errors.New("it is not there"))
			}
		})
	}
	wg.Wait()
	assert.NilError(t, errors.Join(errs...))
	assert.Equal(t, made.Load(), int32(1))
}

func TestMakersWait(t *testing.T) {
	t.Parallel()
	tree := create(t, t.TempDir())
	begun, end := make(chan struct{}), make(chan struct{})
	first := make(chan error)
	go func() {
		first <- tree.MakeLayer(t.Context(), LayerSpec{Name: "one", Make: func(sandbox.Root) error {
			close(begun)
			<-end
			return errors.New("failed")
		}})
	}()
	<-begun
	// Other layers are made meanwhile.
	assert.NilError(t, tree.MakeLayer(t.Context(), LayerSpec{Name: "two", Make: func(sandbox.Root) error { return nil }}))
	// Waiting ends with the context.
	reason := errors.New("the reason")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(50*time.Millisecond, func() { cancel(reason) })
	err := tree.MakeLayer(ctx, LayerSpec{Name: "one", Make: func(sandbox.Root) error { return errors.New("made") }})
	assert.ErrorIs(t, err, reason)
	assert.ErrorContains(t, err, "cannot make the layer one: ")
	// Whoever waited makes it when the first one failed.
	second := make(chan error)
	go func() {
		second <- tree.MakeLayer(t.Context(), LayerSpec{Name: "one", Make: func(sandbox.Root) error { return nil }})
	}()
	close(end)
	assert.Error(t, <-first, "failed")
	assert.NilError(t, <-second)
	assert.Assert(t, tree.HasLayer("one"))
}

func TestWritable(t *testing.T) {
	t.Parallel()
	tree := create(t, t.TempDir())
	_, _, err := tree.Writable("build", "base")
	assert.ErrorContains(t, err, "has no layer build")
	assert.NilError(t, tree.MakeLayer(t.Context(), LayerSpec{Name: "build", Make: func(sandbox.Root) error { return nil }}))
	root, done, err := tree.Writable("build", "package", "base")
	assert.NilError(t, err)
	assert.DeepEqual(t, root.Layers, []string{tree.LayerPath("package"), tree.LayerPath("base")})
	assert.Equal(t, root.Upper, tree.LayerPath("build"))
	info, err := os.Stat(root.Work)
	assert.NilError(t, err)
	assert.Assert(t, info.IsDir())
	write(t, filepath.Join(root.Work, "work/file"), "")
	assert.NilError(t, done())
	assert.DeepEqual(t, scratchDirs(t, tree), []string{})
	assert.Assert(t, tree.HasLayer("build"))
}

func TestLayerName(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, parts := range [][]string{{}, {""}, {"a"}, {"a", "b"}, {"ab"}, {"a", "", "b"}, {"b", "a"}, {"1:a"}, {"a:b,c/d\\\n"}} {
		name := LayerName("build", parts...)
		assert.Assert(t, !seen[name], "%q", parts)
		seen[name] = true
		assert.Equal(t, name, LayerName("build", parts...))
		assert.Assert(t, strings.HasPrefix(name, "build-") && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == "", name)
	}
	assert.Assert(t, LayerName("package", "a") != LayerName("headers", "a"))
}

// TestRun: a tree of a front end is stale when that is dead, and not before, whether
// it is marked busy or not.
func TestRun(t *testing.T) {
	work, tmp := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", tmp)
	tree, err := Create(work)
	assert.NilError(t, err)
	folder, end, err := scratch.Make()
	assert.NilError(t, err)
	assert.NilError(t, tree.BelongTo(folder))
	stale := func(own string, want int) {
		t.Helper()
		trees, err := Stale(work, 0, own)
		assert.NilError(t, err)
		assert.Equal(t, len(trees), want)
	}
	stale("", 0)
	stale(folder, 0) // a stage has it
	assert.NilError(t, tree.Close())
	stale("", 0) // the next stage will
	run, alive, err := tree.Run()
	assert.NilError(t, err)
	assert.Assert(t, alive)
	assert.Equal(t, run, folder)
	assert.NilError(t, end())
	stale("", 1)
	assert.NilError(t, tree.Keep())
	stale("", 0)
	assert.NilError(t, tree.Remove())
}
