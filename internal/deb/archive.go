package deb

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
)

const (
	maxControl    = 1 << 20  // bytes of the control file
	maxControlTar = 32 << 20 // bytes of control.tar, unpacked
	maxWindow     = 128 << 20
	maxDict       = 64 << 20 // the dictionary of xz -9, the largest of xz's presets
	maxMembers    = 64       // of the ar file, up to data.tar
	maxPacked     = 1 << 20  // bytes of an .xz file to be unpacked at once
	maxUnpacked   = 4 << 20
)

// Archive is an opened .deb.
type Archive struct {
	ra            io.ReaderAt
	control, data arMember
}

// Open reads the table of members of a .deb (deb(5), format 2.x) of size bytes.
// Members that deb(5) tells readers to ignore are ignored; each member up to
// data.tar lies within size, so a truncated file is an error already here.
// Control and Data read from ra, which the caller closes after them.
func Open(ra io.ReaderAt, size int64) (*Archive, error) {
	a, err := open(ra, size)
	if err != nil {
		return nil, fmt.Errorf("not a usable .deb: %w", err)
	}
	return a, nil
}

func open(ra io.ReaderAt, size int64) (*Archive, error) {
	magic := make([]byte, len(arMagic))
	if err := readFullAt(ra, magic, 0); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, errors.New("the file ends within its first 8 bytes")
		}
		return nil, err
	}
	if strings.HasPrefix(string(magic), "0.9") {
		return nil, errors.New("the format is that of before 1995 (0.939000), which is not supported")
	}
	if string(magic) != arMagic {
		return nil, errors.New("it is no ar archive")
	}
	a := &Archive{ra: ra}
	off := int64(len(arMagic))
	for i := range maxMembers {
		m, next, err := arNext(ra, off, size)
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("the file ends before %s", a.wanted(i == 0))
		}
		if err != nil {
			return nil, err
		}
		off = next
		switch {
		case i == 0:
			if m.name != "debian-binary" {
				return nil, fmt.Errorf("the first member is %q, not debian-binary", m.name)
			}
			if err := checkFormat(ra, m); err != nil {
				return nil, err
			}
		case strings.HasPrefix(m.name, "_"):
			// deb(5): reserved for additions that old readers pass over.
		case a.control.name == "" && isTar(m.name, "control.tar"):
			a.control = m
		case a.control.name != "" && isTar(m.name, "data.tar"):
			a.data = m
			// What follows is for later versions of the format, says deb(5).
			return a, nil
		default:
			return nil, fmt.Errorf("member %q where %s should be", m.name, a.wanted(false))
		}
	}
	return nil, fmt.Errorf("more than %d members", maxMembers)
}

// wanted names the member that is to come next.
func (a *Archive) wanted(first bool) string {
	switch {
	case first:
		return "debian-binary"
	case a.control.name == "":
		return "control.tar"
	default:
		return "data.tar"
	}
}

// checkFormat reads debian-binary: the first line is the version, "2." and a
// minor number; further lines are for later versions.
func checkFormat(ra io.ReaderAt, m arMember) error {
	b := make([]byte, min(m.size, 32))
	if err := readFullAt(ra, b, m.off); err != nil {
		return err
	}
	line, _, ok := strings.Cut(string(b), "\n")
	minor, two := strings.CutPrefix(line, "2.")
	if !ok || !two || minor == "" || !allDigits(minor) {
		return fmt.Errorf("debian-binary holds %q, not 2.0", line)
	}
	return nil
}

// isTar reports whether name is base, or base with a suffix of a compression.
// Which are known shows when the member is read.
func isTar(name, base string) bool {
	suffix, ok := strings.CutPrefix(name, base)
	return ok && (suffix == "" || suffix[0] == '.')
}

// Control returns the fields of the control file. control.tar is read to its
// end, so that its checksum is known to be right; it may have 32 MiB, the
// control file 1 MiB.
func (a *Archive) Control() (Stanza, error) {
	files, err := a.ControlFiles("control")
	if err != nil {
		return nil, err
	}
	text, ok := files["control"]
	if !ok {
		return nil, fmt.Errorf("cannot read %s: no control file in it", a.control.name)
	}
	control, err := ParseStanza(text)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: control: %w", a.control.name, err)
	}
	return control, nil
}

// ControlFiles returns those of the named files of control.tar that are there,
// such as conffiles and triggers. Each may have 1 MiB.
func (a *Archive) ControlFiles(names ...string) (_ map[string][]byte, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot read %s: %w", a.control.name, err)
		}
	}()
	r, c, err := a.unpack(a.control)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	lr := &limitReader{r: r, limit: maxControlTar}
	tr := tar.NewReader(lr)
	found := make(map[string][]byte, len(names))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		name := strings.TrimPrefix(h.Name, "./")
		if !slices.Contains(names, name) {
			continue
		}
		if h.Typeflag != tar.TypeReg {
			return nil, fmt.Errorf("%s is not a regular file", name)
		}
		if _, twice := found[name]; twice {
			return nil, fmt.Errorf("%s is there twice", name)
		}
		if h.Size > maxControl {
			return nil, fmt.Errorf("%s has %d bytes, more than %d", name, h.Size, maxControl)
		}
		text := make([]byte, h.Size)
		if _, err := io.ReadFull(tr, text); err != nil {
			return nil, err
		}
		found[name] = text
	}
	// The zeros after the end of the tar, and the checksum after them.
	if _, err := io.Copy(io.Discard, lr); err != nil {
		return nil, err
	}
	return found, nil
}

