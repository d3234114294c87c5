package sandbox

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Where overlayfs cannot be used, the same root is put together by copying. What is
// read only becomes a directory of hard links. What is written to is copied, and
// after each run what has changed is put into Upper, as overlayfs would have done:
// new and changed files, and whiteouts for those that are gone.
//
// A whiteout is a character device 0/0, as of overlayfs; where such cannot be made, an
// empty file with an attribute, in a directory with one, which overlayfs takes for the
// same from Linux 6.7 on; and where there are no attributes, an empty file with ".wh."
// before its name, as in layers of container images.

// Names in Root.Copies.
const (
	copiedRoot   = "root"     // what the command sees as its root
	snapshotFile = "snapshot" // what it was like without Upper; it is written last
	whiteoutTag  = ".wh."
)

// Attributes of overlayfs. A directory hides those of the layers below, or has
// whiteouts that are files in it.
const (
	opaqueXattr   = "user.overlay.opaque"
	whiteoutXattr = "user.overlay.whiteout"
	hidesBelow    = "y"
	hasWhiteouts  = "x"
)

// Tasks that the first process of a sandbox does by itself, in the host's tree.
const (
	taskCompose = "compose"
	taskCollect = "collect"
	taskCopy    = "copy"
	taskProbe   = "probe"
)

func doTask(conf config, rep *report) error {
	switch conf.Task {
	case taskCompose:
		return compose(conf.Root)
	case taskCollect:
		return collect(conf.Root)
	case taskCopy:
		to := conf.Root.Upper
		return tooDeep((&copier{layer: to, whole: true}).add(conf.Root.Layers[0], to, ""))
	default:
		lack, err := probe(conf.Root, conf.Mountpoint)
		rep.Lack = lack
		return err
	}
}

// CopyLayer copies a layer into an empty directory, which may be on a file system that
// takes other whiteouts.
func CopyLayer(ctx context.Context, from, to string) error {
	return run(ctx, Spec{Root: Root{Layers: []string{from}, Upper: to}, task: taskCopy})
}

// runOnCopies is Run for a root with Copies.
func runOnCopies(ctx context.Context, spec Spec) error {
	root := spec.Root
	if err := run(ctx, Spec{Root: root, task: taskCompose}); err != nil {
		return err
	}
	if root.Upper == "" {
		spec.Root = Root{Layers: []string{root.Copies}}
		return run(ctx, spec)
	}
	spec.Root = Root{Upper: filepath.Join(root.Copies, copiedRoot)}
	err := run(ctx, spec)
	if errors.Is(ctx.Err(), context.Canceled) {
		return err // nobody will look at it
	}
	return errors.Join(err, run(context.WithoutCancel(ctx), Spec{Root: root, task: taskCollect}))
}

// errTooDeep says that names of what a command has written are too long for us: it
// went down step by step. That is the command's failure.
var errTooDeep = errors.New("what it has written cannot be kept: it has paths of more than 4096 bytes")

func tooDeep(err error) error {
	if errors.Is(err, unix.ENAMETOOLONG) {
		return errTooDeep
	}
	return err
}

// compose makes the directory Copies of a root, unless it is there.
func compose(r Root) error {
	if r.Upper == "" {
		return composeView(r)
	}
	if _, err := os.Stat(filepath.Join(r.Copies, snapshotFile)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Something is there when a run was stopped meanwhile.
	if err := errors.Join(os.RemoveAll(r.Copies), os.Mkdir(r.Copies, 0o700)); err != nil { //nolint:forbidigo // nothing is mounted there, and nobody else has it
		return err
	}
	root := filepath.Join(r.Copies, copiedRoot)
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	c := &copier{}
	for i := len(r.Layers) - 1; i >= 0; i-- {
		if err := c.add(r.Layers[i], root, ""); err != nil {
			return err
		}
	}
	snapshot := filepath.Join(r.Copies, snapshotFile)
	if err := takeSnapshot(root, snapshot+".new"); err != nil {
		return err
	}
	// What is changed from here on has a later time of change.
	time.Sleep(2 * clockTick)
	if err := (&copier{link: true}).add(r.Upper, root, ""); err != nil {
		return err
	}
	return os.Rename(snapshot+".new", snapshot)
}

// clockTick is how exact times of change may be: that of the slowest kernels.
const clockTick = 10 * time.Millisecond

// composeView makes a root that is only read. Several may do so at a time.
func composeView(r Root) error {
	if _, err := os.Stat(r.Copies); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	making := r.Copies + "." + rand.Text()
	if err := os.Mkdir(making, 0o755); err != nil {
		return err
	}
	for i := len(r.Layers) - 1; i >= 0; i-- {
		if err := (&copier{link: true}).add(r.Layers[i], making, ""); err != nil {
			return err
		}
	}
	err := os.Rename(making, r.Copies)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY) {
		return os.RemoveAll(making) //nolint:forbidigo // as above
	}
	return err
}

