package repo

import (
	"bufio"
	"context"
	"crypto/sha256"
	"dkms2bin/internal/diag"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"
)

// The files that add the repository to a client.
const (
	KeyName     = "dkms2bin.asc"
	SourcesName = "dkms2bin.sources"
)

const (
	byHashDir = "by-hash/SHA256"
	// generations is how many of the last Releases keep their by-hash files
	// whatever their age, as apt-ftparchive has it.
	generations = 3
)

func byHash(digest string) string { return byHashDir + "/" + digest }

// listed says whether a published file is one that Release names.
func listed(name string) bool { return strings.HasPrefix(name, "Packages") }

// unsigned is an error when the published index is signed.
func (r *Repo) unsigned() error {
	for _, name := range []string{"InRelease", "Release.gpg"} {
		_, err := os.Lstat(r.path(name))
		if err == nil {
			return diag.WithHint(fmt.Errorf("it is signed (%s is there), but no key to sign with was given", name),
				"name the key, or remove InRelease and Release.gpg for an unsigned repository: clients then refuse it until they trust it without a signature")
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// publish writes the index of the selected packages, unless it is there, and
// says so in res.
func (r *Repo) publish(ctx context.Context, opt Options, c *collection, sel selection, st saved, res *Result) (err error) {
	date := opt.newDate(oldDate(r.path("Release")))
	if opt.Ahead != nil {
		likely := *res
		likely.Date, likely.Changed = date, true
		go opt.Ahead(likely)
	}
	var files []*file // in the order in which they are to appear
	defer func() {
		for _, f := range files {
			err = errors.Join(err, f.Cleanup())
		}
	}()
	add := func(name string) (*file, error) {
		f, err := r.create(name)
		if err == nil {
			files = append(files, f)
		}
		return f, err
	}
	addBytes := func(name string, content []byte) error {
		f, err := add(name)
		if err == nil {
			_, err = f.Write(content)
		}
		return err
	}

	if opt.Key != nil {
		if err := addBytes(KeyName, opt.Key.Public()); err != nil {
			return err
		}
	}
	if err := addBytes(SourcesName, r.sources(opt)); err != nil {
		return err
	}
	packages, err := add("Packages")
	if err != nil {
		return err
	}
	if err := c.writePackages(ctx, packages, sel.packages); err != nil {
		return err
	}
	if st.Options == opt.digest() && st.Files["Packages"].SHA256 == packages.digest() && r.intact(st) {
		// Files had to be read again, but say the same.
		res.Release, res.Date = st.Files["Release"].SHA256, oldDate(r.path("Release"))
		return c.keep()
	}
	gz, err := add("Packages.gz")
	if err != nil {
		return err
	}
	zst, err := add("Packages.zst")
	if err != nil {
		return err
	}
	if err := compress(packages, gz, zst); err != nil {
		return err
	}
	index := []*file{packages, gz, zst}

	// apt finds no packages, and does not say so, where the uncompressed
	// Packages is not listed.
	text, err := releaseText(opt, date, sel, index)
	if err != nil {
		return err
	}
	dated := len(files)
	if err := addBytes("Release", []byte(text)); err != nil {
		return err
	}
	release := files[dated]
	if opt.Key != nil {
		in, detached, err := opt.Key.Sign(ctx, []byte(text))
		if err != nil {
			return err
		}
		if err := errors.Join(addBytes("Release.gpg", detached), addBytes("InRelease", in)); err != nil {
			return err
		}
	}

	// All that is likely to fail comes before the first change.
	for i, f := range files {
		if err := f.ready(r.path(f.name)); err != nil {
			return err
		}
		if i >= dated {
			// Clients ask the web server whether this is newer than theirs.
			if err := os.Chtimes(f.Name(), date, date); err != nil {
				return err
			}
		}
	}
	if wait := time.Until(date); opt.Date.IsZero() && wait > 0 && wait <= 2*time.Second {
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	next := saved{
		Version: stateVersion, Options: opt.digest(), Files: make(map[string]stamp),
		Generations: [][]string{nil}, Unneeded: st.Unneeded,
	}
	for _, f := range index {
		if err := r.linkByHash(f); err != nil {
			return err
		}
		next.Generations[0] = append(next.Generations[0], f.digest())
	}
	for _, g := range st.Generations {
		if len(next.Generations) < generations && !slices.Equal(g, next.Generations[0]) {
			next.Generations = append(next.Generations, g)
		}
	}
	for _, f := range files {
		fi, err := f.Stat()
		if err != nil {
			return err
		}
		id := identityOf(fi)
		next.Files[f.name] = stamp{id.size, id.mtime, id.inode, f.digest()}
		if err := f.CloseAtomicallyReplace(); err != nil {
			return err
		}
	}
	res.Release, res.Date, res.Changed = release.digest(), date, true
	return errors.Join(syncDir(r.dir), c.keep(), r.writeState(next))
}

// sources is the text of the file that adds the repository to a client, in the
// format of sources.list(5) for which a key may stand in the file itself.
func (r *Repo) sources(opt Options) []byte {
	url := opt.URL
	if url == "" {
		url = "file:" + r.dir
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Types: deb\nURIs: %s\nSuites: ./\n", url)
	if opt.Key != nil {
		fmt.Fprintf(&b, "Signed-By:\n%s\n", strings.TrimRight(opt.Key.SignedBy(), "\n"))
	} else {
		b.WriteString("Trusted: yes\n")
	}
	return []byte(b.String())
}

// keep makes the collection's cache the repository's.
func (c *collection) keep() error {
	if c.pending == nil {
		return nil
	}
	// Not synced: a cache that did not reach the disk is found damaged.
	if err := os.Rename(c.pending.Name(), c.path); err != nil {
		return err
	}
	err := c.pending.Close()
	c.pending = nil
	return err
}

// writePackages writes the stanzas of the entries.
func (c *collection) writePackages(ctx context.Context, w io.Writer, entries []*entry) error {
	bw := bufio.NewWriterSize(w, 256<<10)
	for _, e := range entries {
		stanza, err := c.stanza(e)
		if err != nil {
			return err
		}
		if _, err := bw.Write(stanza); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return bw.Flush()
}

// compress packs src into both, each on its own core as far as there are two.
func compress(src, gz, zst *file) error {
	failed := make(chan error, 1)
	go func() {
		// One thread and a window of 1 MiB: a stanza has nothing in common with
		// one much further away, and memory is bounded.
		zw, err := zstd.NewWriter(zst, zstd.WithEncoderLevel(zstd.SpeedDefault),
			zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
		if err == nil {
			err = pack(zw, src)
		}
		failed <- err
	}()
	zw, err := pgzip.NewWriterLevel(gz, 6)
	if err == nil {
		// None in the header; time's zero value would come out as some other time.
		zw.ModTime = time.Unix(0, 0)
		if err = zw.SetConcurrency(256<<10, 2); err == nil {
			err = pack(zw, src)
		}
	}
	return errors.Join(err, <-failed)
}

func pack(w io.WriteCloser, src *file) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, io.NewSectionReader(src, 0, src.size), make([]byte, 256<<10))
	return errors.Join(err, w.Close())
}

// linkByHash gives a file on its way its by-hash name. One that is there with
// that content already stays: clients may be reading it.
func (r *Repo) linkByHash(f *file) error {
	path := r.path(byHash(f.digest()))
	if err := errors.Join(r.mkdir(filepath.Dir(byHashDir)), r.mkdir(byHashDir)); err != nil {
		return err
	}
	if there, err := fileDigest(path); err == nil && there == f.digest() {
		return nil
	}
	link := filepath.Join(r.path(tmpDir), f.digest())
	if err := os.Link(f.Name(), link); err != nil {
		// A file system without links.
		if err := copyFile(link, f); err != nil {
			return err
		}
	}
	if err := os.Rename(link, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func copyFile(to string, from *file) (err error) {
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, io.NewSectionReader(from, 0, from.size)); err != nil {
		return err
	}
	return errors.Join(out.Chmod(0o644), out.Sync())
}

func fileDigest(path string) (string, error) {
	f, err := openRegular(path)
	if err != nil {
		return "", err
	}
	defer f.Close() // read only
	h := sha256.New()
	_, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), err
}

// syncDir brings renames to the disk, where the file system can.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close() // read only
	if err := d.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}

// file is a file of the repository on its way: what is written gets counted
// and hashed.
type file struct {
	*renameio.PendingFile
	name string
	size int64
	hash hash.Hash
}

// create makes a temporary file that is to become the named one. Servers read
// the index as another user, hence the mode, whatever the umask.
func (r *Repo) create(name string) (*file, error) {
	pf, err := renameio.NewPendingFile(r.path(name),
		renameio.WithTempDir(r.path(tmpDir)), renameio.WithStaticPermissions(0o644))
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

// ready brings the content to the disk, and reports what would keep it from
// being renamed to path.
func (f *file) ready(path string) error {
	if err := f.Sync(); err != nil {
		return err
	}
	fi, err := os.Lstat(path)
	if err == nil && fi.IsDir() {
		return fmt.Errorf("%s is a directory", path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (f *file) digest() string { return hex.EncodeToString(f.hash.Sum(nil)) }
