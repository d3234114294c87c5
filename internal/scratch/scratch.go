// Package scratch makes temporary directories whose users can be told from those that
// have died: whoever makes one holds a lock on it, flock(2), as long as he lives.
//
// The front end, a shell script, does the same as Make by mktemp and flock.
package scratch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	prefix = "dkms2bin."
	marker = ".locked"
)

// Make makes a directory in os.TempDir. The returned function removes it.
func Make() (dir string, remove func() error, err error) {
	if dir, err = os.MkdirTemp("", prefix); err != nil {
		return "", nil, err
	}
	f, err := os.Open(dir)
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil { // an empty one may be about to be locked
		err = os.WriteFile(filepath.Join(dir, marker), nil, 0o600)
	}
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("cannot lock %s: %w", dir, err), removeIn(filepath.Dir(dir), filepath.Base(dir)))
	}
	return dir, func() error { return errors.Join(removeIn(filepath.Dir(dir), filepath.Base(dir)), f.Close()) }, nil
}

// Held says whether the one who made the directory lives.
func Held(dir string) (bool, error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// Wait waits until the one who made the directory is dead.
func Wait(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_SH); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// young is how old an empty directory may be, which its maker may be about to lock.
const young = time.Minute

// Sweep removes the directories of this user in os.TempDir whose makers are dead.
func Sweep() (err error) {
	top := os.TempDir()
	entries, err := os.ReadDir(top)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefix) || !e.IsDir() {
			continue
		}
		if err := sweepOne(top, e.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func sweepOne(top, name string) error {
	path := filepath.Join(top, name)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if int(info.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() {
		return nil
	}
	names, _ := f.Readdirnames(1)
	if len(names) == 0 && time.Since(info.ModTime()) < young {
		return nil
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil
		}
		return err
	}
	return removeIn(top, name)
}

// removeIn removes a directory without leaving the one that it is in.
func removeIn(top, name string) error {
	root, err := os.OpenRoot(top)
	if err != nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(name)
}
