package rootfs

import (
	"bytes"
	"context"
	"dkms2bin/internal/sandbox"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"
	"gotest.tools/v3/poll"
)

func openCache(t *testing.T) *Cache {
	t.Helper()
	c, err := OpenCache(filepath.Join(t.TempDir(), "cache"))
	assert.NilError(t, err)
	return c
}

// maker counts how often an item with one file is made.
func maker(made *atomic.Int32, kind string, bytes int) Item {
	return Item{Kind: kind, About: "the " + kind, Make: func(dir string) error {
		made.Add(1)
		return os.WriteFile(filepath.Join(dir, "file"), make([]byte, bytes), 0o644)
	}}
}

func get(t *testing.T, c *Cache, it Item) *Entry {
	t.Helper()
	e, err := c.Get(t.Context(), it)
	assert.NilError(t, err)
	return e
}

// entries lists the kinds of what is in a cache.
func entries(t *testing.T, c *Cache) []string {
	t.Helper()
	var kinds []string
	for _, name := range names(t, filepath.Join(c.Path, "entries")) {
		kind, _, _ := strings.Cut(name, "-")
		kinds = append(kinds, kind)
	}
	return kinds
}

func TestCacheDir(t *testing.T) {
	dir, err := CacheDir("/x/../y")
	assert.NilError(t, err)
	assert.Equal(t, dir, "/y")
	dir, err = CacheDir("")
	assert.NilError(t, err)
	assert.Equal(t, filepath.Base(dir), "cache")
}

func TestOpenCacheRefuses(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name, says string
		prepare    func(dir string) error
	}{
		{"other files", "it is no cache", func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "letter"), nil, 0o644))
		}},
		{"writable by others", "others could write", func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o777))
		}},
		{"a file", "", func(dir string) error { return os.WriteFile(dir, nil, 0o644) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "cache")
			assert.NilError(t, row.prepare(dir))
			_, err := OpenCache(dir)
			assert.ErrorContains(t, err, "cannot use the cache")
			assert.ErrorContains(t, err, row.says)
			assert.Assert(t, !IsCache(dir))
		})
	}
}

func TestCacheGet(t *testing.T) {
	t.Parallel()
	c := openCache(t)
	var made atomic.Int32
	it := maker(&made, "base", 10)
	first := get(t, c, it)
	second := get(t, c, it)
	assert.Equal(t, made.Load(), int32(1))
	assert.Equal(t, first.Name, second.Name)
	it.Key = []string{"another"}
	third := get(t, c, it)
	assert.Assert(t, third.Name != first.Name)
	found, err := c.Find(t.Context(), it)
	assert.NilError(t, err)
	assert.Equal(t, found.Name, third.Name)
	it.Key = []string{"a third"}
	none, err := c.Find(t.Context(), it)
	assert.NilError(t, err)
	assert.Assert(t, none == nil)
	for _, e := range []*Entry{first, second, third, found, none} {
		assert.NilError(t, e.Close())
	}
	info, err := os.Stat(filepath.Join(c.Path, "entries"))
	assert.NilError(t, err)
	assert.Equal(t, info.Mode().Perm(), os.FileMode(0o700))
}

func TestRemember(t *testing.T) {
	t.Parallel()
	c := openCache(t)
	asked := 0
	ask := func(c *Cache, err error) ([]string, error) {
		return Remember(t.Context(), c, Item{Kind: "answer", About: "something"}, func() ([]string, error) {
			asked++
			return []string{"a", "b"}, err
		})
	}
	broken := errors.New("broken")
	_, err := ask(c, broken)
	assert.ErrorIs(t, err, broken)
	for range 2 {
		answer, err := ask(c, nil)
		assert.NilError(t, err)
		assert.DeepEqual(t, answer, []string{"a", "b"})
	}
	assert.Equal(t, asked, 2)
	answer, err := ask(nil, nil)
	assert.NilError(t, err)
	assert.DeepEqual(t, answer, []string{"a", "b"})
	assert.Equal(t, asked, 3)
}

