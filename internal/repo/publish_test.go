package repo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

// released is a run at a time after testDate, and the digest of its Packages.
func released(t *testing.T, dir string, minutes int) (Result, string) {
	t.Helper()
	opt := testOptions()
	opt.Date = testDate.Add(time.Duration(minutes) * time.Minute)
	res, err := index(t.Context(), dir, opt)
	assert.NilError(t, err)
	return res, hexDigest([]byte(read(t, dir, "Packages")))
}

func sweep(t *testing.T, dir string, unneeded []string, grace time.Duration) []string {
	t.Helper()
	r, err := Open(t.Context(), dir, nil)
	assert.NilError(t, err)
	removed, err := r.Sweep(unneeded, func(string) bool { return false }, grace)
	assert.NilError(t, errors.Join(err, r.Close()))
	return removed
}

func TestByHash(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var digests []string
	for i := range 5 {
		writeDeb(t, filepath.Join(dir, fmt.Sprintf("p%d.deb", i)), control(fmt.Sprintf("pp%d", i), "1", "amd64"), "")
		res, digest := released(t, dir, i)
		assert.Assert(t, res.Changed)
		digests = append(digests, digest)
		for _, ext := range []string{"", ".gz", ".zst"} {
			digest := hexDigest([]byte(read(t, dir, "Packages"+ext)))
			assert.Equal(t, read(t, dir, byHash(digest)), read(t, dir, "Packages"+ext))
		}
		assert.Equal(t, len(sweep(t, dir, nil, time.Hour)), 0) // a client may have the old Release
	}
	entries, err := os.ReadDir(filepath.Join(dir, byHashDir))
	assert.NilError(t, err)
	assert.Equal(t, len(entries), 15)
	// The last three generations stay whatever their age.
	sweep(t, dir, nil, 0)
	entries, err = os.ReadDir(filepath.Join(dir, byHashDir))
	assert.NilError(t, err)
	assert.Equal(t, len(entries), 9)
	for i, digest := range digests {
		_, err := os.Stat(filepath.Join(dir, byHash(digest)))
		assert.Equal(t, err == nil, i >= 2, "%d: %v", i, err)
	}
	v, err := Verify(t.Context(), dir, nil)
	assert.NilError(t, err)
	assert.Equal(t, len(v.Problems), 0, "%q", v.Problems)
	assert.Equal(t, v.Packages, 5)
}

// What is there and good is not written again.
func TestUnchanged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	old := time.Now().Add(-time.Hour)
	for i := range 3 {
		path := filepath.Join(dir, fmt.Sprintf("p%d.deb", i))
		writeDeb(t, path, control(fmt.Sprintf("pp%d", i), "1", "amd64"), "")
		assert.NilError(t, os.Chtimes(path, old, old))
	}
	assert.NilError(t, os.WriteFile(filepath.Join(dir, "broken.deb"), nil, 0o644))
	first, _ := released(t, dir, 0)
	assert.Assert(t, first.Changed)
	release := read(t, dir, "Release")
	same := func() {
		t.Helper()
		again, _ := released(t, dir, 1)
		assert.Assert(t, !again.Changed)
		again.Changed = true
		assert.DeepEqual(t, again, first)
		assert.Equal(t, read(t, dir, "Release"), release)
	}
	same()
	assert.NilError(t, os.Chtimes(filepath.Join(dir, "p1.deb"), time.Now(), time.Now())) // read again, says the same
	same()
	assert.NilError(t, os.Remove(filepath.Join(dir, cacheName)))
	same()

	for minute, damage := range []func(){
		func() { assert.NilError(t, os.Remove(filepath.Join(dir, "Packages.gz"))) },
		func() { assert.NilError(t, os.WriteFile(filepath.Join(dir, "Packages"), []byte("?"), 0o644)) },
		func() { assert.NilError(t, os.RemoveAll(filepath.Join(dir, "by-hash"))) },
		func() { assert.NilError(t, os.WriteFile(filepath.Join(dir, stateName), []byte("{"), 0o644)) },
		func() { assert.NilError(t, os.Remove(filepath.Join(dir, "dkms2bin.sources"))) },
	} {
		packages := read(t, dir, "Packages")
		damage()
		res, _ := released(t, dir, minute+2)
		assert.Assert(t, res.Changed, "%d", minute)
		if minute != 1 {
			assert.Equal(t, read(t, dir, "Packages"), packages)
		}
		v, err := Verify(t.Context(), dir, nil)
		assert.NilError(t, err)
		assert.Equal(t, len(v.Problems), 0, "%q", v.Problems)
	}
}

