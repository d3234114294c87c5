//go:build e2e

package e2e

import (
	"context"
	"crypto/sha256"
	"dkms2bin/internal/deb"
	"dkms2bin/internal/repo"
	"dkms2bin/internal/state"
	"dkms2bin/internal/status"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

// rounds is a small number in the normal run, and a large one in the nightly.
func rounds(normal, nightly int) int {
	if os.Getenv("DKMS2BIN_NIGHTLY") != "" {
		return nightly
	}
	return normal
}

// putDeb makes a package in a repository, as debextract does: whole or not at all.
func putDeb(t *testing.T, dir, name, version string) {
	t.Helper()
	arch := "all"
	if repo.KernelOf(name) != "" {
		arch = "amd64"
	}
	c := deb.Stanza{
		{Name: "Package", Value: name},
		{Name: "Version", Value: version},
		{Name: "Architecture", Value: arch},
		{Name: "Maintainer", Value: "A B <ab@example.org>"},
		{Name: "Description", Value: "made for a test"},
	}
	f, err := os.Create(filepath.Join(dir, ".new-"+name))
	assert.NilError(t, err)
	content := name + version
	assert.NilError(t, deb.Write(f, deb.Package{Control: c, Time: time.Unix(1e9, 0), Files: []deb.File{{
		Path: "/usr/share/" + name, Size: int64(len(content)),
		Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil },
	}}}))
	assert.NilError(t, f.Close())
	assert.NilError(t, os.Rename(f.Name(), filepath.Join(dir, deb.Filename(c))))
}

// signingKey makes a key in a GNUPGHOME of its own, and returns the environment
// that has it.
func signingKey(t *testing.T) (env []string) {
	t.Helper()
	home, err := os.MkdirTemp("/tmp", "gpg") // sockets want a short path
	assert.NilError(t, err)
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		assert.NilError(t, os.RemoveAll(home))
	})
	mustRun(t, "gpg", "--homedir", home, "--batch", "--passphrase", "", "--quick-generate-key", "<modules@example.org>", "ed25519", "sign", "never")
	return []string{"GNUPGHOME=" + home}
}

// A client is an apt with one repository and nothing else.
type client struct {
	state string // below root
	root  string // of its system
}

// newClient makes a client of the repository at url. root is "/" for the host's
// own apt.
func newClient(t *testing.T, root, url, key string) client {
	t.Helper()
	assert.NilError(t, os.MkdirAll(filepath.Join(root, "tmp"), 0o1777))
	state, err := os.MkdirTemp(filepath.Join(root, "tmp"), "client-")
	assert.NilError(t, err)
	t.Cleanup(func() { assert.NilError(t, os.RemoveAll(state)) })
	assert.NilError(t, os.Chmod(state, 0o755))
	for _, d := range []string{"lists/partial", "cache/archives/partial", "etc/preferences.d", "etc/trusted.gpg.d", "etc/sources.list.d"} {
		assert.NilError(t, os.MkdirAll(filepath.Join(state, d), 0o755))
	}
	c := client{strings.TrimPrefix(state, strings.TrimSuffix(root, "/")), root}
	option := "trusted=yes"
	if key != "" {
		assert.NilError(t, os.WriteFile(filepath.Join(state, "key.asc"), []byte(key), 0o644))
		option = "signed-by=" + c.state + "/key.asc"
	}
	assert.NilError(t, os.WriteFile(filepath.Join(state, "etc/sources.list"), []byte("deb ["+option+"] "+url+" ./\n"), 0o644))
	assert.NilError(t, os.WriteFile(filepath.Join(state, "status"), nil, 0o644))
	return c
}