// TestDebs: fetched packages come back, and a request that brings others has these from
// then on.
func TestDebs(t *testing.T) {
	t.Parallel()
	c := openCache(t)
	fetched := func(names ...string) string {
		dir := t.TempDir()
		assert.NilError(t, os.Mkdir(filepath.Join(dir, "partial"), 0o700))
		write(t, filepath.Join(dir, "lock"), "")
		for _, name := range names {
			write(t, filepath.Join(dir, name), "content of "+name)
		}
		return dir
	}
	given := func(request ...string) []string {
		dir := t.TempDir()
		assert.NilError(t, c.Give(t.Context(), request, dir))
		for _, name := range names(t, dir) {
			text, err := os.ReadFile(filepath.Join(dir, name))
			assert.NilError(t, err)
			assert.Equal(t, string(text), "content of "+name)
		}
		return names(t, dir)
	}
	assert.DeepEqual(t, given("install", "a=1"), []string{})
	assert.NilError(t, c.Take(t.Context(), []string{"install", "a=1"}, fetched("a_1_all.deb", "b_1_all.deb")))
	assert.DeepEqual(t, given("install", "a=1"), []string{"a_1_all.deb", "b_1_all.deb"})
	assert.DeepEqual(t, given("install", "a=2"), []string{})
	assert.NilError(t, c.Take(t.Context(), []string{"install", "a=1"}, fetched("a_1_all.deb", "b_2_all.deb")))
	assert.DeepEqual(t, given("install", "a=1"), []string{"a_1_all.deb", "b_2_all.deb"})
	assert.NilError(t, c.Trim())
	assert.Equal(t, len(entries(t, c)), 1)
}

func TestCacheMakeFails(t *testing.T) {
	t.Parallel()
	c := openCache(t)
	broken := errors.New("broken")
	_, err := c.Get(t.Context(), Item{Kind: "base", Make: func(string) error { return broken }})
	assert.ErrorIs(t, err, broken)
	assert.Equal(t, len(names(t, filepath.Join(c.Path, "making"))), 0)
	assert.Equal(t, len(entries(t, c)), 0)
}

// TestCacheDamage: what is not as it was made is never used again, and is made anew.
func TestCacheDamage(t *testing.T) {
	t.Parallel()
	const large = smallContent + 1
	for _, row := range []struct {
		name   string
		bytes  int
		damage func(e *Entry) error
	}{
		{"a file is gone", large, func(e *Entry) error { return os.Remove(filepath.Join(e.Content(), "file")) }},
		{"truncated", large, func(e *Entry) error { return os.Truncate(filepath.Join(e.Content(), "file"), 100) }},
		{"written to", large, func(e *Entry) error {
			later := time.Now().Add(5 * time.Second)
			return os.Chtimes(filepath.Join(e.Content(), "file"), later, later)
		}},
		{"mode", large, func(e *Entry) error { return os.Chmod(filepath.Join(e.Content(), "file"), 0o4755) }},
		{"a new file", large, func(e *Entry) error { return os.WriteFile(filepath.Join(e.Content(), "new"), nil, 0o644) }},
		{"no longer opaque", large, func(e *Entry) error {
			return unix.Lremovexattr(filepath.Join(e.Content(), "dir"), opaqueName)
		}},
		{"a bit of a small file, at the same time", 100, func(e *Entry) error {
			path := filepath.Join(e.Content(), "file")
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			return errors.Join(os.WriteFile(path, append(make([]byte, 99), 1), 0o644), os.Chtimes(path, info.ModTime(), info.ModTime()))
		}},
		{"no content", large, func(e *Entry) error { return os.RemoveAll(e.Content()) }},
		{"no description", large, func(e *Entry) error { return os.Remove(filepath.Join(e.path, entryFile)) }},
		{"half a description", large, func(e *Entry) error { return os.Truncate(filepath.Join(e.path, entryFile), 60) }},
		{"another layout", large, func(e *Entry) error {
			path := filepath.Join(e.path, entryFile)
			text, err := os.ReadFile(path)
			changed := strings.Replace(string(text), fmt.Sprintf(`"layout": %d`, cacheLayout), `"layout": 0`, 1)
			return errors.Join(err, os.WriteFile(path, []byte(changed), 0o600))
		}},
		{"of another key", large, func(e *Entry) error {
			path := filepath.Join(e.path, entryFile)
			text, err := os.ReadFile(path)
			changed := strings.Replace(string(text), `"key": "`, `"key": "0`, 1)
			return errors.Join(err, os.WriteFile(path, []byte(changed), 0o600))
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			c := openCache(t)
			var notices []string
			c.Notice = func(format string, args ...any) { notices = append(notices, fmt.Sprintf(format, args...)) }
			var made atomic.Int32
			it := maker(&made, "base", row.bytes)
			fill := it.Make
			it.Make = func(dir string) error {
				return errors.Join(fill(dir), os.Mkdir(filepath.Join(dir, "dir"), 0o755), Hide(dir, "dir"))
			}
			e := get(t, c, it)
			assert.NilError(t, e.Close())
			assert.NilError(t, row.damage(e))
			again := get(t, c, it)
			defer again.Close()
			assert.Equal(t, made.Load(), int32(2))
			assert.Assert(t, again.Name != e.Name)
			assert.Equal(t, len(entries(t, c)), 1)
			assert.Assert(t, len(notices) == 1 && strings.Contains(notices[0], "damaged"), "%q", notices)
			info, err := os.Stat(filepath.Join(again.Content(), "file"))
			assert.NilError(t, err)
			assert.Equal(t, info.Size(), int64(row.bytes))
		})
	}
}