// What tells of the index is published with it: not before all is ready, and by the
// next run when it is missing because one was killed.
func TestBeside(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	opt := testOptions()
	opt.Beside = func(res Result) map[string][]byte {
		return map[string][]byte{"page": fmt.Appendf(nil, "%d packages at %s", len(res.Packages), res.Date)}
	}
	published := func(n int) {
		t.Helper()
		opt.Date = opt.Date.Add(time.Minute)
		res, err := index(t.Context(), dir, opt)
		assert.NilError(t, err)
		assert.Equal(t, len(res.Packages), n)
		assert.Equal(t, read(t, dir, "page"), fmt.Sprintf("%d packages at %s", n, res.Date))
	}
	add := func(name string) {
		writeDeb(t, filepath.Join(dir, name+".deb"), control(name, "1", "amd64"), "")
	}
	add("first")
	published(1)
	published(1) // nothing has changed

	state, page := read(t, dir, stateName), read(t, dir, "page")
	add("second")
	published(2)
	// Killed before the page was replaced, and the state written.
	assert.NilError(t, os.WriteFile(filepath.Join(dir, stateName), []byte(state), 0o644))
	assert.NilError(t, os.WriteFile(filepath.Join(dir, "page"), []byte(page), 0o644))
	published(2)

	add("third")
	assert.NilError(t, os.Remove(filepath.Join(dir, "page")))
	assert.NilError(t, os.Mkdir(filepath.Join(dir, "page"), 0o755))
	packages := read(t, dir, "Packages")
	_, err := index(t.Context(), dir, opt)
	assert.ErrorContains(t, err, "page is a directory")
	assert.Equal(t, read(t, dir, "Packages"), packages)
	assert.NilError(t, os.Remove(filepath.Join(dir, "page")))
	published(3)
}

// A cache that lies, is damaged or stale is noticed.
func TestCache(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	long := time.Now().Add(-time.Hour)
	for i := range 50 {
		path := filepath.Join(dir, fmt.Sprintf("p%02d.deb", i))
		writeDeb(t, path, control(fmt.Sprintf("pp%d", i), "1", "amd64"), "")
		assert.NilError(t, os.Chtimes(path, long, long))
	}
	released(t, dir, 0)
	time.Sleep(racy * time.Nanosecond)
	released(t, dir, 1)
	cache := read(t, dir, cacheName)
	known := func() int {
		t.Helper()
		r, err := Open(t.Context(), dir, nil)
		assert.NilError(t, err)
		files, _, err := findDebs(t.Context(), dir)
		assert.NilError(t, err)
		n := 0
		if f, err := os.Open(filepath.Join(dir, cacheName)); err == nil {
			entries, err := readCache(f)
			for _, e := range entries {
				if slices.ContainsFunc(files, func(f found) bool { return f.path == e.path && f.id == e.id }) {
					n++
				}
			}
			if err != nil {
				n = -1
			}
			assert.NilError(t, f.Close())
		}
		assert.NilError(t, r.Close())
		return n
	}
	assert.Equal(t, known(), 50)
	want := ftparchive(t, dir)

	for i := range 200 { // a bit anywhere
		b := []byte(cache)
		at := i * len(b) / 200
		b[at] ^= 1 << (i % 8)
		assert.NilError(t, os.WriteFile(filepath.Join(dir, cacheName), b, 0o600))
		assert.Equal(t, known(), -1, "bit %d of byte %d", i%8, at)
	}
	for _, b := range []string{"", "x", cache[:len(cache)-1], cache[:len(cache)/2], cache + cache, cache + "x"} {
		assert.NilError(t, os.WriteFile(filepath.Join(dir, cacheName), []byte(b), 0o600))
		assert.Equal(t, known(), -1)
		res, _ := released(t, dir, 2)
		assert.Equal(t, len(res.Packages), 50)
		assert.Equal(t, read(t, dir, "Packages"), want)
	}
	released(t, dir, 3)
	assert.Equal(t, known(), 50)

	// Other content of the same size with the old time of last change: its
	// change time tells.
	path := filepath.Join(dir, "p07.deb")
	writeDeb(t, path, control("pq7", "1", "amd64"), "")
	assert.NilError(t, os.Chtimes(path, long, long))
	assert.Equal(t, known(), 49)
	released(t, dir, 4)
	assert.Assert(t, strings.Contains(read(t, dir, "Packages"), "Package: pq7\n"))
	// It changed a moment ago, so it might change again within the same tick.
	assert.Equal(t, known(), 49)

	assert.NilError(t, os.Remove(filepath.Join(dir, "p08.deb")))
	assert.NilError(t, os.Rename(filepath.Join(dir, "p09.deb"), filepath.Join(dir, "a.deb")))
	released(t, dir, 5)
	assert.Equal(t, read(t, dir, "Packages"), ftparchive(t, dir))
}

