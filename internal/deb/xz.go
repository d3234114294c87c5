package deb

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"
	"math"

	"github.com/ulikunitz/xz/lzma"
)

// The .xz format (The .xz File Format 1.1.0, section numbers below): a stream
// header, blocks, an index of them, a footer. The container is read here and
// not by package xz, as that allocates whatever dictionary a block announces,
// up to 4 GiB for each; the LZMA2 data in the blocks is read by package lzma.
const (
	xzMagic       = "\xfd7zXZ\x00"
	xzFooterMagic = "YZ"
	xzLZMA2       = 0x21
	// maxDict is the dictionary of xz -9, the largest of xz's presets.
	maxDict = 64 << 20
	// As each block costs a new dictionary, many blocks of next to nothing are
	// refused. xz makes none smaller than 1 MiB unless told to.
	xzFreeBlocks = 16
	xzMinBlock   = 64 << 10
)

var errXZ = errors.New("damaged xz data")

// xzReader reads one xz stream. Its input ends where the stream ends.
type xzReader struct {
	in      countReader
	err     error
	started bool
	check   hash.Hash // nil for none
	checkID byte

	block     *lzma.Reader2 // nil between blocks
	blockHead int64         // header's length
	blockIn   int64         // offset in the input of the block's start
	blockOut  int64         // bytes unpacked from the block
	announced [2]int64      // sizes in the block's header: packed, unpacked; -1 for none

	blocks, total int64
	longest       int64 // unpacked size that no block exceeds
	// What the index must hold, as a digest: its length is not bounded.
	records hash.Hash
}

// newXZReader returns a reader of the xz stream that r holds. longest is the
// unpacked size of its longest block, as xzLongest finds it: a dictionary need
// not be larger, whatever the block announces. Where that is not true, reading
// ends in an error.
func newXZReader(r *bufio.Reader, longest int64) io.Reader {
	return &xzReader{in: countReader{r: r}, records: sha256.New(), longest: longest}
}

// xzLongest looks ahead into the index at the end of the xz stream that m is,
// and returns the unpacked size of its longest block; the largest number there
// is when it cannot tell.
func xzLongest(ra io.ReaderAt, m arMember) int64 {
	const unknown = math.MaxInt64
	var f [12]byte // CRC32, size of the index, flags, magic
	if m.size < 32 || readFullAt(ra, f[:], m.off+m.size-12) != nil || string(f[10:]) != xzFooterMagic {
		return unknown
	}
	size := (int64(binary.LittleEndian.Uint32(f[4:])) + 1) * 4
	if size > min(m.size-12, 4<<10) {
		return unknown
	}
	index := make([]byte, size)
	if readFullAt(ra, index, m.off+m.size-12-size) != nil || index[0] != 0 {
		return unknown
	}
	r := bytes.NewReader(index[1:])
	n, err := xzNumber(r)
	longest := int64(0)
	for range min(n, size) {
		_, err1 := xzNumber(r) // unpadded size
		unpacked, err2 := xzNumber(r)
		err = errors.Join(err, err1, err2)
		longest = max(longest, unpacked)
	}
	if err != nil {
		return unknown
	}
	return longest
}

