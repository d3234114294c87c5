package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

// TestReadDoc: what can be read without a look at the layers below, and what not.
func TestReadDoc(t *testing.T) {
	t.Parallel()
	layer := t.TempDir()
	doc := filepath.Join(layer, "usr/share/doc")
	assert.NilError(t, os.MkdirAll(filepath.Join(doc, "a"), 0o755))
	assert.NilError(t, os.MkdirAll(filepath.Join(doc, "long"), 0o755))
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, err := w.Write([]byte("packed"))
	assert.NilError(t, errors.Join(err, w.Close()))
	for name, content := range map[string]string{
		"a/plain": "text", "a/packed.gz": packed.String(), "a/damaged.gz": "text", "long/long": strings.Repeat("x", maxDoc+2),
	} {
		assert.NilError(t, os.WriteFile(filepath.Join(doc, name), []byte(content), 0o644))
	}
	assert.NilError(t, errors.Join(os.Symlink("a", filepath.Join(doc, "link")), os.Symlink("plain", filepath.Join(doc, "a/link")), os.Symlink("/etc/passwd", filepath.Join(doc, "a/out"))))
	for _, row := range []struct {
		dir, candidates, want string
		elsewhere             bool
	}{
		{"a", "missing plain packed.gz", "text", false},
		{"a", "packed.gz plain", "packed", false},
		{"a", "missing", "", false},
		{"a", "damaged.gz", "", true},
		{"a", "link", "", true},
		{"a", "out", "", true},
		{"link", "plain", "", true},
		{"missing", "plain", "", true},
		{"../../../../etc", "passwd", "", true},
		{"long", "long", strings.Repeat("x", maxDoc+1), false},
	} {
		got, err := readDoc(layer, "/usr/share/doc/"+row.dir, strings.Fields(row.candidates))
		assert.Equal(t, string(got) == row.want, true, row.dir+" "+row.candidates)
		assert.Equal(t, err != nil, row.elsewhere, "%s %s: %v", row.dir, row.candidates, err)
	}
}
