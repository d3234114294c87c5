package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gotest.tools/v3/assert"
)

// swapping exchanges two names of a directory all the time, until stopped or until
// one of them is gone, and says how often.
func swapping(one, two string) (stop func() int) {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	n := 0
	done.Go(func() {
		for ctx.Err() == nil && unix.Renameat2(unix.AT_FDCWD, one, unix.AT_FDCWD, two, unix.RENAME_EXCHANGE) == nil {
			n++
		}
	})
	return func() int {
		cancel()
		done.Wait()
		return n
	}
}

// TestRemoveWhileSwapped: a directory that becomes a link to elsewhere, and back,
// while the tree is removed, leads nowhere.
func TestRemoveWhileSwapped(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	outside := filepath.Join(dir, "outside")
	for i := range 20 {
		write(t, filepath.Join(outside, "sub", fmt.Sprint(i)), "kept")
	}
	before := list(t, outside)
	swaps, trees := 0, 0
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); trees++ {
		tree := create(t, dir)
		layer := tree.LayerPath("layer")
		for i := range 20 {
			write(t, filepath.Join(layer, "x/sub", fmt.Sprint(i)), "removed")
		}
		assert.NilError(t, os.Symlink(outside, filepath.Join(layer, "y")))
		// The tree gets another name when it is removed, and keeps its directories.
		at, err := os.Open(layer)
		assert.NilError(t, err)
		path := fmt.Sprintf("/proc/self/fd/%d/", at.Fd())
		stop := swapping(path+"x", path+"y")
		time.Sleep(time.Duration(trees%10) * 100 * time.Microsecond)
		err = tree.Remove()
		swaps += stop()
		at.Close()
		assert.NilError(t, err)
		assert.DeepEqual(t, list(t, outside), before)
	}
	assert.DeepEqual(t, names(t, filepath.Join(dir, "trees")), []string{})
	t.Logf("%d trees removed while a directory became a link and back %d times", trees, swaps)
	assert.Assert(t, swaps > trees, "%d swaps in %d trees", swaps, trees)
}

// TestRemoveAnother: the tree that is removed is the one that was opened, though its
// path leads elsewhere by then.
func TestRemoveAnother(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tree := create(t, filepath.Join(dir, "work"))
	name := filepath.Base(tree.Path)
	write(t, filepath.Join(dir, "other/trees", name, "precious"), "")
	assert.NilError(t, os.Rename(filepath.Join(dir, "work"), filepath.Join(dir, "moved")))
	for _, tt := range []struct {
		what   string
		change func() error
		want   error
	}{
		{"a link above it", func() error { return os.Symlink("other", filepath.Join(dir, "work")) }, unix.ELOOP},
		{"another directory", func() error {
			return errors.Join(os.Remove(filepath.Join(dir, "work")), os.Rename(filepath.Join(dir, "other"), filepath.Join(dir, "work")))
		}, ErrNoTree},
	} {
		assert.NilError(t, tt.change())
		assert.ErrorIs(t, tree.Remove(), tt.want, tt.what)
		_, err := os.Stat(filepath.Join(dir, "work/trees", name, "precious"))
		assert.NilError(t, err)
	}
}

// TestRemoveDeep: packages nest as deep as they like, deeper than paths and open
// files go.
func TestRemoveDeep(t *testing.T) {
	t.Parallel()
	tree := create(t, t.TempDir())
	at, err := unix.Open(filepath.Join(tree.Path, "layers"), unix.O_RDONLY, 0)
	assert.NilError(t, err)
	for range 2500 {
		assert.NilError(t, unix.Mkdirat(at, "nested", 0o755))
		next, err := unix.Openat(at, "nested", unix.O_RDONLY, 0)
		assert.NilError(t, err)
		unix.Close(at)
		at = next
	}
	unix.Close(at)
	assert.NilError(t, tree.Remove())
	assert.DeepEqual(t, names(t, filepath.Dir(tree.Path)), []string{})
}

// TestRemoveNoMounts: what is mounted is not entered, whether mountinfo was looked
// at before that or not, and a tree is no mount point itself.
func TestRemoveNoMounts(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Fatal("mounting needs root")
	}
	tree := create(t, t.TempDir())
	for _, point := range []string{filepath.Join(tree.Path, "records"), tree.Path} {
		assert.NilError(t, unix.Mount(tree.Path, point, "", unix.MS_BIND, ""))
		before := list(t, tree.Path)
		err := removeAll(filepath.Dir(point), filepath.Base(point))
		again := tree.Remove()
		after := list(t, tree.Path)
		assert.NilError(t, unix.Unmount(point, 0))
		assert.ErrorIs(t, err, errMounted)
		assert.ErrorIs(t, again, errMounted)
		assert.DeepEqual(t, after, before)
	}
	assert.NilError(t, tree.Remove())
}
