package rootfs

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// smallContent is up to which size, in bytes, all content is read.
const smallContent = 16 << 20

// contentDigest is a digest of everything below dir, and how much that takes on the
// disk. It has names, types, modes, owners, sizes, times, targets of links and what
// overlayfs notes in directories, so that a look at the inodes is enough; where all
// files together are small it has the content, too. It does not leave the file system.
// Times count in seconds: archives keep no more, and a cache may be carried in one.
func contentDigest(dir string) (digest string, bytes int64, err error) {
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", 0, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	var top unix.Stat_t
	if err := unix.Fstat(fd, &top); err != nil {
		return "", 0, errors.Join(err, unix.Close(fd))
	}
	w := walker{top: &top, free: make(chan struct{}, runtime.GOMAXPROCS(0)-1)}
	var found walked
	w.walk(&found, fd, dir)
	sum := sha256.New()
	size, err := found.add(sum, &bytes)
	if err == nil && size <= smallContent {
		err = found.addContent(sum, dir)
	}
	if err != nil {
		return "", 0, err
	}
	return hex.EncodeToString(sum.Sum(nil)), bytes, nil
}

// A walker looks at all inodes below a directory: tens of thousands, in each run, so
// by names relative to open directories, and on all cores.
type walker struct {
	top  *unix.Stat_t
	free chan struct{} // has room for as many as may be at work besides
}

// A walked is what was found in a directory.
type walked struct {
	segments []segment
	bytes    int64 // on the disk
	size     int64 // of the content
	err      error
	ready    chan struct{} // closed when it is found, if another one looks
}

// A segment is what is there, in the order of names, up to a directory.
type segment struct {
	text  []byte
	files []string // names of regular ones, as long as the content is small
	name  string
	child *walked // nil in the last one
}

// walk looks at what is in the directory fd, which it closes.
func (w *walker) walk(found *walked, fd int, dir string) {
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	var names []string
	if names, found.err = f.Readdirnames(-1); found.err != nil {
		return
	}
	slices.Sort(names)
	var s segment
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			found.err = &fs.PathError{Op: "stat", Path: filepath.Join(dir, name), Err: err}
			return
		}
		found.bytes += st.Blocks * 512
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		if isDir && st.Dev != w.top.Dev {
			continue
		}
		s.text = appendNumbers(append(append(s.text, name...), 0), int64(st.Mode), int64(st.Uid), int64(st.Gid))
		if isDir {
			var opaque bool
			s.name = name
			if s.child, opaque, found.err = w.enter(fd, dir+"/"+name, name); found.err != nil {
				return
			}
			if opaque {
				s.text = append(s.text, 'y')
			}
			s.text = append(s.text, '/')
			found.segments = append(found.segments, s)
			s = segment{text: []byte{0, '.'}} // its end is marked, so that no other tree reads the same
			continue
		}
		sec, _ := st.Mtim.Unix() // the field is an int32 on some machines
		s.text = appendNumbers(s.text, int64(st.Rdev), st.Size, sec)
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			target := make([]byte, st.Size+1)
			n, err := unix.Readlinkat(fd, name, target)
			if err != nil {
				found.err = &fs.PathError{Op: "readlink", Path: filepath.Join(dir, name), Err: err}
				return
			}
			s.text = append(append(s.text, target[:n]...), 0)
		}
		found.size += st.Size
		if st.Mode&unix.S_IFMT == unix.S_IFREG && found.size <= smallContent {
			s.files = append(s.files, name)
		}
	}
	found.segments = append(found.segments, s)
}

// enter walks a directory, at the same time where a core is free.
func (w *walker) enter(parent int, path, name string) (child *walked, opaque bool, err error) {
	fd, err := unix.Openat(parent, name, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, false, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	if opaque, err = isOpaque(fd); err != nil {
		return nil, false, errors.Join(&fs.PathError{Op: "get " + opaqueName + " of", Path: path, Err: err}, unix.Close(fd))
	}
	child = &walked{}
	select {
	case w.free <- struct{}{}:
		child.ready = make(chan struct{})
		go func() {
			w.walk(child, fd, path)
			<-w.free
			close(child.ready)
		}()
	default:
		w.walk(child, fd, path)
	}
	return child, opaque, nil
}

// add adds all text to a sum, and what is on the disk to bytes, and returns the size of
// the content.
func (d *walked) add(sum io.Writer, bytes *int64) (size int64, err error) {
	if d.ready != nil {
		<-d.ready
	}
	size, err = d.size, d.err
	*bytes += d.bytes
	for _, s := range d.segments {
		_, _ = sum.Write(s.text)
		if s.child != nil {
			below, childErr := s.child.add(sum, bytes)
			size, err = size+below, errors.Join(err, childErr)
		}
	}
	return size, err
}

// addContent adds the content of all files below dir.
func (d *walked) addContent(sum io.Writer, dir string) error {
	for _, s := range d.segments {
		for _, name := range s.files {
			if err := addFile(sum, filepath.Join(dir, name)); err != nil {
				return err
			}
		}
		if s.child != nil {
			if err := s.child.addContent(sum, filepath.Join(dir, s.name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// appendNumbers appends numbers to a line.
func appendNumbers(line []byte, numbers ...int64) []byte {
	for _, n := range numbers {
		line = append(strconv.AppendInt(line, n, 36), ' ')
	}
	return line
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

func isOpaque(fd int) (bool, error) {
	var value [1]byte
	n, err := unix.Fgetxattr(fd, opaqueName, value[:])
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
