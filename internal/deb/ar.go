package deb

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// The ar format, as deb(5) narrows it down: the magic line, then members of a
// header of 60 ASCII bytes (name 16, mtime 12, uid 6, gid 6, mode 8, size 10,
// magic 2), the content, and a newline where the content's size is odd.
const (
	arMagic      = "!<arch>\n"
	arHeaderSize = 60
	arHeaderEnd  = "`\n"
	arMaxSize    = 9_999_999_999
)

// arMember is one member's place in the file.
type arMember struct {
	name string
	off  int64 // of the content
	size int64
}

// arNext reads the header at off of a file of the given size. It returns the
// member and where the next header stands, io.EOF at the end of the file.
func arNext(ra io.ReaderAt, off, size int64) (arMember, int64, error) {
	if off >= size {
		return arMember{}, 0, io.EOF
	}
	var h [arHeaderSize]byte
	if err := readFullAt(ra, h[:], off); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = errors.New("truncated ar header")
		}
		return arMember{}, 0, err
	}
	if string(h[58:]) != arHeaderEnd {
		return arMember{}, 0, errors.New("damaged ar header")
	}
	// dpkg pads names with spaces; other writers of ar end them with a slash.
	name := strings.TrimSuffix(strings.TrimRight(string(h[:16]), " "), "/")
	digits := strings.TrimRight(string(h[48:58]), " ")
	if digits == "" || !allDigits(digits) {
		return arMember{}, 0, fmt.Errorf("ar member %q: invalid size %q", name, h[48:58])
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return arMember{}, 0, fmt.Errorf("ar member %q: %w", name, err)
	}
	m := arMember{name: name, off: off + arHeaderSize, size: n}
	if n > size-m.off {
		return arMember{}, 0, fmt.Errorf("ar member %q is truncated: %d bytes announced, %d there", name, n, size-m.off)
	}
	return m, m.off + n + n&1, nil
}

// readFullAt fills p; io.ErrUnexpectedEOF tells that the file ends before.
func readFullAt(ra io.ReaderAt, p []byte, off int64) error {
	n, err := ra.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// arWriter writes an ar file. As a header holds the size of what follows, it
// is written after the content, into the gap left for it.
type arWriter struct {
	w    io.WriteSeeker
	time time.Time
}

// member writes a member whose content is what write writes.
func (a arWriter) member(name string, write func(io.Writer) error) error {
	start, err := a.w.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if _, err := a.w.Write(make([]byte, arHeaderSize)); err != nil {
		return err
	}
	if err := write(a.w); err != nil {
		return err
	}
	end, err := a.w.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	size := end - start - arHeaderSize
	if size > arMaxSize {
		return fmt.Errorf("%s: %d bytes are too many for an ar member", name, size)
	}
	if size%2 != 0 {
		if _, err := a.w.Write([]byte{'\n'}); err != nil {
			return err
		}
		end++
	}
	if _, err := a.w.Seek(start, io.SeekStart); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(a.w, "%-16s%-12d%-6d%-6d%-8o%-10d%s",
		name, a.time.Unix(), 0, 0, 0o100644, size, arHeaderEnd); err != nil {
		return err
	}
	_, err = a.w.Seek(end, io.SeekStart)
	return err
}
