//go:build e2e

package e2e

import (
	memory "dkms2bin/internal/machine"
	"dkms2bin/internal/repo"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/state"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gotest.tools/v3/assert"
)

// A badMirror stands in front of the host's mirror and does to some answers what bad
// mirrors do.
type badMirror struct {
	*httptest.Server
	fault atomic.Pointer[func(http.ResponseWriter, *http.Request, http.Handler)]
}

// newBadMirror returns the mirror, and --repo for the host's repositories, of which the
// first is asked through it.
func newBadMirror(t *testing.T) (*badMirror, []string) {
	t.Helper()
	own := ownSources(t)
	main := own[0]
	to, err := url.Parse(main.URI)
	assert.NilError(t, err)
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }}
	m := &badMirror{}
	m.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fault := m.fault.Load(); fault != nil {
			(*fault)(w, r, proxy)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		m.CloseClientConnections()
		m.Close()
	})
	repos := []string{"--repo", oneLine(main, m.URL)}
	for _, s := range own[1:] {
		repos = append(repos, oneLine(s, s.URI))
	}
	return m, repos
}

// at makes a fault that befalls the first n requests for what has text in its path.
func (m *badMirror) at(text string, n int64, befall http.HandlerFunc) (hits *atomic.Int64) {
	hits = new(atomic.Int64)
	fault := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, text) && hits.Add(1) <= n {
			befall(w, r)
			return
		}
		next.ServeHTTP(w, r)
	}
	m.fault.Store(&fault)
	return hits
}

func reset(w http.ResponseWriter, _ *http.Request) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nsome")
		_ = conn.(*net.TCPConn).SetLinger(0)
		_ = conn.Close()
	}
}

func garbage(w http.ResponseWriter, _ *http.Request) {
	_, _ = io.WriteString(w, "<html>Please log in to the network of this hotel.</html>\n")
}

func missing(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }
func failing(w http.ResponseWriter, _ *http.Request) {
	http.Error(w, "overloaded", http.StatusServiceUnavailable)
}
func hanging(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
func (m *badMirror) good()                           { m.fault.Store(nil) }

// spoiled serves what is there after change did something to it.
func spoiled(change func(body []byte) []byte) func(http.Handler) http.HandlerFunc {
	return func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			answer := httptest.NewRecorder()
			next.ServeHTTP(answer, r)
			for name, values := range answer.Header() {
				w.Header()[name] = values
			}
			w.Header().Set("Content-Length", strconv.Itoa(answer.Body.Len()))
			w.WriteHeader(answer.Code)
			_, _ = w.Write(change(answer.Body.Bytes()))
		}
	}
}

// wrong is one byte that is another one, truncated the first few of them: apt goes on
// where it stopped, and would have all after some attempts.
var (
	wrong     = spoiled(func(body []byte) []byte { body[len(body)/2] ^= 1; return body })
	truncated = spoiled(func(body []byte) []byte { return body[:min(len(body), 100)] })
)

const always = 1 << 30

