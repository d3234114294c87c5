//go:build e2e

package e2e

import (
	"context"
	"dkms2bin/internal/state"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gotest.tools/v3/assert"
)

// cached are the entries of a cache of one kind.
func cached(t *testing.T, cache, kind string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(cache, "entries", kind+"-*"))
	assert.NilError(t, err)
	return found
}

// layerOf is where a layer of a document's tree really lies.
func layerOf(t *testing.T, doc *state.Document, name string) string {
	t.Helper()
	path, err := filepath.EvalSymlinks(filepath.Join(doc.Tree.Path, "layers", name))
	assert.NilError(t, err)
	return path
}

// TestCache follows one cache from its beginning to its end: concurrent first runs,
// nothing new, a new package, a new kernel, damage, and what is in use.
func TestCache(t *testing.T) {
	t.Parallel()
	work, repository := t.TempDir(), t.TempDir()
	cache := filepath.Join(work, "cache")
	dkmsDeb(t, repository, "own-dkms", "1", "", "")
	index(t, repository, "own")
	args := []string{"--work-dir", work, "--cache-dir", cache, "--base", sharedBase(t), "--kver", currentKernel(t, "amd64"), "--repo"}
	for _, s := range ownSources(t) {
		args = append(args, oneLine(s, s.URI))
	}
	args = append(args, "deb [trusted=yes] file:"+repository+" ./")
	make := func(more ...string) result {
		return command{name: "mkchroot", args: append(slices.Clone(args), more...)}.run(t)
	}
	// installed counts the packages that apt set up for a tree.
	installed := func(r result) int {
		log, err := os.ReadFile(r.doc.Tree.Log)
		assert.NilError(t, err)
		return strings.Count(string(log), "\nSetting up ")
	}
	version := func(r result) string {
		built := command{name: "dkmsbuild", stdin: r.raw, args: []string{"--dkms", "own-dkms"}}.run(t).mustExit(t, 0)
		return versionOf(t, built.doc, "own-dkms")
	}
	remove := func(r result) { command{name: "rmchroot", stdin: r.raw}.run(t).mustExit(t, 0) }

	var firsts [2]result
	var both sync.WaitGroup
	for i := range firsts {
		both.Go(func() { firsts[i] = make() })
	}
	both.Wait()
	for _, r := range firsts {
		r.mustExit(t, 0)
		assert.Equal(t, layerOf(t, r.doc, "base"), layerOf(t, firsts[0].doc, "base"))
		assert.Equal(t, layerOf(t, r.doc, r.doc.Kernels[0].Layer), layerOf(t, firsts[0].doc, firsts[0].doc.Kernels[0].Layer))
	}
	assert.Equal(t, len(cached(t, cache, "base")), 1)
	assert.Equal(t, len(cached(t, cache, "headers")), 1)
	remove(firsts[0])

	// Who waits for another run for more than a moment says so.
	key, _, _ := strings.Cut(filepath.Base(cached(t, cache, "base")[0]), ".")
	lock, err := os.OpenFile(filepath.Join(cache, "locks", key), os.O_CREATE|os.O_RDWR, 0o600)
	assert.NilError(t, err)
	assert.NilError(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	time.AfterFunc(10*time.Second, func() { lock.Close() })
	second := make().mustExit(t, 0).mustSay(t, "mkchroot: waiting for another run that makes the base system")
	third := make().mustExit(t, 0)
	assert.Equal(t, installed(second)+installed(third), 0)
	assert.Equal(t, layerOf(t, second.doc, "lists"), layerOf(t, third.doc, "lists"))
	// Only what belongs to the tree itself is another one.
	same := func(d *state.Document) string {
		copied := *d
		tree := *d.Tree
		copied.Tree, tree.Created = &tree, time.Time{}
		text, err := copied.Encode()
		assert.NilError(t, err)
		return strings.ReplaceAll(string(text), filepath.Base(d.Tree.Path), "TREE")
	}
	assert.Equal(t, same(second.doc), same(third.doc))
	assert.Equal(t, version(third), "1")

	// A new version in a repository is seen at once, and the base system stays.
	dkmsDeb(t, repository, "own-dkms", "2", "", "")
	index(t, repository, "own")
	fourth := make().mustExit(t, 0)
	assert.Equal(t, version(fourth), "2")
	assert.Equal(t, layerOf(t, fourth.doc, "base"), layerOf(t, third.doc, "base"))
	assert.Assert(t, layerOf(t, fourth.doc, "lists") != layerOf(t, third.doc, "lists"))
	assert.Equal(t, version(third), "1") // as it was
	fifth := make().mustExit(t, 0)
	assert.Equal(t, layerOf(t, fifth.doc, "lists"), layerOf(t, fourth.doc, "lists"))
	remove(fifth)

	// --no-cache neither reads nor writes.
	before := leftInCache(cache)
	fresh := make("--no-cache").mustExit(t, 0)
	assert.Assert(t, installed(fresh) > 0)
	assert.Assert(t, strings.HasPrefix(layerOf(t, fresh.doc, "base"), fresh.doc.Tree.Path))
	assert.DeepEqual(t, leftInCache(cache), before)
	remove(fresh)

	// Another kernel costs its headers alone.
	other := make("--kver", currentKernel(t, "cloud-amd64")).mustExit(t, 0)
	assert.Equal(t, len(other.doc.Kernels), 2)
	assert.Equal(t, len(cached(t, cache, "headers")), 2)
	assert.Equal(t, len(cached(t, cache, "base")), 1)
	remove(other)

	// What is damaged is made anew; a tree that has it keeps it.
	assert.NilError(t, os.Truncate(filepath.Join(layerOf(t, third.doc, third.doc.Kernels[0].Layer), "usr/src", third.doc.Kernels[0].Headers, "Module.symvers"), 1000))
	mended := make().mustExit(t, 0).mustSay(t, "the headers of "+third.doc.Kernels[0].Release+" in the cache is damaged")
	assert.Assert(t, layerOf(t, mended.doc, mended.doc.Kernels[0].Layer) != layerOf(t, third.doc, third.doc.Kernels[0].Layer))
	// Their packages are not fetched again.
	log, err := os.ReadFile(mended.doc.Tree.Log)
	assert.NilError(t, err)
	assert.Assert(t, strings.Contains(string(log), "Unpacking linux-headers-"), string(log))
	assert.Assert(t, !regexp.MustCompile(`(?m)^Get:.*linux-headers-`).Match(log), string(log))
	assert.Equal(t, version(mended), "2")

	// What trees have stays, and they work on.
	command{name: "rmchroot", args: []string{"--cache", "--cache-dir", cache}}.run(t).mustExit(t, 0).mustSay(t, "are in use and stay")
	assert.Equal(t, len(cached(t, cache, "base")), 1)
	assert.Equal(t, version(mended), "2")
	for _, r := range []result{firsts[1], second, third, fourth, mended} {
		remove(r)
	}
	command{name: "rmchroot", args: []string{"--cache", "--cache-dir", cache}}.run(t).mustExit(t, 0)
	assert.DeepEqual(t, leftInCache(cache), []string(nil))
	noTrees(t, work)
}

// TestCachedBuilds: what was built before of the same comes from the cache, in the same
// bytes, and what is not there or damaged is built, upon what comes from there.
func TestCachedBuilds(t *testing.T) {
	t.Parallel()
	tree := sharedTree(t)
	kver := shared.doc.Kernels[0].Release
	excluded, broken := goodModule("excludedtoo"), goodModule("brokentoo")
	excluded["dkms.conf"] += "BUILD_EXCLUSIVE_KERNEL=\"^2\\.4\"\n"
	broken["brokentoo.c"] = "#error broken\n"
	good := []string{source(t, "uppermost", exporter("uppermost", []string{"lowermost"}, "lowermost")), source(t, "lowermost", exporter("lowermost", nil))}
	others := []string{source(t, "excludedtoo", excluded), source(t, "brokentoo", broken)}
	build := func(args ...string) result {
		return command{name: "dkmsbuild", stdin: tree, args: append([]string{"--kver", kver, "--dkms"}, args...)}.run(t)
	}
	packages := func(r result) []string {
		out := t.TempDir()
		command{name: "debextract", stdin: r.raw, args: []string{"--out-dir", out}}.run(t).mustExit(t, r.code)
		made := digests(t, out)
		assert.Equal(t, len(made), 2)
		return made
	}

	first := build(append(good, others...)...).mustExit(t, state.ExitIncomplete)
	assert.Assert(t, !strings.Contains(first.stderr, "from the cache"), first.stderr)
	second := build(append(good, others...)...).mustExit(t, state.ExitIncomplete).mustSay(t, "\ndkmsbuild: builds from the cache: 3 of 4\n")
	// But for the names that each run has for layers, and for the one that failed, which
	// was tried again at another time, the documents are the same.
	ofBroken := regexp.MustCompile(`(?s)"module": "brokentoo".*?\}`)
	plain := func(r result) string {
		assert.Assert(t, ofBroken.Match(r.raw))
		return regexp.MustCompile(`build-[0-9a-f]+`).ReplaceAllString(ofBroken.ReplaceAllString(string(r.raw), ""), "build")
	}
	assert.Equal(t, plain(second), plain(first))
	for _, name := range []string{"lowermost", "excludedtoo"} {
		assert.Assert(t, sameContent(t, findBuild(t, first.doc, name, kver).Log, findBuild(t, second.doc, name, kver).Log))
	}
	assert.DeepEqual(t, packages(second), packages(first))

	archive := filepath.Join(layerOf(t, second.doc, findBuild(t, second.doc, "uppermost", kver).Layer), "../record/uppermost-1.0-"+kver+".dkms.tar.gz")
	assert.NilError(t, os.Truncate(archive, 100))
	mended := build(good...).mustExit(t, 0).mustSay(t, "the build of uppermost 1.0 for "+kver+" in the cache is damaged", "builds from the cache: 1 of 2\n")
	assert.DeepEqual(t, packages(mended), packages(first))
	fresh := build(append(good, "--no-cache")...).mustExit(t, 0)
	assert.Assert(t, !strings.Contains(fresh.stderr, "from the cache"), fresh.stderr)
	assert.DeepEqual(t, packages(fresh), packages(first))
}

// TestCacheLimit: a cache that may keep nothing keeps what the tree has, and no more.
func TestCacheLimit(t *testing.T) {
	t.Parallel()
	work := t.TempDir()
	cache := filepath.Join(work, "cache")
	make := func() result {
		return command{name: "mkchroot", args: []string{
			"--work-dir", work, "--cache-dir", cache, "--cache-size", "1M", "--base", sharedBase(t), "--kver", currentKernel(t, "amd64"),
		}}.run(t).mustExit(t, 0)
	}
	first := make()
	assert.Equal(t, len(cached(t, cache, "*")), 2)
	command{name: "dkmsbuild", stdin: first.raw, args: []string{"--dkms", "bbswitch-dkms"}}.run(t).mustExit(t, 0)
	assert.Equal(t, len(cached(t, cache, "package")), 1)
	assert.Equal(t, len(cached(t, cache, "debs"))+len(cached(t, cache, "answer")), 0) // which no tree has
	command{name: "rmchroot", stdin: first.raw}.run(t).mustExit(t, 0)
	assert.Equal(t, len(cached(t, cache, "package")), 1)
	second := make()
	assert.Equal(t, len(cached(t, cache, "*")), 2)
	command{name: "rmchroot", stdin: second.raw}.run(t).mustExit(t, 0)
	noTrees(t, work)
}

// TestCacheKilled: runs that are killed at any moment leave a cache that is good,
// and what they left half made goes.
func TestCacheKilled(t *testing.T) {
	t.Parallel()
	kills := 3
	if os.Getenv("DKMS2BIN_NIGHTLY") != "" {
		kills = 200
	}
	work := t.TempDir()
	cache := filepath.Join(work, "cache")
	args := []string{"--work-dir", work, "--cache-dir", cache, "--base", sharedBase(t), "--kver", currentKernel(t, "amd64")}
	for i := range kills {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		cmd := command{name: "mkchroot", args: args}.command(ctx)
		assert.NilError(t, cmd.Start())
		time.Sleep(time.Duration(rand.N(int64(12 * time.Second))))
		assert.NilError(t, cmd.Process.Kill())
		_ = cmd.Wait()
		cancel()
		if i%10 == 9 { // begin from nothing
			command{name: "rmchroot", args: []string{"--stale", "--older-than", "1ms", "--work-dir", work, "--cache", "--cache-dir", cache}}.run(t).mustExit(t, 0)
		}
	}
	r := command{name: "mkchroot", args: args}.run(t).mustExit(t, 0)
	making, err := filepath.Glob(filepath.Join(cache, "making", "*"))
	assert.NilError(t, err)
	assert.Equal(t, len(making), 0, "%v", making)
	command{name: "dkmsbuild", stdin: r.raw, args: []string{"--dkms", "bbswitch-dkms"}}.run(t).mustExit(t, 0)
	command{name: "rmchroot", stdin: r.raw}.run(t).mustExit(t, 0)
	command{name: "rmchroot", args: []string{"--stale", "--older-than", "1ms", "--work-dir", work, "--cache", "--cache-dir", cache}}.run(t).mustExit(t, 0)
	assert.DeepEqual(t, leftInCache(cache), []string(nil))
	noTrees(t, work)
	assert.DeepEqual(t, processes(work), []string(nil))
}

// TestCacheFull: a disk that is full while the base system is made leaves nothing.
func TestCacheFull(t *testing.T) {
	t.Parallel()
	work := t.TempDir()
	disk := smallDisk(t, "1200m")
	cache := filepath.Join(disk, "cache")
	args := []string{"--work-dir", work, "--cache-dir", cache, "--base", sharedBase(t)}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := command{name: "mkchroot", args: args}.command(ctx)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	assert.NilError(t, cmd.Start())
	waitFor(t, func() bool {
		found, _ := filepath.Glob(filepath.Join(cache, "making", "*", "content", "layer", "usr"))
		return len(found) > 0
	})
	assert.Assert(t, exec.Command("sh", "-c", `cat /dev/zero >"$1/fill"`, "sh", disk).Run() != nil)
	_ = cmd.Wait()
	assert.Equal(t, cmd.ProcessState.ExitCode(), state.ExitError)
	assert.Assert(t, strings.Contains(strings.ToLower(stderr.String()), "no space left"), stderr.String())
	assert.Equal(t, len(cached(t, cache, "*")), 0)
	command{name: "mkchroot", args: args}.run(t).mustExit(t, 1).mustSay(t, "no space left for a tree in "+cache, "hint: --cache-dir names another place")
	assert.NilError(t, os.Remove(filepath.Join(disk, "fill")))
	trees, err := filepath.Glob(filepath.Join(work, "trees", "*"))
	assert.NilError(t, err)
	command{name: "rmchroot", args: trees}.run(t).mustExit(t, 0)
	noTrees(t, work)
	var st unix.Statfs_t
	assert.NilError(t, unix.Statfs(disk, &st))
	assert.Assert(t, int64(st.Blocks-st.Bfree)*st.Bsize < 1<<20, "something is left in the cache")
}

// TestCurrentLists: a repository that publishes the very Release file of which the lists
// are in the cache is asked for that alone; a new one is seen at once, and one that is
// broken too.
func TestCurrentLists(t *testing.T) {
	t.Parallel()
	work, repository := t.TempDir(), t.TempDir()
	env := signingKey(t)
	publish := func(version string) {
		dkmsDeb(t, repository, "own-dkms", version, "", "")
		command{name: "repoindex", env: env, args: []string{"--sign-with", "modules@example.org", repository}}.run(t).mustExit(t, 0)
	}
	publish("1")
	var mu sync.Mutex
	var asked []string
	broken, older := false, false
	files := http.FileServer(http.Dir(repository))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, path.Base(r.URL.Path))
		switch {
		case broken:
			garbage(w, r)
			return
		case older && strings.HasSuffix(r.URL.Path, "/InRelease"):
			http.NotFound(w, r)
			return
		}
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	args := []string{"--work-dir", work, "--cache-dir", filepath.Join(work, "cache"), "--base", sharedBase(t), "--kver", currentKernel(t, "amd64"), "--repo"}
	for _, s := range ownSources(t) {
		args = append(args, oneLine(s, s.URI))
	}
	args = append(args, "deb [signed-by="+filepath.Join(repository, "dkms2bin.asc")+"] "+server.URL+" ./")
	// look makes a tree, in which there is this version of the package, if that is not
	// "", and returns what the repository was asked for.
	look := func(version string) []string {
		mu.Lock()
		asked = nil
		mu.Unlock()
		r := command{name: "mkchroot", args: args}.run(t).mustExit(t, 0)
		mu.Lock()
		list := slices.Clone(asked)
		mu.Unlock()
		if version != "" {
			r = command{name: "dkmsbuild", stdin: r.raw, args: []string{"--dkms", "own-dkms"}}.run(t).mustExit(t, 0)
			assert.Equal(t, versionOf(t, r.doc, "own-dkms"), version)
		}
		command{name: "rmchroot", stdin: r.raw}.run(t).mustExit(t, 0)
		return list
	}
	list := look("")
	assert.Assert(t, len(list) > 1, list)
	assert.DeepEqual(t, look("1"), []string{"InRelease"}) // those of the base system
	assert.DeepEqual(t, look(""), []string{"InRelease"})  // and of the layer that says so

	publish("2")
	list = look("2")
	assert.Assert(t, len(list) > 2, list)
	assert.DeepEqual(t, look(""), []string{"InRelease"})

	// Where it publishes the older form alone, apt has to look, each time.
	mu.Lock()
	older = true
	mu.Unlock()
	for range 2 {
		list = look("")
		assert.Assert(t, slices.Contains(list, "Release"), list)
	}
	mu.Lock()
	broken = true
	mu.Unlock()
	failed := command{name: "mkchroot", args: args}.run(t).mustExit(t, 1).mustSay(t, server.URL)
	command{name: "rmchroot", stdin: failed.raw}.run(t).mustExit(t, 1)
	noTrees(t, work)
}