// update is one apt-get update; it returns the stanzas of the packages that are
// known then.
func (c client) update(ctx context.Context) (string, error) {
	args := []string{
		"apt-get", "-q",
		"-o", "Dir::State=" + c.state, "-o", "Dir::State::Lists=" + c.state + "/lists", "-o", "Dir::State::status=" + c.state + "/status",
		"-o", "Dir::Cache=" + c.state + "/cache", "-o", "Dir::Etc=" + c.state + "/etc",
		"-o", "APT::Sandbox::User=root", "-o", "APT::Update::Error-Mode=any", "-o", "Acquire::Languages=none",
		"-o", "Acquire::Retries=0", "-o", "Acquire::GzipIndexes=false", "-o", "Acquire::http::Proxy=DIRECT", "update",
	}
	if c.root != "/" {
		args = append([]string{"chroot", c.root}, args...)
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	files, err := filepath.Glob(filepath.Join(c.root, c.state, "lists", "*_Packages*"))
	if err != nil {
		return "", err
	}
	if len(files) != 1 || !strings.HasSuffix(files[0], "Packages") {
		return "", fmt.Errorf("the lists are %v", files)
	}
	b, err := os.ReadFile(files[0])
	return string(b), err
}

var trixie struct {
	sync.Once
	root string
}

// trixieRoot is a root tree of Debian 13 with apt, from the host's own mirrors.
func trixieRoot(t *testing.T) string {
	t.Helper()
	trixie.Do(func() {
		root := filepath.Join(filepath.Dir(workDir), "trixie")
		assert.NilError(t, os.Mkdir(root, 0o755))
		mustRun(t, "tar", "-C", root, "-xf", plainSystem(t, "trixie"))
		trixie.root = root
	})
	if trixie.root == "" {
		t.Fatal("there is no tree of trixie")
	}
	return trixie.root
}

// clients gives a client of each apt.
func clients(t *testing.T, url, key string) map[string]client {
	return map[string]client{"bookworm": newClient(t, "/", url, key), "trixie": newClient(t, trixieRoot(t), url, key)}
}

// generation is the version that all packages of an index have; mixed indexes
// are an error.
func generation(packages string) (int, error) {
	found := -1
	count := 0
	r := deb.NewReader(strings.NewReader(packages))
	for {
		s, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, err
		}
		n, err := strconv.Atoi(s.Get("Version"))
		if err != nil || found >= 0 && n != found {
			return 0, fmt.Errorf("a mixture: %s of %s in generation %d", s.Get("Version"), s.Get("Package"), found)
		}
		found = n
		count++
	}
	if count != 3 {
		return 0, fmt.Errorf("%d packages of generation %d", count, found)
	}
	return found, nil
}

// TestNeverTorn: clients update all the time while the index is replaced. None
// ever fails, sees a mixture, or goes back.
func TestNeverTorn(t *testing.T) {
	t.Parallel()
	for _, signed := range []bool{true, false} {
		t.Run(fmt.Sprintf("signed %t", signed), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			server := httptest.NewServer(http.FileServer(http.Dir(dir)))
			defer server.Close()
			c := command{name: "repoindex", args: []string{"--keep-versions", "1", "--grace-period", "1m"}}
			if signed {
				c.env = signingKey(t)
				c.args = append(c.args, "--sign-with", "modules@example.org")
			}
			c.args = append(c.args, dir)
			publish := func(n int) {
				for _, name := range []string{"first", "second", "third"} {
					putDeb(t, dir, name, strconv.Itoa(n))
				}
				c.run(t).mustExit(t, 0)
			}
			publish(0)
			key := ""
			if signed {
				b, err := os.ReadFile(filepath.Join(dir, repo.KeyName))
				assert.NilError(t, err)
				key = string(b)
			}
			ctx, stop := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			defer wg.Wait()
			defer stop()
			last := rounds(15, 200)
			for name, c := range clients(t, server.URL, key) {
				wg.Go(func() {
					updates, seen, newest := 0, 0, -1
					for newest < last && ctx.Err() == nil {
						packages, err := c.update(context.WithoutCancel(ctx))
						var n int
						if err == nil {
							n, err = generation(packages)
						}
						if err == nil && n < newest {
							err = fmt.Errorf("went back from %d to %d", newest, n)
						}
						if err != nil {
							t.Errorf("%s, update %d: %v", name, updates, err)
							return
						}
						if n != newest {
							seen++
						}
						newest = n
						updates++
					}
					t.Logf("%s, signed %t: %d updates, %d of %d generations seen", name, signed, updates, seen, last+1)
				})
			}
			for n := range last {
				publish(n + 1)
			}
			wg.Wait()
		})
	}
}