// TestBadMirror: what a mirror can do is tried again where that may help, and else
// told with what to do; and with a good mirror the rerun does what is missing.
func TestBadMirror(t *testing.T) {
	t.Parallel()
	m, repos := newBadMirror(t)
	through := func(text string, n int64, befall func(http.Handler) http.HandlerFunc) {
		m.at(text, n, func(w http.ResponseWriter, r *http.Request) {
			fault := m.fault.Swap(nil)
			befall(m.Config.Handler)(w, r)
			m.fault.Store(fault)
		})
	}
	for _, row := range []struct {
		name    string
		prepare func()
		says    []string
		nightly bool
	}{
		{"lists are reset", func() { m.at("InRelease", always, reset) }, []string{"InRelease", "hint: "}, true},
		{"garbage for lists", func() { m.at("InRelease", always, garbage) }, []string{"InRelease", "hint: "}, false},
		{"lists with a wrong hash", func() { through("/by-hash/", always, wrong) }, []string{"Hash Sum mismatch", "hint: "}, false},
		{"truncated lists", func() { through("/binary-amd64/", always, truncated) }, []string{"/binary-amd64/", "hint: "}, true},
		{"an overloaded mirror", func() { m.at("/", always, failing) }, []string{"503", "hint: "}, true},
		{"a mirror that hangs", func() { m.at("/", always, hanging) }, []string{"InRelease", "hint: "}, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			if row.nightly && os.Getenv("DKMS2BIN_NIGHTLY") == "" {
				t.Skip("nightly only: it is waited for")
			}
			row.prepare()
			defer m.good()
			work := t.TempDir()
			r := command{name: "mkchroot", args: append([]string{"--work-dir", work, "--no-cache"}, repos...)}.run(t).
				mustExit(t, state.ExitError).mustSay(t, append([]string{"mkchroot: error: ", m.URL}, row.says...)...)
			command{name: "rmchroot", stdin: r.raw}.run(t).mustExit(t, state.ExitError)
			noTrees(t, work)
		})
	}

	// What cannot be fetched ahead is fetched when it is wanted. Of this mirror the host's
	// apt has no lists.
	for _, text := range []string{"/make_", "/libc6_", "InRelease"} {
		if text != "/make_" && os.Getenv("DKMS2BIN_NIGHTLY") == "" {
			return // apt takes its time to try again
		}
		t.Run("first without "+text, func(t *testing.T) {
			m.at(text, 1, reset)
			defer m.good()
			r := command{name: "mkchroot", args: append([]string{"--work-dir", t.TempDir(), "--no-cache"}, repos...)}.run(t).mustExit(t, state.ExitDone)
			log, err := os.ReadFile(r.doc.Tree.Log)
			assert.NilError(t, err)
			if rootfs.Maker() == "mmdebstrap" && memory.Memory() > 4<<30 {
				assert.Equal(t, strings.Contains(string(log), "skipping apt-get update because it was already run"), text != "InRelease", string(log))
			}
			command{name: "rmchroot", stdin: r.raw}.run(t).mustExit(t, state.ExitDone)
		})
	}
	work := t.TempDir()
	kver := currentKernel(t, "amd64")
	m.at("InRelease", 2, reset) // and is then there
	tree := command{name: "mkchroot", args: append([]string{"--work-dir", work, "--base", sharedBase(t), "--kver", kver}, repos...)}.run(t).mustExit(t, state.ExitDone)
	const deb = "bbswitch-dkms_"
	for _, row := range []struct {
		name    string
		prepare func()
		code    int
		says    string
	}{
		{"a package is reset", func() { m.at(deb, always, reset) }, state.ExitIncomplete, "Failed to fetch"},
		{"a truncated package", func() { through(deb, always, truncated) }, state.ExitIncomplete, "Failed to fetch"},
		{"a package with a wrong hash", func() { through(deb, always, wrong) }, state.ExitIncomplete, "Hash Sum mismatch"},
		{"a package that is gone", func() { m.at(deb, always, missing) }, state.ExitIncomplete, "404"},
		{"a package that hangs", func() { m.at(deb, always, hanging) }, state.ExitIncomplete, "Failed to fetch"},
		{"a package that is reset twice", func() { m.at(deb, 2, reset) }, state.ExitDone, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.prepare()
			defer m.good()
			r := command{name: "dkmsbuild", stdin: tree.raw, args: []string{"--dkms", "bbswitch-dkms"}}.run(t).mustExit(t, row.code)
			if row.code == state.ExitDone {
				return
			}
			r.mustSay(t, row.says, "hint: the repository did not deliver it")
			assert.Assert(t, strings.Contains(r.doc.Builds[0].Reason, row.says), r.doc.Builds[0].Reason)
		})
	}

	t.Run("it changes between update and install", func(t *testing.T) {
		// The lists name what the mirror has no more, until they are fetched again.
		fault := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if strings.Contains(r.URL.Path, "acpi-call-dkms_") {
				missing(w, r)
				return
			}
			if strings.HasSuffix(r.URL.Path, "InRelease") {
				m.good()
			}
			next.ServeHTTP(w, r)
		}
		m.fault.Store(&fault)
		defer m.good()
		command{name: "dkmsbuild", stdin: tree.raw, args: []string{"--dkms", "acpi-call-dkms"}}.run(t).mustExit(t, state.ExitDone)
	})
	command{name: "rmchroot", stdin: tree.raw}.run(t).mustExit(t, state.ExitDone)
	noTrees(t, work)
}

