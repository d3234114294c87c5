// Package rootfs makes, layers, locks and removes build trees.
//
// A tree is a directory with this inside:
//
//	dkms2bin-tree    says that it is one
//	lock             held by whoever uses the tree: flock(2), shared
//	busy/            a file for each stage at work
//	layers/          the directories that overlayfs stacks, each complete
//	scratch/         layers that are being made
//	apt/             what apt fetches by, and never a package's script sees:
//	                 logins, certificates, copies of given .debs
//	records/         what later stages need, as plain files
//	run              the folder of the front end that the tree belongs to, if it does
//	documents/       copies of the stages' documents
//	in-place         there when this system's own root is the tree: layers lead to it
//	copies           there when neither overlayfs nor memory could be used, and says why
//	root/            empty; the sandbox puts its root together on it
//
// A layer is the upper directory that one run left inside an overlay. It
// appears under its name by rename, so a layer that is there is whole.
package rootfs

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/machine"
	"dkms2bin/internal/sandbox"
	"dkms2bin/internal/scratch"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	markerName  = "dkms2bin-tree"
	markerText  = "dkms2bin build tree, layout 1\n"
	treesDir    = "trees"
	removingTag = ".removing-"
)

// WorkDir is where trees lie, as an absolute path: the directory that was asked
// for, else one below /var/cache for root, in the XDG cache directory for others.
func WorkDir(asked string) (string, error) {
	if asked != "" {
		return filepath.Abs(asked)
	}
	if os.Geteuid() == 0 {
		return "/var/cache/dkms2bin", nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", diag.WithHint(fmt.Errorf("cannot find a work directory: %w", err), "name one with --work-dir")
	}
	return filepath.Join(dir, "dkms2bin"), nil
}

// A Tree is a build tree.
type Tree struct {
	Path   string // absolute
	lock   *os.File
	busy   string // path of this process's mark
	copies bool   // neither overlayfs nor memory can be used for what is written
	memory int64  // bytes of it for what one run writes, where overlayfs cannot write to the disk

	inPlace bool
}

// ErrBusy says that a tree is in use.
var ErrBusy = errors.New("the tree is in use")

// ErrNoTree says that a directory is not a tree, or no longer there.
var ErrNoTree = errors.New("not a dkms2bin tree")

// Create makes an empty tree below workDir, in use by this process.
func Create(workDir string) (t *Tree, err error) {
	defer wrap(&err, "cannot create a tree in %s", workDir)
	parent := filepath.Join(workDir, treesDir)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, err
	}
	if parent, err = filepath.EvalSymlinks(parent); err != nil { // Open takes no path with links
		return nil, err
	}
	all, err := lockAll(parent, unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer all.Close()
	var id [4]byte
	_, _ = rand.Read(id[:])
	// The name appears only when the tree is complete and marked busy.
	name := time.Now().UTC().Format("20060102T150405") + "-" + hex.EncodeToString(id[:])
	hidden := filepath.Join(parent, removingTag+name)
	if err := os.Mkdir(hidden, 0o755); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeAll(parent, filepath.Base(hidden)))
		}
	}()
	if err := os.Chmod(hidden, 0o755); err != nil {
		return nil, err
	}
	for dir, mode := range map[string]fs.FileMode{
		"apt": 0o755, "busy": 0o755, "records": 0o755, "documents": 0o755, "root": 0o755,
		"layers":  0o700, // setuid programs of the tree are nobody else's business
		"scratch": 0o700,
	} {
		path := filepath.Join(hidden, dir)
		if err := errors.Join(os.Mkdir(path, mode), os.Chmod(path, mode)); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(hidden, "lock"), nil, 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(hidden, markerName), []byte(markerText), 0o644); err != nil {
		return nil, err
	}
	t = &Tree{Path: hidden}
	if err := t.Use(); err != nil {
		return nil, err
	}
	final := filepath.Join(parent, name)
	if err := os.Rename(hidden, final); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	t.Path, t.busy = final, filepath.Join(final, "busy", filepath.Base(t.busy))
	return t, nil
}

