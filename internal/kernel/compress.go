package kernel

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// maxWindow bounds the memory that compressed input may ask for. What zstd --ultra -22 and xz -9 ask for
// is not above it.
const maxWindow = 128 << 20

// magicSize is how many bytes formatOf wants to see.
const magicSize = 6

// formatOf names the compression that the first bytes of a file tell, "" for none.
func formatOf(magic []byte) string {
	switch {
	case bytes.HasPrefix(magic, []byte("\x1f\x8b")):
		return "gzip"
	case bytes.HasPrefix(magic, []byte("BZh")):
		return "bzip2"
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")):
		return "xz"
	case bytes.HasPrefix(magic, []byte("\x28\xb5\x2f\xfd")):
		return "zstd"
	}
	return ""
}

// Decompress returns a reader of what r holds, decompressed as its first bytes tell: gzip, xz or zstd,
// the formats of module files and of dkms's archives, and bzip2, which dkms 2 knew too. Anything else is handed through. How much comes out
// is not bounded, the memory needed is: about 128 MiB at most, for which the first block of an xz file
// speaks for all. Input that ends early gives io.ErrUnexpectedEOF. The caller closes the result before r.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	magic, err := b.Peek(magicSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	d := &decompressor{format: formatOf(magic)}
	switch d.format {
	case "gzip":
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, d.explain(err)
		}
		d.r, d.close = z, z.Close
	case "bzip2":
		d.r = bzip2.NewReader(b)
	case "xz":
		if err := checkDictionary(b); err != nil {
			return nil, d.explain(err)
		}
		if d.r, err = xz.NewReader(b); err != nil {
			return nil, d.explain(err)
		}
	case "zstd":
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, d.explain(err)
		}
		d.r, d.close = z, func() error { z.Close(); return nil }
	default:
		return io.NopCloser(b), nil
	}
	return d, nil
}

type decompressor struct {
	format string
	r      io.Reader
	close  func() error
}

func (d *decompressor) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // io.Reader: the end is io.EOF itself
		err = d.explain(err)
	}
	return n, err
}

func (d *decompressor) Close() error {
	if d.close == nil {
		return nil
	}
	return d.close()
}

// explain gives input that ends early the same error for all formats.
func (d *decompressor) explain(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("cannot decompress (%s): %w", d.format, err)
}

// checkDictionary refuses xz data whose first block asks for more than maxWindow: the xz package would
// allocate up to 4 GiB. After the 12 bytes of the stream's header comes that of the block: its size, flags,
// two optional sizes, and for each filter its ID and the size of its properties. LZMA2, the only filter that
// the package knows, has ID 0x21 and the coded size of the dictionary as its property (the .xz file format,
// sections 3.1 and 5.3.1). What is not as expected here is left to the xz package to refuse.
func checkDictionary(b *bufio.Reader) error {
	const streamHeader, blockHeader = 12, 1024
	header, err := b.Peek(streamHeader + blockHeader)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if len(header) < streamHeader+2 || header[streamHeader] == 0 {
		return nil
	}
	header = header[streamHeader:]
	at := 2
	for _, flag := range []byte{0x40, 0x80} { // compressed and uncompressed size
		if header[1]&flag == 0 {
			continue
		}
		for at < len(header) && header[at]&0x80 != 0 {
			at++
		}
		at++
	}
	if at+2 >= len(header) || header[at] != 0x21 || header[at+1] != 1 {
		return nil
	}
	size, err := lzma.DecodeDictCap(header[at+2])
	if err != nil {
		return err
	}
	if size > maxWindow {
		return fmt.Errorf("it needs a dictionary of %d bytes, where at most %d are allowed", size, maxWindow)
	}
	return nil
}