// inMemoryGroup is a command in a memory control group with a limit; nil where none
// can be made here.
func inMemoryGroup(t *testing.T, limit int64, c command) *command {
	t.Helper()
	for _, kind := range []struct{ dir, limit string }{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"}, {"/sys/fs/cgroup", "memory.max"},
	} {
		group, err := os.MkdirTemp(kind.dir, "dkms2bin-test-")
		if err != nil {
			continue
		}
		t.Cleanup(func() { assert.NilError(t, os.Remove(group)) })
		if os.WriteFile(filepath.Join(group, kind.limit), []byte(strconv.FormatInt(limit, 10)), 0o644) != nil {
			continue
		}
		c.args = append([]string{"-c", `echo $$ >"$1/cgroup.procs"; shift; exec "$@"`, "sh", group, filepath.Join(bin, c.name)}, c.args...)
		c.name = "/bin/sh"
		return &c
	}
	return nil
}

// TestCompilerWithoutMemory: a compiler that gets no memory, or is killed for want of
// it, is a failed build, whatever else is built.
func TestCompilerWithoutMemory(t *testing.T) {
	t.Parallel()
	if os.Getenv("DKMS2BIN_NIGHTLY") == "" {
		t.Skip("nightly only: what needs memory needs time")
	}
	tree := sharedTree(t)
	kver := shared.doc.Kernels[0].Release
	greedy := func(name, makeLine string) string {
		files := goodModule(name)
		files["dkms.conf"] += makeLine
		files["limited"] = "ulimit -v 200000 && exec make -C /lib/modules/" + kver + "/build M=$PWD modules\n"
		files[name+".c"] += "#define A 1,2,3,4,5,6,7,8,9,0,\n#define B A A A A A A A A A A\n#define C B B B B B B B B B B\n#define D C C C C C C C C C C\n#define E D D D D D D D D D D\n#define F E E E E E E E E E E\nchar big[] = { F F F F };\n"
		return source(t, name, files)
	}
	rows := []struct {
		name, dir string
		group     bool
	}{{"refused", greedy("refused", "MAKE[0]=\"sh limited\"\n"), false}, {"killed", greedy("killed", ""), true}}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			c := command{name: "dkmsbuild", stdin: tree, args: []string{"--jobs", "1", "--kver", kver, "--dkms", row.dir, source(t, "modest", goodModule("modest"))}}
			if row.group {
				grouped := inMemoryGroup(t, 400<<20, c)
				if grouped == nil {
					t.Skip("no memory control group can be made here")
				}
				c = *grouped
			}
			r := c.run(t).mustExit(t, state.ExitIncomplete).mustSay(t, "hint: the compiler had not enough memory")
			assert.Equal(t, findBuild(t, r.doc, row.name, kver).Status, state.Failed)
			assert.Equal(t, findBuild(t, r.doc, "modest", kver).Status, state.Built)
		})
	}
}

