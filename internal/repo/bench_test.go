package repo

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

// BenchmarkIndex measures the index of a made pool: of nothing known, of one
// new package, and of nothing changed. scripts/bench compares it with
// apt-ftparchive.
func BenchmarkIndex(b *testing.B) {
	const packages = 1000
	dir := b.TempDir()
	for i := range packages {
		c := control(fmt.Sprintf("made%d-modules-6.1.0-%d-amd64", i%40, i/40), "1.0-1", "amd64")
		c.Set("Description", "a made package\n"+strings.Repeat(" of some length, as packages have it\n", 20)+" and this")
		writeDeb(b, filepath.Join(dir, fmt.Sprintf("%d.deb", i)), c, strings.Repeat("content", 1000))
	}
	b.Run("cold", func(b *testing.B) {
		for b.Loop() {
			assert.NilError(b, os.RemoveAll(filepath.Join(dir, privateDir)))
			_, err := index(b.Context(), dir, testOptions())
			assert.NilError(b, err)
		}
	})
	b.Run("new", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			b.StopTimer()
			writeDeb(b, filepath.Join(dir, "new.deb"), control("new", fmt.Sprint(i), "amd64"), "")
			b.StartTimer()
			_, err := index(b.Context(), dir, testOptions())
			assert.NilError(b, err)
		}
	})
	b.Run("unchanged", func(b *testing.B) {
		for b.Loop() {
			_, err := index(b.Context(), dir, testOptions())
			assert.NilError(b, err)
		}
	})
}
