package apt

import (
	"dkms2bin/internal/sandbox"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"gotest.tools/v3/assert"
)

const (
	statusOfA = "Package: a\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\nConffiles:\n /etc/a 0123\n"
	statusOfB = "Package: b\nStatus: install ok installed\nArchitecture: all\nVersion: 2\n"
)

func TestContent(t *testing.T) {
	t.Parallel()
	reference := map[string]string{"status": statusOfA + "\n" + statusOfB, "info/a.md5sums": "aa  usr/bin/a\n", "info/b.md5sums": "bb  usr/bin/b\n"}
	with := func(changes ...string) map[string]string {
		files := map[string]string{}
		for name, text := range reference {
			files[name] = text
		}
		for i := 0; i < len(changes); i += 2 {
			files[changes[i]] = changes[i+1]
		}
		return files
	}
	for name, row := range map[string]struct {
		files map[string]string
		same  bool
	}{
		"the same":             {with(), true},
		"in another order":     {with("status", statusOfB+"\n"+statusOfA), true},
		"something else":       {with("info/a.list", "/.\n", "available", "x"), true},
		"another version":      {with("status", statusOfA+"\n"+"Package: b\nStatus: install ok installed\nArchitecture: all\nVersion: 2.1\n"), false},
		"half configured":      {with("status", statusOfA+"\n"+"Package: b\nStatus: install ok half-configured\nArchitecture: all\nVersion: 2\n"), false},
		"one package less":     {with("status", statusOfA), false},
		"another settings":     {with("status", "Package: a\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\nConffiles:\n /etc/a 4567\n\n"+statusOfB), false},
		"other content":        {with("info/b.md5sums", "cc  usr/bin/b\n"), false},
		"moved between them":   {with("info/a.md5sums", "aa  usr/bin/a\nbb  usr/bin/b\n", "info/b.md5sums", ""), false},
		"nothing is installed": {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want, got := content(t, reference), content(t, row.files)
			assert.Equal(t, got == want, row.same)
			assert.Equal(t, got == "", row.files == nil)
		})
	}
}

// content is that of a layer in which dpkg has these files.
func content(t *testing.T, files map[string]string) string {
	t.Helper()
	layer := t.TempDir()
	for name, text := range files {
		path := filepath.Join(layer, "var/lib/dpkg", name)
		assert.NilError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		assert.NilError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	digest, err := Content(layer)
	assert.NilError(t, err)
	return digest
}

func TestContentRefuses(t *testing.T) {
	t.Parallel()
	_, err := Content(filepath.Join(t.TempDir(), "none"))
	assert.ErrorIs(t, err, os.ErrNotExist)
	layer := t.TempDir()
	assert.NilError(t, os.MkdirAll(filepath.Join(layer, "var/lib/dpkg"), 0o755))
	assert.NilError(t, os.Symlink("/etc/passwd", filepath.Join(layer, "var/lib/dpkg/status")))
	_, err = Content(layer)
	assert.ErrorContains(t, err, "not a regular file")
	layer = t.TempDir()
	assert.NilError(t, os.MkdirAll(filepath.Join(layer, "var/lib/dpkg/info"), 0o755))
	assert.NilError(t, os.WriteFile(filepath.Join(layer, "var/lib/dpkg/status"), nil, 0o644))
	assert.NilError(t, unix.Mkfifo(filepath.Join(layer, "var/lib/dpkg/info/a.md5sums"), 0o644))
	_, err = Content(layer)
	assert.ErrorContains(t, err, "not a regular file")
}

func TestReadList(t *testing.T) {
	t.Parallel()
	layer := t.TempDir()
	info := filepath.Join(layer, "var/lib/dpkg/info")
	assert.NilError(t, os.MkdirAll(info, 0o755))
	assert.NilError(t, os.WriteFile(filepath.Join(info, "a-dkms.list"), []byte("/.\n/usr\n"), 0o644))
	assert.NilError(t, os.Symlink("a-dkms.list", filepath.Join(info, "link.list")))
	i := Inside{Spec: sandbox.Spec{Root: sandbox.Root{Upper: layer}}}
	files, err := i.Files(t.Context(), "a-dkms")
	assert.NilError(t, err)
	assert.DeepEqual(t, files, []string{"/.", "/usr"})
	for _, name := range []string{"link", "missing"} {
		_, err := readList(layer, name)
		assert.Assert(t, err != nil, name)
	}
}
