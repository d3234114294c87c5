package scratch

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

func TestMain(m *testing.M) {
	if os.Getenv("SCRATCH_TEST_DIE") != "" {
		if _, _, err := Make(); err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func there(t *testing.T, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(dir)
	assert.NilError(t, err)
	return len(entries)
}

func TestSweep(t *testing.T) {
	top := t.TempDir()
	t.Setenv("TMPDIR", top)
	dir, remove, err := Make()
	assert.NilError(t, err)
	assert.NilError(t, os.WriteFile(filepath.Join(dir, "document"), nil, 0o600))
	held, err := Held(dir)
	assert.NilError(t, err)
	assert.Assert(t, held)

	dead := exec.Command("/proc/self/exe")
	dead.Env = append(os.Environ(), "SCRATCH_TEST_DIE=yes")
	assert.NilError(t, dead.Run())
	// What is empty may be about to be locked; what is not ours, or no directory, stays.
	empty, other, file := filepath.Join(top, "dkms2bin.empty"), filepath.Join(top, "other"), filepath.Join(top, "dkms2bin.file")
	assert.NilError(t, os.Mkdir(empty, 0o700))
	assert.NilError(t, os.Mkdir(other, 0o700))
	assert.NilError(t, os.WriteFile(file, nil, 0o600))
	assert.NilError(t, os.Symlink(other, filepath.Join(top, "dkms2bin.link")))
	assert.Equal(t, there(t, top), 6)
	assert.NilError(t, Sweep())
	assert.Equal(t, there(t, top), 5)
	old := time.Now().Add(-2 * young)
	assert.NilError(t, os.Chtimes(empty, old, old))
	assert.NilError(t, Sweep())
	assert.Equal(t, there(t, top), 4)

	waited := make(chan error)
	go func() { waited <- Wait(dir) }()
	select {
	case err := <-waited:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	assert.NilError(t, remove())
	assert.NilError(t, <-waited)
	held, err = Held(dir)
	assert.NilError(t, err)
	assert.Assert(t, !held)
	assert.Equal(t, there(t, top), 3)
}