// lockAll locks the directory of all trees: shared by those who make one, so that
// nobody takes what is not yet locked for half removed.
func lockAll(parent string, how int) (*os.File, error) {
	f, err := os.Open(parent)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how); err != nil {
		return nil, errors.Join(&fs.PathError{Op: "lock", Path: parent, Err: err}, f.Close())
	}
	return f, nil
}

// Open opens an existing tree. It does not lock it.
func Open(path string) (t *Tree, err error) {
	defer wrap(&err, "cannot open the tree %s", path)
	if !filepath.IsAbs(path) {
		return nil, errors.New("its path is not absolute")
	}
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrNoTree, err)
	}
	if err != nil {
		return nil, err
	}
	if real != filepath.Clean(path) {
		return nil, fmt.Errorf("%w: the path leads through a link to %s", ErrNoTree, real)
	}
	dir, err := openDir(unix.AT_FDCWD, path, unix.RESOLVE_NO_SYMLINKS)
	if errors.Is(err, unix.ENOTDIR) {
		return nil, fmt.Errorf("%w: it is no directory", ErrNoTree)
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := isTree(dir); err != nil {
		return nil, err
	}
	_, err = os.Stat(filepath.Join(real, inPlaceFile))
	return &Tree{Path: real, inPlace: err == nil}, ignore(err, fs.ErrNotExist)
}

// Use locks the tree against removal and marks it busy. Several processes may
// use a tree at the same time.
func (t *Tree) Use() (err error) {
	defer wrap(&err, "cannot lock the tree %s", t.Path)
	f, err := os.Open(filepath.Join(t.Path, "lock"))
	if err != nil {
		return err
	}
	// Whoever gets the exclusive lock is alone: marks that are there were left
	// by processes that died.
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		if err := t.clearBusy(); err != nil {
			f.Close()
			return err
		}
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
		f.Close()
		return err
	}
	if _, err := os.Stat(filepath.Join(t.Path, markerName)); err != nil {
		f.Close()
		return fmt.Errorf("%w: it was removed meanwhile", ErrNoTree)
	}
	mark, err := os.CreateTemp(filepath.Join(t.Path, "busy"), fmt.Sprintf("%d-", os.Getpid()))
	if err != nil {
		f.Close()
		return err
	}
	t.lock, t.busy = f, mark.Name()
	return mark.Close()
}

func (t *Tree) clearBusy() error {
	marks, err := os.ReadDir(filepath.Join(t.Path, "busy"))
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range marks {
		errs = append(errs, os.Remove(filepath.Join(t.Path, "busy", m.Name())))
	}
	return errors.Join(errs...)
}

// Hold is Open and Use for those who only read the tree, and do without where it is
// gone or somebody else's: then it is nil.
func Hold(path string) *Tree {
	t, err := Open(path)
	if err != nil || t.Use() != nil {
		return nil
	}
	return t
}

// Close ends this process's use of the tree.
func (t *Tree) Close() error {
	if t == nil || t.lock == nil {
		return nil
	}
	err := os.Remove(t.busy)
	err = errors.Join(err, t.lock.Close())
	t.lock = nil
	return err
}

// UseThisRoot makes this system's own root what all is done in. Layers are links to it
// then, which say that something was done. Nothing of it is ever removed.
func (t *Tree) UseThisRoot() error {
	t.inPlace = true
	return os.WriteFile(filepath.Join(t.Path, inPlaceFile), nil, 0o644)
}

const inPlaceFile = "in-place"

// InPlace says whether this system's own root is what all is done in.
func (t *Tree) InPlace() bool { return t.inPlace }

// BelongTo makes the tree part of a run of the front end, which has the lock of a
// folder, see package scratch: when that is free, the tree is stale.
func (t *Tree) BelongTo(run string) error {
	return os.WriteFile(t.runFile(), []byte(run), 0o644)
}

// Keep ends what BelongTo began.
func (t *Tree) Keep() error { return ignore(os.Remove(t.runFile()), fs.ErrNotExist) }

func (t *Tree) runFile() string { return filepath.Join(t.Path, "run") }

// Run is the folder of the run that the tree belongs to, or "", and whether that run
// is alive.
func (t *Tree) Run() (run string, alive bool, err error) {
	text, err := os.ReadFile(t.runFile())
	if err != nil || len(text) == 0 { // it died while it wrote: the tree is marked busy
		return "", false, ignore(err, fs.ErrNotExist)
	}
	alive, err = scratch.Held(string(text))
	return string(text), alive, err
}