func FuzzReadCache(f *testing.F) {
	var b strings.Builder
	w, err := newCacheWriter(&b)
	assert.NilError(f, err)
	assert.NilError(f, w.add(&entry{path: "a.deb", name: "a", sha256: strings.Repeat("x", 32)}, []byte("Package: a\n\n")))
	assert.NilError(f, w.add(&entry{path: "b.deb", problem: "bad"}, nil))
	assert.NilError(f, w.finish(&b))
	f.Add([]byte(b.String()))
	f.Add([]byte(cacheMagic + "\x00\x00\x00\x00\x48\x67\x4b\xc7"))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "cache")
		assert.NilError(t, os.WriteFile(path, data, 0o600))
		file, err := os.Open(path)
		assert.NilError(t, err)
		defer file.Close()
		entries, err := readCache(file)
		assert.Assert(t, err == nil || entries == nil)
		for _, e := range entries {
			if e.offset < 0 || e.offset+int64(e.length) > int64(len(data)) {
				t.Errorf("stanza outside of the file: %+v", e)
			}
		}
	})
}

// A publication within the second of the last one waits for the next: web
// servers tell files apart by whole seconds.
func TestPublishedApart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var last time.Time
	for i := range 3 {
		writeDeb(t, filepath.Join(dir, fmt.Sprintf("p%d.deb", i)), control(fmt.Sprintf("pp%d", i), "1", "amd64"), "")
		res, err := index(t.Context(), dir, Options{})
		assert.NilError(t, err)
		assert.Assert(t, res.Date.After(last) && !res.Date.After(time.Now()), "%v", res.Date)
		fi, err := os.Stat(filepath.Join(dir, "Release"))
		assert.NilError(t, err)
		assert.Assert(t, fi.ModTime().Equal(res.Date), "%v", fi.ModTime())
		last = res.Date
	}
}

// What a killed run left goes; what a signed repository has stays signed.
func TestLeftovers(t *testing.T) {
	t.Parallel()
	dir, before := indexed(t)
	assert.NilError(t, os.WriteFile(filepath.Join(dir, tmpDir, ".Packages123"), []byte("half"), 0o600))
	assert.NilError(t, os.WriteFile(filepath.Join(dir, "InRelease"), nil, 0o644))
	_, err := index(t.Context(), dir, testOptions())
	assert.ErrorContains(t, err, "it is signed (InRelease is there), but no key to sign with was given")
	assert.NilError(t, os.Remove(filepath.Join(dir, "InRelease")))
	assertUntouched(t, dir, before)
	left, err := os.ReadDir(filepath.Join(dir, tmpDir))
	assert.NilError(t, err)
	assert.Equal(t, len(left), 0)
}

