package repo

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
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
	root, err := os.Open(dir)
	if err != nil {
		return nil, nil, err
	}
	defer root.Close() // read only
	paths, problems, err := findNames(ctx, dir)
	if err != nil {
		return nil, nil, err
	}
	slices.Sort(paths)
	files = make([]found, len(paths))
	chunk := max(1, (len(paths)+runtime.GOMAXPROCS(0)-1)/runtime.GOMAXPROCS(0))
	var wg sync.WaitGroup
	for start := 0; start < len(paths); start += chunk {
		wg.Go(func() {
			for i := start; i < min(start+chunk, len(paths)) && ctx.Err() == nil; i++ {
				files[i] = look(int(root.Fd()), paths[i])
			}
		})
	}
	wg.Wait()
	files = slices.DeleteFunc(files, func(f found) bool { return f.path == "" })
	return files, problems, ctx.Err()
}

// findNames returns the paths below dir of all that may be a .deb, in no order.
func findNames(ctx context.Context, dir string) (paths []string, problems []Problem, _ error) {
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
		paths = append(paths, rel)
		return nil
	})
	return paths, problems, err
}

// look identifies a file below root; a directory, or a link to one, has no path.
// What cannot be looked at has no identity: reading it gives the reason.
func look(root int, path string) found {
	var st unix.Stat_t
	if unix.Fstatat(root, path, &st, 0) != nil {
		return found{path: path}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return found{}
	case unix.S_IFREG:
		return found{path, identity{st.Size, st.Mtim.Nano(), st.Ctim.Nano(), st.Ino}}
	}
	return found{path: path}
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
