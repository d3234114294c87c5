//go:build e2e

package e2e

import (
	"crypto/tls"
	"dkms2bin/internal/apt"
	memory "dkms2bin/internal/machine"
	"dkms2bin/internal/repo"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/state"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

// dkmsDeb makes a package of a small DKMS module in dir. Fields are further ones
// of its control file.
func dkmsDeb(t *testing.T, dir, name, version, fields, postinst string) {
	t.Helper()
	root := t.TempDir()
	module := strings.TrimSuffix(name, "-dkms")
	for file, content := range goodModule(module) {
		path := filepath.Join(root, "usr/src", module+"-1.0", file)
		assert.NilError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		assert.NilError(t, os.WriteFile(path, []byte(content), 0o644))
	}
	assert.NilError(t, os.Mkdir(filepath.Join(root, "DEBIAN"), 0o755))
	control := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: A B <ab@example.org>\n%sDescription: made for a test\n", name, version, fields)
	assert.NilError(t, os.WriteFile(filepath.Join(root, "DEBIAN/control"), []byte(control), 0o644))
	if postinst != "" {
		assert.NilError(t, os.WriteFile(filepath.Join(root, "DEBIAN/postinst"), []byte("#!/bin/sh\n"+postinst), 0o755))
	}
	mustRun(t, "dpkg-deb", "--root-owner-group", "--build", root, dir)
}

// index makes a repository of a directory.
func index(t *testing.T, dir, label string) {
	t.Helper()
	r, err := repo.Open(t.Context(), dir, nil)
	assert.NilError(t, err)
	defer r.Close()
	result, err := r.Index(t.Context(), repo.Options{Origin: label, Label: label})
	assert.NilError(t, err)
	assert.Equal(t, len(result.Problems), 0, "%v", result.Problems)
}

// ownSources are the host's.
func ownSources(t *testing.T) []apt.Source {
	t.Helper()
	host, err := apt.ReadHost(t.Context())
	assert.NilError(t, err)
	own, err := host.Own()
	assert.NilError(t, err)
	return own
}

// oneLine is a source as --repo takes it, at another address.
func oneLine(s apt.Source, uri string, options ...string) string {
	switch {
	case s.Trusted():
		options = append(options, "trusted=yes")
	case s.SignedBy() != "" && len(s.Keyrings()) > 0:
		options = append(options, "signed-by="+strings.Join(s.Keyrings(), ","))
	}
	words := []string{"deb"}
	if len(options) > 0 {
		words = append(words, "["+strings.Join(options, " ")+"]")
	}
	return strings.Join(append(append(words, uri, s.Suite), s.Components...), " ")
}

// sharedBase is a ready tree with all that builds need.
func sharedBase(t *testing.T) string {
	t.Helper()
	sharedTree(t)
	// Not a link, which cp would copy as such: it leads to the cache.
	return layerOf(t, shared.doc, shared.doc.Tree.Base)
}

func versionOf(t *testing.T, doc *state.Document, name string) string {
	t.Helper()
	p := doc.Package(name)
	assert.Assert(t, p != nil, "no package %s", name)
	return p.Version
}

// forward is a proxy that counts what it is asked.
func forward(t *testing.T, asked *atomic.Int64) *httptest.Server {
	t.Helper()
	proxy := &httputil.ReverseProxy{Rewrite: func(*httputil.ProxyRequest) {}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return server
}

// TestFuelSettings: Fuel's file as it is drives a whole run. A flat repository's
// priority has an older version win, the kernel is that of the flavour, and the
// proxy is asked.
func TestFuelSettings(t *testing.T) {
	t.Parallel()
	base := sharedBase(t)
	work, out, vendor := t.TempDir(), t.TempDir(), t.TempDir()
	dkmsDeb(t, vendor, "bbswitch-dkms", "0.1", "", "")
	index(t, vendor, "vendor")
	var asked atomic.Int64
	proxy := forward(t, &asked)

	own := ownSources(t)
	var file strings.Builder
	fmt.Fprintf(&file, "---\nextend_kopts: \"debug LOGLEVEL=8\"\noutput_dir: /tmp/\nkernel_flavor: linux-image-cloud-amd64\nubuntu_release: %s\n", own[0].Suite)
	fmt.Fprintf(&file, "packages:\n  - live-boot\nhttp_proxy: \"%s\"\nhttps_proxy: null\ndirect_repo_addresses:\n  - 10.20.0.2\nrepos:\n", strings.TrimPrefix(proxy.URL, "http://"))
	fmt.Fprintf(&file, "  -\n    name: mos\n    priority: \"1050\"\n    section: \"\"\n    suite: ./\n    type: deb\n    uri: \"file:%s\"\n    trusted: yes\n", vendor)
	for i, s := range own {
		fmt.Fprintf(&file, "  -\n    name: base%d\n    priority: null\n    section: %q\n    suite: %s\n    type: deb\n    uri: %q\n", i, strings.Join(s.Components, " "), s.Suite, s.URI)
		if s.SignedBy() != "" {
			fmt.Fprintf(&file, "    signed-by: %s\n", strings.Join(s.Keyrings(), ","))
		}
		if s.Trusted() {
			file.WriteString("    trusted: yes\n")
		}
	}
	settings := filepath.Join(t.TempDir(), "fuel_bootstrap_cli.yaml")
	assert.NilError(t, os.WriteFile(settings, []byte(file.String()), 0o600))

	r := command{name: "fuel-bootstrap", args: []string{
		"dkms2bin", "--settings", settings, "--base", base, "--dkms", "bbswitch-dkms", "--out-dir", out, "--work-dir", work,
	}}.run(t).mustExit(t, 0).mustSay(t, "are those of "+settings)
	cloud := currentKernel(t, "cloud-amd64")
	r.mustSay(t, "... installing bbswitch-dkms package, building for "+cloud+" .. OK\n")
	debs := debFiles(t, out)
	assert.Equal(t, len(debs), 1)
	assert.Assert(t, strings.HasPrefix(filepath.Base(debs[0]), "bbswitch-modules-"+cloud+"_0.1+"), debs[0])
	assert.Assert(t, asked.Load() > 0, "the proxy was not asked")
	noTrees(t, work)
}

// TestPriorities: what priorities say holds for base, headers and packages.
func TestPriorities(t *testing.T) {
	t.Parallel()
	if os.Getenv("DKMS2BIN_NIGHTLY") == "" {
		t.Skip("nightly only: TestFuelSettings has a priority, too")
	}
	base := sharedBase(t)
	work := t.TempDir()
	var args []string
	for _, s := range ownSources(t) {
		args = append(args, oneLine(s, s.URI))
	}
	archive := map[string]string{}
	for _, row := range []struct{ name, version, priority string }{
		{"bbswitch-dkms", "0.1", "1001"}, // older, and preferred
		{"ddcci-dkms", "99", "100"},      // newer, and not
		{"only-here-dkms", "1", "-1"},    // never
	} {
		dir := t.TempDir()
		dkmsDeb(t, dir, row.name, row.version, "", "")
		index(t, dir, row.name)
		args = append(args, "deb [trusted=yes] file:"+dir+" ./,"+row.priority)
		archive[row.name] = row.version
	}
	made := command{name: "mkchroot", args: append([]string{"--work-dir", work, "--base", base, "--kver", currentKernel(t, "amd64"), "--repo"}, args...)}.run(t).mustExit(t, 0)
	assert.Equal(t, made.doc.Tree.Repositories[len(args)-1].Priority, -1)
	built := command{name: "dkmsbuild", stdin: made.raw, args: []string{"--dkms", "bbswitch-dkms", "ddcci-dkms"}}.run(t).mustExit(t, 0)
	assert.Equal(t, versionOf(t, built.doc, "bbswitch-dkms"), archive["bbswitch-dkms"])
	assert.Assert(t, versionOf(t, built.doc, "ddcci-dkms") != archive["ddcci-dkms"])
	command{name: "dkmsbuild", stdin: made.raw, args: []string{"--dkms", "only-here-dkms"}}.run(t).mustExit(t, 1).mustSay(t, "the repositories have no package only-here-dkms")
	command{name: "rmchroot", stdin: built.raw}.run(t).mustExit(t, 0)
	noTrees(t, work)
}

// TestRepoDirectory: packages of a directory that need each other, beside the
// host's repositories. The directory is left as it is, and not needed later.
func TestRepoDirectory(t *testing.T) {
	t.Parallel()
	base := sharedBase(t)
	work, dir := t.TempDir(), filepath.Join(t.TempDir(), "of a vendor 100%")
	assert.NilError(t, os.MkdirAll(filepath.Join(dir, "more"), 0o700))
	dkmsDeb(t, dir, "vendor-dkms", "1", "Depends: vendor-tools (= 2), kmod\n", "")
	dkmsDeb(t, dir, "bbswitch-dkms", "0.1", "", "")
	dkmsDeb(t, filepath.Join(dir, "more"), "vendor-tools", "2", "", "")
	assert.NilError(t, os.WriteFile(filepath.Join(dir, "broken.deb"), []byte("not a package"), 0o600))
	before, err := exec.Command("ls", "-lAR", "--time-style=full-iso", dir).Output()
	assert.NilError(t, err)

	made := command{name: "mkchroot", args: []string{"--work-dir", work, "--base", base, "--kver", currentKernel(t, "amd64"), "--repo", dir}}.run(t).
		mustExit(t, 0).mustSay(t, "warning: "+dir+"/broken.deb is left out: ")
	after, err := exec.Command("ls", "-lAR", "--time-style=full-iso", dir).Output()
	assert.NilError(t, err)
	assert.Equal(t, string(after), string(before))
	assert.Equal(t, len(made.doc.Tree.Repositories), len(ownSources(t))+1)
	assert.NilError(t, os.RemoveAll(dir))

	built := command{name: "dkmsbuild", stdin: made.raw, args: []string{"--dkms", "vendor-dkms", "bbswitch-dkms"}}.run(t).mustExit(t, 0)
	assert.Equal(t, versionOf(t, built.doc, "bbswitch-dkms"), "0.1")
	// What apt brought along has a module, too.
	built.mustSay(t, "vendor-dkms depends on vendor-tools, which has modules, too\n")
	assert.Equal(t, findBuild(t, built.doc, "vendor-tools", currentKernel(t, "amd64")).Status, state.Built)
	assert.DeepEqual(t, findBuild(t, built.doc, "vendor-dkms", currentKernel(t, "amd64")).Depends, []string{"vendor-tools/1.0"})
	// The lists can be fetched again, too.
	again := encode(t, built.doc, func(d *state.Document) { d.Tree.Created = time.Unix(0, 0) })
	command{name: "dkmsbuild", stdin: again, args: []string{"--dkms", "vendor-tool-dkms"}}.run(t).mustExit(t, 1).mustSay(t, "the repositories have no package vendor-tool-dkms", "vendor-dkms")
	command{name: "rmchroot", stdin: built.raw}.run(t).mustExit(t, 0)
	noTrees(t, work)
}

// guard asks for a login, and counts those who have it and those who have not.
type guard struct {
	header, challenge string
	code              int
	login             string
	in, out           atomic.Int64
	next              http.Handler
}

func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get(g.header) != "Basic "+base64.StdEncoding.EncodeToString([]byte(g.login)) {
		g.out.Add(1)
		w.Header().Set(g.challenge, `Basic realm="test"`)
		w.WriteHeader(g.code)
		return
	}
	g.in.Add(1)
	r.Header.Del(g.header)
	g.next.ServeHTTP(w, r)
}

// mirror passes /N/… on to the Nth of the sources.
func mirror(t *testing.T, sources []apt.Source) http.Handler {
	t.Helper()
	mux := http.NewServeMux()
	for i, s := range sources {
		to, err := url.Parse(s.URI)
		assert.NilError(t, err)
		proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }}
		prefix := fmt.Sprintf("/%d", i)
		mux.Handle(prefix+"/", http.StripPrefix(prefix, proxy))
	}
	return mux
}

