package status

import (
	"fmt"
	"html"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"gotest.tools/v3/assert"
)

// sample has one of everything.
func sample() *Status {
	s := &Status{
		Version: Version,
		Repository: Repository{
			Description: "Modules", Origin: "dkms2bin", URL: "https://example.org/modules/", SignedBy: "0123456789ABCDEF", Updated: day,
		},
		Packages: []Package{
			{Name: "zfs-modules-6.1.0-10-amd64", Version: "2.1-1+6.1.2.1", Architecture: "amd64", Kernel: "6.1.0-10-amd64", Filename: "zfs-modules-6.1.0-10-amd64_2.1-1+6.1.2.1_amd64.deb"},
			{Name: "zfs-modules-6.1.0-9-amd64", Version: "2.1-1+6.1.1.1", Architecture: "amd64", Kernel: "6.1.0-9-amd64", Filename: "named.deb"},
			{Name: "zfs-modules-6.1.0-9-amd64", Version: "2.0-1+6.1.1.1", Architecture: "amd64", Kernel: "6.1.0-9-amd64", Filename: "older.deb"},
			{Name: "hello-acpi-modules-6.1.0-9-amd64", Version: "1-1+6.1.1.1", Architecture: "amd64", Kernel: "6.1.0-9-amd64", Filename: "alone.deb"},
			{Name: "zfs-modules-amd64", Version: "2.1", Architecture: "amd64", Filename: "meta.deb"},
		},
	}
	record := func(pkg, version, module, kernel, status, reason string) Record {
		return Record{
			Architecture: "amd64", Package: pkg, PackageVersion: version, Module: module, ModuleVersion: strings.TrimSuffix(version, "-1"),
			Kernel: kernel, Status: status, Reason: reason, Date: day, Seconds: 61, Log: "logs/" + module + "-" + kernel + ".log",
		}
	}
	helped := record("hello-dkms", "1-1", "hello_acpi", "6.1.0-10-amd64", Failed, "error: no such thing")
	helped.Hint = "--build-package thing-dev"
	named := record("zfs-dkms", "2.1-1", "zfs", "6.1.0-9-amd64", Built, "")
	named.Debs = []string{"named.deb", "gone.deb"}
	named.Signer, named.SigKey = "Modules of <Example>", "66:F5:4E"
	named.LeftOut = []string{"module zpl.ko needs the symbol <gone>", "module zvol.ko needs the symbol gone"}
	s.Merge([]Record{
		record("zfs-dkms", "2.1-1", "zfs", "6.1.0-10-amd64", Built, ""), named,
		record("zfs-dkms", "2.0-1", "zfs", "6.1.0-9-amd64", Built, ""),
		record("zfs-dkms", "2.1-1", "zfs", "6.12.1-cloud-amd64", Skipped, "BUILD_EXCLUSIVE"),
		helped,
		record("broken-dkms", "", "", "6.1.0-10-amd64", Failed, "cannot install it"),
		{Architecture: "arm64", Package: "zfs-dkms", PackageVersion: "2.1-1", Module: "zfs", Kernel: "6.1.0-10-arm64", Status: Built},
	})
	return s
}

