// Package repo makes a flat apt repository out of a directory of .debs: it
// writes Packages, Packages.gz and Release, as apt-secure(8) and
// sources.list(5) have them ("deb URL ./").
package repo

import (
	"bufio"
	"context"
	"crypto/sha256"
	"dkms2bin/internal/deb"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
	"github.com/klauspost/compress/gzip"
)

// Options are the fields of Release. All but Date may be empty, and then are
// left out. apt asks its user before it accepts a repository whose Origin,
// Label, Suite or Codename changed, so they should stay what they were.
type Options struct {
	Origin, Label, Suite, Codename, Description string
	// Date goes into Release, cut to seconds. The zero value stands for the
	// present time. When the Release there is has a later one, that is kept:
	// apt ignores a Release older than the one it knows.
	Date time.Time
}

// Result tells what Index did.
type Result struct {
	Packages int       `json:"packages"` // stanzas in Packages
	Release  string    `json:"release"`  // SHA256 of Release, in hex
	Problems []Problem `json:"problems,omitempty"`
}

// Problem is a file or directory that was left out of the index.
type Problem struct {
	Path   string `json:"path"` // below the directory, slash-separated
	Reason string `json:"reason"`
}

// Index writes the index of all .debs in dir and its subdirectories. Files and
// directories starting with a dot are passed over (as half-done uploads are
// named), and so are symbolic links to directories; a symbolic link to a .deb
// counts as a file.
//
// Packages has a stanza for each .deb in the bytewise order of their paths:
// the fields of its control file, in the order of apt-ftparchive(1), with
// Filename, Size and SHA256. Of several files with the same package, version
// and architecture the first counts; another one is a Problem unless it has
// the same bytes. So are files that cannot be read as a .deb: the rest is
// indexed all the same. The same files give the same Packages.
//
// Each file is replaced by a rename, Release last, with mode 0644. Until then
// nothing of the old index is touched, and after an error no other files are
// left. Runs over one directory wait for each other on a lock
// (.dkms2bin.lock, which stays there). Not promised: that packages do not
// change meanwhile, and that the three files belong together for a client that
// reads them while they are replaced.
func Index(ctx context.Context, dir string, opt Options) (_ Result, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot index %s: %w", dir, err)
		}
	}()
	if err := opt.validate(); err != nil {
		return Result{}, err
	}
	unlock, err := lock(ctx, dir)
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, unlock()) }()

	paths, problems, err := findDebs(ctx, dir)
	if err != nil {
		return Result{}, err
	}
	packages, err := create(dir, "Packages")
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, packages.discard()) }()
	packagesGz, err := create(dir, "Packages.gz")
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, packagesGz.discard()) }()

	zw, err := gzip.NewWriterLevel(packagesGz, gzip.BestCompression)
	if err != nil {
		return Result{}, err
	}
	// None in the header; time's zero value would come out as some other time.
	zw.ModTime = time.Unix(0, 0)
	bw := bufio.NewWriterSize(io.MultiWriter(packages, zw), 64<<10)
	found, err := writeStanzas(ctx, bw, dir, paths)
	if err != nil {
		return Result{}, err
	}
	if err := bw.Flush(); err != nil {
		return Result{}, err
	}
	if err := zw.Close(); err != nil {
		return Result{}, err
	}

	release, err := create(dir, "Release")
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, release.discard()) }()
	r := releaseFile{
		opt:   opt,
		date:  opt.date(filepath.Join(dir, "Release")),
		archs: found.archs,
		// apt finds no packages, and does not say so, where the uncompressed
		// Packages is not listed.
		files: []*file{packages, packagesGz},
	}
	if err := r.write(release); err != nil {
		return Result{}, err
	}
	// All that is likely to fail comes before the first rename, so that the old
	// index remains whole.
	files := []*file{packages, packagesGz, release}
	for _, f := range files {
		if err := f.ready(dir); err != nil {
			return Result{}, err
		}
	}
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	for _, f := range files {
		if err := f.CloseAtomicallyReplace(); err != nil {
			return Result{}, err
		}
	}
	return Result{
		Packages: found.packages,
		Release:  release.digest(),
		Problems: append(problems, found.problems...),
	}, nil
}

// found is what writeStanzas found.
type found struct {
	packages int
	archs    map[string]bool
	problems []Problem
}