// Data returns a reader of data.tar, and what must be closed after reading.
// It streams: memory is bounded by the window of the compression (128 MiB at
// most), time by limit: to read more than so many bytes of data.tar, unpacked, is
// an error. The names are those of the tar, of any form; to keep them inside a
// directory is up to the caller.
func (a *Archive) Data(limit int64) (*tar.Reader, io.Closer, error) {
	r, c, err := a.unpack(a.data)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot read %s: %w", a.data.name, err)
	}
	return tar.NewReader(&limitReader{r: r, limit: limit}), c, nil
}

// Readers cost far more to make than most control.tars to read.
var (
	gzipReaders = sync.Pool{New: func() any { return new(gzip.Reader) }}
	// Their dictionaries stay as large as any that a package announced, but only
	// as much of them is touched as is unpacked.
	xzReaders = sync.Pool{New: func() any {
		zr, err := xz.NewReader(nil, maxDict)
		if err != nil {
			return err
		}
		return zr
	}}
	zstdDecoders = sync.Pool{New: func() any {
		zr, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return err
		}
		return zr
	}}
)

// closeFunc is a Close.
type closeFunc func()

func (f closeFunc) Close() error {
	f()
	return nil
}

// unpack returns a reader of a member's content, decompressed as the suffix of
// its name tells. It is of no use once it is closed.
func (a *Archive) unpack(m arMember) (io.Reader, io.Closer, error) {
	suffix := m.name[strings.Index(m.name, ".tar")+len(".tar"):]
	if suffix == ".xz" {
		if r, c, ok := a.unpackAtOnce(m); ok {
			return r, c, nil
		}
	}
	r := bufio.NewReaderSize(io.NewSectionReader(a.ra, m.off, m.size), int(min(m.size, 64<<10)))
	switch suffix {
	case "":
		return r, io.NopCloser(nil), nil
	case ".gz":
		zr := gzipReaders.Get().(*gzip.Reader)
		if err := zr.Reset(r); err != nil {
			gzipReaders.Put(zr)
			return nil, nil, err
		}
		return zr, closeFunc(sync.OnceFunc(func() { gzipReaders.Put(zr) })), nil
	case ".xz":
		switch zr := xzReaders.Get().(type) {
		case *xz.Reader:
			if err := zr.Reset(r); err != nil {
				xzReaders.Put(zr)
				return nil, nil, err
			}
			return zr, closeFunc(sync.OnceFunc(func() { xzReaders.Put(zr) })), nil
		case error:
			return nil, nil, zr
		}
	case ".zst":
		switch zr := zstdDecoders.Get().(type) {
		case *zstd.Decoder:
			if err := zr.Reset(r); err != nil {
				return nil, nil, err
			}
			return zr, closeFunc(sync.OnceFunc(func() {
				if zr.Reset(nil) == nil {
					zstdDecoders.Put(zr)
				}
			})), nil
		case error:
			return nil, nil, zr
		}
	}
	return nil, nil, fmt.Errorf("compression %q is not supported", suffix)
}

// wholeFile is the memory for a small .xz file.
type wholeFile struct{ packed, unpacked []byte }

var wholeFiles = sync.Pool{New: func() any { return new(wholeFile) }}

// unpackAtOnce is unpack for what unxz can read.
func (a *Archive) unpackAtOnce(m arMember) (io.Reader, io.Closer, bool) {
	if m.size > maxPacked {
		return nil, nil, false
	}
	w := wholeFiles.Get().(*wholeFile)
	w.packed = slices.Grow(w.packed[:0], int(m.size))[:m.size]
	if readFullAt(a.ra, w.packed, m.off) == nil {
		if unpacked, ok := unxz(w.unpacked, w.packed); ok {
			w.unpacked = unpacked
			return bytes.NewReader(unpacked), closeFunc(sync.OnceFunc(func() { wholeFiles.Put(w) })), true
		}
	}
	wholeFiles.Put(w)
	return nil, nil, false
}

// limitReader fails where more than limit bytes come out of r, unlike
// io.LimitReader, which ends there.
type limitReader struct {
	r           io.Reader
	read, limit int64
}

func (l *limitReader) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.read += int64(n); l.read > l.limit {
		return 0, fmt.Errorf("it unpacks to more than %d bytes", l.limit)
	}
	return n, err
}
