package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A Lack is what a probe found missing, with what would allow it as far as that can be
// seen. It is an error for those who cannot do without.
type Lack struct {
	Upper  string `json:",omitempty"` // why no overlay can be written to in the directory; "" if one can
	Memory string `json:",omitempty"` // and why Root.Memory cannot be used instead
}

func (l *Lack) Error() string {
	if l.Memory == "" {
		return l.Upper
	}
	return l.Upper + "; nor can memory take what is written: " + l.Memory
}

// Probe tries what this host, or the container that this is, allows for trees in dir,
// with so much memory for what is written. An error says why nothing can be run at all.
// Lack is nil where overlayfs can be used, and without Memory where Root.Memory can;
// otherwise roots must be put together by copies. Dir is left empty.
func Probe(ctx context.Context, mountpoint, dir string, memory int64) (lack *Lack, err error) {
	err = run(ctx, Spec{Root: Root{Work: dir, Memory: memory}, Mountpoint: mountpoint, task: taskProbe})
	if errors.As(err, &lack) {
		return lack, nil
	}
	return nil, err
}

func probe(r Root, mountpoint string) (*Lack, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("cannot make the mounts private: %w%s", err, mountAdvice)
	}
	if err := unix.Mount("tmpfs", mountpoint, "tmpfs", 0, ""); err != nil {
		return nil, fmt.Errorf("cannot mount a tmpfs: %w%s", err, mountAdvice)
	}
	if err := unix.Unmount(mountpoint, unix.MNT_DETACH); err != nil {
		return nil, err
	}
	defer emptyDir(r.Work) //nolint:errcheck // it is removed with the tree
	if err := canHoldTree(r.Work); err != nil {
		return nil, fmt.Errorf("the file system cannot hold a tree, which needs owners, modes and links: %w: "+
			"--work-dir or --cache-dir names a directory on another one", err)
	}
	err := tryOverlay(r.Work, mountpoint, 0)
	if err == nil {
		return nil, nil
	}
	lack := &Lack{Upper: err.Error()}
	if r.Memory == 0 {
		lack.Memory = "there is too little"
	} else if err := errors.Join(emptyDir(r.Work), tryOverlay(r.Work, mountpoint, r.Memory)); err != nil {
		lack.Memory = err.Error()
	}
	return lack, nil
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

// tryOverlay does in an overlay what packages do, and looks at what is left of it.
func tryOverlay(dir, mountpoint string, memory int64) error {
	r := Root{Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"), Memory: memory}
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
	var w *written
	var err error
	if memory > 0 {
		w, err = mountInMemory(r, mountpoint)
	} else {
		err = mountRoot(r, mountpoint)
	}
	if err != nil {
		return err
	}
	at := func(name string) string { return filepath.Join(mountpoint, name) }
	err = errors.Join(os.Chown(at("replaced/file"), 1, 1), os.Remove(at("removed")), os.Remove(at("replaced/file")),
		os.Remove(at("replaced")), os.Mkdir(at("replaced"), 0o755))
	if err == nil && w != nil {
		if err = w.keep(mountpoint); err == nil { // and what was kept looks the same
			err = mountRoot(Root{Layers: append([]string{r.Upper}, r.Layers...)}, mountpoint)
		}
	}
	for _, gone := range []string{"removed", "replaced/file"} {
		if _, there := os.Lstat(at(gone)); err == nil && there == nil {
			err = errors.New("what was removed is still there, for want of Linux 6.7 or of extended attributes of files")
		}
	}
	if err != nil {
		return fmt.Errorf("an overlay does not work in the work directory: %w", err)
	}
	return nil
}
