package repo

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"strings"
)

// The cache holds what was read of each .deb, by the path and identity of its
// file. It is one file: cacheMagic, a record for each .deb in any order, and the
// CRC-32C of all that. A record is a row of varints and of
// strings with their length before them. Whatever is not exactly so, or of
// another version, counts as no cache.
const (
	cacheName  = privateDir + "/cache"
	cacheMagic = "dkms2bin cache 1\n"
	// maxCached is the longest string in a record; stanzas are shorter by far,
	// as package deb bounds them.
	maxCached = 8 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errCache = errors.New("damaged cache")

// entry is what is known of a .deb. Its stanza stays in the cache file: memory
// does not grow with what packages have to say.
type entry struct {
	path                string
	id                  identity
	problem             string // why it cannot be indexed; "" when the rest is there
	name, version, arch string
	sha256              string // 32 bytes
	offset              int64  // of its stanza in the cache file
	length              int
}

func (e *entry) pkg() Package {
	return Package{
		Path: e.path, Name: e.name, Version: e.version, Architecture: e.arch,
		Kernel: KernelOf(e.name), Size: e.id.size,
	}
}

// cacheWriter writes a cache file.
type cacheWriter struct {
	w   *bufio.Writer
	crc hash.Hash32
	n   int64
	buf []byte
}

func newCacheWriter(w io.Writer) (*cacheWriter, error) {
	c := &cacheWriter{crc: crc32.New(castagnoli)}
	c.w = bufio.NewWriterSize(io.MultiWriter(w, c.crc), 64<<10)
	n, err := c.w.WriteString(cacheMagic)
	c.n = int64(n)
	return c, err
}

// add writes the record of e and sets where its stanza is.
func (c *cacheWriter) add(e *entry, stanza []byte) error {
	b := c.buf[:0]
	str := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	str(e.path)
	b = binary.AppendVarint(b, e.id.size)
	b = binary.AppendVarint(b, e.id.mtime)
	b = binary.AppendVarint(b, e.id.ctime)
	b = binary.AppendUvarint(b, e.id.inode)
	for _, s := range []string{e.problem, e.name, e.version, e.arch, e.sha256} {
		str(s)
	}
	b = binary.AppendUvarint(b, uint64(len(stanza)))
	e.offset, e.length = c.n+int64(len(b)), len(stanza)
	b = append(b, stanza...)
	c.buf = b
	c.n += int64(len(b))
	_, err := c.w.Write(b)
	return err
}

// finish writes the checksum to w, which must be what the rest went to.
func (c *cacheWriter) finish(w io.Writer) error {
	if err := c.w.Flush(); err != nil {
		return err
	}
	_, err := w.Write(binary.BigEndian.AppendUint32(nil, c.crc.Sum32()))
	return err
}

// cached is what a cache file has.
type cached struct {
	file    *os.File // open; nil if there is none, or it is no good
	entries []entry  // by path
}

func openCache(path string) cached {
	f, err := openRegular(path)
	if err != nil {
		return cached{}
	}
	c := cached{file: f}
	err = readCache(f, func(e entry) { c.entries = append(c.entries, e) })
	slices.SortFunc(c.entries, func(a, b entry) int { return strings.Compare(a.path, b.path) })
	twice := func(a, b entry) bool { return a.path == b.path }
	if err != nil || len(slices.CompactFunc(c.entries, twice)) < len(c.entries) {
		_ = f.Close() // it is made anew
		return cached{}
	}
	return c
}

func (c cached) close() error {
	if c.file == nil {
		return nil
	}
	return c.file.Close()
}

// readCache calls yield with each entry of the cache file. Whether they can be
// trusted is known when it returns: only without an error.
func readCache(f *os.File, yield func(entry)) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	end := fi.Size() - 4
	if end < int64(len(cacheMagic)) {
		return errCache
	}
	crc := crc32.New(castagnoli)
	r := cacheReader{r: bufio.NewReaderSize(io.TeeReader(io.NewSectionReader(f, 0, end), crc), 64<<10)}
	if magic := r.bytes(len(cacheMagic)); r.err != nil || string(magic) != cacheMagic {
		return errCache
	}
	for r.n < end && r.err == nil {
		e := entry{
			path:    r.str(),
			id:      identity{r.varint(), r.varint(), r.varint(), r.uvarint()},
			problem: r.str(), name: r.str(), version: r.str(), arch: r.str(), sha256: r.str(),
		}
		e.length = r.len()
		e.offset = r.n
		r.skip(e.length)
		if r.err == nil {
			yield(e)
		}
	}
	if r.err != nil {
		return fmt.Errorf("%w: %w", errCache, r.err)
	}
	var sum [4]byte
	if _, err := f.ReadAt(sum[:], end); err != nil {
		return err
	}
	if r.n != end || binary.BigEndian.Uint32(sum[:]) != crc.Sum32() {
		return errCache
	}
	return nil
}

// cacheReader decodes; after an error it gives zero values.
type cacheReader struct {
	r   *bufio.Reader
	n   int64 // bytes taken
	err error
	buf []byte
}

func (c *cacheReader) ReadByte() (byte, error) {
	b, err := c.r.ReadByte()
	if err == nil {
		c.n++
	}
	return b, err
}

func (c *cacheReader) uvarint() (v uint64) {
	if c.err == nil {
		v, c.err = binary.ReadUvarint(c)
	}
	return v
}

func (c *cacheReader) varint() (v int64) {
	if c.err == nil {
		v, c.err = binary.ReadVarint(c)
	}
	return v
}

func (c *cacheReader) len() int {
	n := c.uvarint()
	if n > maxCached && c.err == nil {
		c.err = errors.New("a string too long")
	}
	if c.err != nil {
		return 0
	}
	return int(n)
}

func (c *cacheReader) bytes(n int) []byte {
	if c.err != nil {
		return nil
	}
	if cap(c.buf) < n {
		c.buf = make([]byte, n)
	}
	var got int
	got, c.err = io.ReadFull(c.r, c.buf[:n])
	c.n += int64(got)
	return c.buf[:got]
}

func (c *cacheReader) str() string { return string(c.bytes(c.len())) }

func (c *cacheReader) skip(n int) {
	if c.err == nil {
		var got int
		got, c.err = c.r.Discard(n)
		c.n += int64(got)
	}
}