// Probe tries what can be done in the tree here, and in the cache, which may be nil, see
// sandbox.Probe. Once roots of a tree were put together by copies, they always are. The
// tree must be in use.
func (t *Tree) Probe(ctx context.Context, cache *Cache) (lack *sandbox.Lack, err error) {
	if t.inPlace {
		return nil, nil
	}
	file := filepath.Join(t.Path, "copies")
	text, err := os.ReadFile(file)
	if err == nil {
		t.copies = true
		return &sandbox.Lack{Upper: string(text)}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	free := machine.Memory()
	// Half of it for the builds side by side, which may write twice as much for a moment.
	share := free / 4 / int64(machine.Cores())
	if share < leastMemory {
		share = 0
	}
	if lack, err = t.probe(ctx, cache, share); err != nil || lack == nil {
		return nil, err
	}
	if lack.Memory == "" {
		t.memory = share
		return lack, nil
	}
	if share == 0 {
		lack.Memory = fmt.Sprintf("of the %d MB that are free, a run would have less than %d MB", free>>20, leastMemory>>20)
	}
	t.copies = true
	return lack, os.WriteFile(file, []byte(lack.Error()), 0o644)
}

// leastMemory is what the headers of a kernel need that bring its image along, in bytes.
const leastMemory = 128 << 20

// Copies says whether roots that are written to are put together by copies.
func (t *Tree) Copies() bool { return t.copies }

func (t *Tree) probe(ctx context.Context, cache *Cache, share int64) (lack *sandbox.Lack, err error) {
	scratch := filepath.Join(t.Path, "scratch")
	dir, err := os.MkdirTemp(scratch, "probe.")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, removeAll(scratch, filepath.Base(dir))) }()
	lack, err = sandbox.Probe(ctx, t.Mountpoint(), dir, share)
	if err != nil || cache == nil || lack != nil && lack.Memory != "" {
		return lack, err
	}
	if same, err := sameFileSystem(dir, filepath.Join(cache.Path, "making")); same || err != nil {
		return lack, err
	}
	making, lock, err := cache.begin("probe")
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	defer func() { err = errors.Join(err, removeAll(filepath.Split(making))) }()
	inCache, err := sandbox.Probe(ctx, t.Mountpoint(), making, share)
	if err != nil {
		return nil, fmt.Errorf("cannot use the cache %s: %w", cache.Path, err)
	}
	if lack == nil || inCache != nil && inCache.Memory != "" {
		lack = inCache
	}
	return lack, nil
}

func sameFileSystem(a, b string) (bool, error) {
	var stats [2]unix.Stat_t
	for i, path := range []string{a, b} {
		if err := unix.Stat(path, &stats[i]); err != nil {
			return false, &fs.PathError{Op: "stat", Path: path, Err: err}
		}
	}
	return stats[0].Dev == stats[1].Dev, nil
}

// LayerPath is the directory of a layer. Names are made of letters, digits and
// hyphens; LayerName makes one.
func (t *Tree) LayerPath(name string) string { return filepath.Join(t.Path, "layers", name) }

// HasLayer says whether the layer is there, whole.
func (t *Tree) HasLayer(name string) bool {
	info, err := os.Stat(t.LayerPath(name))
	return name != "" && err == nil && info.IsDir()
}

// RemoveLayer removes a layer that no document names.
func (t *Tree) RemoveLayer(name string) error {
	return removeAll(filepath.Join(t.Path, "layers"), name)
}

// Record makes and returns the directory of a record.
func (t *Tree) Record(name string) (string, error) {
	dir := t.recordPath(name)
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.Chmod(dir, 0o755)); err != nil {
		return "", err
	}
	return dir, nil
}

func (t *Tree) recordPath(name string) string { return filepath.Join(t.Path, "records", name) }

// Apt is the directory of what apt fetches by. It is in no layer.
func (t *Tree) Apt() string { return filepath.Join(t.Path, "apt") }