// writeStanzas writes the stanzas of the .debs at paths, which are relative to
// dir.
func writeStanzas(ctx context.Context, w io.Writer, dir string, paths []string) (found, error) {
	type identity struct{ name, version, arch string }
	type origin struct{ path, sum string }
	seen := make(map[identity]origin)
	res := found{archs: make(map[string]bool)}
	problem := func(path string, err error) {
		res.problems = append(res.problems, Problem{Path: path, Reason: reason(err)})
	}
	for _, path := range paths {
		control, sum, err := readDeb(ctx, filepath.Join(dir, filepath.FromSlash(path)))
		if ctx.Err() != nil {
			return found{}, ctx.Err()
		}
		if err != nil {
			problem(path, err)
			continue
		}
		id := identity{control.Get("Package"), control.Get("Version"), control.Get("Architecture")}
		if first, ok := seen[id]; ok {
			if first.sum != sum.sha256 {
				problem(path, fmt.Errorf("it is %s %s %s, as %s is, but has other content", id.name, id.version, id.arch, first.path))
			}
			continue
		}
		s, err := indexStanza(control, path, sum)
		if err != nil {
			problem(path, err)
			continue
		}
		seen[id] = origin{path, sum.sha256}
		res.archs[id.arch] = true
		if _, err := s.WriteTo(w); err != nil {
			return found{}, err
		}
		if _, err := io.WriteString(w, "\n"); err != nil {
			return found{}, err
		}
		res.packages++
	}
	return res, nil
}

// reason is the text of an error without the path, which a Problem has itself.
func reason(err error) string {
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		return pe.Op + ": " + pe.Err.Error()
	}
	return err.Error()
}

// checksum is the size and digest of a file.
type checksum struct {
	size   int64
	sha256 string
}

// readDeb returns the control fields of the .deb, and its checksum.
func readDeb(ctx context.Context, path string) (_ deb.Stanza, _ checksum, err error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, checksum{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	fi, err := f.Stat()
	if err != nil {
		return nil, checksum{}, err
	}
	a, err := deb.Open(f, fi.Size())
	if err != nil {
		return nil, checksum{}, err
	}
	control, err := a.Control()
	if err != nil {
		return nil, checksum{}, err
	}
	// What apt itself needs of a stanza; the rest is as the package has it.
	if err := errors.Join(
		deb.ValidateName(control.Get("Package")),
		deb.ValidateVersion(control.Get("Version")),
		deb.ValidateArch(control.Get("Architecture")),
	); err != nil {
		return nil, checksum{}, err
	}
	h := sha256.New()
	n, err := io.Copy(h, &contextReader{ctx, f})
	if err != nil {
		return nil, checksum{}, err
	}
	if n != fi.Size() {
		return nil, checksum{}, errors.New("it changed while it was read")
	}
	return control, checksum{n, hex.EncodeToString(h.Sum(nil))}, nil
}

// contextReader ends the reading of a large file when ctx is done.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// file is a file of the index on its way: what is written gets counted and
// hashed.
type file struct {
	*renameio.PendingFile
	name string
	size int64
	hash interface {
		io.Writer
		Sum([]byte) []byte
	}
}

// create makes a temporary file in dir that is to be renamed to name. Servers
// read the index as another user, hence the mode, whatever the umask.
func create(dir, name string) (*file, error) {
	pf, err := renameio.NewPendingFile(filepath.Join(dir, name),
		renameio.WithTempDir(dir), renameio.WithStaticPermissions(0o644))
	if err != nil {
		return nil, err
	}
	return &file{PendingFile: pf, name: name, hash: sha256.New()}, nil
}

func (f *file) Write(p []byte) (int, error) {
	n, err := f.PendingFile.Write(p)
	f.size += int64(n)
	_, _ = f.hash.Write(p[:n]) // never fails
	return n, err
}

// ready brings the content to the disk, and reports what would keep the rename
// from working.
func (f *file) ready(dir string) error {
	if err := f.Sync(); err != nil {
		return err
	}
	path := filepath.Join(dir, f.name)
	fi, err := os.Lstat(path)
	if err == nil && fi.IsDir() {
		return fmt.Errorf("%s is a directory", path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// discard removes the temporary file, if it has not become the file.
func (f *file) discard() error { return f.Cleanup() }

func (f *file) digest() string { return hex.EncodeToString(f.hash.Sum(nil)) }