// TestCacheAge: what is too old is made anew. What its user still has stays as long.
func TestCacheAge(t *testing.T) {
	t.Parallel()
	c := openCache(t)
	var made atomic.Int32
	it := maker(&made, "base", 10)
	it.MaxAge = time.Hour
	old := get(t, c, it)
	path := filepath.Join(old.path, entryFile)
	text, err := os.ReadFile(path)
	assert.NilError(t, err)
	d, err := old.describe()
	assert.NilError(t, err)
	past := strings.Replace(string(text), d.Until.Format(time.RFC3339Nano), "2020-01-02T03:04:05Z", 1)
	assert.NilError(t, os.WriteFile(path, []byte(past), 0o600))
	fresh := get(t, c, it)
	assert.Equal(t, made.Load(), int32(2))
	assert.NilError(t, c.Trim())
	assert.Equal(t, len(entries(t, c)), 2)
	assert.NilError(t, errors.Join(old.Close(), fresh.Close()))
	assert.NilError(t, c.Trim())
	assert.DeepEqual(t, names(t, filepath.Join(c.Path, "entries")), []string{fresh.Name})
}

func TestCacheCurrent(t *testing.T) {
	t.Parallel()
	c := openCache(t)
	var made atomic.Int32
	it := maker(&made, "lists", 10)
	current := true
	it.Current = func(*Entry) (bool, error) { return current, nil }
	first := get(t, c, it)
	second := get(t, c, it)
	assert.Equal(t, first.Name, second.Name)
	current = false
	third := get(t, c, it)
	assert.Assert(t, first.Name != third.Name)
	broken := errors.New("broken")
	it.Current = func(*Entry) (bool, error) { return false, broken }
	_, err := c.Get(t.Context(), it)
	assert.ErrorIs(t, err, broken)
	assert.NilError(t, errors.Join(first.Close(), second.Close(), third.Close()))
}

