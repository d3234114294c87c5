package apt

import (
	"context"
	"dkms2bin/internal/deb"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// archives is where apt keeps what it has fetched, relative to the root.
const archives = "var/cache/apt/archives"

// SaveDeb copies the .deb of a package version that was just installed out of the
// tree. What apt takes from a repository on disk it does not keep, so that it is
// fetched once more.
func (i Inside) SaveDeb(ctx context.Context, name, version, to string) error {
	err := i.saveFetched(name, version, to)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	i.Spec.Dir = "/" + archives
	if err := i.run(ctx, true, "download", "-q", name+"="+version); err != nil {
		return err
	}
	return i.saveFetched(name, version, to)
}

func (i Inside) saveFetched(name, version, to string) (err error) {
	root, err := os.OpenRoot(i.Spec.Root.Upper)
	if err != nil {
		return err
	}
	defer root.Close()
	found, err := fs.Glob(root.FS(), archives+"/"+name+"_*.deb")
	if err != nil {
		return err
	}
	for _, path := range found {
		f, err := root.Open(path)
		if err != nil {
			return err
		}
		is, err := versionOf(f)
		if err == nil && is == version {
			err = save(f, to)
		}
		if err = errors.Join(err, f.Close()); err != nil || is == version {
			return err
		}
	}
	return fmt.Errorf("apt has fetched no %s %s: %w", name, version, fs.ErrNotExist)
}

func versionOf(f *os.File) (string, error) {
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	archive, err := deb.Open(f, info.Size())
	if err != nil {
		return "", err
	}
	control, err := archive.Control()
	return control.Get("Version"), err
}

// save copies a file from its beginning.
func save(f io.ReadSeeker, to string) (err error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	out, err := renameio.NewPendingFile(to, renameio.WithPermissions(0o644), renameio.WithTempDir(filepath.Dir(to)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Cleanup()) }()
	if _, err := io.Copy(out, f); err != nil {
		return err
	}
	return out.CloseAtomicallyReplace()
}

// SaveFile is SaveDeb for a .deb of the host.
func SaveFile(path, to string) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return save(f, to)
}