func TestSweep(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "precious")
	for _, path := range []string{outside, filepath.Join(dir, "logs", "a.log"), filepath.Join(dir, "b.log")} {
		assert.NilError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		assert.NilError(t, os.WriteFile(path, nil, 0o644))
	}
	assert.NilError(t, os.Symlink(filepath.Dir(outside), filepath.Join(dir, "link")))
	released(t, dir, 0)
	assert.Equal(t, len(sweep(t, dir, []string{"logs/a.log", "b.log", "gone"}, time.Hour)), 0)
	r, err := Open(t.Context(), dir, nil)
	assert.NilError(t, err)
	st := r.readState()
	assert.Equal(t, len(st.Unneeded), 2) // not the one that is gone
	removed, err := r.Sweep(nil, func(path string) bool { return path == "b.log" }, 0)
	assert.NilError(t, err)
	assert.DeepEqual(t, removed, []string{"logs/a.log"}) // remembered; the other is needed again
	for _, path := range []string{"../precious", "link/precious", outside} {
		_, err = r.Sweep([]string{path}, func(string) bool { return false }, 0)
		assert.ErrorContains(t, err, "cannot remove what is not needed")
	}
	assert.NilError(t, r.Close())
	_, err = os.Stat(outside)
	assert.NilError(t, err)
	_, err = os.Stat(filepath.Join(dir, "b.log"))
	assert.NilError(t, err)
}

func TestVerify(t *testing.T) {
	t.Parallel()
	write := func(name, text string) func(dir string) {
		return func(dir string) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				panic(err)
			}
		}
	}
	remove := func(name string) func(dir string) {
		return func(dir string) {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				panic(err)
			}
		}
	}
	for _, tc := range []struct {
		name   string
		damage func(dir string)
		want   string
	}{
		{"nothing", func(string) {}, ""},
		{"package gone", remove("a.deb"), "a.deb: open: no such file"},
		{"package cut", write("a.deb", "short"), "a.deb: it has 5 bytes"},
		{"package damaged", func(dir string) {
			b, err := os.ReadFile(filepath.Join(dir, "a.deb"))
			if err != nil {
				panic(err)
			}
			b[len(b)-1] ^= 1
			write("a.deb", string(b))(dir)
		}, "a.deb: its SHA-256 is"},
		{"package not indexed is none of its business", write("c.deb", ""), ""},
		{"Packages gone", remove("Packages"), "Packages: open: no such file"},
		{"Packages.zst damaged", write("Packages.zst", "x"), "Packages.zst: it has 1 bytes"},
		{"Release gone", remove("Release"), "Release: there is none: this is no repository"},
		{"Release empty", write("Release", ""), "Release: "},
		{"Release without the plain Packages", write("Release", "SHA256:\n "+strings.Repeat("0", 64)+" 1 Packages.gz\n"), "it does not list the uncompressed Packages"},
		{"Release leads outside", write("Release", "SHA256:\n "+strings.Repeat("0", 64)+" 1 ../x\n"), `SHA256 has the line`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			writeDeb(t, filepath.Join(dir, "a.deb"), control("aa", "1", "amd64"), "")
			_, err := index(t.Context(), dir, testOptions())
			assert.NilError(t, err)
			tc.damage(dir)
			v, err := Verify(t.Context(), dir, nil)
			assert.NilError(t, err)
			var all []string
			for _, p := range v.Problems {
				all = append(all, p.Path+": "+p.Reason)
			}
			if tc.want == "" {
				assert.Equal(t, len(all), 0, "%q", all)
			} else {
				assert.Assert(t, strings.Contains(strings.Join(all, "\n"), tc.want), "%q", all)
			}
		})
	}
	_, err := Verify(context.Background(), filepath.Join(t.TempDir(), "gone"), nil)
	assert.ErrorContains(t, err, "cannot verify")
}