// TestKilledIndex: a run that is killed at any moment, or finds the disk full,
// leaves a repository that clients can read, and the next run completes it.
func TestKilledIndex(t *testing.T) {
	t.Parallel()
	env := signingKey(t)
	dir := smallDisk(t, "8m")
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer server.Close()
	index := command{name: "repoindex", args: []string{"--sign-with", "modules@example.org", "--grace-period", "10s", dir}, env: env}
	whole := func() string {
		t.Helper()
		index.run(t).mustExit(t, 0)
		v, err := repo.Verify(t.Context(), dir, nil)
		assert.NilError(t, err)
		assert.Equal(t, len(v.Problems), 0, "%q", v.Problems)
		left, err := os.ReadDir(filepath.Join(dir, ".dkms2bin/tmp"))
		assert.NilError(t, err)
		assert.Equal(t, len(left), 0)
		b, err := os.ReadFile(filepath.Join(dir, "Packages"))
		assert.NilError(t, err)
		raw, err := os.ReadFile(filepath.Join(dir, "status.json"))
		assert.NilError(t, err)
		s, err := status.Parse(raw)
		assert.NilError(t, err)
		page, err := os.ReadFile(filepath.Join(dir, "index.html"))
		assert.NilError(t, err)
		for _, p := range s.Packages {
			assert.Assert(t, strings.Contains(string(b), "\nFilename: ./"+p.Filename+"\n"), "%s is in status.json alone", p.Filename)
			assert.Assert(t, strings.Contains(string(page), p.Filename), "%s is not on the page", p.Filename)
		}
		return string(b)
	}
	putDeb(t, dir, "p0", "1")
	before := whole()
	key, err := os.ReadFile(filepath.Join(dir, repo.KeyName))
	assert.NilError(t, err)
	c := newClient(t, "/", server.URL, string(key))
	kills, killed, full := rounds(40, 500), 0, 0
	for i := range kills {
		putDeb(t, dir, "p1", strconv.Itoa(i)+".0")
		if i > 0 {
			assert.NilError(t, os.Remove(filepath.Join(dir, fmt.Sprintf("p1_%d.0_all.deb", i-1))))
		}
		ballast := filepath.Join(dir, ".ballast")
		if i%8 == 7 { // the disk is full somewhere on the way
			f, err := os.Create(ballast)
			assert.NilError(t, err)
			_, err = io.Copy(f, neverEnding{})
			assert.Assert(t, err != nil)
			fi, err := f.Stat()
			assert.NilError(t, err)
			assert.NilError(t, f.Truncate(fi.Size()&^4095-int64(rand.IntN(10))*4096))
			assert.NilError(t, f.Close())
			if r := index.run(t); r.code != 0 {
				full++
				r.mustSay(t, "no space left on device")
			}
		} else {
			cmd := index.command(t.Context())
			assert.NilError(t, cmd.Start())
			time.Sleep(time.Duration(rand.IntN(350)) * time.Millisecond)
			assert.NilError(t, cmd.Process.Kill())
			if cmd.Wait() != nil {
				killed++
			}
		}
		packages, err := c.update(t.Context())
		assert.NilError(t, err, "after kill %d", i)
		// The old index or the new one, and nothing else.
		if packages != before {
			now, err := os.ReadFile(filepath.Join(dir, "Packages"))
			assert.NilError(t, err)
			assert.Equal(t, packages, string(now), "after kill %d", i)
		}
		_ = os.Remove(ballast)
		if i%4 == 3 {
			before = whole()
			packages, err = c.update(t.Context())
			assert.NilError(t, err)
			assert.Equal(t, packages, before)
		} else {
			before = packages
		}
	}
	t.Logf("%d runs: %d killed before their end, %d with a full disk; every update read the old index or the new one", kills, killed, full)
	assert.Assert(t, killed > kills/10)
}

// neverEnding fills a disk.
type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) { return len(p), nil }

// TestTwoHosts: runs over one directory at once lose nothing: what a run was to
// index is there when it ends.
func TestTwoHosts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var waited atomic.Int32
	var wg sync.WaitGroup
	const hosts = 3
	each := rounds(4, 30)
	for host := range hosts {
		wg.Go(func() {
			for i := range each {
				name := fmt.Sprintf("p%d-%d", host, i)
				putDeb(t, dir, name, "1")
				r := command{name: "repoindex", args: []string{dir}}.run(t)
				b, err := os.ReadFile(filepath.Join(dir, "Packages"))
				if err != nil || r.code != 0 || !strings.Contains(string(b), "Package: "+name+"\n") {
					t.Errorf("%s is not there: exit %d, %v", name, r.code, err)
				}
				if strings.Contains(r.stderr, "waiting for another run") {
					waited.Add(1)
				}
			}
		})
	}
	wg.Wait()
	v, err := repo.Verify(t.Context(), dir, nil)
	assert.NilError(t, err)
	assert.Equal(t, len(v.Problems), 0, "%q", v.Problems)
	assert.Equal(t, v.Packages, hosts*each)
	t.Logf("%d runs, %d of them waited for another", hosts*each, waited.Load())
	assert.Assert(t, waited.Load() > 0)
}