// Root is a read-only root of these layers, the topmost first.
func (t *Tree) Root(layers ...string) sandbox.Root {
	r := sandbox.Root{}
	for _, l := range layers {
		r.Layers = append(r.Layers, t.LayerPath(l))
	}
	if t.inPlace {
		r.InPlace, r.Upper = true, "/"
	}
	if t.copies && len(layers) > 1 {
		r.Copies = filepath.Join(t.Path, "scratch", LayerName("view", layers...))
	}
	return r
}

// Mountpoint is the directory on which sandboxes put their roots together.
func (t *Tree) Mountpoint() string { return filepath.Join(t.Path, "root") }

// A LayerSpec says how a layer comes to be.
type LayerSpec struct {
	Name string
	On   []string // layers below, the topmost first
	// Make fills root.Upper.
	Make func(root sandbox.Root) error
	// Keep, if not nil, says what TakeLayer is to do when Make is done: keep the
	// layer in the cache, or leave it in the tree alone. Such a layer is made in the
	// tree, since what it takes meanwhile may be far more than what is left to keep.
	Keep func() bool
}

// MakeLayer makes a layer, or waits for another process that is making it. A
// layer that is there already is kept. With an empty On, Make is given an empty
// directory as Upper and no layers.
//
// An error of Make is returned as it is.
func (t *Tree) MakeLayer(ctx context.Context, spec LayerSpec) (err error) {
	var makeErr error
	defer func() {
		if makeErr == nil {
			wrap(&err, "cannot make the layer %s", spec.Name)
		}
	}()
	lockName := spec.Name
	if t.inPlace { // where there is room for one at a time
		lockName = inPlaceFile
	}
	lock, err := os.OpenFile(filepath.Join(t.Path, "scratch", lockName+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := flock(ctx, lock); err != nil {
		return err
	}
	if t.HasLayer(spec.Name) {
		return nil
	}
	if t.inPlace {
		if makeErr = spec.Make(t.Root(spec.On...)); makeErr != nil {
			return makeErr
		}
		return os.Symlink("/", t.LayerPath(spec.Name))
	}
	scratch := filepath.Join(t.Path, "scratch")
	dir, err := os.MkdirTemp(scratch, spec.Name+".")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, removeAll(scratch, filepath.Base(dir))) }()
	root := t.writable(dir, filepath.Join(dir, "upper"), spec.On)
	for _, d := range []string{root.Upper, root.Work} {
		if err := errors.Join(os.Mkdir(d, 0o755), os.Chmod(d, 0o755)); err != nil {
			return err
		}
	}
	if makeErr = spec.Make(root); makeErr != nil {
		return makeErr
	}
	return os.Rename(root.Upper, t.LayerPath(spec.Name))
}

// writable is a root on these layers in which upper is written to, with what that
// takes beside it in dir.
func (t *Tree) writable(dir, upper string, on []string) sandbox.Root {
	root := t.Root(on...)
	root.Upper, root.Work, root.Copies = upper, filepath.Join(dir, "work"), ""
	if (t.copies || t.memory > 0) && len(on) > 0 {
		root.Memory, root.Copies = t.memory, filepath.Join(dir, "copies")
	}
	return root
}

// Scratch is a root that stands on layers of the tree, the topmost first, and takes
// what is written for the time being. The returned function removes it.
func (t *Tree) Scratch(on ...string) (root sandbox.Root, remove func() error, err error) {
	if t.inPlace {
		return t.Root(on...), func() error { return nil }, nil
	}
	scratch := filepath.Join(t.Path, "scratch")
	dir, err := os.MkdirTemp(scratch, "scratch.")
	if err != nil {
		return root, nil, err
	}
	root = t.writable(dir, filepath.Join(dir, "upper"), on)
	remove = func() error { return removeAll(scratch, filepath.Base(dir)) }
	for _, d := range []string{root.Upper, root.Work} {
		if err := errors.Join(os.Mkdir(d, 0o755), os.Chmod(d, 0o755)); err != nil {
			return root, nil, errors.Join(err, remove())
		}
	}
	return root, remove, nil
}