// TestOddSurroundings: names with blanks, line ends and letters of elsewhere, files
// that nobody else may read, and nothing to read from.
func TestOddSurroundings(t *testing.T) {
	t.Parallel()
	sharedTree(t)
	top := filepath.Join(t.TempDir(), "a b\nč 'd' \"$e\" \\f")
	dir := filepath.Join(top, "quelle ü")
	assert.NilError(t, os.MkdirAll(top, 0o755))
	mustRun(t, "cp", "-r", source(t, "odd", goodModule("odd")), dir)
	work, out := filepath.Join(top, "work"), filepath.Join(top, "out")
	script := `umask 077; exec "$@" <&- >&-`
	args := append([]string{"-c", script, "sh", filepath.Join(scripts, "dkms2bin")},
		"--dkms", dir, "--kver", shared.doc.Kernels[0].Release, "--out-dir", out, "--work-dir", work, "--index")
	command{name: "/bin/sh", args: args}.run(t).mustExit(t, state.ExitDone)
	noTrees(t, work)
	debs, err := fs.Glob(os.DirFS(out), "*.deb")
	assert.NilError(t, err)
	assert.Equal(t, len(debs), 1)
	deb := filepath.Join(out, debs[0])
	v, err := repo.Verify(t.Context(), out, nil)
	assert.NilError(t, err)
	assert.Equal(t, len(v.Problems), 0, "%q", v.Problems)
	assert.Equal(t, v.Packages, 1)
	// What is served is for all to read, and what is in the package has its usual modes.
	for _, path := range []string{deb, filepath.Join(out, "Packages"), filepath.Join(out, "status.json")} {
		info, err := os.Stat(path)
		assert.NilError(t, err)
		assert.Equal(t, info.Mode().Perm(), os.FileMode(0o644), path)
	}
	assert.Assert(t, !strings.Contains(mustRun(t, "dpkg-deb", "--contents", deb), "rw-------"))
}

// TestClosedStreams: without stdin, stdout or stderr no file takes their place, and
// none of them matters to a stage that does not need it.
func TestClosedStreams(t *testing.T) {
	t.Parallel()
	out := t.TempDir()
	putDeb(t, out, "x-modules-6.1.0-1-amd64", "1.0")
	for _, row := range []struct {
		how  string
		code int
	}{{"<&-", state.ExitDone}, {"2>&-", state.ExitDone}, {"<&- 2>&-", state.ExitDone}, {"<&- >&- 2>&-", state.ExitDone}, {">/dev/full", state.ExitError}, {"2>/dev/full", state.ExitDone}} {
		t.Run(row.how, func(t *testing.T) {
			command{name: "/bin/sh", args: []string{"-c", `exec "$1" "$2" ` + row.how, "sh", filepath.Join(bin, "repoindex"), out}}.run(t).mustExit(t, row.code)
			v, err := repo.Verify(t.Context(), out, nil)
			assert.NilError(t, err)
			assert.Equal(t, len(v.Problems), 0, "%q", v.Problems)
		})
	}
	for _, stage := range []string{"dkmsbuild", "rmchroot"} {
		command{name: "/bin/sh", args: []string{"-c", `exec "$1" <&-`, "sh", filepath.Join(bin, stage)}}.run(t).mustExit(t, state.ExitUsage).mustSay(t, "standard input is empty")
	}
}

// TestNextStageDies: the document that nobody takes is kept in the tree, and says where.
func TestNextStageDies(t *testing.T) {
	t.Parallel()
	tree := sharedTree(t)
	in := filepath.Join(t.TempDir(), "in")
	assert.NilError(t, os.WriteFile(in, tree, 0o644))
	script := `{ "$1" <"$2" 2>&1 >&3; echo "exit $?"; } 3>&1 >&4 | true`
	cmd := exec.Command("bash", "-c", `exec 4>&1; `+script, "bash", filepath.Join(bin, "dkmsbuild"), in)
	text, err := cmd.CombinedOutput()
	assert.NilError(t, err, "%s", text)
	assert.Assert(t, strings.Contains(string(text), "dkmsbuild: error: cannot hand the document on: "), "%s", text)
	_, kept, ok := strings.Cut(string(text), "a copy of it is ")
	assert.Assert(t, ok && strings.Contains(string(text), "exit 1"), "%s", text)
	raw, err := os.ReadFile(strings.TrimSpace(strings.SplitN(kept, "\n", 2)[0]))
	assert.NilError(t, err)
	_, err = state.Parse(raw)
	assert.NilError(t, err)
}

