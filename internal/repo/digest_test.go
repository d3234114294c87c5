package repo

import (
	"crypto/sha256"
	"os"
	"path/filepath"
	"testing"

	"gotest.tools/v3/assert"
)

func TestDigest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open := func(t *testing.T, path string) (*os.File, int64) {
		t.Helper()
		f, err := os.Open(path)
		assert.NilError(t, err)
		t.Cleanup(func() { _ = f.Close() })
		fi, err := f.Stat()
		assert.NilError(t, err)
		return f, fi.Size()
	}
	for _, size := range []int{0, 1, 4096, mapped - 1, mapped, mapped + 1, 3*mapped + 5000} {
		content := make([]byte, size)
		for i := range content {
			content[i] = byte(i * i >> 7)
		}
		path := filepath.Join(dir, "file")
		assert.NilError(t, os.WriteFile(path, content, 0o600))
		f, length := open(t, path)
		for _, head := range []int{0, 4096, size} {
			sum, err := digest(t.Context(), f, length, content[:min(head, size)], make([]byte, 8192))
			assert.NilError(t, err)
			assert.Equal(t, [sha256.Size]byte(sum), sha256.Sum256(content))
		}
		// It was longer when it was looked at.
		for _, more := range []int64{1, 8192, 2 * mapped} {
			_, err := digest(t.Context(), f, length+more, nil, make([]byte, 8192))
			if length < mapped || more > 4096 { // the last page is there, with zeros
				assert.ErrorIs(t, err, errChanged)
			}
		}
	}

	// sysfs does not map.
	f, length := open(t, "/sys/kernel/notes")
	content, err := os.ReadFile(f.Name())
	assert.NilError(t, err)
	sum, err := digest(t.Context(), f, length, nil, make([]byte, 8192))
	assert.NilError(t, err)
	assert.Equal(t, [sha256.Size]byte(sum), sha256.Sum256(content))
	_, err = digest(t.Context(), f, length+1, nil, make([]byte, 8192))
	assert.ErrorIs(t, err, errChanged)
}