// Writable is a root in which layer name itself is written to, on the layers
// below. The returned function removes what the overlay needed meanwhile.
func (t *Tree) Writable(name string, on ...string) (sandbox.Root, func() error, error) {
	if !t.HasLayer(name) {
		return sandbox.Root{}, nil, fmt.Errorf("the tree %s has no layer %s", t.Path, name)
	}
	if t.inPlace {
		return t.Root(on...), func() error { return nil }, nil
	}
	scratch := filepath.Join(t.Path, "scratch")
	dir, err := os.MkdirTemp(scratch, "work.")
	if err != nil {
		return sandbox.Root{}, nil, err
	}
	root := t.writable(dir, t.LayerPath(name), on)
	remove := func() error { return removeAll(scratch, filepath.Base(dir)) }
	if err := os.Mkdir(root.Work, 0o755); err != nil {
		return sandbox.Root{}, nil, errors.Join(err, remove())
	}
	return root, remove, nil
}

// flock takes the exclusive lock, waiting as long as ctx allows.
func flock(ctx context.Context, f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// mountsBelow lists the mount points of this process's namespace at or below
// path, from mountinfo (proc(5)), where odd characters are octal escapes.
func mountsBelow(path string) ([]string, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var mounts []string
	for line := range strings.Lines(string(info)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		if point := unescape.Replace(fields[4]); point == path || strings.HasPrefix(point, path+"/") {
			mounts = append(mounts, point)
		}
	}
	return mounts, nil
}

// Stale lists the trees below workDir that a dead process left busy or half
// removed, and with olderThan > 0 also idle ones whose last use is longer ago.
// Trees in use are never listed.
// The run of the front end that this process belongs to, if any, counts as dead.
func Stale(workDir string, olderThan time.Duration, ownRun string) (trees []*Tree, err error) {
	defer wrap(&err, "cannot look for stale trees in %s", workDir)
	parent := filepath.Join(workDir, treesDir)
	if parent, err = filepath.EvalSymlinks(parent); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	all, err := lockAll(parent, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer all.Close()
	entries, err := os.ReadDir(parent)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		path := filepath.Join(parent, e.Name())
		if !e.IsDir() {
			continue
		}
		half := strings.HasPrefix(e.Name(), removingTag)
		t, err := Open(path)
		if err != nil {
			if !half {
				continue // somebody else's
			}
			t = &Tree{Path: path}
		}
		stale, err := t.stale(half, olderThan, ownRun)
		if err != nil {
			return nil, err
		}
		if stale {
			trees = append(trees, t)
		}
	}
	return trees, nil
}

func (t *Tree) stale(half bool, olderThan time.Duration, ownRun string) (bool, error) {
	lock, err := os.OpenFile(filepath.Join(t.Path, "lock"), os.O_RDONLY|boolFlag(half, os.O_CREATE), 0o644)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, nil
		}
		return false, err
	}
	if half {
		return true, nil
	}
	if run, alive, err := t.Run(); err != nil || run != "" && run != ownRun {
		return !alive, err
	}
	marks, err := os.ReadDir(filepath.Join(t.Path, "busy"))
	if err != nil {
		return false, err
	}
	if len(marks) > 0 {
		return true, nil
	}
	if olderThan <= 0 {
		return false, nil
	}
	last, err := t.lastUse()
	return err == nil && time.Since(last) > olderThan, err
}

func boolFlag(on bool, flag int) int {
	if on {
		return flag
	}
	return 0
}

// lastUse is when a stage last began or ended in the tree.
func (t *Tree) lastUse() (time.Time, error) {
	var times []time.Time
	for _, name := range []string{"busy", "documents", "layers"} {
		info, err := os.Stat(filepath.Join(t.Path, name))
		if err != nil {
			return time.Time{}, err
		}
		times = append(times, info.ModTime())
	}
	return slices.MaxFunc(times, time.Time.Compare), nil
}

func wrap(err *error, format string, args ...any) {
	if *err != nil {
		*err = fmt.Errorf(format+": %w", append(args, *err)...)
	}
}

// LayerName makes a name out of a kind and everything that the layer depends on.
// It is safe as a file name and in mount options.
func LayerName(kind string, parts ...string) string {
	sum := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(sum, "%d:%s", len(p), p)
	}
	return kind + "-" + hex.EncodeToString(sum.Sum(nil)[:10])
}
