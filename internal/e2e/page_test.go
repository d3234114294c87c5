//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"dkms2bin/internal/status"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

// TestPage looks at index.html as a browser does. Screenshots are artifacts of
// the test: go test -artifacts -outputdir DIR keeps them.
func TestPage(t *testing.T) {
	b := startBrowser(t)

	t.Run("small", func(t *testing.T) {
		file := writePage(t, someStatus())
		p := b.open(t, file)
		p.quiet(t, file)
		p.linksLead(t, filepath.Dir(file))
		p.named(t)
		for _, scheme := range []string{"light", "dark"} {
			p.scheme(t, scheme)
			p.size(t, 1280, 900)
			p.shot(t, "small-"+scheme)
			p.contrasts(t)
			p.size(t, 360, 740)
			p.fits(t)
			p.shot(t, "small-phone-"+scheme)
		}
	})
	t.Run("filter", func(t *testing.T) {
		p := b.open(t, writePage(t, someStatus()))
		const visible = `[...document.querySelectorAll("li[id]")].filter((e) => e.checkVisibility()).map((e) => e.id).join(" ")`
		all := p.eval(t, visible)
		assert.Equal(t, len(strings.Fields(all)), 15, all)

		p.eval(t, `document.getElementById("query").focus()`)
		p.call(t, "Input.insertText", params{"text": "ZFS cloud"}, nil)
		assert.Equal(t, p.eval(t, visible), "amd64/zfs/6.12.48%2Bdeb13-cloud-amd64 amd64/zfs/6.1.0-56-cloud-amd64")
		assert.Equal(t, p.eval(t, `document.querySelector("output").textContent`), "2 of 20 match: 1 module, 2 kernels.")
		assert.Equal(t, p.eval(t, `location.hash`), "#q=ZFS+cloud")
		p.shot(t, "filtered")

		p.eval(t, `document.getElementById("query").select()`)
		p.call(t, "Input.insertText", params{"text": "implicit declaration"}, nil)
		assert.Equal(t, p.eval(t, visible), "amd64/librem-ec-acpi/6.1.0-56-amd64 amd64/librem-ec-acpi/6.1.0-55-amd64")

		p.eval(t, `document.getElementById("query").select()`)
		p.call(t, "Input.insertText", params{"text": "no such thing"}, nil)
		assert.Equal(t, p.eval(t, visible), "")
		assert.Equal(t, p.eval(t, `document.querySelector("output").textContent`), "Nothing matches.")

		p.eval(t, `document.getElementById("query").value = ""; document.querySelector("[value=skipped]").click()`)
		assert.Equal(t, p.eval(t, visible), "amd64/zfs/6.12.48%2Bdeb13-amd64")
		p.eval(t, `document.querySelector("[value=untried]").click()`)
		assert.Equal(t, p.eval(t, visible), "")
		assert.Equal(t, p.eval(t, `document.querySelector("output").textContent`), "5 of 20 match: 2 modules, 3 kernels.")
		p.eval(t, `document.querySelector("[name=status]").click()`)
		assert.Equal(t, p.eval(t, visible), all)

		// An address with a filter in it can be handed on.
		p.eval(t, `location.hash = "#q=bbswitch&status=built"`)
		p.wait(t, `document.getElementById("query").value === "bbswitch"`)
		assert.Equal(t, p.eval(t, visible), "amd64/bbswitch/6.1.0-56-amd64 amd64/bbswitch/6.1.0-55-amd64")
		// And one of a cell, which the filter must not hide.
		p.eval(t, `location.hash = "#amd64/zfs/6.1.0-56-amd64"`)
		p.wait(t, `document.querySelector(":target")?.checkVisibility()`)
		assert.Equal(t, p.eval(t, visible), all)
	})
	t.Run("keyboard", func(t *testing.T) {
		p := b.open(t, writePage(t, someStatus()))
		stops := p.tab(t, 60)
		for _, stop := range []string{"A.skip", "SUMMARY", "INPUT[status]", "INPUT#query", "DIV.scroll", "TH A", "TD A", "LI A"} {
			assert.Assert(t, slices.Contains(stops, stop), "the Tab key does not reach %s: %s", stop, stops)
		}
		cells := func(s string) bool { return s == "TD A" }
		assert.Equal(t, len(slices.DeleteFunc(stops, func(s string) bool { return !cells(s) })), 1, "the matrix is one stop")

		p.eval(t, `document.querySelector("td > a").focus()`)
		at := `document.activeElement.getAttribute("href")`
		first := p.eval(t, at)
		p.key(t, "ArrowDown", 40)
		assert.Assert(t, p.eval(t, at) != first)
		p.key(t, "ArrowUp", 38)
		assert.Equal(t, p.eval(t, at), first)
		p.key(t, "End", 35)
		assert.Assert(t, p.eval(t, at) != first)
		p.key(t, "Enter", 13)
		p.wait(t, `document.querySelector(":target")?.checkVisibility()`)
	})
	t.Run("without JavaScript", func(t *testing.T) {
		file := writePage(t, someStatus())
		p := b.blank(t)
		p.call(t, "Emulation.setScriptExecutionDisabled", params{"value": true}, nil)
		p.navigate(t, file)
		p.quiet(t, file)
		p.size(t, 1280, 900)
		p.shot(t, "no-script")
		p.size(t, 360, 740)
		var tree struct{ Nodes []axNode }
		p.call(t, "Accessibility.getFullAXTree", nil, &tree)
		var text strings.Builder
		for _, n := range tree.Nodes {
			if !n.Ignored && n.Role.Value == "StaticText" {
				text.WriteString(n.Name.String() + "\n")
			}
			assert.Assert(t, n.Ignored || n.Role.Value != "searchbox" && n.Role.Value != "radio", "a filter that does nothing")
		}
		for _, want := range []string{
			"zfs", "librem_ec_acpi", "implicit declaration of function 'acpi_bus_get_device'",
			"2.1.11", "6.12.48+deb13-cloud-amd64", "2026-11-22", "package", "log",
		} {
			assert.Assert(t, strings.Contains(text.String(), want), "%q is not there:\n%s", want, text.String())
		}
	})
	t.Run("hostile", func(t *testing.T) {
		file := writePage(t, hostileStatus())
		p := b.open(t, file)
		p.quiet(t, file)
		p.size(t, 360, 740)
		p.fits(t)
		p.shot(t, "hostile-phone")
		p.size(t, 1280, 900)
		p.fits(t)
		p.shot(t, "hostile")
		p.linksLead(t, filepath.Dir(file))
		assert.Equal(t, p.eval(t, `document.querySelectorAll("script").length + document.querySelectorAll("img, b script").length`), "1")
		assert.Equal(t, p.eval(t, `window.hacked === undefined`), "true")
	})
	t.Run("large", func(t *testing.T) {
		file := writePage(t, bigStatus(100, 40))
		info, err := os.Stat(file)
		assert.NilError(t, err)
		p := b.blank(t)
		p.call(t, "Performance.enable", params{"timeDomain": "threadTicks"}, nil)
		start := time.Now()
		p.navigate(t, file)
		took := time.Since(start).Round(time.Millisecond)
		t.Logf("100 kernels × 40 modules: %d kB, loaded and laid out in %s, of computing %s", info.Size()/1000, took, p.computing(t))
		p.quiet(t, file)
		p.size(t, 1280, 900)
		p.shot(t, "large")
		p.fits(t)
		// Twice: the first run reads the page.
		for _, words := range []string{"zfs", "zfs", "6.1.0-5", "implicit", "nothing like this", ""} {
			before := p.computing(t)
			wall := p.eval(t, fmt.Sprintf(`(() => {
				const start = performance.now(), query = document.getElementById("query");
				query.value = %q;
				query.dispatchEvent(new Event("input", {bubbles: true}));
				document.body.offsetHeight; // lays out
				return Math.round(performance.now() - start);
			})()`, words))
			t.Logf("filter %q: %s ms, of computing %s", words, wall, p.computing(t)-before)
		}
		p.eval(t, `document.querySelector("[value=failed]").click()`)
		p.shot(t, "large-failed")
		p.eval(t, `document.querySelector("[name=status]").click()`)
		p.scheme(t, "dark")
		p.shot(t, "large-dark")
		p.size(t, 360, 740)
		p.fits(t)
		p.shot(t, "large-phone")
		p.eval(t, `location.hash = "#amd64/module-07/6.1.0-41-amd64"`)
		p.wait(t, `document.querySelector(":target")?.checkVisibility()`)
		p.shot(t, "large-phone-target")
	})
}