// TestCacheMakersWait: of many who want the same, one makes it.
func TestCacheMakersWait(t *testing.T) {
	t.Parallel()
	c := openCache(t)
	var made atomic.Int32
	it := maker(&made, "base", 10)
	fill := it.Make
	it.Make = func(dir string) error {
		time.Sleep(200 * time.Millisecond)
		return fill(dir)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			e, err := c.Get(t.Context(), it)
			if err == nil {
				err = e.Close()
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	assert.Equal(t, made.Load(), int32(1))
}

func TestCacheWaitEnds(t *testing.T) {
	t.Parallel()
	c := openCache(t)
	told := make(chan string, 1)
	c.Notice = func(format string, args ...any) { told <- fmt.Sprintf(format, args...) }
	it := Item{Kind: "base", About: "the base"}
	lock, err := c.lockKey(t.Context(), it)
	assert.NilError(t, err)
	defer lock.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		if text := <-told; !strings.Contains(text, "waiting for another run that makes the base") {
			t.Errorf("it says %q", text)
		}
		cancel()
	}()
	_, err = c.Get(ctx, it)
	assert.ErrorIs(t, err, context.Canceled)
}

// trimmed trims until the cache has what it should: what other tests start has the
// locks of all entries until it is another program, and so keeps them.
func trimmed(t *testing.T, c *Cache, want ...string) {
	t.Helper()
	poll.WaitOn(t, func(poll.LogT) poll.Result {
		if err := c.Trim(); err != nil {
			return poll.Error(err)
		}
		return poll.Compare(cmp.DeepEqual(entries(t, c), want))
	}, poll.WithTimeout(10*time.Second))
}

// TestCacheTrim: the longest unused goes first, never what is in use or named.
func TestCacheTrim(t *testing.T) {
	t.Parallel()
	c := openCache(t)
	var made atomic.Int32
	tree := create(t, t.TempDir())
	start := time.Now().Add(-time.Hour)
	take := func(i int, kind string) {
		it := maker(&made, kind, 1<<20)
		_, err := tree.TakeLayer(t.Context(), c, it, LayerSpec{Name: kind, Make: func(root sandbox.Root) error {
			return os.WriteFile(filepath.Join(root.Upper, "file"), make([]byte, 1<<20), 0o644)
		}})
		assert.NilError(t, err)
		when := start.Add(time.Duration(i) * time.Minute)
		assert.NilError(t, os.Chtimes(filepath.Join(c.Path, "entries", tree.LayerID(kind), "used"), when, when))
	}
	for i, kind := range []string{"named", "oldest", "older", "newest"} {
		take(i, kind)
	}
	for _, kind := range []string{"oldest", "older", "newest"} {
		assert.NilError(t, tree.RemoveLayer(kind))
	}
	using, err := c.Find(t.Context(), maker(&made, "older", 0))
	assert.NilError(t, err)
	used := filepath.Join(using.path, "used")
	assert.NilError(t, os.Chtimes(used, start, start))
	assert.NilError(t, c.Trim())
	assert.Equal(t, len(entries(t, c)), 4)
	assert.NilError(t, c.SetLimit(7<<19))
	trimmed(t, c, "named", "newest", "older")
	assert.NilError(t, c.SetLimit(0))
	trimmed(t, c, "named", "older")
	left, err := c.Empty()
	assert.NilError(t, err)
	assert.Equal(t, left, 2)
	assert.NilError(t, using.Close())
	assert.NilError(t, errors.Join(tree.Close(), tree.Remove()))
	left, err = c.Empty()
	assert.NilError(t, err)
	assert.Equal(t, left, 0)
	assert.Equal(t, len(names(t, filepath.Join(c.Path, "locks"))), 0)
}

// TestCacheOrphans: what stands on an entry goes with it.
func TestCacheOrphans(t *testing.T) {
	t.Parallel()
	c := openCache(t)
	var made atomic.Int32
	base := get(t, c, maker(&made, "base", 10))
	it := maker(&made, "headers", 10)
	it.On = base.Name
	headers := get(t, c, it)
	assert.NilError(t, errors.Join(base.Close(), headers.Close()))
	assert.NilError(t, c.Trim())
	assert.Equal(t, len(entries(t, c)), 2)
	assert.NilError(t, os.RemoveAll(base.path))
	assert.NilError(t, c.Trim())
	assert.Equal(t, len(entries(t, c)), 0)
}

// layer is where a layer of a tree really lies.
func layer(t *testing.T, tree *Tree, name string) string {
	t.Helper()
	path, err := os.Readlink(tree.LayerPath(name))
	assert.NilError(t, err)
	return path
}

// TestTakeLayer: a layer and its record are made once, for all trees.
func TestTakeLayer(t *testing.T) {
	t.Parallel()
	c := openCache(t)
	work := t.TempDir()
	times := 0
	takeIn := func(tree *Tree, c *Cache) (*Tree, bool) {
		made, err := tree.TakeLayer(t.Context(), c, Item{Kind: "base", About: "the base"}, LayerSpec{Name: "base", Make: func(root sandbox.Root) error {
			times++
			dir, err := tree.Record("base")
			if err != nil {
				return err
			}
			write(t, filepath.Join(dir, "facts"), "known")
			write(t, filepath.Join(root.Upper, "file"), "content")
			return nil
		}})
		assert.NilError(t, err)
		assert.Assert(t, tree.HasLayer("base"))
		for path, content := range map[string]string{"layers/base/file": "content", "records/base/facts": "known"} {
			text, err := os.ReadFile(filepath.Join(tree.Path, path))
			assert.NilError(t, err)
			assert.Equal(t, string(text), content)
		}
		return tree, made
	}
	take := func(c *Cache) (*Tree, bool) { return takeIn(create(t, work), c) }
	first, made := take(c)
	assert.Assert(t, made)
	second, made := take(c)
	assert.Assert(t, !made)
	assert.Equal(t, times, 1)
	assert.Equal(t, first.LayerID("base"), second.LayerID("base"))
	own, made := take(nil)
	assert.Assert(t, made)
	assert.Equal(t, own.LayerID("base"), "")
	of, err := own.Cache("base")
	assert.NilError(t, err)
	assert.Assert(t, of == nil)
	// Whoever removes an entry by hand has it made again.
	assert.NilError(t, os.RemoveAll(filepath.Dir(filepath.Dir(layer(t, first, "base")))))
	assert.Assert(t, !first.HasLayer("base"))
	for _, tree := range []*Tree{first, second} {
		_, again := takeIn(tree, c)
		assert.Equal(t, again, tree == first)
	}
	of, err = second.Cache("base")
	assert.NilError(t, err)
	assert.Equal(t, of.Path, c.Path)

	// The removal of a tree leaves what it links to.
	refs := func() int {
		return len(names(t, filepath.Join(filepath.Dir(filepath.Dir(layer(t, second, "base"))), "trees")))
	}
	assert.Equal(t, refs(), 2)
	assert.NilError(t, errors.Join(first.Close(), first.Remove()))
	assert.NilError(t, c.SetLimit(0))
	assert.NilError(t, c.Trim())
	assert.Equal(t, refs(), 1)
	text, err := os.ReadFile(filepath.Join(second.LayerPath("base"), "file"))
	assert.NilError(t, err)
	assert.Equal(t, string(text), "content")
	assert.NilError(t, errors.Join(second.Close(), second.Remove(), own.Close(), own.Remove()))
	assert.NilError(t, c.Trim())
	assert.Equal(t, len(entries(t, c)), 0)
}

// TestTakeLayerKeep: what is not to be kept stays in the tree alone, and is made again.
func TestTakeLayerKeep(t *testing.T) {
	t.Parallel()
	elsewhere, err := os.MkdirTemp("/dev/shm", "rootfs-")
	assert.NilError(t, err)
	t.Cleanup(func() { assert.NilError(t, removeAll("/dev/shm", filepath.Base(elsewhere))) })
	for name, work := range map[string]string{"beside the cache": t.TempDir(), "on another file system": elsewhere} {
		t.Run(name, func(t *testing.T) {
			c := openCache(t)
			times := 0
			old := time.Now().Add(-time.Hour).Truncate(time.Second)
			take := func(keep bool) *Tree {
				tree := create(t, work)
				_, err := tree.TakeLayer(t.Context(), c, Item{Kind: "build", About: "the build"}, LayerSpec{
					Name: "build",
					Make: func(root sandbox.Root) error {
						times++
						dir, err := tree.Record("build")
						assert.NilError(t, err)
						write(t, filepath.Join(dir, "archive"), "record")
						assert.NilError(t, os.Chtimes(filepath.Join(dir, "archive"), old, old))
						write(t, filepath.Join(root.Upper, "file"), "layer")
						return nil
					},
					Keep: func() bool { return keep },
				})
				assert.NilError(t, err)
				for path, content := range map[string]string{"layers/build/file": "layer", "records/build/archive": "record"} {
					text, err := os.ReadFile(filepath.Join(tree.Path, path))
					assert.NilError(t, err)
					assert.Equal(t, string(text), content)
				}
				info, err := os.Stat(filepath.Join(tree.Path, "records/build/archive"))
				assert.NilError(t, err)
				assert.Assert(t, info.ModTime().Equal(old))
				return tree
			}
			trees := []*Tree{take(false), take(false)}
			assert.Equal(t, times, 2)
			assert.Equal(t, trees[1].LayerID("build"), "")
			assert.Equal(t, len(entries(t, c)), 0)
			trees = append(trees, take(true), take(false))
			assert.Equal(t, times, 3)
			assert.Equal(t, trees[2].LayerID("build"), trees[3].LayerID("build"))
			assert.Assert(t, trees[3].LayerID("build") != "")
			for _, tree := range trees {
				assert.NilError(t, errors.Join(tree.Close(), tree.Remove()))
			}
			assert.NilError(t, errors.Join(c.SetLimit(0), c.Trim()))
			assert.Equal(t, len(entries(t, c)), 0)
		})
	}
}

// TestKilledMakers: processes that are killed while they make entries leave nothing
// that counts, and what they leave is removed.
func TestKilledMakers(t *testing.T) {
	t.Parallel()
	c := openCache(t)
	for i := range 20 {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", c.Path)
		cmd.Env = append(os.Environ(), roleVar+"=cache", "GORACE=atexit_sleep_ms=0")
		assert.NilError(t, cmd.Start())
		time.Sleep(time.Duration(10+i*7) * time.Millisecond)
		assert.NilError(t, cmd.Process.Kill())
		_ = cmd.Wait()
	}
	for _, name := range names(t, filepath.Join(c.Path, "entries")) {
		e, err := c.open(name)
		assert.NilError(t, err)
		d, err := e.describe()
		assert.NilError(t, err)
		digest, _, err := contentDigest(e.Content())
		assert.NilError(t, err)
		assert.Equal(t, digest, d.Digest)
		assert.NilError(t, e.Close())
	}
	left, err := c.Empty()
	assert.NilError(t, err)
	assert.Equal(t, left, 0)
	assert.Equal(t, len(names(t, filepath.Join(c.Path, "making"))), 0)
}

// TestForesee: what is looked at before it is asked for is used when it is good, and
// what is damaged is not.
func TestForesee(t *testing.T) {
	t.Parallel()
	c := openCache(t)
	var made atomic.Int32
	base, headers, other := maker(&made, "base", 10), maker(&made, "headers", 20), maker(&made, "other", 30)
	for _, it := range []Item{base, headers, other} {
		assert.NilError(t, get(t, c, it).Close())
	}
	next, err := OpenCache(c.Path)
	assert.NilError(t, err)
	assert.NilError(t, next.Foresee("base", "headers"))
	for _, it := range []Item{base, headers, other} {
		assert.NilError(t, get(t, next, it).Close())
	}
	assert.Equal(t, made.Load(), int32(3))
	foreseen := 0
	next.foreseen.Range(func(any, any) bool { foreseen++; return true })
	assert.Equal(t, foreseen, 2)

	e := get(t, next, headers)
	assert.NilError(t, os.WriteFile(filepath.Join(e.Content(), "file"), []byte("damaged"), 0o644))
	assert.NilError(t, e.Close())
	last, err := OpenCache(c.Path)
	assert.NilError(t, err)
	assert.NilError(t, last.Foresee("base", "headers"))
	for _, it := range []Item{base, headers} {
		assert.NilError(t, get(t, last, it).Close())
	}
	assert.Equal(t, made.Load(), int32(4))
}

// makeForever makes and evicts entries until it is killed.
func makeForever(dir string) error {
	c, err := OpenCache(dir)
	for i := 0; err == nil; i++ {
		var e *Entry
		e, err = c.Get(context.Background(), Item{Kind: "x", Key: []string{fmt.Sprint(i % 3)}, Make: func(dir string) error {
			for f := range 50 {
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(f)), make([]byte, 5000), 0o644); err != nil {
					return err
				}
			}
			return nil
		}})
		if err == nil {
			err = errors.Join(e.Close(), c.shrink(1<<18))
		}
	}
	return err
}

