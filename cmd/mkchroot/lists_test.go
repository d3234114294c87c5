package main

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"gotest.tools/v3/assert"
)

// TestListsDiffer: what apt writes anew without a change is none.
func TestListsDiffer(t *testing.T) {
	t.Parallel()
	put := func(layer, name, content string) {
		path := filepath.Join(layer, listsDir, name)
		assert.NilError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		assert.NilError(t, os.WriteFile(path, []byte(content), 0o644))
	}
	gone := func(layer, name string) {
		assert.NilError(t, os.MkdirAll(filepath.Join(layer, listsDir), 0o755))
		assert.NilError(t, unix.Mknod(filepath.Join(layer, listsDir, name), unix.S_IFCHR, 0)) // as overlayfs notes it
	}
	lists, base := t.TempDir(), t.TempDir()
	put(base, "a_InRelease", "old")
	put(base, "b_Packages", "b")
	put(base, "c_Packages", "c")
	put(lists, "a_InRelease", "new")
	gone(lists, "c_Packages")
	for name, row := range map[string]struct {
		change func(layer string)
		want   bool
	}{
		"nothing":              {func(string) {}, false},
		"lock and directories": {func(l string) { put(l, "lock", ""); put(l, "partial/x", "x"); put(l, "auxfiles/x", "x") }, false},
		"the same again":       {func(l string) { put(l, "a_InRelease", "new"); put(l, "b_Packages", "b") }, false},
		"as in the base":       {func(l string) { put(l, "a_InRelease", "old") }, true},
		"other content":        {func(l string) { put(l, "b_Packages", "B") }, true},
		"a new one":            {func(l string) { put(l, "d_Packages", "d") }, true},
		"one that was gone":    {func(l string) { put(l, "c_Packages", "c") }, true},
		"one less":             {func(l string) { gone(l, "b_Packages") }, true},
	} {
		t.Run(name, func(t *testing.T) {
			layer := t.TempDir()
			row.change(layer)
			got, err := listsDiffer(layer, []string{lists, base})
			assert.NilError(t, err)
			assert.Equal(t, got, row.want)
		})
	}
}

func TestHasNoFiles(t *testing.T) {
	t.Parallel()
	layer := t.TempDir()
	assert.NilError(t, os.MkdirAll(filepath.Join(layer, "tmp/empty"), 0o755))
	empty, err := hasNoFiles(layer)
	assert.NilError(t, err)
	assert.Assert(t, empty)
	assert.NilError(t, unix.Mknod(filepath.Join(layer, "tmp/hidden"), unix.S_IFCHR, 0))
	empty, err = hasNoFiles(layer)
	assert.NilError(t, err)
	assert.Assert(t, !empty)
	_, err = hasNoFiles(filepath.Join(layer, "gone"))
	assert.ErrorIs(t, err, os.ErrNotExist)
}
