package repo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"dkms2bin/internal/deb"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"gotest.tools/v3/assert"
)

var testDate = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// published is what tree finds after a run.
var published = []string{
	".dkms2bin 0755", "Packages 0644", "Packages.gz 0644", "Packages.zst 0644", "Release 0644", "by-hash 0755", "dkms2bin.sources 0644",
}

func testOptions() Options {
	return Options{Origin: "Example", Label: "Example modules", Suite: "stable", Codename: "bookworm", Description: "Modules for example.org", Date: testDate}
}

// control returns the control fields of a package.
func control(name, version, arch string) deb.Stanza {
	return deb.Stanza{
		{Name: "Package", Value: name},
		{Name: "Version", Value: version},
		{Name: "Architecture", Value: arch},
		{Name: "Maintainer", Value: "A B <ab@example.org>"},
		{Name: "Description", Value: "short\n long\n .\n more"},
	}
}

// writeDeb writes a .deb with one file of the given content.
func writeDeb(t testing.TB, path string, control deb.Stanza, content string) {
	t.Helper()
	assert.NilError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	f, err := os.Create(path)
	assert.NilError(t, err)
	assert.NilError(t, deb.Write(f, deb.Package{
		Control: control,
		Files: []deb.File{{
			Path: "/usr/share/" + control.Get("Package"),
			Size: int64(len(content)),
			Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil },
		}},
		Time: testDate,
	}))
	assert.NilError(t, f.Close())
}

// index is one run on dir.
func index(ctx context.Context, dir string, opt Options) (_ Result, err error) {
	r, err := Open(ctx, dir, nil)
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	return r.Index(ctx, opt)
}

func read(t *testing.T, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	assert.NilError(t, err)
	return string(b)
}

// ftparchive runs "apt-ftparchive packages ." in dir, with SHA256 alone.
func ftparchive(t *testing.T, dir string) string {
	t.Helper()
	if _, err := exec.LookPath("apt-ftparchive"); err != nil {
		t.Fatal("this test needs apt-ftparchive: install the package apt-utils")
	}
	cmd := exec.Command("apt-ftparchive", "-o", "APT::FTPArchive::MD5=false", "-o", "APT::FTPArchive::SHA1=false",
		"-o", "APT::FTPArchive::SHA512=false", "packages", ".")
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	assert.NilError(t, err, &stderr)
	return string(out)
}

// tree lists the files of dir, without the .debs, as "name mode".
func tree(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	assert.NilError(t, err)
	var names []string
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && !strings.HasSuffix(e.Name(), ".deb") {
			names = append(names, fmt.Sprintf("%s %04o", e.Name(), fi.Mode().Perm()))
		}
	}
	return names
}