// TestCredentials: an https mirror with a certificate of an authority of its own,
// and a vendor's repository behind a proxy, all of which want logins. None of
// these shows anywhere.
func TestCredentials(t *testing.T) {
	t.Parallel()
	work, out, vendor, private := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	const mirrorSecret, proxySecret, vendorSecret = "zq9secret@mirror", "zq9secretproxy", "zq9secretvendor"
	own := ownSources(t)
	site := &guard{header: "Authorization", challenge: "WWW-Authenticate", code: 401, login: "mirror:" + mirrorSecret, next: mirror(t, own)}
	secure := httptest.NewUnstartedServer(site)
	secure.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	secure.StartTLS()
	t.Cleanup(secure.Close)
	cert := filepath.Join(private, "ca.pem")
	assert.NilError(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o600))

	// The vendor's package looks for them.
	dkmsDeb(t, vendor, "bbswitch-dkms", "0.1", "", "cp -r /run/dkms2bin /run/.dkms2bin /root/ 2>/dev/null\nenv >/root/env\ncat /proc/*/environ /proc/*/cmdline /proc/self/mountinfo >/root/proc 2>/dev/null\ncp -r /etc/apt /root/\nexit 0\n")
	index(t, vendor, "vendor")
	inner := &guard{header: "Authorization", challenge: "WWW-Authenticate", code: 401, login: "vendor:" + vendorSecret, next: http.FileServer(http.Dir(vendor))}
	outer := &guard{header: "Proxy-Authorization", challenge: "Proxy-Authenticate", code: 407, login: "proxy:" + proxySecret, next: inner}
	proxy := httptest.NewServer(outer)
	t.Cleanup(proxy.Close)
	auth := filepath.Join(private, "auth.conf")
	assert.NilError(t, os.WriteFile(auth, []byte("machine http://vendor.example.org/\nlogin vendor\npassword "+vendorSecret+"\n"), 0o600))

	var repos []string
	for i, s := range own {
		login := url.UserPassword("mirror", mirrorSecret).String()
		repos = append(repos, oneLine(s, fmt.Sprintf("https://%s@%s/%d", login, strings.TrimPrefix(secure.URL, "https://"), i)))
	}
	repos = append(repos, "deb [trusted=yes] http://vendor.example.org/ ./,1001")
	env := []string{
		"DKMS2BIN_CACHE_DIR=" + filepath.Join(work, "cache"),
		"DKMS2BIN_REPO=" + strings.Join(repos, "\n"),
		"DKMS2BIN_HTTP_PROXY=http://proxy:" + proxySecret + "@" + strings.TrimPrefix(proxy.URL, "http://"),
	}
	stop, shown := make(chan struct{}), make(chan []string)
	go func() {
		var found []string
		for {
			select {
			case <-stop:
				shown <- found
				return
			case <-time.After(20 * time.Millisecond):
				found = append(found, processes("zq9secret")...)
			}
		}
	}()
	r := command{name: "dkms2bin", env: env, args: []string{
		"--dkms", "bbswitch-dkms", "acpi-call-dkms", "--out-dir", out, "--work-dir", work, "--index", "--do-not-remove",
		"--auth-conf", auth, "--load-cert", cert, "--direct-repo-addr", "127.0.0.1",
	}}.run(t)
	close(stop)
	assert.DeepEqual(t, <-shown, []string(nil))
	r.mustExit(t, 0)
	assert.Assert(t, site.in.Load() > 0 && inner.in.Load() > 0 && outer.in.Load() > 0)
	assert.Assert(t, !strings.Contains(r.stderr, "warning"), r.stderr)
	assert.Equal(t, len(debFiles(t, out)), 2)
	// Of a flat repository apt is asked. What needs nothing, and whose place is known, is
	// fetched alone, by the same login.
	logs, err := filepath.Glob(filepath.Join(work, "trees/*/records/package-*/install.log"))
	assert.NilError(t, err)
	asked := map[bool]int{}
	for _, name := range logs {
		log, err := os.ReadFile(name)
		assert.NilError(t, err)
		asked[strings.Contains(string(log), "Building dependency tree")]++
		assert.Equal(t, strings.Contains(string(log), "Building dependency tree"), strings.Contains(string(log), "bbswitch"), string(log))
	}
	assert.DeepEqual(t, asked, map[bool]int{true: 1, false: 1})

	// Nothing but the file that apt has them from; encoded ones neither.
	patterns := []string{"zq9secret"}
	for _, login := range []string{site.login, inner.login, outer.login} {
		patterns = append(patterns, base64.StdEncoding.EncodeToString([]byte(login))[:12])
	}
	hidden := func(t *testing.T, r result) {
		t.Helper()
		trees, err := filepath.Glob(filepath.Join(work, "trees", "*"))
		assert.NilError(t, err)
		assert.Equal(t, len(trees), 1)
		kept := filepath.Join(trees[0], "apt", "auth.conf")
		info, err := os.Stat(kept)
		assert.NilError(t, err)
		assert.Equal(t, info.Mode().String(), "-rw-------")
		args := []string{"-rlF"}
		for _, p := range patterns {
			args = append(args, "-e", p)
			assert.Assert(t, !strings.Contains(r.stderr+string(r.raw), p), r.stderr)
		}
		found, _ := exec.Command("grep", append(args, work, out)...).Output()
		assert.Equal(t, string(found), kept+"\n")
		command{name: "rmchroot", args: trees}.run(t).mustExit(t, 0)
	}
	hidden(t, r)

	t.Run("debootstrap", func(t *testing.T) {
		if os.Getenv("DKMS2BIN_NIGHTLY") == "" {
			t.Skip("nightly only: it takes as long as all the others")
		}
		env := append(env, "PATH="+onlyPrograms(t, "apt-get", "apt-config", "dpkg", "debootstrap"))
		hidden(t, command{name: "mkchroot", env: env, args: []string{
			"--work-dir", work, "--auth-conf", auth, "--load-cert", cert, "--direct-repo-addr", "127.0.0.1",
		}}.run(t).mustExit(t, 0))
	})
	t.Run("wrong", func(t *testing.T) {
		// On the command line, there is a warning.
		line := oneLine(own[0], strings.Replace(secure.URL, "://", "://mirror:zq9wrong@", 1)+"/0")
		r := command{name: "mkchroot", args: []string{"--work-dir", work, "--load-cert", cert, "--repo", line}}.run(t).
			mustExit(t, 1).mustSay(t, "warning: a password on the command line", "401", "hint: it wants a login: --auth-conf")
		assert.Assert(t, !strings.Contains(r.stderr+string(r.raw), "zq9"), r.stderr)
		command{name: "rmchroot", stdin: r.raw}.run(t).mustExit(t, 1)
		for _, bad := range []string{"deb http://me:zq9/bad@example.org/ bookworm main", "http://me:zq9@example.org/ bookworm main", "deb [zq=1] http://me:zq9@example.org/ ./"} {
			r := command{name: "mkchroot", args: []string{"--work-dir", work, "--repo", bad}}.run(t)
			assert.Assert(t, r.code == 1 || r.code == 2)
			assert.Assert(t, !strings.Contains(r.stderr+string(r.raw), "zq9"), r.stderr)
		}
	})
	noTrees(t, work)
}