// hostile has names, texts and paths that mean harm.
func hostile() *Status {
	s := sample()
	for _, evil := range []string{
		`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, `' onclick='alert(1)`, `javascript:alert(1)`,
		"\u202eevil\u2066\u200b", "caf\xff\xfe", "a\x00b\x1b[31mc\nd", strings.Repeat("W", 5000), strings.Repeat("\u0301", 5000),
		"../../etc/passwd", "/etc/passwd", "{{.}}</style><!--", `\\host\share`, "//example.org/", "", ".", "%2e%2e/", "data:text/html,x",
	} {
		s.Repository.Description, s.Repository.Origin, s.Repository.URL, s.Repository.SignedBy = evil, evil, evil, evil
		s.Records = append(s.Records, Record{
			Architecture: evil, Package: evil, PackageVersion: evil, Module: evil, ModuleVersion: evil, Kernel: evil,
			Status: Failed, Reason: evil, Hint: evil, Stage: evil, Log: evil, Signer: evil, SigKey: evil, Debs: []string{evil}, LeftOut: []string{evil, evil}, Date: day, Seconds: 1e300,
		})
		s.Packages = append(s.Packages, Package{evil, evil, evil, evil, evil, evil}, Package{Name: evil, Version: evil, Filename: evil})
	}
	return s
}

func text(t *testing.T, s *Status) string {
	t.Helper()
	page, err := s.Page()
	assert.NilError(t, err)
	again, err := s.Page()
	assert.NilError(t, err)
	assert.Equal(t, string(again), string(page), "not the same twice")
	return string(page)
}

func has(t *testing.T, page string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		assert.Assert(t, strings.Contains(page, part), "%q is not in\n%s", part, page)
	}
}

// TestPageLeftOut: kernels for which a build goes without a module are apart from the others.
func TestPageLeftOut(t *testing.T) {
	t.Parallel()
	s := &Status{}
	for i, left := range [][]string{nil, {"module b.ko needs x"}, {"module b.ko needs x"}, {"module b.ko needs y"}} {
		s.Records = append(s.Records, Record{
			Architecture: "amd64", Package: "a", Module: "a", Kernel: fmt.Sprintf("6.1.0-%d-amd64", i), Status: Built, LeftOut: left, Date: day,
		})
	}
	page := text(t, s)
	has(t, page, "<small>2 kernels</small></h4>\n<p>Left out: module b.ko needs x</p>\n<ul>")
	assert.Equal(t, strings.Count(page, "<p>Left out: "), 2)
	assert.Equal(t, strings.Count(page, "<h4>"), 3)
}

func TestPage(t *testing.T) {
	t.Parallel()
	page := text(t, sample())
	has(t, page,
		// The matrix: plain names of modules, newest kernel first, flavours apart.
		`<th scope="col"><a href="#amd64/hello-acpi">hello_acpi</a>`,
		`<th scope="row">6.1.0-10<span>-amd64</span><td class="failed"><a href="#amd64/broken-dkms/6.1.0-10-amd64">failed </a>`+
			`<td class="failed"><a href="#amd64/hello-acpi/6.1.0-10-amd64">failed 1</a><td class="built"><a href="#amd64/zfs/6.1.0-10-amd64">built 2.1</a>`,
		`<th scope="row">6.1.0-9<span>-amd64</span><td><td class="built"><a href="#amd64/hello-acpi/6.1.0-9-amd64">built 1-1</a>`,
		`<th scope="row">6.12.1<span>-cloud-amd64</span><td><td><td class="skipped">`,
		`<span>cloud-amd64</span>`, "Kernels for arm64",
		// Totals: three modules for three kernels and one for one.
		`<b>10</b> in all`, `<b>4</b> <span class="s built">`, `<b>2</b> <span class="s failed">`, `<b>1</b> <span class="s skipped">`, `<b>3</b> <span class="s untried">`,
		// Details.
		"<p>error: no such thing</p>", `<p>Hint: --build-package thing-dev</p>`,
		"<p>Left out: module zpl.ko needs the symbol &lt;gone&gt;</p>\n<p>Left out: module zvol.ko needs the symbol gone</p>", `1 failed, 1 built, 1 never tried`, "<time>2026-11-22</time> <i>61 s</i>",
		`<a href="zfs-modules-6.1.0-10-amd64_2.1-1%2B6.1.2.1_amd64.deb">package</a> <a href="logs/zfs-6.1.0-10-amd64.log">log</a>`,
		`<a href="named.deb">package</a>`, "<small>signed by Modules of &lt;Example&gt;</small>", `earlier: <span class="s built">built</span> 2.0 <time>2026-11-22</time> <i>61 s</i> <a href="older.deb">`,
		`date unknown <a href="alone.deb">package</a>`, `<a href="meta.deb">zfs-modules-amd64 2.1</a>`,
		// How to add it.
		"sudo wget -O /etc/apt/sources.list.d/dkms2bin.sources https://example.org/modules/dkms2bin.sources\n",
		"URIs: https://example.org/modules\n", "Signed-By: /etc/apt/keyrings/dkms2bin.asc", "<code>0123456789ABCDEF</code>",
		`sudo apt install "hello-acpi-modules-$(uname -r)"`,
		`<time datetime="2026-11-22T20:15:00Z">22 November 2026, 20:15 UTC</time>`,
	)
	assert.Assert(t, !strings.Contains(page, "gone.deb"), "a package that is not in the repository")
	assert.Assert(t, strings.Index(page, "6.1.0-10<span>") < strings.Index(page, "6.1.0-9<span>"))
	assert.Assert(t, strings.Index(page, "6.1.0-9<span>") < strings.Index(page, "6.12.1<span>"), "flavours are mixed")
}

func TestPageUnsigned(t *testing.T) {
	t.Parallel()
	s := sample()
	s.Repository.SignedBy = ""
	has(t, text(t, s), "not signed", "Trusted: yes", "deb [trusted=yes] https://example.org/modules ./")
	for _, url := range []string{"", "file", "http://user:secret@example.org/", "http://example.org/$(reboot)", "http://example.org/a b", "javascript:alert(1)//'"} {
		s.Repository.URL = url
		page := text(t, s)
		has(t, page, "Copy <a href=\"dkms2bin.sources\">")
		for _, never := range []string{"secret", "reboot", "wget", "alert"} {
			assert.Assert(t, !strings.Contains(strings.ReplaceAll(page, pageJS, ""), never), "%s: %s", url, never)
		}
	}
	has(t, text(t, &Status{}), "Nothing has been built yet.", "Binary kernel modules")
}

// A package that could not be installed counts for each of its modules.
func TestPageNotInstalled(t *testing.T) {
	t.Parallel()
	s := &Status{}
	s.Merge([]Record{
		{Architecture: "amd64", Package: "two-dkms", PackageVersion: "1", Module: "one", Kernel: "6.1.0-1-amd64", Status: Built, Date: day},
		{Architecture: "amd64", Package: "two-dkms", PackageVersion: "1", Module: "two", Kernel: "6.1.0-1-amd64", Status: Built, Date: day},
		{Architecture: "amd64", Package: "two-dkms", Kernel: "6.1.0-1-amd64", Status: Failed, Reason: "broken", Date: day.AddDate(0, 0, 1)},
	})
	page := text(t, s)
	has(t, page, `<b>2</b> <span class="s failed">`, `<a href="#amd64/one/6.1.0-1-amd64">failed `, `<a href="#amd64/two/6.1.0-1-amd64">failed `, "earlier: ")
	assert.Assert(t, !strings.Contains(page, `href="#amd64/two-dkms"`))
}

var hrefs = regexp.MustCompile(`href="([^"]*)"`)

