package apt

import (
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

// TestCopyLists: only what fits its Release file is taken, in whichever form the host's
// apt keeps it.
func TestCopyLists(t *testing.T) {
	t.Parallel()
	from, to := t.TempDir(), t.TempDir()
	then := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	write := func(name string, content []byte) {
		path := filepath.Join(from, name)
		assert.NilError(t, os.WriteFile(path, content, 0o600))
		assert.NilError(t, os.Chtimes(path, then, then))
	}
	zipped := func(text string) []byte {
		path := filepath.Join(t.TempDir(), "zipped")
		f, err := os.Create(path)
		assert.NilError(t, err)
		w := gzip.NewWriter(f)
		_, err = w.Write([]byte(text))
		assert.NilError(t, err)
		assert.NilError(t, w.Close())
		assert.NilError(t, f.Close())
		content, err := os.ReadFile(path)
		assert.NilError(t, err)
		return content
	}
	release := func(lists map[string]string) []byte {
		text := "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nOrigin: x\nMD5Sum:\n 0 1 main/binary-amd64/Packages\nSHA256:\n"
		for key, list := range lists {
			text += fmt.Sprintf(" %x %d %s\n", sha256.Sum256([]byte(list)), len(list), key)
		}
		return []byte(text + "-----BEGIN PGP SIGNATURE-----\n")
	}
	const main, all, other, flat = "Package: a\n", "Package: b\n", "Package: c\n", "Package: d\n"
	write("example.org_debian_dists_x_InRelease", release(map[string]string{
		"main/binary-amd64/Packages": main, "main/binary-all/Packages": all,
		"contrib/binary-amd64/Packages": other, "non-free/binary-amd64/Packages": other,
	}))
	write("example.org_debian_dists_x_main_binary-amd64_Packages", []byte(main))
	write("example.org_debian_dists_x_main_binary-all_Packages.gz", zipped(all))
	write("example.org_debian_dists_x_contrib_binary-amd64_Packages", []byte("Package: older\n"))
	write("example.org_debian_dists_x_non-free_binary-amd64_Packages.gz", []byte("no gzip"))
	write("example.org_debian_dists_x_main_binary-arm64_Packages", []byte(main))
	write("example.org_flat_._InRelease", release(map[string]string{"Packages": flat}))
	write("example.org_flat_._Packages", []byte(flat))
	write("example.org_debian_dists_unwanted_InRelease", release(nil))
	write("_srv_debian_dists_x_InRelease", release(nil))

	n, err := CopyLists(t.Context(), from, []Source{
		{URI: "http://user@example.org/debian", Suite: "x", Components: []string{"main", "contrib", "non-free", "missing"}},
		{URI: "http://example.org/flat/", Suite: "./"},
		{URI: "http://example.org/debian", Suite: "never-fetched", Components: []string{"main"}},
		{URI: "file:/srv/debian", Suite: "x", Components: []string{"main"}},
	}, "amd64", to)
	assert.NilError(t, err)
	assert.Equal(t, n, 3)
	entries, err := os.ReadDir(to)
	assert.NilError(t, err)
	got := map[string]string{}
	for _, e := range entries {
		info, err := e.Info()
		assert.NilError(t, err)
		assert.Assert(t, info.ModTime().Equal(then), e.Name())
		content, err := os.ReadFile(filepath.Join(to, e.Name()))
		assert.NilError(t, err)
		if got[e.Name()] = string(content); strings.HasPrefix(string(content), "-----BEGIN") {
			got[e.Name()] = "a Release file"
		}
	}
	assert.DeepEqual(t, got, map[string]string{
		"example.org_debian_dists_x_InRelease":                  "a Release file",
		"example.org_debian_dists_x_main_binary-amd64_Packages": main,
		"example.org_debian_dists_x_main_binary-all_Packages":   all,
		"example.org_flat_._InRelease":                          "a Release file",
		"example.org_flat_._Packages":                           flat,
	})
}