func TestIndexLikeFtparchive(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rich := control("rich", "1:1.0-1", "amd64")
	for i, name := range []string{
		"X-Unknown", "Tag", "Homepage", "Enhances", "Replaces", "Breaks", "Conflicts", "Suggests", "Recommends",
		"Depends", "Pre-Depends", "Provides", "Section", "Source", "Priority", "Multi-Arch", "Built-Using",
		"Static-Built-Using", "Another-Unknown", "Origin", "Bugs", "Original-Maintainer", "Kernel-Version",
	} {
		rich.Set(name, fmt.Sprintf("value%d", i))
	}
	rich.Set("Multi-Arch", "same")
	rich.Set("Long", "\n one\n two")
	writeDeb(t, filepath.Join(dir, "rich.deb"), rich, "")
	writeDeb(t, filepath.Join(dir, "pool", "sub dir", "é %20 #+~.deb"), control("awkward", "1~rc1", "all"), "")
	writeDeb(t, filepath.Join(dir, "pool", "b.deb"), control("bb", "2", "amd64"), "b")
	writeDeb(t, filepath.Join(dir, "pool-a", "a.deb"), control("aa", "2", "amd64"), "a")
	writeDeb(t, filepath.Join(dir, "Z.deb"), control("zz", "3", "i386"), "z")
	for _, z := range []string{"gzip", "xz", "zstd", "none"} {
		root := t.TempDir()
		assert.NilError(t, os.Chmod(root, 0o755))
		assert.NilError(t, os.Mkdir(filepath.Join(root, "DEBIAN"), 0o755))
		text := "Package: from-dpkg-" + z + "\nVersion: 1\nArchitecture: amd64\nSection: misc\nMaintainer: A B <ab@example.org>\nDescription: short\n"
		assert.NilError(t, os.WriteFile(filepath.Join(root, "DEBIAN", "control"), []byte(text), 0o644))
		out, err := exec.Command("dpkg-deb", "-Z"+z, "--root-owner-group", "--build", root, filepath.Join(dir, z+".deb")).CombinedOutput()
		assert.NilError(t, err, string(out))
	}

	res, err := index(t.Context(), dir, testOptions())
	assert.NilError(t, err)
	assert.Equal(t, len(res.Problems), 0)
	assert.Equal(t, len(res.Packages), 9)
	packages := read(t, dir, "Packages")
	assert.Equal(t, packages, ftparchive(t, dir))

	packagesGz := read(t, dir, "Packages.gz")
	assert.Equal(t, packagesGz[:8], "\x1f\x8b\x08\x00\x00\x00\x00\x00") // no name, no time
	zr, err := gzip.NewReader(strings.NewReader(packagesGz))
	assert.NilError(t, err)
	unpacked, err := io.ReadAll(zr)
	assert.NilError(t, err)
	assert.Equal(t, string(unpacked), packages)

	packagesZst := read(t, dir, "Packages.zst")
	zstdReader, err := zstd.NewReader(strings.NewReader(packagesZst))
	assert.NilError(t, err)
	defer zstdReader.Close()
	unpacked, err = io.ReadAll(zstdReader)
	assert.NilError(t, err)
	assert.Equal(t, string(unpacked), packages)

	release := read(t, dir, "Release")
	assert.Equal(t, release, fmt.Sprintf(`Origin: Example
Label: Example modules
Suite: stable
Codename: bookworm
Date: Sun, 22 Nov 2026 12:00:00 UTC
Architectures: all amd64 i386
Description: Modules for example.org
Acquire-By-Hash: yes
SHA256:
 %x %16d Packages
 %x %16d Packages.gz
 %x %16d Packages.zst
`, sha256.Sum256([]byte(packages)), len(packages), sha256.Sum256([]byte(packagesGz)), len(packagesGz), sha256.Sum256([]byte(packagesZst)), len(packagesZst)))
	assert.Equal(t, res.Release, fmt.Sprintf("%x", sha256.Sum256([]byte(release))))

	again, err := index(t.Context(), dir, testOptions())
	assert.NilError(t, err)
	assert.Assert(t, res.Changed && !again.Changed)
	again.Changed = true
	assert.DeepEqual(t, again, res)
	assert.Equal(t, read(t, dir, "Packages"), packages)
	assert.Equal(t, read(t, dir, "Packages.gz"), packagesGz)
	assert.DeepEqual(t, tree(t, dir), append(published, "pool 0755", "pool-a 0755"))
}

// What a package says of its own file is not believed.
func TestIndexForeignFields(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := control("foo", "1", "amd64")
	for _, name := range []string{"filename", "Size", "MD5sum", "SHA1", "SHA256", "SHA512", "Status"} {
		c.Set(name, "bogus")
	}
	writeDeb(t, filepath.Join(dir, "foo.deb"), c, "")
	res, err := index(t.Context(), dir, testOptions())
	assert.NilError(t, err)
	assert.Equal(t, len(res.Packages), 1)
	assert.Assert(t, !strings.Contains(read(t, dir, "Packages"), "bogus"))
}

