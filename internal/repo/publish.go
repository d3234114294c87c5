package repo

import (
	"context"
	"crypto/sha256"
	"dkms2bin/internal/diag"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
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
	beside := make(chan map[string][]byte, 1)
	if opt.Beside != nil {
		likely := *res
		likely.Date, likely.Changed = date, true
		go func() { beside <- opt.Beside(likely) }()
	} else {
		close(beside)
	}
	var files []*file // in the order in which they are to appear
	defer func() {
		for _, f := range files {
			err = errors.Join(err, f.discard())
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
	var index []*file
	for _, name := range []string{"Packages", "Packages.gz", "Packages.zst"} {
		f, err := add(name)
		if err != nil {
			return err
		}
		index = append(index, f)
	}
	old := r.openParts(st)
	parts, err := c.writePackages(ctx, sel.packages, old, index[0], index[1], index[2])
	old.close()
	if err != nil {
		return err
	}
	if st.Options == opt.digest() && st.Files["Packages"].SHA256 == index[0].digest() && r.intact(st) {
		// Files had to be read again, but say the same.
		res.Release, res.Date = st.Files["Release"].SHA256, oldDate(r.path("Release"))
		return c.keep()
	}

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
	for _, f := range files[dated:] {
		// Clients ask the web server whether this is newer than theirs.
		if err := os.Chtimes(f.Name(), date, date); err != nil {
			return err
		}
	}
	indexed := len(files)
	for name, content := range <-beside {
		if err := addBytes(name, content); err != nil {
			return err
		}
	}
	if err := errors.Join(r.ready(files), c.wait()); err != nil {
		return err
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
		Generations: [][]string{nil}, Parts: parts, Unneeded: st.Unneeded,
	}
	if err := r.linkByHash(ctx, index); err != nil {
		return err
	}
	for _, f := range index {
		next.Generations[0] = append(next.Generations[0], f.digest())
	}
	for _, g := range st.Generations {
		if len(next.Generations) < generations && !slices.Equal(g, next.Generations[0]) {
			next.Generations = append(next.Generations, g)
		}
	}
	for i, f := range files {
		fi, err := f.Stat()
		if err != nil {
			return err
		}
		if id := identityOf(fi); i < indexed {
			next.Files[f.name] = stamp{id.size, id.mtime, id.inode, f.digest()}
		}
		if err := f.replace(r.path(f.name)); err != nil {
			return err
		}
	}
	res.Release, res.Date, res.Changed = release.digest(), date, true
	return errors.Join(together(
		func() error { return syncDir(r.dir) },
		func() error { return r.writeState(next) },
	), c.keep())
}

// sources is the text of the file that adds the repository to a client, in the
// format of sources.list(5) for which a key may stand in the file itself.
func (r *Repo) sources(opt Options) []byte {
	uri := opt.URL
	if uri == "" {
		uri = "file:" + (&url.URL{Path: r.dir}).EscapedPath()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Types: deb\nURIs: %s\nSuites: ./\n", uri)
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
	if err := c.wait(); err != nil {
		return err
	}
	// Not synced: a cache that did not reach the disk is found damaged.
	if err := os.Rename(c.pending.Name(), c.path); err != nil {
		return err
	}
	err := c.pending.Close()
	c.pending = nil
	return err
}

// linkByHash gives files on their way their by-hash names. One that is there with
// that content already stays: clients may be reading it.
func (r *Repo) linkByHash(ctx context.Context, files []*file) error {
	if err := errors.Join(r.mkdir(filepath.Dir(byHashDir)), r.mkdir(byHashDir)); err != nil {
		return err
	}
	for _, f := range files {
		to := r.path(byHash(f.digest()))
		if checkFile(ctx, to, sum{f.digest(), f.size, f.name}) == nil {
			continue
		}
		link := filepath.Join(r.path(tmpDir), f.digest())
		if err := os.Link(f.Name(), link); err != nil {
			// A file system without links.
			if err := copyFile(link, f); err != nil {
				return err
			}
		}
		if err := os.Rename(link, to); err != nil {
			return err
		}
	}
	return syncDir(r.path(byHashDir))
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

// together runs all at the same time. Waiting for the disk once takes little
// longer than waiting for one file.
func together(run ...func() error) error {
	errs := make([]error, len(run))
	var wg sync.WaitGroup
	for i, f := range run {
		wg.Go(func() { errs[i] = f() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// file is a file of the repository on its way: what is written gets counted
// and hashed. It is not a renameio.PendingFile as that one waits for the disk
// when it replaces a file, for each by itself and a second time.
type file struct {
	*os.File
	name     string
	size     int64
	hash     hash.Hash
	replaced bool
}

// create makes a temporary file that is to become the named one. Servers read
// the index as another user, hence the mode, whatever the umask.
func (r *Repo) create(name string) (*file, error) {
	f, err := os.CreateTemp(r.path(tmpDir), path.Base(name))
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(0o644); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return &file{File: f, name: name, hash: sha256.New()}, nil
}

func (f *file) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	f.size += int64(n)
	_, _ = f.hash.Write(p[:n]) // never fails
	return n, err
}

// ready brings files to the disk, and reports what would keep them from being
// renamed.
func (r *Repo) ready(files []*file) error {
	var sync []func() error
	for _, f := range files {
		fi, err := os.Lstat(r.path(f.name))
		if err == nil && fi.IsDir() {
			return fmt.Errorf("%s is a directory", r.path(f.name))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		sync = append(sync, f.Sync)
	}
	return together(sync...)
}

// replace puts the file, which is on the disk, in the place of another.
func (f *file) replace(path string) error {
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	f.replaced = true
	return nil
}

// discard closes the file, and removes it unless it was put in its place.
func (f *file) discard() error {
	err := f.Close()
	if !f.replaced {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}

func (f *file) digest() string { return hex.EncodeToString(f.hash.Sum(nil)) }
