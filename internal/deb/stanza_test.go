package deb

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

func readAll(text string) ([]Stanza, error) {
	r := NewReader(strings.NewReader(text))
	var all []Stanza
	for {
		s, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, s)
	}
}

func TestReader(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, text string
		want       []Stanza
		err        string
	}{
		{name: "nothing", text: ""},
		{name: "empty lines only", text: "\n \n\t\n\r\n"},
		{name: "two", text: "\nA: 1\nB:2\n\n\nA:\t3", want: []Stanza{{{"A", "1"}, {"B", "2"}}, {{"A", "3"}}}},
		{name: "blanks separate", text: "A: 1\n \t\nA: 2\n", want: []Stanza{{{"A", "1"}}, {{"A", "2"}}}},
		{name: "continuation", text: "D: s\n long  \n\ttab\n .\n  x\nE: 1\n", want: []Stanza{{{"D", "s\n long\n\ttab\n .\n  x"}, {"E", "1"}}}},
		{name: "empty first line", text: "Signed-By:\n -----BEGIN\n .\n x\n", want: []Stanza{{{"Signed-By", "\n -----BEGIN\n .\n x"}}}},
		{name: "comments", text: "# c\nA: 1\n#c\n b\n# x\n\n# only a comment\n\nB: 1\n", want: []Stanza{{{"A", "1\n b"}}, {{"B", "1"}}}},
		{name: "carriage returns", text: "A: 1\r\nB: 2\r\n\r\nC: 3\r\n", want: []Stanza{{{"A", "1"}, {"B", "2"}}, {{"C", "3"}}}},
		{name: "colons and hashes in values", text: "A: b: c # d\n", want: []Stanza{{{"A", "b: c # d"}}}},
		{name: "empty value", text: "A:\nB: 1\n", want: []Stanza{{{"A", ""}, {"B", "1"}}}},
		{name: "no field", text: "\n x\n", err: "line 2: continuation line without a field"},
		{name: "no colon", text: "A: 1\nfoo\n", err: `line 2: no colon in "foo"`},
		{name: "blank in name", text: "A b: 1\n", err: `line 1: invalid field name "A b"`},
		{name: "empty name", text: ": 1\n", err: `line 1: invalid field name ""`},
		{name: "hyphen", text: "-A: 1\n", err: "invalid field name"},
		{name: "twice", text: "Package: 1\npackage: 2\n", err: "line 2: field package given twice"},
		{name: "NUL", text: "A: 1\x00\n", err: "line 1: NUL byte"},
		{name: "long line", text: "A: 1\nB: " + strings.Repeat("x", maxLine) + "\n", err: "line 2: line longer than"},
		{name: "long line that fits", text: "A: " + strings.Repeat("x", maxLine-4) + "\n", want: []Stanza{{{"A", strings.Repeat("x", maxLine-4)}}}},
		{name: "long stanza", text: "A:\n" + strings.Repeat(" "+strings.Repeat("x", 1023)+"\n", 5000), err: "stanza longer than"},
		{name: "many fields", text: func() string {
			var b strings.Builder
			for i := range maxFields + 1 {
				fmt.Fprintf(&b, "F%d: x\n", i)
			}
			return b.String()
		}(), err: "line 513: stanza of more than 512 fields"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := readAll(tc.text)
			if tc.err != "" {
				assert.ErrorContains(t, err, tc.err)
				return
			}
			assert.NilError(t, err)
			assert.DeepEqual(t, got, tc.want)
		})
	}
}

func TestReaderErrorStays(t *testing.T) {
	t.Parallel()
	r := NewReader(strings.NewReader("foo\n\nA: 1\n"))
	_, err1 := r.Next()
	_, err2 := r.Next()
	assert.ErrorContains(t, err1, "no colon")
	assert.Equal(t, err1, err2)
}

func TestParseStanza(t *testing.T) {
	t.Parallel()
	s, err := ParseStanza([]byte("\nA: 1\n\n"))
	assert.NilError(t, err)
	assert.DeepEqual(t, s, Stanza{{"A", "1"}})
	_, err = ParseStanza([]byte("# nothing\n"))
	assert.ErrorContains(t, err, "no stanza")
	_, err = ParseStanza([]byte("A: 1\n\nA: 2\n"))
	assert.ErrorContains(t, err, "more than one stanza")
}

func TestStanza(t *testing.T) {
	t.Parallel()
	var s Stanza
	s.Set("Package", "a")
	s.Set("Description", "x\n y")
	s.Set("package", "b")
	s.Set("Empty", "")
	s.Set("List", "\n one\n two")
	assert.Equal(t, s.Get("PACKAGE"), "b")
	assert.Equal(t, s.Get("none"), "")
	var b bytes.Buffer
	n, err := s.WriteTo(&b)
	assert.NilError(t, err)
	assert.Equal(t, n, int64(b.Len()))
	assert.Equal(t, b.String(), "Package: b\nDescription: x\n y\nEmpty:\nList:\n one\n two\n")
}

func TestStanzaWriteToRefuses(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		field Field
		err   string
	}{
		{Field{"", "x"}, "invalid field name"},
		{Field{"A:", "x"}, "invalid field name"},
		{Field{"#A", "x"}, "invalid field name"},
		{Field{"A", "x\nB: y"}, "does not begin with a space"},
		{Field{"A", "x\n\nB: y"}, "empty line"},
		{Field{"A", "x\n \n y"}, "blanks at the end"},
		{Field{"A", " x"}, "begins with a blank"},
		{Field{"A", "x "}, "blanks at the end"},
		{Field{"A", "x\x00"}, "NUL"},
	} {
		t.Run(fmt.Sprintf("%q", tc.field), func(t *testing.T) {
			t.Parallel()
			var b bytes.Buffer
			_, err := Stanza{{"Ok", "1"}, tc.field}.WriteTo(&b)
			assert.ErrorContains(t, err, tc.err)
			assert.Equal(t, b.Len(), 0)
		})
	}
}

// FuzzStanza: what is read can be written, and reads back the same.
func FuzzStanza(f *testing.F) {
	for _, text := range []string{
		"Package: a\nVersion: 1\nDescription: x\n y\n .\n",
		"# c\nTypes: deb\nURIs: https://example.org/debian\nSigned-By:\n -----BEGIN\n .\n x\n\nTypes: deb-src\n",
		"A:1\r\n\r\nB:\t2 \n", "A", ":", " x", "A: \x00",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		all, _ := readAll(string(text))
		var b bytes.Buffer
		for _, s := range all {
			if _, err := s.WriteTo(&b); err != nil {
				t.Fatalf("%q: %v", s, err)
			}
			b.WriteByte('\n')
		}
		again, err := readAll(b.String())
		assert.NilError(t, err)
		assert.DeepEqual(t, again, all)
	})
}
