package repo

import (
	"cmp"
	"context"
	"dkms2bin/internal/deb"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
)

// collection is what is known of all .debs, and the cache files that have their
// stanzas.
type collection struct {
	entries   []entry
	known     stanzas  // those of the cache that was there
	read      stanzas  // those of the new one that were read by this run
	unchanged bool     // all was known: there is no new cache
	pending   *os.File // the new cache, until it is at path; nil if there is none
	path      string
	written   chan error // tells once that it has all entries; nil if there is none
}

// stanzas are the stanzas in a cache file. Where one follows the other they are read
// in larger pieces.
type stanzas struct {
	file     *os.File
	window   []byte // of file, from windowAt
	windowAt int64
}

const (
	large      = 1 << 20 // bytes of a .deb
	windowSize = 256 << 10
	near       = 4 << 10 // more than there is between two stanzas
)

// racy is how long after a change a file is not trusted to be known by its
// identity: a second change within the same tick of the file system's clock
// would not show. Some network file systems count whole seconds.
const racy = 2_500_000_000 // nanoseconds

// collect gives an entry for each of the files, in their order: from the cache,
// or by reading the .deb, on all cores. The collection closes the cache.
func (r *Repo) collect(ctx context.Context, files []found, cache cached) (_ *collection, err error) {
	c := &collection{entries: make([]entry, len(files)), known: stanzas{file: cache.file}, path: r.path(cacheName)}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	known, i := 0, 0
	for _, e := range cache.entries {
		for i < len(files) && files[i].path < e.path {
			i++
		}
		if i < len(files) && files[i].path == e.path && files[i].id == e.id && e.id != (identity{}) {
			c.entries[i] = e
			known++
		}
	}
	if cache.file != nil && known == len(files) && known == len(cache.entries) {
		c.unchanged = true
		return c, nil
	}
	if c.pending, err = os.CreateTemp(r.path(tmpDir), "cache"); err != nil {
		return nil, err
	}
	c.read.file = c.pending
	now, err := c.pending.Stat() // its time is that of the file system's clock
	if err != nil {
		return nil, err
	}
	w, err := newCacheWriter(c.pending)
	if err != nil {
		return nil, err
	}
	add := func(e *entry, stanza []byte) error {
		if max(e.id.mtime, e.id.ctime) > now.ModTime().UnixNano()-racy {
			size := e.id.size
			e.id = identity{} // for the cache: never known again
			defer func() { e.id.size = size }()
		}
		return w.add(e, stanza)
	}
	if err := r.readAll(ctx, files, c, add); err != nil {
		return nil, err
	}
	if err := w.w.Flush(); err != nil {
		return nil, err
	}
	// What was known is copied while the index is made.
	c.written = make(chan error, 1)
	go func(known stanzas) {
		for _, e := range c.entries {
			if e.fresh {
				continue
			}
			stanza, err := known.of(&e)
			if err == nil {
				err = add(&e, stanza)
			}
			if err != nil {
				c.written <- err
				return
			}
		}
		c.written <- w.finish(c.pending)
	}(c.known)
	return c, nil
}

// wait returns when the new cache has all entries, or cannot have them.
func (c *collection) wait() error {
	if c.written == nil {
		return nil
	}
	defer func() { c.written = nil }()
	return <-c.written
}

func (c *collection) close() error {
	_ = c.wait() // of interest to keep alone
	var err error
	if c.known.file != nil {
		err = c.known.file.Close()
	}
	if c.pending != nil {
		err = errors.Join(err, c.pending.Close(), os.Remove(c.pending.Name()))
	}
	return err
}

// stanza returns the stanza of e, which is valid until the next call.
func (c *collection) stanza(e *entry) ([]byte, error) {
	if e.fresh {
		return c.read.of(e)
	}
	return c.known.of(e)
}

// of returns the stanza of e, which is valid until the next call.
func (s *stanzas) of(e *entry) ([]byte, error) {
	at := e.offset - s.windowAt
	if at < 0 || at+int64(e.length) > int64(len(s.window)) {
		size := e.length
		if at >= 0 && at < int64(len(s.window))+near {
			size = max(size, windowSize)
		}
		if cap(s.window) < size {
			s.window = make([]byte, size)
		}
		n, err := s.file.ReadAt(s.window[:size], e.offset)
		s.window, s.windowAt, at = s.window[:n], e.offset, 0
		if n < e.length {
			return nil, err
		}
	}
	return s.window[at : at+int64(e.length)], nil
}

// A result is an entry on its way from a worker to the one who writes.
type result struct {
	index  int
	entry  entry
	stanza []byte
	err    error // the whole run fails
}