// A copier puts layers on top of what is in a directory. Nothing else changes either
// meanwhile, and what is on the way in the directory is always a directory, so that
// no link of a layer is followed.
type copier struct {
	link   bool                 // names for the same files, where the file system can
	layer  string               // the directory, where it is a layer itself: what is hidden stays so
	whole  bool                 // and there was nothing in it
	inodes map[[2]uint64]string // where a file with several names went
}

// add puts the layer at from on top of what is in to. Below is what the layers below
// the copier's layer look like.
func (c *copier) add(from, to, below string) error {
	from, err := filepath.EvalSymlinks(from) // in a cache
	if err != nil {
		return err
	}
	c.inodes = map[[2]uint64]string{}
	return c.directory(from, to, below, false)
}

// directory is add for a directory. Below is "" where nothing of the layers below is
// seen; replaces says that to stands for something that hid it.
func (c *copier) directory(from, to, below string, replaces bool) error {
	opaque, err := getXattr(from, opaqueXattr)
	if err != nil {
		return err
	}
	if string(opaque) == hidesBelow {
		replaces = true
		if err := emptyDir(to); err != nil {
			return err
		}
	}
	if c.whole && replaces {
		if err := setXattr(to, opaqueXattr, hidesBelow); err != nil {
			return err
		}
	}
	if below, err = c.hide(to, below, replaces); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		under := below
		if under != "" {
			under = filepath.Join(below, e.Name())
		}
		if err := c.entry(filepath.Join(from, e.Name()), filepath.Join(to, e.Name()), under); err != nil {
			return err
		}
	}
	return copyAttributes(from, to)
}

// hide makes a directory of the copier's layer hide what is below if it replaces that,
// and says what is seen then.
func (c *copier) hide(to, below string, replaces bool) (seen string, err error) {
	if below == "" || c.layer == "" {
		return "", nil
	}
	if info, err := os.Lstat(below); errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || err == nil && !info.IsDir() {
		return "", nil
	} else if err != nil {
		return "", err
	}
	if replaces {
		return "", setXattr(to, opaqueXattr, hidesBelow)
	}
	opaque, err := getXattr(to, opaqueXattr)
	if err != nil || string(opaque) == hidesBelow {
		return "", err
	}
	return below, nil
}

func (c *copier) entry(from, to, below string) error {
	var st, there unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: from, Err: err}
	}
	hidden, ok, err := whiteout(from, &st)
	if err != nil {
		return err
	}
	if ok {
		return c.remove(filepath.Join(filepath.Dir(to), hidden), below)
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	err = unix.Lstat(to, &there)
	replaces := err == nil && there.Mode&unix.S_IFMT != unix.S_IFDIR
	if err == nil && (!isDir || replaces) {
		err = errors.Join(os.RemoveAll(to), unix.ENOENT) //nolint:forbidigo // as above
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "lstat", Path: to, Err: err}
	}
	if isDir {
		if err := os.Mkdir(to, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return c.directory(from, to, below, replaces)
	}
	if c.link {
		if err := os.Link(from, to); err == nil {
			return nil
		}
	}
	key := [2]uint64{uint64(st.Dev), st.Ino}
	if first := c.inodes[key]; first != "" {
		return os.Link(first, to)
	}
	if st.Nlink > 1 {
		c.inodes[key] = to
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		err = copyContent(from, to)
	case unix.S_IFLNK:
		var target string
		if target, err = os.Readlink(from); err == nil {
			err = os.Symlink(target, to)
		}
	case unix.S_IFSOCK: // nobody listens any more
		return nil
	default:
		err = unix.Mknod(to, st.Mode, int(st.Rdev))
	}
	if err != nil {
		return fmt.Errorf("cannot copy %s: %w", from, err)
	}
	return copyAttributes(from, to)
}