// TestSourcesFile: dkms2bin.sources, copied, is all that a client needs.
func TestSourcesFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer server.Close()
	putDeb(t, dir, "first", "1")
	for _, signed := range []bool{false, true} {
		c := command{name: "repoindex", args: []string{"--index-url", server.URL, dir}}
		if signed {
			c.env = signingKey(t)
			c.args = append([]string{"--sign-with", "modules@example.org"}, c.args...)
		}
		r := c.run(t).mustExit(t, 0)
		assert.Equal(t, r.doc.Index.SignedBy != "", signed)
		text, err := os.ReadFile(filepath.Join(dir, repo.SourcesName))
		assert.NilError(t, err)
		for name, c := range clients(t, server.URL, "") {
			etc := filepath.Join(c.root, c.state, "etc")
			assert.NilError(t, os.Remove(filepath.Join(etc, "sources.list")))
			assert.NilError(t, os.WriteFile(filepath.Join(etc, "sources.list.d", repo.SourcesName), text, 0o644))
			packages, err := c.update(t.Context())
			assert.NilError(t, err, name)
			assert.Assert(t, strings.HasPrefix(packages, "Package: first\n"), packages)
			assert.Assert(t, strings.Contains(packages, fmt.Sprintf("SHA256: %x\n", fileSum(t, filepath.Join(dir, "first_1_all.deb")))))
		}
		verify := command{name: "repoindex", args: []string{"--verify", dir}}
		verify.run(t).mustExit(t, 0)
		assert.NilError(t, os.WriteFile(filepath.Join(dir, "Packages.zst"), nil, 0o644))
		verify.run(t).mustExit(t, 1).mustSay(t, "Packages.zst: it has 0 bytes")
	}
}

func fileSum(t *testing.T, path string) [32]byte {
	t.Helper()
	b, err := os.ReadFile(path)
	assert.NilError(t, err)
	return sha256.Sum256(b)
}

// TestPrune: packages, logs and records of old kernels go, once they have been
// out of the index for the grace period; records of several runs are merged.
func TestPrune(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	assert.NilError(t, os.Mkdir(filepath.Join(dir, "logs"), 0o755))
	// A run for a kernel, as debextract hands it on: x is built, y is not.
	document := func(n int) []byte {
		release := fmt.Sprintf("6.1.0-%d-amd64", n)
		putDeb(t, dir, "x-modules-"+release, "1.0+6.1")
		doc := &state.Document{
			Version: state.Version, OutDir: dir,
			Tree: &state.Tree{Path: "/gone", Distribution: "debian", Suite: "bookworm", Architecture: "amd64", Repositories: []state.Repository{}, Created: time.Now().UTC()},
		}
		for _, b := range []state.Build{{Module: "x", Status: state.Built}, {Module: "y", Status: state.Failed, Reason: "error: <no> such thing"}} {
			b.Package, b.ModuleVersion, b.PackageVersion, b.Kernel = b.Module+"-dkms", "1.0", "1.0", release
			b.Log = filepath.Join(dir, "logs", b.Module+"-1.0-"+release+".log")
			b.Started = time.Now().UTC()
			assert.NilError(t, os.WriteFile(b.Log, nil, 0o644))
			doc.Builds = append(doc.Builds, b)
		}
		raw, err := doc.Encode()
		assert.NilError(t, err)
		return raw
	}
	parse := func() *status.Status {
		raw, err := os.ReadFile(filepath.Join(dir, "status.json"))
		assert.NilError(t, err)
		s, err := status.Parse(raw)
		assert.NilError(t, err)
		return s
	}
	for n := range 3 {
		command{name: "repoindex", stdin: document(n + 8)}.run(t).mustExit(t, 3)
	}
	assert.Equal(t, len(parse().Records), 6)
	assert.Equal(t, len(parse().Packages), 3)

	dry := command{name: "repoindex", args: []string{"--keep-kernels", "1", "--dry-run", dir}}.run(t).mustExit(t, 0)
	for _, n := range []string{"8", "9"} {
		dry.mustSay(t, "would remove x-modules-6.1.0-"+n+"-amd64_1.0+6.1_amd64.deb", "would remove logs/x-1.0-6.1.0-"+n+"-amd64.log", "would remove logs/y-1.0-6.1.0-"+n+"-amd64.log")
	}
	assert.Equal(t, len(dry.doc.Index.Outdated), 2)
	assert.Equal(t, len(parse().Records), 6)

	keep := []string{"--keep-kernels", "1", dir}
	r := command{name: "repoindex", args: keep}.run(t).mustExit(t, 0)
	assert.Equal(t, len(r.doc.Index.Removed), 0) // clients may still have the old index
	assert.Equal(t, r.doc.Index.Packages, 1)
	assert.Equal(t, len(debFiles(t, dir)), 3)
	s := parse()
	assert.Equal(t, len(s.Records), 2)
	assert.Equal(t, s.Records[0].Kernel, "6.1.0-10-amd64")

	r = command{name: "repoindex", args: append([]string{"--grace-period", "0s"}, keep...)}.run(t).mustExit(t, 0)
	assert.Equal(t, len(r.doc.Index.Removed), 6)
	assert.Equal(t, len(debFiles(t, dir)), 1)
	logs, err := os.ReadDir(filepath.Join(dir, "logs"))
	assert.NilError(t, err)
	assert.Equal(t, len(logs), 2)
	page, err := os.ReadFile(filepath.Join(dir, "index.html"))
	assert.NilError(t, err)
	assert.Assert(t, strings.Contains(string(page), "error: &lt;no&gt; such thing"))
}