// readAll reads what is not known, and calls done for each entry as it comes. As many .debs are read at a time as
// there are cores, the large ones first, so that all cores have work to the end.
func (r *Repo) readAll(ctx context.Context, files []found, c *collection, done func(*entry, []byte) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var unknown []int
	for i := range files {
		if c.entries[i].path == "" {
			unknown = append(unknown, i)
		}
	}
	slices.SortStableFunc(unknown, func(a, b int) int { return cmp.Compare(files[b].id.size/large, files[a].id.size/large) })
	var next atomic.Int64 // of unknown
	results := make(chan result, 64)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			buf := make([]byte, 64<<10)
			for {
				n := int(next.Add(1)) - 1
				if n >= len(unknown) {
					return
				}
				res := r.readDeb(ctx, files[unknown[n]], buf)
				res.index = unknown[n]
				select {
				case results <- res:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	for range unknown {
		select {
		case res := <-results:
			if res.err != nil {
				return res.err
			}
			if err := done(&res.entry, res.stanza); err != nil {
				return err
			}
			c.entries[res.index] = res.entry
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// readDeb reads a .deb: its entry, and the stanza with the empty line after it.
func (r *Repo) readDeb(ctx context.Context, file found, buf []byte) result {
	res := result{entry: entry{path: file.path, id: file.id, fresh: true}}
	id, control, sum, err := readControl(ctx, r.path(file.path), buf)
	if errors.Is(err, errChanged) { // or NFS or FUSE had not known yet when it last changed
		id, control, sum, err = readControl(ctx, r.path(file.path), buf)
	}
	if ctx.Err() != nil {
		return result{err: ctx.Err()}
	}
	if err == nil {
		var s deb.Stanza
		if s, err = indexStanza(control, file.path, sum, id.size); err == nil {
			res.stanza, err = s.AppendTo(nil)
		}
	}
	if err != nil {
		// It may be a passing fault of the disk: it is looked at again each time.
		res.entry.id = identity{}
		res.entry.problem = reason(err)
		return res
	}
	res.entry.id = id
	res.entry.name, res.entry.version, res.entry.arch = control.Get("Package"), control.Get("Version"), control.Get("Architecture")
	res.entry.sha256 = string(sum)
	res.stanza = append(res.stanza, '\n')
	return res
}

// readControl returns the control fields of the .deb and the digest of the file.
func readControl(ctx context.Context, path string, buf []byte) (id identity, control deb.Stanza, sum []byte, err error) {
	f, err := openRegular(path)
	if err != nil {
		return id, nil, nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	fi, err := f.Stat()
	if err != nil {
		return id, nil, nil, err
	}
	id = identityOf(fi)
	head := buf[:min(fi.Size(), int64(len(buf)))]
	if _, err := io.ReadFull(f, head); err != nil {
		return id, nil, nil, err
	}
	a, err := deb.Open(headed{f, head}, fi.Size())
	if err != nil {
		return id, nil, nil, err
	}
	if control, err = a.Control(); err != nil {
		return id, nil, nil, err
	}
	// What apt itself needs of a stanza; the rest is as the package has it.
	if err := errors.Join(
		deb.ValidateName(control.Get("Package")),
		deb.ValidateVersion(control.Get("Version")),
		deb.ValidateArch(control.Get("Architecture")),
	); err != nil {
		return id, nil, nil, err
	}
	if sum, err = digest(ctx, f, fi.Size(), head, buf); err != nil {
		return id, nil, nil, err
	}
	if fi, err = f.Stat(); err != nil {
		return id, nil, nil, err
	}
	if identityOf(fi) != id {
		return id, nil, nil, errChanged
	}
	return id, control, sum, nil
}

// headed is a file whose beginning is in memory.
type headed struct {
	*os.File
	head []byte
}

func (h headed) ReadAt(p []byte, off int64) (int, error) {
	if off >= 0 && off+int64(len(p)) <= int64(len(h.head)) {
		return copy(p, h.head[off:]), nil
	}
	return h.File.ReadAt(p, off)
}

// selection is what becomes of the entries.
type selection struct {
	packages []*entry // in the index
	outdated []*entry // old, by Keep
	problems []Problem
}

// selectPackages sorts out which entries the index has.
func (c *collection) selectPackages(keep Keep) (selection, error) {
	type identity struct{ name, version, arch string }
	seen := make(map[identity]*entry, len(c.entries))
	var sel selection
	for i := range c.entries {
		e := &c.entries[i]
		if e.problem != "" {
			sel.problems = append(sel.problems, Problem{e.path, e.problem})
			continue
		}
		id := identity{e.name, e.version, e.arch}
		first, ok := seen[id]
		switch {
		case !ok:
			seen[id] = e
			sel.packages = append(sel.packages, e)
		case first.sha256 != e.sha256:
			sel.problems = append(sel.problems, Problem{e.path, fmt.Sprintf(
				"it is %s %s %s, as %s is, but has other content", id.name, id.version, id.arch, first.path)})
		}
	}
	if keep.Kernels == 0 && keep.Versions == 0 {
		return sel, nil
	}
	var err error
	sel.packages, sel.outdated, err = keep.divide(sel.packages, func(e *entry) (deb.Stanza, error) {
		text, err := c.stanza(e)
		if err != nil {
			return nil, err
		}
		return deb.ParseStanza(text)
	})
	return sel, err
}