func TestIndexProblems(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	writeDeb(t, file("b.deb"), control("foo", "1", "amd64"), "first")
	writeDeb(t, file("c.deb"), control("foo", "1", "amd64"), "second")
	writeDeb(t, file("a/other-arch.deb"), control("foo", "1", "i386"), "")
	writeDeb(t, file("other-version.deb"), control("foo", "1.0", "amd64"), "")
	good := read(t, file("b.deb"))
	for name, content := range map[string]string{
		"copy.deb":         good,
		".hidden/h.deb":    good,
		".upload.deb":      good,
		"b.deb.part":       good,
		"empty.deb":        "",
		"text.deb":         "no package",
		"truncated.deb":    good[:len(good)-2], // the last byte may be padding
		"new\nline.deb":    strings.Replace(good, "first", "FIRST", 1),
		"directory.deb/x":  "",
		"target/link.data": "",
	} {
		assert.NilError(t, os.MkdirAll(filepath.Dir(file(name)), 0o755))
		assert.NilError(t, os.WriteFile(file(name), []byte(content), 0o644))
	}
	writeDeb(t, file("new\nline.deb"), control("newline", "1", "amd64"), "")
	writeDeb(t, file("outside/linked"), control("linked", "1", "amd64"), "")
	assert.NilError(t, os.Symlink("outside/linked", file("linked.deb")))
	assert.NilError(t, os.Symlink("gone", file("dangling.deb")))
	assert.NilError(t, os.Symlink(".hidden", file("link-to-directory")))
	assert.NilError(t, os.Symlink(".hidden", file("link-to-directory.deb")))
	assert.NilError(t, syscall.Mkfifo(file("pipe.deb"), 0o644))

	res, err := index(t.Context(), dir, testOptions())
	assert.NilError(t, err)
	var filenames []string
	r := deb.NewReader(strings.NewReader(read(t, dir, "Packages")))
	for {
		s, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		assert.NilError(t, err)
		filenames = append(filenames, s.Get("Filename"))
	}
	assert.DeepEqual(t, filenames, []string{"./a/other-arch.deb", "./b.deb", "./linked.deb", "./other-version.deb"})
	assert.Equal(t, len(res.Packages), len(filenames))
	want := map[string]string{
		"c.deb":         "it is foo 1 amd64, as b.deb is, but has other content",
		"dangling.deb":  "open: no such file or directory",
		"empty.deb":     "not a usable .deb: the file ends within its first 8 bytes",
		"new\nline.deb": `control character in the file name "new\nline.deb"`,
		"pipe.deb":      "it is not a regular file",
		"text.deb":      "not a usable .deb: it is no ar archive",
		"truncated.deb": "is truncated",
	}
	assert.Equal(t, len(res.Problems), len(want), "%q", res.Problems)
	for _, p := range res.Problems {
		assert.Assert(t, want[p.Path] != "" && strings.Contains(p.Reason, want[p.Path]), "%q", p)
		assert.Assert(t, !strings.Contains(p.Reason, dir), "%q", p)
	}
}

func TestIndexEmpty(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	res, err := index(t.Context(), dir, Options{Date: testDate})
	assert.NilError(t, err)
	assert.Equal(t, len(res.Packages), 0)
	assert.Equal(t, read(t, dir, "Packages"), "")
	assert.Assert(t, strings.HasPrefix(read(t, dir, "Release"), "Date: Sun, 22 Nov 2026 12:00:00 UTC\nAcquire-By-Hash: yes\nSHA256:\n e3b0c4429"))
}

func TestIndexThroughLink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeDeb(t, filepath.Join(dir, "repo", "a.deb"), control("aa", "1", "amd64"), "")
	assert.NilError(t, os.Symlink("repo", filepath.Join(dir, "link")))
	res, err := index(t.Context(), filepath.Join(dir, "link"), testOptions())
	assert.NilError(t, err)
	assert.Equal(t, len(res.Packages), 1)
	assert.Assert(t, strings.Contains(read(t, dir, "repo", "Packages"), "\nFilename: ./a.deb\n"))
}

func TestIndexDate(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, old, want string }{
		{"none", "", "Sun, 22 Nov 2026 12:00:00 UTC"},
		{"older", "Date: Sat, 21 Nov 2026 12:00:00 UTC\n", "Sun, 22 Nov 2026 12:00:00 UTC"},
		{"newer", "Date: Mon, 23 Nov 2026 12:00:00 UTC\n", "Mon, 23 Nov 2026 12:00:01 UTC"},
		{"newer by apt-ftparchive", "Suite: x\nDate: Mon, 23 Nov 2026 12:00:00 +0000\n", "Mon, 23 Nov 2026 12:00:01 UTC"},
		{"damaged", "Date: some day\n", "Sun, 22 Nov 2026 12:00:00 UTC"},
		{"no stanza", "\x00\n", "Sun, 22 Nov 2026 12:00:00 UTC"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if tc.old != "" {
				assert.NilError(t, os.WriteFile(filepath.Join(dir, "Release"), []byte(tc.old), 0o600))
			}
			_, err := index(t.Context(), dir, Options{Date: testDate.Add(time.Millisecond)})
			assert.NilError(t, err)
			s, err := deb.ParseStanza([]byte(read(t, dir, "Release")))
			assert.NilError(t, err)
			assert.Equal(t, s.Get("Date"), tc.want)
			assert.DeepEqual(t, tree(t, dir), published)
		})
	}
	t.Run("present time", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		before := time.Now().Truncate(time.Second)
		_, err := index(t.Context(), dir, Options{})
		assert.NilError(t, err)
		got := oldDate(filepath.Join(dir, "Release"))
		assert.Assert(t, !got.Before(before) && !got.After(time.Now()), "%v", got)
	})
}