// FuzzVerify: whatever lies in the place of an index, it is looked at, and nothing
// outside of the directory is.
func FuzzVerify(f *testing.F) {
	dir := f.TempDir()
	writeDeb(f, filepath.Join(dir, "a.deb"), control("a-x", "1", "amd64"), "")
	_, err := index(f.Context(), dir, Options{Date: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)})
	assert.NilError(f, err)
	var texts [2]string
	for i, name := range []string{"Release", "Packages"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		assert.NilError(f, err)
		texts[i] = string(text)
	}
	f.Add(texts[0], texts[1])
	f.Add("SHA256:\n "+strings.Repeat("0", 64)+" 9223372036854775807 Packages.gz\n "+strings.Repeat("0", 64)+" 9223372036854775807 Packages\n", "")
	f.Add("SHA256:\n "+strings.Repeat("0", 64)+" 1 ../x\n", "Filename: ../../etc/passwd\nSize: 1\nSHA256: "+strings.Repeat("0", 64)+"\n")
	f.Fuzz(func(t *testing.T, release, packages string) {
		for name, text := range map[string]string{"Release": release, "Packages": packages} {
			assert.NilError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
		}
		got, err := Verify(t.Context(), dir, nil)
		assert.NilError(t, err)
		for _, p := range got.Problems {
			assert.Assert(t, filepath.IsLocal(p.Path), "%q", p.Path)
		}
	})
}

// FuzzReadState: whatever a damaged state says, the index is published all the same,
// and is right.
func FuzzReadState(f *testing.F) {
	dir := f.TempDir()
	writeDeb(f, filepath.Join(dir, "a.deb"), control("a-x", "1", "amd64"), "")
	_, err := index(f.Context(), dir, Options{Date: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)})
	assert.NilError(f, err)
	good, err := os.ReadFile(filepath.Join(dir, stateName))
	assert.NilError(f, err)
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte(`{"version":1,"files":{"Packages.gz":{"sha256":"../../x"}},"unneeded":{},"parts":[{"gz":-1,"zst":99999999}]}`))
	f.Add([]byte(`{"version":1,"files":{},"unneeded":{"../x":"0001-01-01T00:00:00Z","/etc/passwd":"0001-01-01T00:00:00Z"}}`))
	outside := filepath.Join(filepath.Dir(dir), "x")
	assert.NilError(f, os.WriteFile(outside, nil, 0o600))
	r := &Repo{dir: dir}
	f.Fuzz(func(t *testing.T, text []byte) {
		assert.NilError(t, os.WriteFile(filepath.Join(dir, stateName), text, 0o600))
		st := r.readState()
		r.intact(st)
		old := r.openParts(st)
		for digest := range old.known {
			old.read(digest, &piece{})
		}
		old.close()
		_, err := os.Stat(outside)
		assert.NilError(t, err)
	})
}

// TestSourcesOfAnyDirectory: apt finds the directory whatever its name is.
func TestSourcesOfAnyDirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a b\nTrusted: 100% \u00fc")
	assert.NilError(t, os.Mkdir(dir, 0o755))
	writeDeb(t, filepath.Join(dir, "a.deb"), control("aa", "1", "amd64"), "")
	_, err := index(t.Context(), dir, testOptions())
	assert.NilError(t, err)
	text := read(t, dir, SourcesName)
	assert.Equal(t, strings.Count(text, "\n"), 4, text)
	assert.Assert(t, strings.Contains(text, "/a%20b%0ATrusted:%20100%25%20%C3%BC\nSuites: ./\nTrusted: yes\n"), text)

	// And so it is for apt.
	state := t.TempDir()
	for _, name := range []string{"lists/partial", "cache/archives/partial"} {
		assert.NilError(t, os.MkdirAll(filepath.Join(state, name), 0o755))
	}
	cmd := exec.CommandContext(t.Context(), "apt-get", "-o", "Dir::Etc::sourcelist="+filepath.Join(dir, SourcesName), "-o", "Dir::Etc::sourceparts=-",
		"-o", "Dir::State::lists="+state+"/lists", "-o", "Dir::Cache="+state+"/cache", "-o", "APT::Sandbox::User=", "-o", "Debug::NoLocking=yes",
		"-o", "APT::Update::Error-Mode=any", "update")
	out, err := cmd.CombinedOutput()
	assert.NilError(t, err, "%s", out)
}