// FuzzEntry: whatever a damaged entry says of itself, it is either used as it was made
// or not at all.
func FuzzEntry(f *testing.F) {
	it := Item{Kind: "kind", Key: []string{"key"}}
	e := &Entry{path: f.TempDir()}
	assert.NilError(f, os.MkdirAll(e.Content(), 0o755))
	digest, _, err := contentDigest(e.Content())
	assert.NilError(f, err)
	good := fmt.Sprintf(`{"layout":%d,"key":%q,"digest":%q,"made":%q}`, cacheLayout, fullKey(it), digest, time.Now().UTC().Format(time.RFC3339))
	for _, text := range []string{good, good[:40], "{}", "null", "[]", `{"layout":1e400}`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		assert.NilError(t, os.WriteFile(filepath.Join(e.path, entryFile), text, 0o600))
		if e.check(it, new(Cache).digest) == nil {
			assert.Assert(t, bytes.Contains(text, []byte(fullKey(it))) || bytes.Contains(text, []byte(`\u`)))
		}
	})
}

func TestContentDigestLinks(t *testing.T) {
	t.Parallel()
	digest := func(target string) string {
		dir := t.TempDir()
		assert.NilError(t, os.Symlink(target, filepath.Join(dir, "link")))
		assert.NilError(t, unix.Lutimes(filepath.Join(dir, "link"), []unix.Timeval{{Sec: 1}, {Sec: 1}}))
		digest, _, err := contentDigest(dir)
		assert.NilError(t, err)
		return digest
	}
	assert.Equal(t, digest("gcc-12"), digest("gcc-12"))
	assert.Assert(t, digest("gcc-12") != digest("gcc-13"))
}