var statusDay = time.Date(2026, 11, 22, 20, 15, 0, 0, time.UTC)

// someStatus is a repository as they are: a few modules and kernels.
func someStatus() *status.Status {
	s := &status.Status{Repository: status.Repository{
		Description: "Binary kernel modules built from DKMS packages", Origin: "dkms2bin",
		URL: "https://example.org/modules", SignedBy: "6D33866EDD8FFA41C0143AEDDCC9EFBF77E11517", Updated: statusDay,
	}}
	add := func(name, version, packageVersion, kernel, outcome, reason string) {
		r := status.Record{
			Architecture: "amd64", Package: strings.ReplaceAll(name, "_", "-") + "-dkms", PackageVersion: packageVersion,
			Module: name, ModuleVersion: version, Kernel: kernel, Status: outcome, Reason: reason, Date: statusDay, Seconds: 38,
			Log: fmt.Sprintf("logs/%s-%s-%s.log", name, version, kernel),
		}
		if outcome == status.Failed {
			r.Stage = "dkmsbuild"
		}
		if outcome == status.Built {
			p := status.Package{
				Name: strings.ReplaceAll(name, "_", "-") + "-modules-" + kernel, Version: packageVersion + "+6.1.192.2",
				Architecture: "amd64", Kernel: kernel,
			}
			p.Filename = fmt.Sprintf("%s_%s_amd64.deb", p.Name, p.Version)
			s.Packages = append(s.Packages, p)
			r.Debs = []string{p.Filename}
		}
		s.Records = append(s.Records, r)
	}
	const implicit = "error: implicit declaration of function 'acpi_bus_get_device'; did you mean 'acpi_get_device'? (librem_ec_acpi.c:412)"
	for _, k := range []string{"6.1.0-55-amd64", "6.1.0-56-amd64", "6.12.48+deb13-amd64", "6.1.0-56-cloud-amd64", "6.12.48+deb13-cloud-amd64"} {
		if k == "6.12.48+deb13-amd64" {
			add("zfs", "2.1.11", "2.1.11-1+deb12u1", k, status.Skipped, "BUILD_EXCLUSIVE in its dkms.conf does not match this kernel, architecture or configuration")
		} else {
			add("zfs", "2.1.11", "2.1.11-1+deb12u1", k, status.Built, "")
		}
		if !strings.Contains(k, "cloud") {
			add("v4l2loopback", "0.12.7", "0.12.7-2", k, status.Built, "")
		}
	}
	add("zfs", "2.1.9", "2.1.9-4", "6.1.0-55-amd64", status.Built, "")
	add("v4l2loopback", "0.15.0", "0.15.0-2~bpo12+1", "6.12.48+deb13-amd64", status.Failed, "error: 'struct v4l2_loopback_device' has no member named 'lock' (v4l2loopback.c:1187)")
	add("librem_ec_acpi", "0.9.1", "0.9.1-4", "6.1.0-55-amd64", status.Failed, implicit)
	add("librem_ec_acpi", "0.9.1", "0.9.1-4", "6.1.0-56-amd64", status.Failed, implicit)
	add("bbswitch", "0.8", "0.8-15", "6.1.0-56-amd64", status.Built, "")
	add("bbswitch", "0.8", "0.8-15", "6.1.0-55-amd64", status.Built, "")
	s.Records = s.Records[:len(s.Records)-1] // the package alone is left
	s.Records = append(s.Records, status.Record{
		Architecture: "amd64", Package: "bbswitch-dkms", Kernel: "6.12.48+deb13-amd64", Status: status.Failed,
		Reason: "cannot install it: apt-get: Unmet dependencies", Stage: "dkmsbuild", Date: statusDay,
	}, status.Record{
		Architecture: "amd64", Package: "bbswitch-dkms", Kernel: "6.1.0-56-cloud-amd64", Status: status.Failed,
		Reason: "cannot install it: apt-get: Unmet dependencies", Stage: "dkmsbuild", Date: statusDay,
	}, status.Record{
		Architecture: "amd64", Package: "bbswitch-dkms", Kernel: "6.12.48+deb13-cloud-amd64", Status: status.Failed,
		Reason: "cannot install it: apt-get: Unmet dependencies", Stage: "dkmsbuild", Date: statusDay,
	})
	s.Packages = append(s.Packages, status.Package{
		Name: "zfs-modules-amd64", Version: "2.1.11-1+6.1.192.2", Architecture: "amd64", Filename: "zfs-modules-amd64_2.1.11-1+6.1.192.2_amd64.deb",
	})
	s.Merge(nil)
	return s
}