func TestIndexOptions(t *testing.T) {
	t.Parallel()
	for _, opt := range []Options{{Origin: "a\nSuite: b"}, {Label: "a\x00"}, {Suite: " a"}, {Description: "a "}} {
		dir := t.TempDir()
		_, err := index(t.Context(), dir, opt)
		assert.ErrorContains(t, err, "cannot index "+dir)
		assert.DeepEqual(t, tree(t, dir), []string{".dkms2bin 0755"})
	}
}

// Not parallel: the umask is the process's.
func TestIndexUmask(t *testing.T) {
	dir := t.TempDir()
	old := syscall.Umask(0o077)
	_, err := index(t.Context(), dir, testOptions())
	syscall.Umask(old)
	assert.NilError(t, err)
	assert.DeepEqual(t, tree(t, dir), published)
}

func TestIndexConcurrent(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for i := range 20 {
		writeDeb(t, filepath.Join(dir, fmt.Sprintf("p%d.deb", i)), control(fmt.Sprintf("pp%d", i), "1", "amd64"), "")
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			res, err := index(t.Context(), dir, testOptions())
			if err != nil || len(res.Packages) != 20 {
				t.Errorf("%+v, %v", res, err)
			}
		})
	}
	wg.Wait()
	assert.Equal(t, read(t, dir, "Packages"), ftparchive(t, dir))
}

func TestIndexLocked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, err := Open(t.Context(), dir, nil)
	assert.NilError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	waited := 0
	_, err = Open(ctx, dir, func() { waited++ })
	assert.Equal(t, waited, 1)
	assert.ErrorContains(t, err, "another run holds")
	assert.Assert(t, errors.Is(err, context.DeadlineExceeded))
	assert.NilError(t, first.Close())
	_, err = index(t.Context(), dir, testOptions())
	assert.NilError(t, err)
}

func TestIndexCancelled(t *testing.T) {
	t.Parallel()
	dir, before := indexed(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := index(ctx, dir, testOptions())
	assert.Assert(t, errors.Is(err, context.Canceled))
	assertUntouched(t, dir, before)
}

// indexed returns a directory with an index and a package that is not in it.
func indexed(t *testing.T) (dir string, before [3]string) {
	t.Helper()
	dir = t.TempDir()
	writeDeb(t, filepath.Join(dir, "a.deb"), control("aa", "1", "amd64"), "")
	_, err := index(t.Context(), dir, testOptions())
	assert.NilError(t, err)
	writeDeb(t, filepath.Join(dir, "b.deb"), control("bb", "1", "amd64"), "")
	return dir, [3]string{read(t, dir, "Packages"), read(t, dir, "Packages.gz"), read(t, dir, "Release")}
}

func assertUntouched(t *testing.T, dir string, before [3]string) {
	t.Helper()
	assert.DeepEqual(t, [3]string{read(t, dir, "Packages"), read(t, dir, "Packages.gz"), read(t, dir, "Release")}, before)
	assert.DeepEqual(t, tree(t, dir), published)
}

func TestIndexMissingDirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "gone")
	_, err := index(t.Context(), dir, testOptions())
	assert.Error(t, err, "cannot open the repository "+dir+": stat "+dir+": no such file or directory")
}

func TestIndexUnwritable(t *testing.T) {
	t.Parallel()
	dir, before := indexed(t)
	assert.NilError(t, os.Chmod(filepath.Dir(dir), 0o755))
	assert.NilError(t, os.Chmod(dir, 0o555))
	done := make(chan error)
	go func() {
		// root may write anywhere; a thread with another file system user may
		// not. It ends with the goroutine, as it stays locked.
		runtime.LockOSThread()
		if os.Getuid() == 0 {
			if err := syscall.Setfsuid(65534); err != nil {
				done <- nil
				return
			}
		}
		_, err := index(context.Background(), dir, testOptions())
		done <- err
	}()
	err := <-done
	assert.ErrorContains(t, err, "cannot open the repository "+dir+": open "+dir+"/.dkms2bin/lock: permission denied")
	assert.NilError(t, os.Chmod(dir, 0o755))
	assertUntouched(t, dir, before)
}

