package audit

import (
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A tree is a directory that is looked at as if it were the root. All paths begin with /.
type tree struct {
	root *os.File
	// usrOnly says that there is no /lib, as in an image of /usr alone: modulesDir is
	// below /usr.
	usrOnly bool
}

func openTree(dir string) (*tree, error) {
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	t := &tree{root: root}
	if f, err := t.open(modulesDir); err == nil {
		f.Close()
	} else if f, err := t.open("/usr" + modulesDir); err == nil {
		f.Close()
		t.usrOnly = true
	}
	return t, nil
}

func (t *tree) close() { t.root.Close() }

// open opens what is there for reading, links resolved as they are for a process that has
// this root.
func (t *tree) open(file string) (*os.File, error) {
	if t.usrOnly && strings.HasPrefix(file, modulesDir) {
		file = "/usr" + file
	}
	fd, err := unix.Openat2(int(t.root.Fd()), file, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path.Join(t.root.Name(), file), Err: err}
	}
	return os.NewFile(uintptr(fd), file), nil
}

func (t *tree) list(dir string) ([]fs.DirEntry, error) {
	f, err := t.open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.ReadDir(-1)
}

// files lists the modules below a kernel's directory, by their names, and links that are
// called so. build and source lead to its headers.
func (t *tree) files(dir string) ([]string, error) {
	var found []string
	var walk func(string) error
	walk = func(at string) error {
		entries, err := t.list(at)
		if err != nil {
			return err
		}
		for _, e := range entries {
			name := path.Join(at, e.Name())
			switch {
			case at == dir && (e.Name() == "build" || e.Name() == "source"):
			case e.IsDir():
				if err := walk(name); err != nil {
					return err
				}
			case moduleName.MatchString(e.Name()):
				found = append(found, name)
			}
		}
		return nil
	}
	err := walk(dir)
	slices.Sort(found)
	return found, err
}
