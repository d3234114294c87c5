package repo

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"runtime/debug"
	"slices"

	"golang.org/x/sys/unix"
)

var errChanged = errors.New("it changed while it was read")

// mapped is how many bytes of a file are mapped at a time. They count as memory of
// this process; with fewer, the cores wait for each other when pages are unmapped.
// Of smaller files a copy takes less time.
const mapped = 4 << 20

// hashed is how many of these are hashed at a time. The collector of garbage, which
// holds all cores for a moment, has to wait for that.
const hashed = 128 << 10

// digest returns the SHA-256 of a file of size bytes, of which head, whole pages or
// all, are in memory. Those of a large file it takes from the page cache without a copy, which
// halves what the kernel has to do in reading a pool; those of a small one, and where
// the file system does not map files, are read through buf, which head may be in. A
// file that turns out to be shorter is errChanged.
func digest(ctx context.Context, f *os.File, size int64, head, buf []byte) (_ []byte, err error) {
	var piece []byte
	unmap := func() {
		if piece != nil {
			err = errors.Join(err, unix.Munmap(piece))
		}
		piece = nil
	}
	defer func() {
		// What is not in the file any more is a fault of the processor.
		if fault := recover(); fault != nil {
			if _, ok := fault.(interface{ Addr() uintptr }); !ok {
				panic(fault)
			}
			err = errChanged
		}
		unmap()
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))

	h := sha256.New()
	_, _ = h.Write(head) // never fails
	fd := int(f.Fd())
	for at := int64(len(head)); at < size; at += mapped {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n := min(mapped, size-at)
		err = unix.ENODEV
		if size > mapped {
			piece, err = unix.Mmap(fd, at, int(n), unix.PROT_READ, unix.MAP_PRIVATE)
		}
		if err != nil {
			var read int64
			read, err = io.CopyBuffer(h, io.NewSectionReader(f, at, n), buf)
			if err == nil && read < n {
				err = errChanged
			}
		} else {
			for part := range slices.Chunk(piece, hashed) {
				_, _ = h.Write(part) // never fails
			}
			unmap()
		}
		if err != nil {
			return nil, err
		}
	}
	return h.Sum(nil), nil
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
