package deb

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
)

// Bounds for one stanza. The longest lines of Debian's archive (Provides,
// Depends) are some hundred KiB.
const (
	maxLine   = 1 << 20
	maxStanza = 4 << 20
	maxFields = 512

	usualFields = 16 // as many as most control files have
)

// Field is one field of a stanza.
type Field struct {
	Name string
	// Value is what follows the colon, without the blanks around it. The lines
	// of a multi-line value are joined by "\n"; each but the first begins with
	// its space or tab. The first may be empty.
	Value string
}

// Stanza is a list of fields in the order of the text (deb822(5)). Names are
// unique, regardless of case.
type Stanza []Field

// Get returns the value of the named field, "" when there is none. Case does
// not matter in names.
func (s Stanza) Get(name string) string {
	if i := s.index(name); i >= 0 {
		return s[i].Value
	}
	return ""
}

// Set gives the named field a value, in its place or else at the end.
func (s *Stanza) Set(name, value string) {
	if i := s.index(name); i >= 0 {
		(*s)[i].Value = value
		return
	}
	*s = append(*s, Field{name, value})
}

func (s Stanza) index(name string) int {
	for i := range s {
		if len(s[i].Name) == len(name) && strings.EqualFold(s[i].Name, name) {
			return i
		}
	}
	return -1
}

// WriteTo writes the stanza, without the empty line that separates stanzas.
// A field that would not be read back as it stands (a name with a blank, a
// line of the value that does not begin with a space) is an error, and nothing
// is written.
func (s Stanza) WriteTo(w io.Writer) (int64, error) {
	text, err := s.AppendTo(nil)
	if err != nil {
		return 0, err
	}
	n, err := w.Write(text)
	return int64(n), err
}

// AppendTo is WriteTo for a slice.
func (s Stanza) AppendTo(b []byte) ([]byte, error) {
	size := len("\n") // of the empty line that often follows
	for _, f := range s {
		size += len(f.Name) + len(f.Value) + len(": \n")
	}
	b = slices.Grow(b, size)
	for _, f := range s {
		if err := f.validate(); err != nil {
			return nil, err
		}
		b = append(append(b, f.Name...), ':')
		if f.Value != "" && f.Value[0] != '\n' {
			b = append(b, ' ')
		}
		b = append(append(b, f.Value...), '\n')
	}
	return b, nil
}

func (f Field) validate() error {
	if !validName(f.Name) {
		return fmt.Errorf("invalid field name %q", f.Name)
	}
	if strings.ContainsRune(f.Value, 0) {
		return fmt.Errorf("field %s: NUL byte in the value", f.Name)
	}
	i := -1
	for line := range strings.SplitSeq(f.Value, "\n") {
		i++
		switch {
		case strings.TrimRight(line, " \t\r") != line:
			return fmt.Errorf("field %s: blanks at the end of a line", f.Name)
		case i == 0 && strings.TrimLeft(line, " \t") != line:
			return fmt.Errorf("field %s: the value begins with a blank", f.Name)
		case i > 0 && line == "":
			return fmt.Errorf("field %s: empty line in the value", f.Name)
		case i > 0 && line[0] != ' ' && line[0] != '\t':
			return fmt.Errorf("field %s: a continuation line does not begin with a space", f.Name)
		}
	}
	return nil
}

// validName: printable ASCII but for the colon, not starting with "#" or "-"
// (Policy 5.1).
func validName(name string) bool {
	if name == "" || name[0] == '#' || name[0] == '-' {
		return false
	}
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c >= 0x7f || c == ':' {
			return false
		}
	}
	return true
}

var textReaders = sync.Pool{New: func() any { return bufio.NewReader(nil) }}

// ParseStanza reads a text of exactly one stanza, as the control file of a
// package is.
func ParseStanza(text []byte) (Stanza, error) {
	br := textReaders.Get().(*bufio.Reader)
	defer textReaders.Put(br)
	br.Reset(bytes.NewReader(text))
	r := &Reader{br: br}
	s, err := r.Next()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("no stanza in the text")
	}
	if err != nil {
		return nil, err
	}
	switch _, err := r.Next(); {
	case err == nil:
		return nil, fmt.Errorf("line %d: more than one stanza", r.line)
	case !errors.Is(err, io.EOF):
		return nil, err
	}
	return s, nil
}