// remove removes what a whiteout hides. In a layer it goes on to hide what is below.
func (c *copier) remove(path, below string) error {
	if err := os.RemoveAll(path); err != nil { //nolint:forbidigo // as above
		return err
	}
	if c.whole {
		return makeWhiteout(c.layer, path)
	}
	if c.layer == "" || below == "" {
		return nil
	}
	_, err := os.Lstat(below)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return errors.Join(err, makeWhiteout(c.layer, path))
}

// whiteout says whether a file of a layer stands for one that is gone, and gives the
// name of that.
func whiteout(path string, st *unix.Stat_t) (hides string, ok bool, err error) {
	name := filepath.Base(path)
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFCHR:
		return name, st.Rdev == 0, nil
	case st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0:
		if hides, ok = strings.CutPrefix(name, whiteoutTag); ok && hides != "" && hides != "." && hides != ".." {
			return hides, true, nil
		}
		value, err := getXattr(path, whiteoutXattr)
		return name, value != nil, err
	}
	return "", false, nil
}

func copyContent(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
		return nil
	}
	_, err = io.Copy(out, in)
	return err
}

// copyAttributes gives a file the owner, mode, extended attributes and times of
// another.
func copyAttributes(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: from, Err: err}
	}
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
			return &fs.PathError{Op: "chmod", Path: to, Err: err}
		}
		if err := copyXattrs(from, to); err != nil {
			return err
		}
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "utimensat", Path: to, Err: err}
	}
	return nil
}

func copyXattrs(from, to string) error {
	size, err := unix.Llistxattr(from, nil)
	if err != nil || size == 0 {
		return ignoreUnsupported(from, err)
	}
	list := make([]byte, size)
	if size, err = unix.Llistxattr(from, list); err != nil {
		return &fs.PathError{Op: "listxattr", Path: from, Err: err}
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(list[:size]), "\x00"), "\x00") {
		if strings.HasPrefix(name, "user.overlay.") || strings.HasPrefix(name, "trusted.") {
			continue
		}
		value, err := getXattr(from, name)
		if err != nil {
			return err
		}
		if err := unix.Lsetxattr(to, name, value, 0); err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EPERM) {
			return &fs.PathError{Op: "setxattr " + name, Path: to, Err: err}
		}
	}
	return nil
}

// getXattr is an extended attribute of a file, nil where there is none.
func getXattr(path, name string) ([]byte, error) {
	value := make([]byte, 1<<16)
	n, err := unix.Lgetxattr(path, name, value)
	if err != nil {
		return nil, ignoreUnsupported(path, err)
	}
	return value[:n], nil
}

func setXattr(path, name, value string) error {
	if err := unix.Lsetxattr(path, name, []byte(value), 0); err != nil {
		return &fs.PathError{Op: "setxattr " + name, Path: path, Err: err}
	}
	return nil
}

func ignoreUnsupported(path string, err error) error {
	if err == nil || errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return &fs.PathError{Op: "getxattr", Path: path, Err: err}
}

func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil { //nolint:forbidigo // as above
			return err
		}
	}
	return nil
}

// A stamp tells a file from what it was before: the time of change cannot be set.
type stamp struct {
	inode     uint64
	sec, nsec int64
}

func stampOf(st *unix.Stat_t) stamp {
	return stamp{st.Ino, int64(st.Ctim.Sec), int64(st.Ctim.Nsec)}
}

// takeSnapshot writes the stamps of all files below root.
func takeSnapshot(root, to string) (err error) {
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	err = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return &fs.PathError{Op: "lstat", Path: path, Err: err}
		}
		s := stampOf(&st)
		_, err = fmt.Fprintf(w, "%d %d %d %s\x00", s.inode, s.sec, s.nsec, strings.TrimPrefix(path, root))
		return err
	})
	return errors.Join(err, w.Flush())
}

// A snapshot is the files of a root, by directory and name.
type snapshot map[string]map[string]stamp

