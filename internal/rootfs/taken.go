package rootfs

import (
	"context"
	"dkms2bin/internal/sandbox"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// What an entry that is a layer has in its content: the layer, and its record.
const (
	layerPart  = "layer"
	recordPart = "record"
)

// TakeLayer is MakeLayer with a cache: a layer that is there is taken, as a link in
// the tree, and one that is made is kept there. The files of the tree's record of
// the same name, which spec.Make may write, are kept and taken with it. The cache
// keeps what a link leads to as long as the link is there.
//
// It returns whether the layer was made. Without a cache it is MakeLayer. Of item
// Make is not used.
func (t *Tree) TakeLayer(ctx context.Context, c *Cache, item Item, spec LayerSpec) (made bool, err error) {
	if c == nil || t.HasLayer(spec.Name) {
		fill := spec.Make
		spec.Make = func(root sandbox.Root) error {
			made = true
			return fill(root)
		}
		return made, t.MakeLayer(ctx, spec)
	}
	if (t.copies || t.memory > 0) && len(spec.On) > 0 {
		// Its whiteouts may be others than those of overlayfs.
		item.Key = append(slices.Clone(item.Key), "copies")
	}
	item.Make = func(dir string) error {
		made = true
		if spec.Keep != nil {
			return t.hand(ctx, dir, spec)
		}
		return t.fill(dir, spec)
	}
	e, err := c.Get(ctx, item)
	if errors.Is(err, errNotKept) {
		return made, nil
	}
	if err != nil {
		return made, err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	return made, t.take(e, spec.Name, made)
}

// fill makes a layer in dir, which is an entry's content, with its record.
func (t *Tree) fill(dir string, spec LayerSpec) error {
	root := t.writable(dir, filepath.Join(dir, layerPart), spec.On)
	for _, d := range []string{root.Upper, root.Work} {
		if err := errors.Join(os.Mkdir(d, 0o755), os.Chmod(d, 0o755)); err != nil {
			return err
		}
	}
	if err := spec.Make(root); err != nil {
		return err
	}
	if err := errors.Join(removeAll(dir, "work"), removeAll(dir, "copies")); err != nil {
		return err
	}
	return copyFiles(t.recordPath(spec.Name), filepath.Join(dir, recordPart))
}

// errNotKept says that a layer was made in the tree, and stays there.
var errNotKept = errors.New("not kept")

// hand makes a layer in the tree, and moves it with its record into dir, which is an
// entry's content, if it is to be kept.
func (t *Tree) hand(ctx context.Context, dir string, spec LayerSpec) error {
	if err := t.MakeLayer(ctx, spec); err != nil {
		return err
	}
	if !spec.Keep() {
		return errNotKept
	}
	from, to := t.LayerPath(spec.Name), filepath.Join(dir, layerPart)
	err := os.Rename(from, to)
	if errors.Is(err, unix.EXDEV) {
		if err = errors.Join(os.Mkdir(to, 0o755), sandbox.CopyLayer(ctx, from, to)); err != nil {
			return fmt.Errorf("cannot copy a layer into the cache: %w", err)
		}
		err = t.RemoveLayer(spec.Name)
	}
	return errors.Join(err, copyFiles(t.recordPath(spec.Name), filepath.Join(dir, recordPart)))
}

// take puts a link to the layer of an entry into the tree, and with it the record
// unless this process has just written that.
func (t *Tree) take(e *Entry, name string, recorded bool) (err error) {
	defer wrap(&err, "cannot take the layer %s from the cache", name)
	if !recorded {
		if err := copyFiles(e.Record(), t.recordPath(name)); err != nil {
			return err
		}
	}
	link := t.LayerPath(name)
	// First what keeps it, then the link.
	ref := filepath.Join(e.path, "trees", LayerName("tree", link))
	if err := os.WriteFile(ref, []byte(link), 0o600); err != nil {
		return err
	}
	target := e.Layer()
	if _, err := os.Stat(link); errors.Is(err, fs.ErrNotExist) {
		return renameio.Symlink(target, link) // also in place of one whose entry somebody removed
	}
	if there, err := os.Readlink(link); err != nil || there != target {
		return errors.Join(err, &fs.PathError{Op: "link", Path: link, Err: fs.ErrExist})
	}
	return nil
}

// Layer is the layer that TakeLayer has kept in the entry.
func (e *Entry) Layer() string { return filepath.Join(e.Content(), layerPart) }

// Record is the record of that layer.
func (e *Entry) Record() string { return filepath.Join(e.Content(), recordPart) }

// LayerID names the content of a layer that came from a cache: no other layer ever
// has it. Of other layers it is "".
func (t *Tree) LayerID(name string) string {
	target, err := os.Readlink(t.LayerPath(name))
	if err != nil {
		return ""
	}
	return filepath.Base(filepath.Dir(filepath.Dir(target)))
}

// LayerKey names everything that a layer from a cache was to be made of: one that is
// made anew of the same has the same key, and another LayerID.
func (t *Tree) LayerKey(name string) string { return keyOf(t.LayerID(name)) }

// Cache is the cache that a layer came from, or nil.
func (t *Tree) Cache(layer string) (*Cache, error) {
	if t.inPlace {
		return nil, nil
	}
	target, err := os.Readlink(t.LayerPath(layer))
	if err != nil {
		return nil, nil
	}
	dir, ok := strings.CutSuffix(filepath.Clean(target), filepath.Join("/entries", t.LayerID(layer), contentDir, layerPart))
	if !ok {
		return nil, fmt.Errorf("the layer %s of the tree %s leads to %s, which is no cache", layer, t.Path, target)
	}
	return OpenCache(dir)
}

// copyFiles copies the regular files below from into to, with their times, in place of
// those of the same names. Either may be missing.
func copyFiles(from, to string) error {
	if _, err := os.Stat(from); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, below)
		switch {
		case d.IsDir():
			return errors.Join(os.MkdirAll(target, 0o755), os.Chmod(target, 0o755))
		case d.Type().IsRegular():
			return copyFile(path, target)
		}
		return nil
	})
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close(), os.Chmod(to, 0o644), os.Chtimes(to, info.ModTime(), info.ModTime()))
}