// Reader reads stanza after stanza: control files, apt's .sources files,
// Packages and Release files.
type Reader struct {
	br   *bufio.Reader
	line int
	buf  []byte
	err  error
}

// NewReader returns a Reader of r. It reads ahead.
func NewReader(r io.Reader) *Reader {
	return &Reader{br: bufio.NewReader(r)}
}

// Next returns the next stanza, or io.EOF when there is none left.
//
// Stanzas are separated by lines that are empty or hold blanks only. Lines
// starting with "#" are left out, inside values too. Blanks at the end of a
// line, and a carriage return there, do not belong to the value. A line longer
// than 1 MiB, a stanza longer than 4 MiB or of more than 512 fields, and a
// field that stands there twice are errors; after an error every call returns
// the same.
func (r *Reader) Next() (Stanza, error) {
	if r.err != nil {
		return nil, r.err
	}
	s, err := r.next()
	if err != nil {
		if !errors.Is(err, io.EOF) {
			err = fmt.Errorf("line %d: %w", r.line, err)
		}
		r.err = err
		return nil, err
	}
	return s, nil
}

func (r *Reader) next() (Stanza, error) {
	var s Stanza
	var value []byte // of the field read last
	flush := func() {
		if len(s) > 0 {
			s[len(s)-1].Value = string(value)
		}
	}
	size := 0
	for {
		line, err := r.readLine()
		if errors.Is(err, io.EOF) {
			if len(s) == 0 {
				return nil, io.EOF
			}
			flush()
			return s, nil
		}
		if err != nil {
			return nil, err
		}
		if len(line) > 0 && line[0] == '#' {
			continue
		}
		if bytes.IndexByte(line, 0) >= 0 {
			return nil, errors.New("NUL byte")
		}
		line = bytes.TrimRight(line, " \t\r")
		if len(line) == 0 {
			if len(s) == 0 {
				continue
			}
			flush()
			return s, nil
		}
		if size += len(line) + 1; size > maxStanza {
			return nil, fmt.Errorf("stanza longer than %d bytes", maxStanza)
		}
		if line[0] == ' ' || line[0] == '\t' {
			if len(s) == 0 {
				return nil, errors.New("continuation line without a field")
			}
			value = append(append(value, '\n'), line...)
			continue
		}
		flush()
		name, rest, ok := bytes.Cut(line, []byte{':'})
		if !ok {
			return nil, fmt.Errorf("no colon in %s", excerpt(line))
		}
		f := Field{Name: string(name)}
		if !validName(f.Name) {
			return nil, fmt.Errorf("invalid field name %s", excerpt(name))
		}
		if s.index(f.Name) >= 0 {
			return nil, fmt.Errorf("field %s given twice", f.Name)
		}
		if len(s) == maxFields {
			return nil, fmt.Errorf("stanza of more than %d fields", maxFields)
		}
		if s == nil {
			s = make(Stanza, 0, usualFields)
		}
		s = append(s, f)
		value = append(value[:0], bytes.TrimLeft(rest, " \t")...)
	}
}

// readLine returns the next line without its newline; it is valid until the
// next call. At the end it returns io.EOF.
func (r *Reader) readLine() ([]byte, error) {
	r.buf = r.buf[:0]
	for {
		part, err := r.br.ReadSlice('\n')
		if len(r.buf) == 0 && len(part) > 0 {
			r.line++
		}
		if len(r.buf)+len(part) > maxLine {
			return nil, fmt.Errorf("line longer than %d bytes", maxLine)
		}
		switch {
		case err == nil && len(r.buf) == 0:
			return part[:len(part)-1], nil
		case err == nil:
			r.buf = append(r.buf, part...)
			return r.buf[:len(r.buf)-1], nil
		case errors.Is(err, bufio.ErrBufferFull):
			r.buf = append(r.buf, part...)
		case errors.Is(err, io.EOF):
			if r.buf = append(r.buf, part...); len(r.buf) == 0 {
				return nil, io.EOF
			}
			return r.buf, nil
		default:
			return nil, err
		}
	}
}

// excerpt quotes the beginning of a foreign text for a message.
func excerpt(b []byte) string {
	if len(b) > 40 {
		return fmt.Sprintf("%q…", b[:40])
	}
	return fmt.Sprintf("%q", b)
}