// A directory in the place of the last file: it must show before the others
// are replaced.
func TestIndexOccupied(t *testing.T) {
	t.Parallel()
	dir, before := indexed(t)
	assert.NilError(t, os.Rename(filepath.Join(dir, "Release"), filepath.Join(dir, "x.deb.Release")))
	assert.NilError(t, os.Mkdir(filepath.Join(dir, "Release"), 0o755))
	_, err := index(t.Context(), dir, testOptions())
	assert.ErrorContains(t, err, "Release is a directory")
	assert.NilError(t, os.Remove(filepath.Join(dir, "Release")))
	assert.NilError(t, os.Rename(filepath.Join(dir, "x.deb.Release"), filepath.Join(dir, "Release")))
	assertUntouched(t, dir, before)
}

// A limit on the size of files stands for a full disk: writing fails in the
// middle. It is the process's, so the test runs itself as another one.
func TestIndexFullDisk(t *testing.T) {
	t.Parallel()
	if dir := os.Getenv("REPO_TEST_FULL_DISK"); dir != "" {
		limit := syscall.Rlimit{Cur: 250, Max: 250}
		assert.NilError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit))
		_, err := index(t.Context(), dir, testOptions())
		fmt.Fprintln(os.Stderr, err)
		assert.Assert(t, errors.Is(err, syscall.EFBIG), "%v", err)
		return
	}
	dir, before := indexed(t)
	cmd := exec.Command(os.Args[0], "-test.run", "^TestIndexFullDisk$")
	cmd.Env = append(os.Environ(), "REPO_TEST_FULL_DISK="+dir)
	out, err := cmd.CombinedOutput()
	assert.NilError(t, err, string(out))
	assert.Assert(t, bytes.Contains(out, []byte("cannot index "+dir)), string(out))
	assertUntouched(t, dir, before)
}

// The real apt finds and fetches the packages.
func TestIndexReadByApt(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, arch, file string }{
		{"native", "amd64", "foo_1.0_amd64.deb"},
		{"architecture all alone", "all", "foo_1.0_all.deb"},
		{"awkward name", "amd64", "sub dir/é %20 #+~.deb"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir, state := t.TempDir(), t.TempDir()
			writeDeb(t, filepath.Join(dir, tc.file), control("foo-of-test", "1:1.0-1", tc.arch), "content")
			_, err := index(t.Context(), dir, testOptions())
			assert.NilError(t, err)

			for _, d := range []string{"state/lists/partial", "cache/archives/partial", "etc/apt/preferences.d", "etc/apt/sources.list.d", "etc/apt/trusted.gpg.d", "get"} {
				assert.NilError(t, os.MkdirAll(filepath.Join(state, d), 0o755))
			}
			for name, text := range map[string]string{
				"state/status":         "",
				"etc/apt/sources.list": "deb [trusted=yes] file:" + dir + " ./\n",
			} {
				assert.NilError(t, os.WriteFile(filepath.Join(state, name), []byte(text), 0o644))
			}
			apt := func(argv ...string) string {
				t.Helper()
				argv = append([]string{
					argv[0],
					"-o", "Dir::State=" + state + "/state",
					"-o", "Dir::State::status=" + state + "/state/status",
					"-o", "Dir::Cache=" + state + "/cache",
					"-o", "Dir::Etc=" + state + "/etc/apt",
					"-o", "APT::Architecture=amd64",
					"-o", "APT::Architectures=amd64",
					"-o", "APT::Sandbox::User=root", // do not become _apt, which cannot read the directory
					"-o", "APT::Update::Error-Mode=any",
				}, argv[1:]...)
				cmd := exec.Command(argv[0], argv[1:]...)
				cmd.Dir = filepath.Join(state, "get")
				cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
				out, err := cmd.CombinedOutput()
				assert.NilError(t, err, "%s: %s", strings.Join(argv, " "), out)
				return string(out)
			}
			apt("apt-get", "update")
			policy := apt("apt-cache", "policy", "foo-of-test")
			assert.Assert(t, strings.Contains(policy, "Candidate: 1:1.0-1\n"), policy)
			assert.Assert(t, strings.Contains(policy, "file:"+dir+" ./ Packages"), policy)
			apt("apt-get", "download", "foo-of-test")
			got, err := filepath.Glob(filepath.Join(state, "get", "foo-of-test_*.deb"))
			assert.NilError(t, err)
			assert.Equal(t, len(got), 1)
			assert.Equal(t, read(t, got[0]), read(t, dir, tc.file))
		})
	}
}