// withoutNetwork runs a command where loopback alone is up, and there a server of the
// directory on port 8642.
const withoutNetwork = `
busybox ip link set lo up
busybox httpd -f -p 127.0.0.1:8642 -h "$1" &
server=$!
shift
until busybox wget -q -O /dev/null http://127.0.0.1:8642/Release; do sleep 0.1; done
code=0
"$@" || code=$?
kill $server
exit $code
`

// TestAirGap: with a base system and a mirror in a directory, or on a server, the
// whole job works where there is no other network.
func TestAirGap(t *testing.T) {
	t.Parallel()
	mirror, dir := t.TempDir(), t.TempDir()
	kver := currentKernel(t, "amd64")
	base := plainSystem(t, ownSources(t)[0].Suite)
	mustRun(t, "tar", "-C", dir, "-xf", base, "./var/lib/dpkg/status")
	assert.NilError(t, os.MkdirAll(filepath.Join(dir, "archives/partial"), 0o755))
	mustRun(t, "apt-get", "-o", "Dir::State::status="+dir+"/var/lib/dpkg/status", "-o", "Dir::Cache::archives="+dir+"/archives", "-o", "Debug::NoLocking=yes",
		"-o", "APT::Sandbox::User=root", "--download-only", "--no-install-recommends", "-y", "install",
		"build-essential", "dkms", "kmod", "linux-headers-amd64", "linux-headers-"+kver, "bbswitch-dkms")
	for _, deb := range debFiles(t, filepath.Join(dir, "archives")) {
		assert.NilError(t, os.Rename(deb, filepath.Join(mirror, strings.ReplaceAll(filepath.Base(deb), "%3a", "_"))))
	}
	index(t, mirror, "mirror")

	cmd := command{name: "dkms2bin"}.command(t.Context())
	for _, row := range []struct{ name, base, mirror string }{
		{"archive and directory", base, "file:" + mirror},
		{"directory and server", sharedBase(t), "http://127.0.0.1:8642/"},
	} {
		t.Run(row.name, func(t *testing.T) {
			work, out := t.TempDir(), t.TempDir()
			offline := exec.CommandContext(t.Context(), "unshare", "--net", "sh", "-euc", withoutNetwork, "sh", mirror,
				cmd.Path, "--base", row.base, "--repo", "deb [trusted=yes] "+row.mirror+" ./",
				"--dkms", "bbswitch-dkms", "--out-dir", out, "--work-dir", work, "--index")
			text, err := offline.CombinedOutput()
			t.Logf("%s", text)
			assert.NilError(t, err)
			assert.Equal(t, len(debFiles(t, out)), 1)
			noTrees(t, work)
		})
	}
}

