package apt

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/google/renameio/v2"
)

// archives is where apt keeps what it has fetched.
const archives = "var/cache/apt/archives"

// SaveDeb copies the .deb of a package that was just installed, of which the
// SHA-256 is known, out of the tree. What apt takes from a repository on disk it
// does not keep, so that it is fetched once more.
func (i Inside) SaveDeb(ctx context.Context, name, version, digest, to string) error {
	err := i.saveFetched(name, digest, to)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	i.Spec.Dir = "/" + archives
	if err := i.run(ctx, true, "download", "-q", name+"="+version); err != nil {
		return err
	}
	return i.saveFetched(name, digest, to)
}

func (i Inside) saveFetched(name, digest, to string) (err error) {
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
		same, err := saveIf(f, digest, to)
		if err = errors.Join(err, f.Close()); same || err != nil {
			return err
		}
	}
	return fmt.Errorf("apt has fetched no %s with the SHA-256 %s: %w", name, digest, fs.ErrNotExist)
}

// saveIf copies a file, unless it has another digest.
func saveIf(f io.Reader, digest, to string) (same bool, err error) {
	out, err := renameio.NewPendingFile(to, renameio.WithPermissions(0o644))
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, out.Cleanup()) }()
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(out, sum), f); err != nil {
		return false, err
	}
	if hex.EncodeToString(sum.Sum(nil)) != digest {
		return false, nil
	}
	return true, out.CloseAtomicallyReplace()
}

// SaveFile is SaveDeb for a .deb of the host.
func SaveFile(path, digest, to string) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	same, err := saveIf(f, digest, to)
	if err == nil && !same {
		return fmt.Errorf("%s has changed meanwhile", path)
	}
	return err
}