// hostileStatus has texts and paths that mean harm.
func hostileStatus() *status.Status {
	s := someStatus()
	evil := []string{
		`<script>window.hacked = 1</script>`, `"><img src=x onerror="window.hacked = 1">`, `javascript:window.hacked=1`,
		"\u202egnp.exe\u2066", "caf\xff\xfe", strings.Repeat("W", 4000), strings.Repeat("long words ", 400), "../../etc/passwd", "{{.}}</style>",
	}
	s.Repository.Description, s.Repository.Origin, s.Repository.URL, s.Repository.SignedBy = evil[0], evil[1], evil[2], evil[5]
	for i, e := range evil {
		s.Records = append(s.Records, status.Record{
			Architecture: "amd64", Package: e, PackageVersion: e, Module: e, ModuleVersion: e, Kernel: "6.1.0-" + e,
			Status: status.Failed, Reason: e, Stage: e, Log: e, Date: statusDay,
		})
		s.Packages = append(s.Packages, status.Package{
			Name: "zfs-modules-6.1.0-56-amd64", Version: e, Architecture: "amd64", Kernel: "6.1.0-56-amd64",
			Filename: []string{"a+b ~%20#?.deb", ":colon&.deb", "javascript:window.hacked=1", "sub dir/" + e}[i%4],
		})
	}
	return s
}

