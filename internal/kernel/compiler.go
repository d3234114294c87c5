package kernel

import (
	"bytes"
	"io"
	"os"
	"slices"
	"strings"
)

// maxComment bounds the .comment section: each source file of a module adds a line.
const maxComment = 1 << 20

// Compiler returns what the compilers of a module file left in it, as in "GCC:
// (Debian 12.2.0-14+deb12u1) 12.2.0", each once; "" where that was stripped. It is
// for files that ReadModule has read.
func Compiler(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", err
	}
	var r io.ReaderAt = file
	size := info.Size()
	magic := make([]byte, min(size, magicSize))
	if _, err := file.ReadAt(magic, 0); err != nil {
		return "", err
	}
	if formatOf(magic) != "" {
		plain, err := unpack(file, maxModule)
		if err != nil {
			return "", err
		}
		r, size = bytes.NewReader(plain), int64(len(plain))
	}
	o, err := readObject(r, size)
	if err != nil {
		return "", err
	}
	comment := o.section(".comment")
	if comment == nil {
		return "", nil
	}
	raw, err := o.contents(comment, maxComment)
	if err != nil {
		return "", err
	}
	names := slices.Sorted(slices.Values(strings.FieldsFunc(string(raw), func(r rune) bool { return r == 0 })))
	return strings.Join(slices.Compact(names), ", "), nil
}
