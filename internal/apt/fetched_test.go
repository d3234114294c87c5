package apt

import (
	"dkms2bin/internal/deb"
	"dkms2bin/internal/sandbox"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

func writeDeb(t *testing.T, path, name, version string) []byte {
	t.Helper()
	control, err := deb.ParseStanza([]byte("Package: " + name + "\nVersion: " + version + "\nArchitecture: all\nMaintainer: A B <a@example.org>\nDescription: x\n"))
	assert.NilError(t, err)
	assert.NilError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	f, err := os.Create(path)
	assert.NilError(t, err)
	assert.NilError(t, deb.Write(f, deb.Package{Control: control, Time: time.Unix(1e9, 0)}))
	assert.NilError(t, f.Close())
	raw, err := os.ReadFile(path)
	assert.NilError(t, err)
	return raw
}

func TestSaveFetched(t *testing.T) {
	t.Parallel()
	upper := t.TempDir()
	i := Inside{Spec: sandbox.Spec{Root: sandbox.Root{Upper: upper}}}
	at := func(name string) string { return filepath.Join(upper, archives, name) }
	writeDeb(t, at("a-dkms_1.0-1_all.deb"), "a-dkms", "1:1.0-1")
	want := writeDeb(t, at("a-dkms_1%3a1.1-1_all.deb"), "a-dkms", "1:1.1-1")
	writeDeb(t, at("a-dkms-extra_1.1-1_all.deb"), "a-dkms-extra", "1:1.1-1")
	to := filepath.Join(t.TempDir(), "package.deb")
	assert.NilError(t, os.WriteFile(to, []byte("old"), 0o600))
	assert.NilError(t, i.saveFetched("a-dkms", "1:1.1-1", to))
	got, err := os.ReadFile(to)
	assert.NilError(t, err)
	assert.DeepEqual(t, got, want)
	err = i.saveFetched("a-dkms", "1:1.2-1", to)
	assert.Assert(t, errors.Is(err, fs.ErrNotExist), "%v", err)
	assert.ErrorContains(t, err, "apt has fetched no a-dkms 1:1.2-1")

	// The tree belongs to packages' scripts: a link does not lead out of it.
	assert.NilError(t, os.Symlink("/etc/passwd", at("b-dkms_1_all.deb")))
	assert.Assert(t, i.saveFetched("b-dkms", "1", to) != nil)
}
