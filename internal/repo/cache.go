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
// file. It is one file: cacheMagic, a record for each .deb in any order, how many
// there are, and the CRC-32C of all that. A record is a row of varints, and the
// texts whose lengths are among them. Whatever is not exactly so, or of another
// version, counts as no cache.
const (
	cacheName  = privateDir + "/cache"
	cacheMagic = "dkms2bin cache 2\n"
	cacheEnd   = 8 // bytes: the two numbers
	// maxCached is the longest text in a record; stanzas are shorter by far, as
	// package deb bounds them.
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
	fresh               bool   // read by this run
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
	w     *bufio.Writer
	crc   hash.Hash32
	n     int64
	count uint32
	buf   []byte
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
	for _, n := range []int64{e.id.size, e.id.mtime, e.id.ctime, int64(e.id.inode)} {
		b = binary.AppendUvarint(b, uint64(n))
	}
	texts := []string{e.path, e.problem, e.name, e.version, e.arch, e.sha256}
	for _, text := range texts {
		b = binary.AppendUvarint(b, uint64(len(text)))
	}
	b = binary.AppendUvarint(b, uint64(len(stanza)))
	for _, text := range texts {
		b = append(b, text...)
	}
	e.offset, e.length = c.n+int64(len(b)), len(stanza)
	b = append(b, stanza...)
	c.buf = b
	c.n += int64(len(b))
	c.count++
	_, err := c.w.Write(b)
	return err
}

// finish writes the end to w, which must be what the rest went to.
func (c *cacheWriter) finish(w io.Writer) error {
	if err := c.w.Flush(); err != nil {
		return err
	}
	end := binary.BigEndian.AppendUint32(nil, c.count)
	_, _ = c.crc.Write(end) // never fails
	_, err := w.Write(binary.BigEndian.AppendUint32(end, c.crc.Sum32()))
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
	entries, err := readCache(f)
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.path, b.path) })
	twice := func(a, b entry) bool { return a.path == b.path }
	if err != nil || len(slices.CompactFunc(entries, twice)) < len(entries) {
		_ = f.Close() // it is made anew
		return cached{}
	}
	return cached{f, entries}
}

func (c cached) close() error {
	if c.file == nil {
		return nil
	}
	return c.file.Close()
}

// readCache returns the entries of the cache file.
func readCache(f *os.File) ([]entry, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	end := fi.Size() - cacheEnd
	if end < int64(len(cacheMagic)) {
		return nil, errCache
	}
	var tail [cacheEnd]byte
	if _, err := f.ReadAt(tail[:], end); err != nil {
		return nil, err
	}
	const smallest = 100 // bytes of a record: no memory for more than there can be
	entries := make([]entry, 0, min(int64(binary.BigEndian.Uint32(tail[:])), end/smallest))
	crc := crc32.New(castagnoli)
	r := cacheReader{r: bufio.NewReaderSize(io.TeeReader(io.NewSectionReader(f, 0, end), crc), 64<<10)}
	if magic := r.text(len(cacheMagic)); r.err != nil || magic != cacheMagic {
		return nil, errCache
	}
	for r.n < end && r.err == nil {
		entries = append(entries, r.entry())
	}
	if r.err != nil {
		return nil, fmt.Errorf("%w: %w", errCache, r.err)
	}
	_, _ = crc.Write(tail[:4]) // never fails
	if r.n != end || binary.BigEndian.Uint32(tail[4:]) != crc.Sum32() {
		return nil, errCache
	}
	return entries, nil
}

// cacheReader decodes; after an error it gives zero values.
type cacheReader struct {
	r   *bufio.Reader
	n   int64 // bytes taken
	err error
	buf []byte
}

func (c *cacheReader) entry() (e entry) {
	var numbers [11]uint64
	head, _ := c.r.Peek(len(numbers) * binary.MaxVarintLen64) // or less, at the end
	taken := 0
	for i := range numbers {
		v, n := binary.Uvarint(head[taken:])
		if n <= 0 {
			c.err = errors.New("a number that is none")
			return entry{}
		}
		numbers[i] = v
		taken += n
	}
	c.skip(taken)
	e.id = identity{int64(numbers[0]), int64(numbers[1]), int64(numbers[2]), numbers[3]}
	total := uint64(0)
	for _, n := range numbers[4:] {
		if n > maxCached {
			c.err = errors.New("a text too long")
			return entry{}
		}
		total += n
	}
	e.length = int(numbers[10])
	all := c.text(int(total) - e.length) // in one piece of memory
	if c.err != nil {
		return entry{}
	}
	for i, text := range []*string{&e.path, &e.problem, &e.name, &e.version, &e.arch, &e.sha256} {
		n := numbers[4+i]
		*text, all = all[:n], all[n:]
	}
	e.offset = c.n
	c.skip(e.length)
	return e
}

// text reads so many bytes.
func (c *cacheReader) text(n int) string {
	if cap(c.buf) < n {
		c.buf = make([]byte, n)
	}
	var got int
	got, c.err = io.ReadFull(c.r, c.buf[:n])
	c.n += int64(got)
	return string(c.buf[:got])
}

func (c *cacheReader) skip(n int) {
	var got int
	got, c.err = c.r.Discard(n)
	c.n += int64(got)
}
