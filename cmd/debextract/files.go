package main

import (
	"crypto/rand"
	"dkms2bin/internal/deb"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/state"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// install writes a package to path. It appears whole and by link(2), which never
// replaces a file: identical content that is there stays, other content is an
// error. Size and SHA-256 of the file are returned.
func install(path string, p deb.Package) (size int64, digest string, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot write %s: %w", path, err)
		}
	}()
	f, link, discard, err := unnamed(filepath.Dir(path))
	if err != nil {
		return 0, "", err
	}
	defer func() { err = errors.Join(err, discard(), f.Close()) }()
	if err := deb.Write(f, p); err != nil {
		return 0, "", err
	}
	if err := errors.Join(f.Chmod(0o644), f.Sync()); err != nil {
		return 0, "", err
	}
	info, err := f.Stat()
	if err != nil {
		return 0, "", err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return 0, "", err
	}
	if digest, err = state.Digest(f); err != nil {
		return 0, "", err
	}
	err = link(path)
	if errors.Is(err, os.ErrExist) {
		there, err := state.FileDigest(path)
		if err != nil {
			return 0, "", err
		}
		if there != digest {
			return 0, "", diag.WithHint(errors.New("a package of that name with other content is there"),
				"packages are never replaced: give this one another version with --version-suffix")
		}
		return info.Size(), digest, nil
	}
	return info.Size(), digest, err
}

// unnamed makes a file in dir that has no name until link gives it one, so that
// nothing is left of it when the process dies (O_TMPFILE of open(2)). File
// systems without such files get one with a name, which discard removes.
func unnamed(dir string) (f *os.File, link func(path string) error, discard func() error, err error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err == nil {
		f = os.NewFile(uintptr(fd), filepath.Join(dir, "(unnamed)"))
		return f, func(path string) error {
			err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
			if err != nil {
				return &os.LinkError{Op: "link", Old: f.Name(), New: path, Err: err}
			}
			return nil
		}, func() error { return nil }, nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return nil, nil, nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	if f, err = os.CreateTemp(dir, ".new-*"); err != nil {
		return nil, nil, nil, err
	}
	return f, func(path string) error { return os.Link(f.Name(), path) },
		func() error { return os.Remove(f.Name()) }, nil
}

func copyLog(from, to string) (err error) {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, link, discard, err := unnamed(filepath.Dir(to))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, discard(), out.Close()) }()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	if err := out.Chmod(0o644); err != nil {
		return err
	}
	if err := link(to); !errors.Is(err, os.ErrExist) {
		return err
	}
	// Only rename(2) replaces a file.
	beside := filepath.Join(filepath.Dir(to), ".new-"+rand.Text())
	return errors.Join(link(beside), os.Rename(beside, to))
}
