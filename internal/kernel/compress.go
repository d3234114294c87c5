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
	"github.com/mikelolasagasti/xz"
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
// is not bounded, the memory needed is: about 128 MiB at most. Input that ends early gives io.ErrUnexpectedEOF. The caller closes the result before r.
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
		if d.r, err = xz.NewReader(b, maxWindow); err != nil {
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
	if errors.Is(err, io.EOF) || errors.Is(err, xz.ErrBuf) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("cannot decompress (%s): %w", d.format, err)
}
