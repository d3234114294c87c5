package repo

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// identity tells one content of a file from another without reading it. The
// change time is in it because, other than the rest, no program can set it.
type identity struct {
	size, mtime, ctime int64 // bytes; nanoseconds since 1970
	inode              uint64
}

func identityOf(fi fs.FileInfo) identity {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}
	}
	return identity{st.Size, st.Mtim.Nano(), st.Ctim.Nano(), st.Ino}
}

// found is a .deb below the directory.
type found struct {
	path string // slash-separated
	id   identity
}

// findDebs returns all .debs below dir, sorted bytewise by their paths, and
// what could not be looked at.
func findDebs(ctx context.Context, dir string) (files []found, problems []Problem, _ error) {
	// The dot after the slash lets the walk enter dir if it is itself a link.
	root := filepath.Clean(dir) + string(filepath.Separator) + "."
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		rel := "."
		if len(path) > len(root) {
			rel = filepath.ToSlash(strings.TrimPrefix(path[len(filepath.Clean(dir)):], string(filepath.Separator)))
		}
		switch {
		case err != nil && rel == ".":
			return err
		case errors.Is(err, fs.ErrNotExist):
			return nil // removed meanwhile
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
		f := found{path: rel}
		fi, err := d.Info()
		if err == nil && d.Type()&fs.ModeSymlink != 0 {
			fi, err = os.Stat(path)
		}
		switch {
		case err != nil: // reading it gives the reason
		case fi.IsDir():
			return nil
		case fi.Mode().IsRegular():
			f.id = identityOf(fi)
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	slices.SortFunc(files, func(a, b found) int { return strings.Compare(a.path, b.path) })
	return files, problems, nil
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
