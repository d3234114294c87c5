package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	lockName  = ".dkms2bin.lock"
	lockRetry = 50 * time.Millisecond
)

// lock takes the lock of dir, waiting for it as long as ctx lasts, and returns
// what releases it. The lock file is never removed: another run might hold the
// removed one while a third makes it anew.
func lock(ctx context.Context, dir string) (unlock func() error, _ error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f.Close, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(&os.PathError{Op: "flock", Path: f.Name(), Err: err}, f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("another run holds %s: %w", f.Name(), ctx.Err()), f.Close())
		case <-time.After(lockRetry):
		}
	}
}

// findDebs returns the slash-separated paths below dir of all .debs, sorted
// bytewise, and what could not be looked at.
func findDebs(ctx context.Context, dir string) (paths []string, problems []Problem, _ error) {
	// The dot after the slash lets the walk enter dir if it is itself a link.
	root := filepath.Clean(dir) + string(filepath.Separator) + "."
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		rel, relErr := filepath.Rel(root, path)
		if relErr != nil {
			return relErr
		}
		rel = filepath.ToSlash(rel)
		switch {
		case err != nil && rel == ".":
			return err
		case err != nil:
			problems = append(problems, Problem{Path: rel, Reason: reason(err)})
			return nil
		case rel == ".":
			return nil
		case strings.HasPrefix(d.Name(), ".") && d.IsDir():
			return fs.SkipDir
		case strings.HasPrefix(d.Name(), ".") || d.IsDir() || !strings.HasSuffix(d.Name(), ".deb"):
			return nil
		}
		if d.Type()&fs.ModeSymlink != 0 {
			if fi, err := os.Stat(path); err == nil && fi.IsDir() {
				return nil
			}
		}
		paths = append(paths, rel)
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	slices.Sort(paths)
	return paths, problems, nil
}

// openRegular opens a regular file. It does not wait for a writer if the file
// is a pipe.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if !fi.Mode().IsRegular() {
		return nil, errors.Join(errors.New("it is not a regular file"), f.Close())
	}
	return f, nil
}