// countReader counts what is read.
type countReader struct {
	r *bufio.Reader
	n int64
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func (c *countReader) ReadByte() (byte, error) {
	b, err := c.r.ReadByte()
	if err == nil {
		c.n++
	}
	return b, err
}

func (x *xzReader) Read(p []byte) (int, error) {
	if x.err != nil {
		return 0, x.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := x.read(p)
	if err != nil {
		x.err = err
	}
	return n, err
}

func (x *xzReader) read(p []byte) (int, error) {
	if !x.started {
		if err := x.streamHeader(); err != nil {
			return 0, noEOF(err)
		}
		x.started = true
	}
	for {
		if x.block == nil {
			more, err := x.blockHeader()
			if err != nil {
				return 0, noEOF(err)
			}
			if !more {
				if err := x.indexAndFooter(); err != nil {
					return 0, noEOF(err)
				}
				return 0, io.EOF
			}
		}
		n, err := x.block.Read(p)
		x.blockOut += int64(n)
		if x.check != nil {
			x.check.Write(p[:n])
		}
		switch {
		case errors.Is(err, io.EOF):
			if err := x.endBlock(); err != nil {
				return n, noEOF(err)
			}
		case err != nil:
			return n, err
		}
		if n > 0 {
			return n, nil
		}
	}
}

// noEOF: the end of the input is the end of the stream only behind the footer.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// streamHeader reads the header (2.1.1): magic, flags, CRC32 of the flags.
func (x *xzReader) streamHeader() error {
	var h [12]byte
	if _, err := io.ReadFull(&x.in, h[:]); err != nil {
		return err
	}
	if string(h[:6]) != xzMagic || h[6] != 0 || crc32.ChecksumIEEE(h[6:8]) != binary.LittleEndian.Uint32(h[8:]) {
		return errXZ
	}
	x.checkID = h[7]
	switch x.checkID {
	case 0x0:
	case 0x1:
		x.check = crc32.NewIEEE()
	case 0x4:
		x.check = crc64.New(crc64.MakeTable(crc64.ECMA))
	case 0xa:
		x.check = sha256.New()
	default:
		return fmt.Errorf("xz check %#x is not supported", x.checkID)
	}
	return nil
}

// blockHeader reads a block's header (3.1), or the first byte of the index,
// and then reports false.
func (x *xzReader) blockHeader() (bool, error) {
	x.blockIn = x.in.n
	first, err := x.in.ReadByte()
	if err != nil {
		return false, err
	}
	if first == 0 {
		return false, nil
	}
	if x.blocks > xzFreeBlocks && x.total/x.blocks < xzMinBlock {
		return false, errors.New("xz data of too many small blocks")
	}
	h := make([]byte, (int(first)+1)*4)
	h[0] = first
	if _, err := io.ReadFull(&x.in, h[1:]); err != nil {
		return false, err
	}
	body, sum := h[:len(h)-4], binary.LittleEndian.Uint32(h[len(h)-4:])
	if crc32.ChecksumIEEE(body) != sum {
		return false, errXZ
	}
	flags := body[1]
	if flags&0x3f != 0 {
		return false, errors.New("xz filters other than LZMA2 are not supported")
	}
	r := bytes.NewReader(body[2:])
	x.announced = [2]int64{-1, -1}
	for i, bit := range []byte{0x40, 0x80} {
		if flags&bit == 0 {
			continue
		}
		if x.announced[i], err = xzNumber(r); err != nil {
			return false, err
		}
	}
	id, err := xzNumber(r)
	if err != nil {
		return false, err
	}
	if id != xzLZMA2 {
		return false, errors.New("xz filters other than LZMA2 are not supported")
	}
	if n, err := xzNumber(r); err != nil || n != 1 {
		return false, errXZ
	}
	bits, err := r.ReadByte()
	if err != nil {
		return false, errXZ
	}
	dict, err := dictSize(bits)
	if err != nil {
		return false, err
	}
	for r.Len() > 0 {
		if b, _ := r.ReadByte(); b != 0 {
			return false, errXZ
		}
	}
	x.blockHead, x.blockOut = int64(len(h)), 0
	if x.check != nil {
		x.check.Reset()
	}
	x.block, err = lzma.Reader2Config{DictCap: int(max(lzma.MinDictCap, min(int64(dict), x.longest)))}.NewReader2(&x.in)
	return true, err
}

// dictSize decodes the size of the dictionary (5.3.1): 2^n or 3*2^n.
func dictSize(bits byte) (int, error) {
	if bits > 40 {
		return 0, errXZ
	}
	size := int64(2|bits&1) << (bits/2 + 11)
	if size > maxDict {
		return 0, fmt.Errorf("xz dictionary of %d bytes, more than %d", size, maxDict)
	}
	return int(size), nil
}

// endBlock reads what follows a block's data: zeros up to a multiple of 4
// bytes, and the check.
func (x *xzReader) endBlock() error {
	x.block = nil
	packed := x.in.n - x.blockIn - x.blockHead
	if a := x.announced; a[0] >= 0 && a[0] != packed || a[1] >= 0 && a[1] != x.blockOut {
		return errXZ
	}
	if err := x.zeros(x.in.n - x.blockIn); err != nil {
		return err
	}
	var size int64
	if x.check != nil {
		want := x.check.Sum(nil)
		if x.checkID != 0xa {
			// The CRCs are little-endian in the file, big-endian in Sum.
			for i, j := 0, len(want)-1; i < j; i, j = i+1, j-1 {
				want[i], want[j] = want[j], want[i]
			}
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(&x.in, got); err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return errors.New("wrong checksum in xz data")
		}
		size = int64(len(want))
	}
	x.blocks++
	x.total += x.blockOut
	x.record(x.records, x.blockHead+packed+size, x.blockOut)
	return nil
}

// record adds a record of the index to the digest.
func (x *xzReader) record(h hash.Hash, unpadded, unpacked int64) {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], uint64(unpadded))
	binary.LittleEndian.PutUint64(b[8:], uint64(unpacked))
	h.Write(b[:])
}

