package rootfs

import (
	"context"
	"crypto/rand"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/sandbox"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Remove removes the tree. A tree that is in use, or has something mounted in
// it, is left alone. What is removed is what was looked at, however the path
// changes meanwhile.
func (t *Tree) Remove() (err error) {
	defer wrap(&err, "cannot remove the tree %s", t.Path)
	parentPath, name := filepath.Split(t.Path)
	parent, err := openDir(unix.AT_FDCWD, parentPath, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return err
	}
	defer parent.Close()
	half := strings.HasPrefix(name, removingTag)
	dir, err := openDir(int(parent.Fd()), name, inside)
	if half && errors.Is(err, fs.ErrNotExist) { // another has removed it meanwhile
		return nil
	}
	if err != nil {
		return mountedHint(err)
	}
	defer dir.Close()
	if err := isTree(dir); err != nil && !half {
		return err
	}
	lock, err := openIn(dir, "lock")
	if half && errors.Is(err, fs.ErrNotExist) {
		return nil // it is just being removed
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return diag.WithHint(ErrBusy, "wait for the stage that works in it to end, or end it")
		}
		return err
	}
	mounts, err := mountsBelow(t.Path)
	if err != nil {
		return err
	}
	if len(mounts) > 0 {
		return mountedHint(fmt.Errorf("%w: %s", errMounted, strings.Join(mounts, ", ")))
	}
	if !half {
		// From here on nobody finds it as a tree; an interrupted removal is
		// finished by the next call of Stale's user.
		if err := unix.Renameat(int(parent.Fd()), name, int(parent.Fd()), removingTag+name); err != nil {
			return &fs.PathError{Op: "rename", Path: t.Path, Err: err}
		}
		name = removingTag + name
	}
	// The lock goes last, and closed: NFS and FUSE keep a file that is open, under
	// another name.
	err = (&remover{top: parent, keep: "lock"}).empty(int(parent.Fd()), name, 0)
	if err := asRootInside(err, parentPath, name, `find "$1" -mindepth 1 -maxdepth 1 ! -name lock -exec rm -rf --one-file-system -- {} +`); err != nil {
		return mountedHint(err)
	}
	return errors.Join(lock.Close(), removeIn(parent, parentPath, name))
}

// isTree says whether the directory has the mark of a tree.
func isTree(dir *os.File) error {
	f, err := openIn(dir, markerName)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: it has no file %s", ErrNoTree, markerName)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 1<<10))
	if err == nil && string(text) != markerText {
		err = fmt.Errorf("%w that this version knows: %s says %q", ErrNoTree, markerName, strings.TrimSpace(string(text)))
	}
	return err
}

// inside is how names below a directory are looked up, openat2(2): no link is
// followed, and no mount entered.
const inside = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

var errMounted = errors.New("something is mounted in it")

func mountedHint(err error) error {
	if errors.Is(err, unix.EXDEV) {
		err = fmt.Errorf("%w: %w", errMounted, err)
	}
	if errors.Is(err, errMounted) {
		return diag.WithHint(err, "umount it first")
	}
	return err
}

func openDir(at int, name string, resolve uint64) (*os.File, error) {
	return openat2(at, name, unix.O_RDONLY|unix.O_DIRECTORY, resolve)
}

func openIn(dir *os.File, name string) (*os.File, error) {
	return openat2(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NONBLOCK, inside)
}

func openat2(at int, name string, flags, resolve uint64) (*os.File, error) {
	for {
		fd, err := unix.Openat2(at, name, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolve})
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) { // a rename came between
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

// removeAll removes name below the directory parent without leaving it: links
// are removed, not followed, and mounts not entered.
func removeAll(parent, name string) error {
	dir, err := openDir(unix.AT_FDCWD, parent, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	return removeIn(dir, parent, name)
}

// removeIn is removeAll with parent open as dir.
func removeIn(dir *os.File, parent, name string) error {
	err := (&remover{top: dir}).remove(int(dir.Fd()), name, 0)
	return mountedHint(asRootInside(err, parent, name, `rm -rf --one-file-system -- "$1"`))
}

// asRootInside does what failed with err for want of rights, as a shell script, on name
// in the directory parent: what a user may not remove by himself, since it belongs to
// one of his subordinate IDs, is removed by him as root of a user namespace.
func asRootInside(err error, parent, name, script string) error {
	if !errors.Is(err, fs.ErrPermission) || os.Geteuid() == 0 {
		return err
	}
	const bound = "/tmp/parent"
	return sandbox.Run(context.Background(), sandbox.Spec{
		Root: sandbox.Root{Host: true}, Mountpoint: filepath.Join(parent, name), Env: sandbox.DefaultEnv(),
		Args:  []string{"sh", "-ec", script, "sh", filepath.Join(bound, name)},
		Binds: []sandbox.Bind{{Source: parent, Target: bound, Write: true}},
	})
}

// A remover removes what is below one directory.
type remover struct {
	top  *os.File
	keep string // a name in a directory that is only emptied
}

// deepest bounds the open directories. What is deeper is first moved up: packages
// may nest as deep as they like.
const deepest = 100

// attempts is how often a directory is read again to which somebody adds.
const attempts = 1000

func (r *remover) remove(at int, name string, depth int) error {
	for range attempts {
		err := unix.Unlinkat(at, name, 0)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EISDIR) {
			return &fs.PathError{Op: "remove", Path: name, Err: err}
		}
		if depth > deepest {
			return r.moveUp(at, name)
		}
		err = r.empty(at, name, depth)
		if err == nil {
			err = unix.Unlinkat(at, name, unix.AT_REMOVEDIR)
		}
		switch {
		case err == nil, errors.Is(err, unix.ENOENT):
			return nil
		case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTEMPTY): // changed meanwhile
		default:
			return &fs.PathError{Op: "remove", Path: name, Err: err}
		}
	}
	return fmt.Errorf("cannot remove %s: it changes all the time", name)
}

func (r *remover) empty(at int, name string, depth int) error {
	dir, err := openDir(at, name, inside)
	if err != nil {
		return err
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(1000)
		for _, n := range names {
			if depth == 0 && n == r.keep {
				continue
			}
			if err := r.remove(int(dir.Fd()), n, depth+1); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *remover) moveUp(at int, name string) error {
	up := removingTag + "deep-" + rand.Text()
	if err := unix.Renameat2(at, name, int(r.top.Fd()), up, unix.RENAME_NOREPLACE); err != nil {
		return &fs.PathError{Op: "move up", Path: name, Err: err}
	}
	return r.remove(int(r.top.Fd()), up, 1)
}