func readSnapshot(file string) (snapshot, stamp, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, stamp{}, err
	}
	var top stamp
	all := snapshot{}
	for line := range strings.SplitSeq(strings.TrimSuffix(string(text), "\x00"), "\x00") {
		var s stamp
		fields := strings.SplitN(line, " ", 4)
		if len(fields) != 4 {
			return nil, stamp{}, fmt.Errorf("cannot read %s: %q", file, line)
		}
		if _, err := fmt.Sscan(strings.Join(fields[:3], " "), &s.inode, &s.sec, &s.nsec); err != nil {
			return nil, stamp{}, fmt.Errorf("cannot read %s: %w", file, err)
		}
		if fields[3] == "" {
			top = s
			continue
		}
		dir, name := filepath.Split(fields[3])
		if all[dir] == nil {
			all[dir] = map[string]stamp{}
		}
		all[dir][name] = s
	}
	return all, top, nil
}

// collect puts into Upper what has changed in the copied root. Nothing runs in that
// any more.
func collect(r Root) error {
	before, top, err := readSnapshot(filepath.Join(r.Copies, snapshotFile))
	if err != nil {
		return err
	}
	made, old := filepath.Join(r.Copies, "new"), filepath.Join(r.Copies, "old")
	for _, dir := range []string{made, old} {
		if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755)); err != nil { //nolint:forbidigo // as above
			return err
		}
	}
	c := collector{root: filepath.Join(r.Copies, copiedRoot), upper: made, before: before}
	if _, err := c.directory("/", top); err != nil {
		return tooDeep(err)
	}
	// The directory itself stays: who has it open goes on to see what is in it.
	if err := errors.Join(moveAll(r.Upper, old), moveAll(made, r.Upper), copyAttributes(c.root, r.Upper)); err != nil {
		return err
	}
	if mark, err := getXattr(made, opaqueXattr); err != nil || mark != nil {
		if err = errors.Join(err, setXattr(r.Upper, opaqueXattr, string(mark))); err != nil {
			return err
		}
	}
	return os.RemoveAll(old) //nolint:forbidigo // as above
}

func moveAll(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Rename(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

type collector struct {
	root, upper string
	before      snapshot
}

// directory collects what has changed in a directory, and says whether anything has.
// Its name ends in a slash.
func (c *collector) directory(dir string, before stamp) (changed bool, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(c.root+dir, &st); err != nil {
		return false, &fs.PathError{Op: "lstat", Path: c.root + dir, Err: err}
	}
	if stampOf(&st) != before {
		if err := c.make(dir); err != nil {
			return false, err
		}
		changed = true
	}
	entries, err := os.ReadDir(c.root + dir)
	if err != nil {
		return false, err
	}
	there := map[string]bool{}
	for _, e := range entries {
		there[e.Name()] = true
		one, err := c.entry(dir, e)
		if err != nil {
			return false, err
		}
		changed = changed || one
	}
	for name := range c.before[dir] {
		if there[name] {
			continue
		}
		changed = true
		if err := errors.Join(c.make(dir), makeWhiteout(c.upper, c.upper+dir+name)); err != nil {
			return false, err
		}
	}
	if !changed {
		return false, nil
	}
	return true, copyAttributes(c.root+dir, c.upper+dir)
}

func (c *collector) entry(dir string, e fs.DirEntry) (changed bool, err error) {
	before := c.before[dir][e.Name()]
	if e.IsDir() {
		return c.directory(dir+e.Name()+"/", before)
	}
	var st unix.Stat_t
	if err := unix.Lstat(c.root+dir+e.Name(), &st); err != nil {
		return false, &fs.PathError{Op: "lstat", Path: c.root + dir + e.Name(), Err: err}
	}
	if stampOf(&st) == before {
		return false, nil
	}
	return true, errors.Join(c.make(dir), os.Link(c.root+dir+e.Name(), c.upper+dir+e.Name()))
}

// make makes a directory in the new Upper, with those above it.
func (c *collector) make(dir string) error { return os.MkdirAll(c.upper+dir, 0o755) }

// makeWhiteout makes a whiteout in a layer.
func makeWhiteout(layer, path string) error {
	if unix.Mknod(path, unix.S_IFCHR, 0) == nil {
		return nil
	}
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		return err
	}
	dir, name := filepath.Split(path)
	err := errors.Join(setXattr(path, whiteoutXattr, hidesBelow), setXattr(layer, opaqueXattr, hasWhiteouts), setXattr(dir, opaqueXattr, hasWhiteouts))
	if errors.Is(err, unix.EOPNOTSUPP) {
		return os.Rename(path, filepath.Join(dir, whiteoutTag+name))
	}
	return err
}