// TestBadBase: a base system that is none.
func TestBadBase(t *testing.T) {
	t.Parallel()
	work, empty := t.TempDir(), t.TempDir()
	file := filepath.Join(empty, "file")
	assert.NilError(t, os.WriteFile(file, []byte("not an archive"), 0o644))
	foreign := filepath.Join(t.TempDir(), "foreign")
	mustRun(t, "cp", "-a", sharedBase(t), foreign)
	arch := filepath.Join(foreign, "usr/bin/dpkg")
	assert.NilError(t, os.Remove(arch))
	assert.NilError(t, os.WriteFile(arch, []byte("#!/bin/sh\necho m68k\n"), 0o755))
	older := filepath.Join(t.TempDir(), "older")
	mustRun(t, "cp", "-a", sharedBase(t), older)
	mustRun(t, "sed", "-i", "s/^VERSION_CODENAME=.*/VERSION_CODENAME=potato/", filepath.Join(older, "usr/lib/os-release"))
	mustRun(t, "sed", "-i", "/^Package: dkms$/,/^$/d; s/^Version: .*/Version: 999/", filepath.Join(older, "var/lib/dpkg/status"))
	for _, row := range []struct {
		base string
		code int
		says []string
	}{
		{"/nonexistent", 2, []string{"--base", "no such file"}},
		{empty, 1, []string{"there is no /usr/bin/dpkg in it", "hint: it must be a tar archive, or the directory"}},
		{file, 1, []string{"cannot take " + file + " as the base system", "hint: it must be a tar archive, or the directory"}},
		{foreign, 1, []string{"the given base system is for m68k, and this host is "}},
		{older, 1, []string{"cannot complete the base system: ", "hint: the given base system is of potato, and the first repository has " + ownSources(t)[0].Suite}},
	} {
		r := command{name: "mkchroot", args: []string{"--work-dir", work, "--base", row.base}}.run(t).mustExit(t, row.code).mustSay(t, row.says...)
		command{name: "rmchroot", stdin: r.raw}.run(t).mustExit(t, row.code)
	}
	noTrees(t, work)
}