// TestLostOutput: an output directory that is gone, or became something else, loses
// nothing but itself.
func TestLostOutput(t *testing.T) {
	t.Parallel()
	built := command{name: "dkmsbuild", stdin: sharedTree(t), args: []string{"--kver", shared.doc.Kernels[0].Release, "--dkms", source(t, "lost", goodModule("lost"))}}.run(t).mustExit(t, state.ExitDone)
	out := filepath.Join(t.TempDir(), "out")
	first := command{name: "debextract", stdin: built.raw, args: []string{"--out-dir", out}}.run(t).mustExit(t, state.ExitDone)
	before := first.doc.Debs[0].Digest

	assert.NilError(t, os.RemoveAll(out))
	command{name: "repoindex", stdin: first.raw}.run(t).mustExit(t, state.ExitError).mustSay(t, out, "hint: debextract, run again")
	again := command{name: "debextract", stdin: first.raw, args: []string{"--out-dir", out}}.run(t).mustExit(t, state.ExitDone)
	assert.Equal(t, again.doc.Debs[0].Digest, before)
	assert.Equal(t, len(debFiles(t, out)), 1)

	// A link to what is not there, as when a disk is not mounted.
	assert.NilError(t, os.RemoveAll(out))
	assert.NilError(t, os.Symlink("/nonexistent/disk", out))
	command{name: "debextract", stdin: first.raw, args: []string{"--out-dir", out}}.run(t).mustExit(t, state.ExitUsage).mustSay(t, out+" is a link to /nonexistent/disk, which is not there")
	assert.NilError(t, os.Remove(out))

	// Read-only by the time that there is something to write.
	disk := smallDisk(t, "10m")
	indexed := command{name: "debextract", stdin: built.raw, args: []string{"--out-dir", disk}}.run(t).mustExit(t, state.ExitDone)
	assert.NilError(t, unix.Mount("", disk, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	r := command{name: "repoindex", stdin: indexed.raw}.run(t).mustExit(t, state.ExitError).mustSay(t, "read-only file system")
	assert.NilError(t, unix.Mount("", disk, "", unix.MS_REMOUNT, ""))
	command{name: "repoindex", stdin: r.raw}.run(t).mustExit(t, state.ExitDone)
}

// TestClockJumps: documents, packages, indexes and trees of a time that is yet to come.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	future := time.Now().Add(20 * 365 * 24 * time.Hour)
	built := command{name: "dkmsbuild", stdin: sharedTree(t), args: []string{"--kver", shared.doc.Kernels[0].Release, "--dkms", source(t, "early", goodModule("early"))}}.run(t).mustExit(t, state.ExitDone)
	later := encode(t, built.doc, func(d *state.Document) {
		d.Tree.Created = future
		for i := range d.Builds {
			d.Builds[i].Started = future
		}
	})
	out := t.TempDir()
	r := command{name: "debextract", stdin: later, args: []string{"--out-dir", out}}.run(t).mustExit(t, state.ExitDone)
	first := command{name: "repoindex", stdin: r.raw}.run(t).mustExit(t, state.ExitDone)
	// The files, and the index as a clock that was wrong left it.
	for _, deb := range debFiles(t, out) {
		assert.NilError(t, os.Chtimes(deb, future, future))
	}
	release := filepath.Join(out, "Release")
	text, err := os.ReadFile(release)
	assert.NilError(t, err)
	_, rest, _ := strings.Cut(string(text), "\nArchitectures")
	assert.NilError(t, os.WriteFile(release, []byte("Date: "+future.UTC().Format("Mon, 02 Jan 2006 15:04:05 UTC")+"\nArchitectures"+rest), 0o644))
	second := command{name: "repoindex", stdin: r.raw}.run(t).mustExit(t, state.ExitDone)
	assert.Equal(t, second.doc.Index.Packages, first.doc.Index.Packages)
	text, err = os.ReadFile(release)
	assert.NilError(t, err)
	// Clients have seen that date: no later index may have an earlier one.
	assert.Assert(t, strings.Contains(string(text), fmt.Sprint(future.UTC().Year())), "%s", text)
	v, err := repo.Verify(t.Context(), out, nil)
	assert.NilError(t, err)
	assert.Equal(t, len(v.Problems), 0, "%q", v.Problems)

	// A tree that will be used in twenty years is not an old one; a stale one goes, whenever.
	work := t.TempDir()
	made := command{name: "mkchroot", args: []string{"--work-dir", work, "--base", release}}.run(t).mustExit(t, state.ExitError) // no base at all
	tree := made.doc.Tree.Path
	for _, path := range []string{tree, filepath.Join(tree, "lock"), filepath.Join(tree, "busy")} {
		assert.NilError(t, os.Chtimes(path, future, future))
	}
	command{name: "rmchroot", args: []string{"--stale", "--older-than", "1h", "--work-dir", work}}.run(t).mustExit(t, state.ExitDone)
	_, err = os.Stat(tree)
	assert.NilError(t, err)
	assert.NilError(t, os.WriteFile(filepath.Join(tree, "busy", "1-dead"), nil, 0o644))
	command{name: "rmchroot", args: []string{"--stale", "--work-dir", work}}.run(t).mustExit(t, state.ExitDone)
	noTrees(t, work)
}

// TestTwoRuns: two whole runs at once, with one cache, one work directory and one
// output directory, for the same package and each for one of its own.
func TestTwoRuns(t *testing.T) {
	t.Parallel()
	if os.Getenv("DKMS2BIN_NIGHTLY") == "" {
		t.Skip("nightly only: they make a base system")
	}
	work, out := t.TempDir(), t.TempDir()
	cache := filepath.Join(t.TempDir(), "cache")
	var wg sync.WaitGroup
	for _, own := range []string{"acpi-call-dkms", "v4l2loopback-dkms"} {
		wg.Go(func() {
			r := command{name: "dkms2bin", args: []string{"--dkms", "bbswitch-dkms", own, "--out-dir", out, "--work-dir", work, "--cache-dir", cache, "--index"}}.run(t)
			if r.code != state.ExitDone {
				t.Errorf("%s: exit %d", own, r.code)
			}
		})
	}
	wg.Wait()
	noTrees(t, work)
	command{name: "rmchroot", args: []string{"--cache", "--cache-dir", cache}}.run(t).mustExit(t, state.ExitDone)
	assert.DeepEqual(t, leftInCache(cache), []string(nil))
	assert.Equal(t, len(debFiles(t, out)), 3)
	v, err := repo.Verify(t.Context(), out, nil)
	assert.NilError(t, err)
	assert.Equal(t, len(v.Problems), 0, "%q", v.Problems)
	assert.Equal(t, v.Packages, 3)
}

// TestManyFiles: an output directory with ten thousand packages, of which hundreds
// cannot be read, and as many other files.
func TestManyFiles(t *testing.T) {
	t.Parallel()
	if os.Getenv("DKMS2BIN_NIGHTLY") == "" {
		t.Skip("nightly only: 20,000 files")
	}
	out := t.TempDir()
	for i := range 10_000 {
		name := fmt.Sprintf("m%d-modules-6.1.0-%d-amd64", i%100, i/100)
		if i%25 == 0 {
			assert.NilError(t, os.WriteFile(filepath.Join(out, name+".deb"), []byte("no package"), 0o644))
		} else {
			putDeb(t, out, name, "1.0")
		}
		assert.NilError(t, os.WriteFile(filepath.Join(out, fmt.Sprint("other-", i)), nil, 0o644))
	}
	built := command{name: "dkmsbuild", stdin: sharedTree(t), args: []string{"--kver", shared.doc.Kernels[0].Release, "--dkms", source(t, "oneofmany", goodModule("oneofmany"))}}.run(t).mustExit(t, state.ExitDone)
	start := time.Now()
	r := command{name: "debextract", stdin: built.raw, args: []string{"--out-dir", out}}.run(t).mustExit(t, state.ExitDone)
	indexed := command{name: "repoindex", stdin: r.raw}.run(t).mustExit(t, state.ExitIncomplete)
	t.Logf("debextract and repoindex: %s", time.Since(start))
	assert.Equal(t, indexed.doc.Index.Packages, 9_601)
	assert.Equal(t, len(indexed.doc.Index.Left), 400)
	lines := strings.Count(indexed.stderr, "\n")
	assert.Assert(t, lines < 100, "%d lines of messages", lines)
}