// bigStatus is a repository that has grown for years.
func bigStatus(kernels, modules int) *status.Status {
	s := someStatus()
	s.Records, s.Packages = nil, nil
	for k := range kernels {
		release := fmt.Sprintf("6.1.0-%d-amd64", k+1)
		if k%2 == 1 {
			release = fmt.Sprintf("6.12.%d+deb13-cloud-amd64", k)
		}
		for m := range modules {
			name := fmt.Sprintf("module-%02d", m)
			switch m {
			case 3:
				name = "zfs"
			case 9:
				name = "librem_ec_acpi"
			case 20:
				name = "v4l2loopback"
			}
			version := fmt.Sprintf("1.%d.2", m)
			r := status.Record{
				Architecture: "amd64", Package: name + "-dkms", PackageVersion: version + "-1", Module: name, ModuleVersion: version, Kernel: release,
				Status: status.Built, Date: statusDay.AddDate(0, 0, -k), Seconds: float64(k*m%1000) / 3,
				Log: fmt.Sprintf("logs/%s-%s-%s.log", name, version, release),
			}
			switch {
			case m%13 == 5 && k < 30:
				continue
			case (k*7+m*11)%61 == 0:
				r.Status, r.Stage = status.Failed, "dkmsbuild"
				r.Reason = fmt.Sprintf("error: implicit declaration of function 'f%d' (main.c:%d)", k%5, 100+m)
			case m%11 == 4 && k%2 == 0:
				r.Status, r.Reason = status.Skipped, "BUILD_EXCLUSIVE in its dkms.conf does not match this kernel, architecture or configuration"
			default:
				file := fmt.Sprintf("%s-modules-%s_%s-1+6.1.192.2_amd64.deb", name, release, version)
				r.Debs = []string{file}
				s.Packages = append(s.Packages, status.Package{
					Name: name + "-modules-" + release, Version: version + "-1+6.1.192.2", Architecture: "amd64", Filename: file, Kernel: release,
				})
			}
			s.Records = append(s.Records, r)
		}
	}
	return s
}

