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
	for below := []string{""}; len(below) > 0 && ctx.Err() == nil; {
		prefix := below[len(below)-1]
		below = below[:len(below)-1]
		entries, err := readDir(filepath.Join(dir, filepath.FromSlash(prefix)))
		switch {
		case err != nil && prefix == "":
			return nil, nil, err
		case err != nil && !errors.Is(err, fs.ErrNotExist): // removed meanwhile
			problems = append(problems, Problem{Path: strings.TrimSuffix(prefix, "/"), Reason: reason(err)})
		}
		for _, e := range entries {
			switch name := e.Name(); {
			case strings.HasPrefix(name, "."):
			case e.IsDir():
				below = append(below, prefix+name+"/")
			case strings.HasSuffix(name, ".deb"):
				paths = append(paths, prefix+name)
			}
		}
	}
	return paths, problems, ctx.Err()
}

// readDir is os.ReadDir without the sorting.
func readDir(path string) ([]fs.DirEntry, error) {
	d, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer d.Close() // read only
	return d.ReadDir(-1)
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
