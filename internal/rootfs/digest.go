package rootfs

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// smallContent is up to which size, in bytes, all content is read.
const smallContent = 16 << 20

// contentDigest is a digest of everything below dir, and how much that takes on the
// disk. It has names, types, modes, owners, sizes, times and what overlayfs notes
// in directories, so that a look at the inodes is enough; where all files together
// are small it has the content, too. It does not leave the file system. Times count
// in seconds: archives keep no more, and a cache may be carried in one.
func contentDigest(dir string) (digest string, bytes int64, err error) {
	w := walker{sum: sha256.New()}
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", 0, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	if err := unix.Fstat(fd, &w.top); err != nil {
		return "", 0, errors.Join(err, unix.Close(fd))
	}
	if err := w.walk(fd, dir); err != nil {
		return "", 0, err
	}
	for i := 0; w.size <= smallContent && i < len(w.files); i++ {
		if err := addFile(w.sum, w.files[i]); err != nil {
			return "", 0, err
		}
	}
	return hex.EncodeToString(w.sum.Sum(nil)), w.bytes, nil
}

// A walker looks at all inodes below a directory: tens of thousands, in each run, so
// by names relative to open directories.
type walker struct {
	sum   hash.Hash
	top   unix.Stat_t
	bytes int64    // on the disk
	size  int64    // of the content
	files []string // regular ones, as long as the content is small
	line  []byte
}

// walk looks at what is in the directory fd, which it closes.
func (w *walker) walk(fd int, dir string) (err error) {
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &fs.PathError{Op: "stat", Path: filepath.Join(dir, name), Err: err}
		}
		w.bytes += st.Blocks * 512
		w.line = append(append(w.line[:0], name...), 0)
		w.add(int64(st.Mode), int64(st.Uid), int64(st.Gid))
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			if st.Dev == w.top.Dev {
				if err := w.enter(fd, filepath.Join(dir, name), name); err != nil {
					return err
				}
			}
			continue
		}
		sec, _ := st.Mtim.Unix() // the field is an int32 on some machines
		w.add(int64(st.Rdev), st.Size, sec)
		w.sum.Write(w.line)
		w.size += st.Size
		if st.Mode&unix.S_IFMT == unix.S_IFREG && w.size <= smallContent {
			w.files = append(w.files, filepath.Join(dir, name))
		}
	}
	return nil
}

// enter adds a directory and walks it. Its end is marked, so that no other tree
// reads the same.
func (w *walker) enter(parent int, path, name string) error {
	opaque, err := isOpaque(path)
	if err != nil {
		return &fs.PathError{Op: "get " + opaqueName + " of", Path: path, Err: err}
	}
	if opaque {
		w.line = append(w.line, 'y')
	}
	w.sum.Write(append(w.line, '/'))
	fd, err := unix.Openat(parent, name, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	err = w.walk(fd, path)
	w.sum.Write([]byte{0, '.'})
	return err
}

// add appends numbers to the line.
func (w *walker) add(numbers ...int64) {
	for _, n := range numbers {
		w.line = append(strconv.AppendInt(w.line, n, 36), ' ')
	}
}

func addFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// opaqueName is what overlayfs, mounted with userxattr, notes in a directory that hides
// those of the layers below. See the kernel's Documentation/filesystems/overlayfs.rst.
const opaqueName = "user.overlay.opaque"

func isOpaque(dir string) (bool, error) {
	var value [1]byte
	n, err := unix.Lgetxattr(dir, opaqueName, value[:])
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return false, nil
	}
	return n == 1 && value[0] == 'y', err
}

// Hide makes a directory of a layer hide what the layers below have in it.
func Hide(layer, dir string) error {
	path := filepath.Join(layer, dir)
	if err := unix.Lsetxattr(path, opaqueName, []byte("y"), 0); err != nil {
		return &fs.PathError{Op: "set " + opaqueName + " of", Path: path, Err: err}
	}
	return nil
}