// writePage writes the page of a repository, and all files that it has.
func writePage(t *testing.T, s *status.Status) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, content []byte) {
		if !filepath.IsLocal(name) {
			return
		}
		path := filepath.Join(dir, name)
		assert.NilError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		err := os.WriteFile(path, content, 0o644)
		assert.Assert(t, err == nil || errors.Is(err, syscall.ENAMETOOLONG), err)
	}
	for _, r := range s.Records {
		write(r.Log, []byte("log\n"))
	}
	for _, p := range s.Packages {
		write(p.Filename, nil)
	}
	for _, name := range []string{"dkms2bin.sources", "dkms2bin.asc", "status.json"} {
		write(name, nil)
	}
	page, err := s.Page()
	assert.NilError(t, err)
	write("index.html", page)
	return filepath.Join(dir, "index.html")
}

// A browser is a headless Chromium that is spoken to in the DevTools protocol,
// over pipes, one NUL behind each message.
type browser struct {
	out     *os.File
	mu      sync.Mutex
	id      int
	replies map[int]chan message
	events  []message
	gone    chan struct{} // closed when nothing more comes
}

type message struct {
	ID      int             `json:"id,omitempty"`
	Session string          `json:"sessionId,omitempty"`
	Method  string          `json:"method,omitempty"`
	Params  json.RawMessage `json:"params,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   json.RawMessage `json:"error,omitempty"`
}

type params map[string]any

// browserPatience bounds what a browser may take for one thing.
const browserPatience = time.Minute

func startBrowser(t *testing.T) *browser {
	t.Helper()
	profile := t.TempDir()
	fromUs, toChromium, err := os.Pipe()
	assert.NilError(t, err)
	fromChromium, toUs, err := os.Pipe()
	assert.NilError(t, err)
	cmd := exec.Command("chromium", "--headless", "--no-sandbox", "--remote-debugging-pipe", "--user-data-dir="+profile,
		"--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--disable-breakpad", "--disable-background-networking", "--disable-extensions",
		"--hide-scrollbars", "about:blank")
	cmd.ExtraFiles = []*os.File{fromUs, toUs} // 3 and 4
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Env = append(os.Environ(), "HOME="+profile)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatalf("these tests need Debian's package chromium: %v", err)
	}
	assert.NilError(t, errors.Join(fromUs.Close(), toUs.Close()))
	b := &browser{out: toChromium, replies: make(map[int]chan message), gone: make(chan struct{})}
	go b.read(fromChromium)
	t.Cleanup(func() {
		b.call(t, "", "Browser.close", nil, nil)
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case <-ended:
		case <-time.After(browserPatience):
			t.Errorf("Chromium does not end\n%s", stderr.String())
		}
		// Its helpers, if any are left.
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Error(err)
		}
		<-b.gone
		assert.Check(t, errors.Join(toChromium.Close(), fromChromium.Close()))
		for deadline := time.Now().Add(browserPatience); len(processes(profile)) > 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Errorf("left behind: %s", processes(profile))
				return
			}
		}
	})
	return b
}

func (b *browser) read(r *os.File) {
	defer close(b.gone)
	lines := bufio.NewReader(r)
	for {
		text, err := lines.ReadBytes(0)
		if err != nil {
			return
		}
		var m message
		if json.Unmarshal(bytes.TrimSuffix(text, []byte{0}), &m) != nil {
			continue
		}
		b.mu.Lock()
		if m.ID != 0 {
			b.replies[m.ID] <- m
			delete(b.replies, m.ID)
		} else {
			b.events = append(b.events, m)
		}
		b.mu.Unlock()
	}
}

// call calls a method and stores its result, unless that is nil.
func (b *browser) call(t *testing.T, session, method string, p params, result any) {
	t.Helper()
	b.mu.Lock()
	b.id++
	reply := make(chan message, 1)
	b.replies[b.id] = reply
	call := map[string]any{"id": b.id, "method": method}
	if p != nil {
		call["params"] = p
	}
	if session != "" {
		call["sessionId"] = session
	}
	b.mu.Unlock()
	text, err := json.Marshal(call)
	assert.NilError(t, err)
	_, err = b.out.Write(append(text, 0))
	assert.NilError(t, err)
	select {
	case m := <-reply:
		assert.Assert(t, m.Error == nil, "%s: %s", method, m.Error)
		if result != nil {
			assert.NilError(t, json.Unmarshal(m.Result, result))
		}
	case <-b.gone:
		t.Fatalf("%s: Chromium has gone", method)
	case <-time.After(browserPatience):
		t.Fatalf("%s: no answer", method)
	}
}

// A tab is a page of its own.
type tab struct {
	*browser
	session string
}

func (b *browser) blank(t *testing.T) *tab {
	t.Helper()
	var target struct{ TargetID string }
	b.call(t, "", "Target.createTarget", params{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.call(t, "", "Target.attachToTarget", params{"targetId": target.TargetID, "flatten": true}, &attached)
	p := &tab{b, attached.SessionID}
	for _, domain := range []string{"Page", "Runtime", "Log", "Network"} {
		p.call(t, domain+".enable", nil, nil)
	}
	t.Cleanup(func() { b.call(t, "", "Target.closeTarget", params{"targetId": target.TargetID}, nil) })
	return p
}

func (b *browser) open(t *testing.T, file string) *tab {
	t.Helper()
	p := b.blank(t)
	p.navigate(t, file)
	return p
}

func (p *tab) call(t *testing.T, method string, args params, result any) {
	t.Helper()
	p.browser.call(t, p.session, method, args, result)
}

func (p *tab) navigate(t *testing.T, file string) {
	t.Helper()
	var loaded struct{ ErrorText string }
	p.call(t, "Page.navigate", params{"url": fileURL(file)}, &loaded)
	assert.Equal(t, loaded.ErrorText, "")
	deadline := time.Now().Add(browserPatience)
	for len(p.seen("Page.loadEventFired")) == 0 {
		assert.Assert(t, time.Now().Before(deadline), "the page does not load")
		time.Sleep(time.Millisecond)
	}
}

func fileURL(file string) string { return (&url.URL{Scheme: "file", Path: file}).String() }

// seen lists what came of a kind of event.
func (p *tab) seen(method string) []json.RawMessage {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []json.RawMessage
	for _, e := range p.events {
		if e.Session == p.session && e.Method == method {
			list = append(list, e.Params)
		}
	}
	return list
}

// quiet asserts that the page asked for nothing but itself and that the console
// is empty.
func (p *tab) quiet(t *testing.T, file string) {
	t.Helper()
	for _, method := range []string{"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"} {
		for _, e := range p.seen(method) {
			t.Errorf("%s: %s", method, e)
		}
	}
	for _, e := range p.seen("Network.requestWillBeSent") {
		var event struct{ Request struct{ URL string } }
		assert.NilError(t, json.Unmarshal(e, &event))
		assert.Equal(t, event.Request.URL, fileURL(file))
	}
}

// eval evaluates JavaScript and gives its value as text.
func (p *tab) eval(t *testing.T, script string) string {
	t.Helper()
	var r struct {
		Result           struct{ Value any }
		ExceptionDetails json.RawMessage
	}
	p.call(t, "Runtime.evaluate", params{"expression": script, "returnByValue": true}, &r)
	assert.Assert(t, r.ExceptionDetails == nil, "%s: %s", script, r.ExceptionDetails)
	return fmt.Sprint(r.Result.Value)
}

func (p *tab) wait(t *testing.T, condition string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), browserPatience)
	defer cancel()
	for p.eval(t, condition) != "true" {
		assert.NilError(t, ctx.Err(), condition)
		time.Sleep(5 * time.Millisecond)
	}
}

// computing is how long the page's main thread has been busy, whatever else the
// machine does.
func (p *tab) computing(t *testing.T) time.Duration {
	t.Helper()
	var r struct {
		Metrics []struct {
			Name  string
			Value float64 // seconds
		}
	}
	p.call(t, "Performance.getMetrics", nil, &r)
	for _, m := range r.Metrics {
		if m.Name == "TaskDuration" {
			return time.Duration(m.Value * float64(time.Second)).Round(time.Millisecond)
		}
	}
	t.Fatal("Chromium does not say how long it computed")
	return 0
}

func (p *tab) size(t *testing.T, width, height int) {
	t.Helper()
	p.call(t, "Emulation.setDeviceMetricsOverride", params{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}, nil)
}

func (p *tab) scheme(t *testing.T, name string) {
	t.Helper()
	p.call(t, "Emulation.setEmulatedMedia", params{"features": []params{{"name": "prefers-color-scheme", "value": name}}}, nil)
}

func (p *tab) shot(t *testing.T, name string) {
	t.Helper()
	var shot struct{ Data string }
	p.call(t, "Page.captureScreenshot", params{"format": "png"}, &shot)
	image, err := base64.StdEncoding.DecodeString(shot.Data)
	assert.NilError(t, err)
	assert.NilError(t, os.WriteFile(filepath.Join(t.ArtifactDir(), name+".png"), image, 0o644))
}

func (p *tab) key(t *testing.T, name string, code int) {
	t.Helper()
	press := params{"type": "keyDown", "key": name, "code": name, "windowsVirtualKeyCode": code}
	if name == "Enter" {
		press["text"] = "\r"
	}
	p.call(t, "Input.dispatchKeyEvent", press, nil)
	p.call(t, "Input.dispatchKeyEvent", params{"type": "keyUp", "key": name, "code": name, "windowsVirtualKeyCode": code}, nil)
}

// tab presses the Tab key and lists what has the focus, which must be seen.
func (p *tab) tab(t *testing.T, times int) []string {
	t.Helper()
	var stops []string
	for range times {
		p.key(t, "Tab", 9)
		stop := p.eval(t, `(() => {
			const e = document.activeElement;
			if (e === document.body) return "";
			const css = getComputedStyle(e), box = e.getBoundingClientRect();
			if (css.outlineStyle === "none" || parseFloat(css.outlineWidth) < 2) return "no outline: " + e.outerHTML;
			if (box.right <= 0 || box.bottom <= 0 || box.top >= innerHeight) return "out of sight: " + e.outerHTML;
			const within = e.closest("th, td, li");
			return (within && e !== within ? within.tagName + " " : "") + e.tagName +
				(e.id ? "#" + e.id : e.name ? "[" + e.name + "]" : e.className ? "." + e.className : "");
		})()`)
		assert.Assert(t, !strings.HasPrefix(stop, "no outline") && !strings.HasPrefix(stop, "out of sight"), stop)
		if stop == "" {
			break // once round
		}
		stops = append(stops, stop)
	}
	return stops
}

// fits asserts that nothing makes the page wider than the screen.
func (p *tab) fits(t *testing.T) {
	t.Helper()
	p.eval(t, `for (const d of document.querySelectorAll("details")) d.dataset.was = d.open, d.open = true; void 0`)
	assert.Equal(t, p.eval(t, `(() => {
		const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
		if (wide <= 0) return "";
		return wide + " px: " + [...document.querySelectorAll("main *")].filter((e) => e.getBoundingClientRect().right > innerWidth && !e.closest(".scroll *"))
			.map((e) => e.outerHTML.slice(0, 200)).join("\n");
	})()`), "")
	p.eval(t, `for (const d of document.querySelectorAll("details")) d.open = d.dataset.was === "true"; void 0`)
}

// linksLead asserts that each link leads to a file that is there, or to
// something on the page.
func (p *tab) linksLead(t *testing.T, dir string) {
	t.Helper()
	hrefs := p.eval(t, `[...document.links].map((a) => a.href).join("\n")`)
	lost := p.eval(t, `[...document.querySelectorAll('a[href^="#"]')].filter((a) => !document.getElementById(a.getAttribute("href").slice(1))).map((a) => a.outerHTML).join("\n")`)
	assert.Equal(t, lost, "", "links that lead nowhere")
	for href := range strings.Lines(hrefs) {
		u, err := url.Parse(strings.TrimSpace(href))
		assert.NilError(t, err)
		assert.Equal(t, u.Scheme, "file", href)
		assert.Assert(t, strings.HasPrefix(u.Path, dir+"/"), href)
		_, err = os.Stat(u.Path)
		assert.Assert(t, err == nil || errors.Is(err, syscall.ENAMETOOLONG), "%s: %v", href, err)
	}
}

type axNode struct {
	Ignored    bool
	Role, Name axValue
}

type axValue struct{ Value any }

func (v axValue) String() string { return fmt.Sprint(v.Value) }

// named asserts that whatever can be used or jumped to has a name for those who
// do not see it, and that signs are not read out.
func (p *tab) named(t *testing.T) {
	t.Helper()
	var tree struct{ Nodes []axNode }
	p.call(t, "Accessibility.getFullAXTree", nil, &tree)
	found := make(map[string]int)
	cells := 0
	for _, n := range tree.Nodes {
		role := n.Role.String()
		if n.Ignored {
			continue
		}
		switch role {
		case "link", "radio", "searchbox", "table", "region", "search", "columnheader", "rowheader", "DisclosureTriangle", "heading":
			assert.Assert(t, n.Name.Value != nil && n.Name.Value != "", "a %s without a name", role)
			assert.Assert(t, !strings.ContainsAny(n.Name.String(), "✓✗○"), "%s %q", role, n.Name)
			found[role]++
			if role == "link" && strings.HasPrefix(n.Name.String(), status.Failed) {
				cells++
			}
		}
	}
	for _, role := range []string{"link", "radio", "searchbox", "table", "region", "search", "columnheader", "rowheader", "main", "status"} {
		if role == "main" || role == "status" {
			assert.Assert(t, slices.ContainsFunc(tree.Nodes, func(n axNode) bool { return n.Role.Value == role }), "no %s", role)
			continue
		}
		assert.Assert(t, found[role] > 0, "no %s: %v", role, found)
	}
	assert.Equal(t, cells, 6)
}

// contrasts asserts the contrast of all texts that WCAG 2.2 (1.4.3) asks for.
func (p *tab) contrasts(t *testing.T) {
	t.Helper()
	weak := p.eval(t, `(() => {
		const closed = [...document.querySelectorAll("details:not([open])")];
		for (const d of closed) d.open = true;
		const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number); return {r, g, b, a}; };
		const over = (top, below) => Object.fromEntries(["r", "g", "b"].map((c) => [c, top[c] * top.a + below[c] * (1 - top.a)]).concat([["a", 1]]));
		const channel = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
		const luminance = ({r, g, b}) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
		const background = (e) => {
			if (!e) return {r: 255, g: 255, b: 255, a: 1};
			const own = parse(getComputedStyle(e).backgroundColor);
			return own.a === 1 ? own : over(own, background(e.parentElement));
		};
		const weak = [];
		let texts = 0;
		const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
		while (walker.nextNode()) {
			const e = walker.currentNode.parentElement;
			if (!walker.currentNode.data.trim() || !e.checkVisibility({visibilityProperty: true})) continue;
			texts++;
			const below = background(e), ink = over(parse(getComputedStyle(e).color), below);
			const [light, dark] = [luminance(ink), luminance(below)].sort((a, b) => b - a);
			const ratio = (light + 0.05) / (dark + 0.05);
			if (ratio < 4.5) weak.push(ratio.toFixed(2) + " " + e.outerHTML.slice(0, 120));
		}
		for (const d of closed) d.open = false;
		return texts < 100 ? "only " + texts + " texts" : weak.join("\n");
	})()`)
	assert.Equal(t, weak, "")
}