// zeros reads the zeros that fill n up to a multiple of 4.
func (x *xzReader) zeros(n int64) error {
	for ; n%4 != 0; n++ {
		b, err := x.in.ReadByte()
		if err != nil {
			return err
		}
		if b != 0 {
			return errXZ
		}
	}
	return nil
}

// indexAndFooter reads the index (4), whose first byte has been read, and the
// footer (2.1.2), and sees that they belong to the blocks.
func (x *xzReader) indexAndFooter() error {
	start := x.in.n - 1
	sum := crc32.NewIEEE()
	sum.Write([]byte{0})
	r := &hashByteReader{r: &x.in, h: sum}
	n, err := xzNumber(r)
	if err != nil {
		return err
	}
	if n != x.blocks {
		return errXZ
	}
	records := sha256.New()
	for range n {
		unpadded, err := xzNumber(r)
		if err != nil {
			return err
		}
		unpacked, err := xzNumber(r)
		if err != nil {
			return err
		}
		x.record(records, unpadded, unpacked)
	}
	if !bytes.Equal(records.Sum(nil), x.records.Sum(nil)) {
		return errXZ
	}
	for (x.in.n-start)%4 != 0 {
		if b, err := r.ReadByte(); err != nil {
			return err
		} else if b != 0 {
			return errXZ
		}
	}
	var f [16]byte // the index's CRC32; CRC32, size of the index, flags, magic
	size := x.in.n - start + 4
	if _, err := io.ReadFull(&x.in, f[:]); err != nil {
		return err
	}
	switch {
	case binary.LittleEndian.Uint32(f[:]) != sum.Sum32(),
		binary.LittleEndian.Uint32(f[4:]) != crc32.ChecksumIEEE(f[8:14]),
		(int64(binary.LittleEndian.Uint32(f[8:]))+1)*4 != size,
		f[12] != 0 || f[13] != x.checkID,
		string(f[14:]) != xzFooterMagic:
		return errXZ
	}
	if _, err := x.in.ReadByte(); !errors.Is(err, io.EOF) {
		return errors.New("bytes after the end of the xz data")
	}
	return nil
}

// hashByteReader hashes what is read.
type hashByteReader struct {
	r io.ByteReader
	h hash.Hash
}

func (b *hashByteReader) ReadByte() (byte, error) {
	c, err := b.r.ReadByte()
	if err == nil {
		b.h.Write([]byte{c})
	}
	return c, err
}

// xzNumber reads a number (1.2): 7 bits a byte, the lowest first, at most 63.
func xzNumber(r io.ByteReader) (int64, error) {
	var n int64
	for i := range 9 {
		b, err := r.ReadByte()
		if err != nil {
			return 0, noEOF(err)
		}
		if b == 0 && i > 0 {
			break
		}
		n |= int64(b&0x7f) << (7 * i)
		if b&0x80 == 0 {
			return n, nil
		}
	}
	return 0, errXZ
}
