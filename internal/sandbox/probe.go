package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Probe tries what this host, or the container that this is, allows for trees in dir.
// An error says why nothing can be run at all. Lack, if it is not "", says why no
// overlay can be written to in dir, so that roots must be put together by copies. Both
// name what would allow it, as far as that can be seen. Dir is left empty.
func Probe(ctx context.Context, mountpoint, dir string) (lack string, err error) {
	err = run(ctx, Spec{Root: Root{Work: dir}, Mountpoint: mountpoint, task: taskProbe})
	var l *lackError
	if errors.As(err, &l) {
		return l.lack, nil
	}
	return "", err
}

// A lackError is what a probe found missing for an overlay.
type lackError struct{ lack string }

func (e *lackError) Error() string { return e.lack }

func probe(r Root, mountpoint string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot make the mounts private: %w%s", err, mountAdvice)
	}
	if err := unix.Mount("tmpfs", mountpoint, "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("cannot mount a tmpfs: %w%s", err, mountAdvice)
	}
	if err := unix.Unmount(mountpoint, unix.MNT_DETACH); err != nil {
		return err
	}
	defer emptyDir(r.Work) //nolint:errcheck // it is removed with the tree
	if err := canHoldTree(r.Work); err != nil {
		return fmt.Errorf("the file system of the work directory cannot hold a tree, which needs owners, modes and links: %w: "+
			"--work-dir names a directory on another one", err)
	}
	if err := tryOverlay(r.Work, mountpoint); err != nil {
		return &lackError{err.Error()}
	}
	return nil
}

const mountAdvice = ": the container that this runs in forbids mounts, which docker run " +
	"--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined allows; " +
	"in a container that is thrown away afterwards, mkchroot --in-place does without"

// canHoldTree makes a file of each kind.
func canHoldTree(dir string) error {
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
		return err
	}
	if err := errors.Join(os.Chown(file, 1, 1), os.Chmod(file, 0o4755), os.Link(file, file+"-2"), os.Symlink("file", file+"-3")); err != nil {
		return err
	}
	info, err := os.Stat(file)
	if err == nil && info.Mode().Perm() != 0o755 {
		err = fmt.Errorf("a file has the mode %v in place of 0755", info.Mode().Perm())
	}
	return err
}

// tryOverlay does in an overlay what packages do.
func tryOverlay(dir, mountpoint string) error {
	r := Root{Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work")}
	for _, name := range []string{"one", "two"} {
		layer := filepath.Join(dir, name)
		r.Layers = append(r.Layers, layer)
		if err := errors.Join(os.MkdirAll(filepath.Join(layer, "replaced"), 0o755),
			os.WriteFile(filepath.Join(layer, "removed"), nil, 0o644), os.WriteFile(filepath.Join(layer, "replaced/file"), nil, 0o644)); err != nil {
			return err
		}
	}
	if err := errors.Join(os.Mkdir(r.Upper, 0o755), os.Mkdir(r.Work, 0o755)); err != nil {
		return err
	}
	if err := mountRoot(r, mountpoint); err != nil {
		return err
	}
	defer unix.Unmount(mountpoint, unix.MNT_DETACH) //nolint:errcheck // it goes with the namespace
	at := func(name string) string { return filepath.Join(mountpoint, name) }
	err := errors.Join(os.Chown(at("replaced/file"), 1, 1), os.Remove(at("removed")), os.Remove(at("replaced/file")),
		os.Remove(at("replaced")), os.Mkdir(at("replaced"), 0o755))
	if err == nil {
		if _, there := os.Stat(at("replaced/file")); there == nil {
			err = errors.New("what was removed is still there")
		}
	}
	if err != nil {
		return fmt.Errorf("an overlay does not work in the work directory: %w", err)
	}
	return nil
}