func TestPageHostile(t *testing.T) {
	t.Parallel()
	page := text(t, hostile())
	assert.Assert(t, utf8.ValidString(page))
	assert.Assert(t, len(page) < 4<<20, "%d bytes", len(page))
	assert.Equal(t, strings.Count(page, "<script"), 1)
	assert.Equal(t, strings.Count(page, "<style"), 1)
	for _, never := range []string{"<img", "<!--", "onclick='", "\u202e", "\u2066", "\x00", "\x1b", "ZgotmplZ", "\ufffd"} {
		assert.Assert(t, !strings.Contains(page, never), "%q", never)
	}
	ids := make(map[string]bool)
	for _, m := range regexp.MustCompile(`\sid="([^"]*)"`).FindAllStringSubmatch(page, -1) {
		assert.Assert(t, !ids[m[1]], "%s twice", m[1])
		ids[m[1]] = true
	}
	for _, m := range hrefs.FindAllStringSubmatch(page, -1) {
		link := html.UnescapeString(m[1])
		if anchor, ok := strings.CutPrefix(link, "#"); ok {
			assert.Assert(t, ids[anchor], "%s leads nowhere", link)
			continue
		}
		assert.Assert(t, !strings.HasPrefix(link, "/") && !strings.HasPrefix(link, "..") && !strings.Contains(link, ":"), link)
	}
}

func TestHref(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]string{
		"a_1+2~3-4.deb":       "a_1%2B2~3-4.deb",
		"./logs/a.log":        "logs/a.log",
		"sub dir/100%#?&.deb": "sub%20dir/100%25%23%3F%26.deb",
		":a":                  "%3Aa",
		"javascript:alert(1)": "javascript%3Aalert%281%29",
		`a\b`:                 "a%5Cb",
		"caf\xe9":             "caf%E9",
		"ä":                   "%C3%A4",
		"a/../b":              "b",
		"":                    "",
		"..":                  "",
		"a/../../b":           "",
		"/etc/passwd":         "",
		"//example.org/a":     "",
	} {
		assert.Equal(t, href(file), want, file)
	}
}

func TestShow(t *testing.T) {
	t.Parallel()
	assert.Equal(t, show("a\n\tb\x1b[1m \u202ec\xff"), "a b[1m c")
	long := show(strings.Repeat("ä", 10000))
	assert.Equal(t, utf8.RuneCountInString(long), maxText)
	assert.Assert(t, strings.HasSuffix(long, "…"))
	for seconds, want := range map[float64]string{0: "", -1: "", 0.2: "1 s", 89: "89 s", 150: "2 min", 36000: "10.0 h", 1e300: ""} {
		assert.Equal(t, took(seconds), want)
	}
}