// TestFetchedAhead: what the base system is made of was there when it was wanted. Were
// it not, all would be as it is, and only take longer.
func TestFetchedAhead(t *testing.T) {
	t.Parallel()
	sharedTree(t)
	if rootfs.Maker() != "mmdebstrap" {
		t.Skip("mmdebstrap is not installed")
	}
	log, err := os.ReadFile(shared.doc.Tree.Log)
	assert.NilError(t, err)
	found := regexp.MustCompile(`(?m)^packages fetched ahead: (\d{3}) of (\d+)$`).FindStringSubmatch(string(log))
	if found == nil && memory.Memory() < 4<<30 {
		t.Skip("the base system is not put together in memory, for want of it")
	}
	assert.Assert(t, found != nil && found[1] == found[2], string(log))
	assert.Assert(t, strings.Contains(string(log), "skipping apt-get update because it was already run"), string(log))
	if shared.doc.Tree.Suite == "bookworm" { // has both, of which only one fits
		installed, err := os.ReadFile(filepath.Join(shared.doc.Tree.Path, "layers", shared.doc.Tree.Base, "var/lib/dpkg/status"))
		assert.NilError(t, err)
		assert.Assert(t, strings.Contains(string(installed), "\nPackage: usr-is-merged\n") && !strings.Contains(string(installed), "\nPackage: usrmerge\n"))
	}
	_, err = os.Stat(filepath.Join(shared.doc.Tree.Path, "layers", shared.doc.Tree.Base, "etc/apt/preferences.d/merged"))
	assert.ErrorIs(t, err, os.ErrNotExist)
	host, err := apt.ReadHost(t.Context())
	assert.NilError(t, err)
	if lists, err := filepath.Glob(filepath.Join(host.Lists, "*_InRelease")); err == nil && len(lists) > 0 {
		assert.Assert(t, regexp.MustCompile(`(?m)^package lists of the host's apt: [1-9]`).Match(log), string(log))
	}
}
