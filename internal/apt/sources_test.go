package apt

import (
	"dkms2bin/internal/diag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

type opts = map[string]string

func TestParseLine(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, line string
		want       Source
	}{
		{
			"plain", "deb http://example.org/debian bookworm main",
			Source{"http://example.org/debian", "bookworm", []string{"main"}, opts{}, 0},
		},
		{
			"components", "deb https://example.org/ubuntu/ noble-updates main restricted universe",
			Source{"https://example.org/ubuntu/", "noble-updates", []string{"main", "restricted", "universe"}, opts{}, 0},
		},
		{"flat", "deb file:/srv/modules ./", Source{"file:/srv/modules", "./", []string{}, opts{}, 0}},
		{"flat, in a directory", "deb http://example.org/ rel/1/", Source{"http://example.org/", "rel/1/", []string{}, opts{}, 0}},
		{
			"trusted", "deb [trusted=yes] copy:/srv ./",
			Source{"copy:/srv", "./", []string{}, opts{"Trusted": "yes"}, 0},
		},
		{
			"blanks everywhere", "  deb \t [ arch=amd64,i386   signed-by=/usr/share/keyrings/a.gpg ]\t http://example.org/  bookworm/updates\tmain  ",
			Source{"http://example.org/", "bookworm/updates", []string{"main"}, opts{"Architectures": "amd64 i386", "Signed-By": "/usr/share/keyrings/a.gpg"}, 0},
		},
		{
			"no blank after the options", "deb [by-hash=no]http://example.org/ bookworm main",
			Source{"http://example.org/", "bookworm", []string{"main"}, opts{"By-Hash": "no"}, 0},
		},
		{
			"two keyrings", "deb [signed-by=/a.gpg,/b.gpg] http://example.org/ bookworm main",
			Source{"http://example.org/", "bookworm", []string{"main"}, opts{"Signed-By": "/a.gpg /b.gpg"}, 0},
		},
		{
			"more and less than the default", "deb [arch+=i386 lang-=de] http://example.org/ bookworm main",
			Source{"http://example.org/", "bookworm", []string{"main"}, opts{"Architectures-Add": "i386", "Languages-Remove": "de"}, 0},
		},
		{
			"an equals sign in a value", "deb [check-valid-until=no inrelease-path=a=b] http://example.org/ bookworm main",
			Source{"http://example.org/", "bookworm", []string{"main"}, opts{"Check-Valid-Until": "no", "InRelease-Path": "a=b"}, 0},
		},
		{
			"priority", "deb http://example.org/ubuntu trusty main universe,1050",
			Source{"http://example.org/ubuntu", "trusty", []string{"main", "universe"}, opts{}, 1050},
		},
		{"priority of a flat one", "deb [trusted=yes] http://example.org/ ./,1101", Source{"http://example.org/", "./", []string{}, opts{"Trusted": "yes"}, 1101}},
		{"priority after a blank", "deb http://example.org/ ./ , -1 ", Source{"http://example.org/", "./", []string{}, opts{}, -1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, err := ParseLine(tt.line)
			assert.NilError(t, err)
			assert.DeepEqual(t, s, tt.want)
		})
	}
}

func TestParseLineRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, line, want string }{
		{"empty", "", `its type is "", not deb`},
		{"no type", "http://example.org/debian bookworm main", `its type is "http://example.org/debian"`},
		{"source packages", "deb-src http://example.org/debian bookworm main", `its type is "deb-src"`},
		{"nothing but the type", "deb", "no URI or no suite"},
		{"no suite", "deb http://example.org/debian", "no URI or no suite"},
		{"no URI", "deb bookworm main", `"bookworm" is not a URI`},
		{"a path", "deb /srv/modules ./", `"/srv/modules" is not a URI`},
		{"no components", "deb http://example.org/debian bookworm", `the suite "bookworm" needs components`},
		{"components of a flat one", "deb http://example.org/ ./ main", `the suite "./" ends in a slash`},
		{"open bracket", "deb [trusted=yes http://example.org/ ./", "no closing bracket"},
		{"unknown option", "deb [trusted=yes colour=red] http://example.org/ ./", `unknown option "colour=red"`},
		{"priority that is none", "deb http://example.org/ ./,0", `the priority "0" is none of apt's`},
		{"priority that is no number", "deb http://example.org/ bookworm main,high", `the priority "high" is none of apt's`},
		{"nothing after the comma", "deb http://example.org/ bookworm main,", `the priority "" is none of apt's`},
		{"priority that is too high", "deb http://example.org/ ./,32768", `the priority "32768" is none of apt's`},
		{"option without a value", "deb [trusted] http://example.org/ ./", `unknown option "trusted"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := ParseLine(tt.line)
			assert.ErrorContains(t, err, tt.want)
			assert.ErrorContains(t, err, "cannot read the repository ")
			assert.Assert(t, diag.Hint(err) != "")
		})
	}
}

func TestParseList(t *testing.T) {
	t.Parallel()
	sources, err := parseList([]byte(`# deb http://example.org/no bookworm main

deb http://example.org/a bookworm main # the first
deb-src http://example.org/a bookworm main
	deb	[arch=amd64 snapshot=enable]	http://example.org/b	bookworm	main
#deb http://example.org/no bookworm main
deb http://example.org/c ./`))
	assert.NilError(t, err)
	var got []string
	for _, s := range sources {
		got = append(got, s.String())
	}
	assert.DeepEqual(t, got, []string{"deb http://example.org/a bookworm main", "deb http://example.org/b bookworm main", "deb http://example.org/c ./"})
	assert.DeepEqual(t, sources[1].Options, opts{"Architectures": "amd64"})

	_, err = parseList([]byte("deb http://example.org/a bookworm main\ndeb nonsense\n"))
	assert.ErrorContains(t, err, `"deb nonsense"`)
}

const inlineKey = "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBFx\n =abcd\n -----END PGP PUBLIC KEY BLOCK-----"

func TestParseStanzas(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, text string
		want       []Source
	}{
		{"empty", "\n\n# nothing\n", nil},
		{
			"as Debian's images have it", `Types: deb
# http://example.org/archive/20250520T000000Z
URIs: http://example.org/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb deb-src
URIs: http://example.org/debian-security
Suites: bookworm-security
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
`,
			[]Source{
				{"http://example.org/debian", "bookworm", []string{"main"}, opts{"Signed-By": "/usr/share/keyrings/debian-archive-keyring.gpg"}, 0},
				{"http://example.org/debian", "bookworm-updates", []string{"main"}, opts{"Signed-By": "/usr/share/keyrings/debian-archive-keyring.gpg"}, 0},
				{"http://example.org/debian-security", "bookworm-security", []string{"main", "contrib"}, opts{"Signed-By": "/usr/share/keyrings/debian-archive-keyring.gpg"}, 0},
			},
		},
		{
			"several URIs and suites, over several lines", "types: deb\nuris: http://example.org/a\n http://example.org/b\nsuites:\n one\n two\ncomponents: x y\n",
			[]Source{
				{"http://example.org/a", "one", []string{"x", "y"}, opts{}, 0},
				{"http://example.org/a", "two", []string{"x", "y"}, opts{}, 0},
				{"http://example.org/b", "one", []string{"x", "y"}, opts{}, 0},
				{"http://example.org/b", "two", []string{"x", "y"}, opts{}, 0},
			},
		},
		{
			"flat", "Types: deb\nURIs: file:/srv\nSuites: ./\nTrusted: yes\n",
			[]Source{{"file:/srv", "./", []string{}, opts{"Trusted": "yes"}, 0}},
		},
		{
			"a key inside", "Types: deb\nURIs: http://example.org/\nSuites: one\nComponents: x\nSigned-By:" + inlineKey + "\nX-Unknown: y\n",
			[]Source{{"http://example.org/", "one", []string{"x"}, opts{"Signed-By": inlineKey}, 0}},
		},
		{"only source packages", "Types: deb-src\nURIs: http://example.org/\nSuites: one\nComponents: x\n", nil},
		{
			"enabled in so many words", "Enabled: yes\nTypes: deb\nURIs: file:/srv\nSuites: ./\n",
			[]Source{{"file:/srv", "./", []string{}, opts{}, 0}},
		},
		{"disabled", "Enabled: no\nTypes: deb\nURIs: file:/srv\nSuites: ./\n", nil},
		{"disabled, in apt's other words", disabled("No", "false", "0", "without", "off", "disable"), nil},
		{"disabled and not valid", "Enabled: no\nTypes: deb\nURIs: file:/srv\nSuites: one\n", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := parseStanzas([]byte(tt.text))
			assert.NilError(t, err)
			assert.DeepEqual(t, got, tt.want)
		})
	}
	for text, want := range map[string]string{
		"Types: deb\nURIs: http://example.org/\nSuites: one\n":                    `the suite "one" needs components`,
		"Types: deb\nURIs: http://example.org/\nSuites: one ./\nComponents: x\n":  `the suite "./" ends in a slash`,
		"Types: deb\nURIs: /srv\nSuites: ./\n":                                    `"/srv" is not a URI`,
		"Types: deb\nTypes: deb-src\nURIs: http://example.org/\nSuites: one ./\n": "given twice",
		"deb http://example.org/ one x\nURIs\n":                                   "line 1",
	} {
		_, err := parseStanzas([]byte(text))
		assert.ErrorContains(t, err, want)
	}
}

func disabled(words ...string) string {
	var b strings.Builder
	for _, w := range words {
		b.WriteString("Types: deb\nURIs: file:/srv\nSuites: ./\nEnabled: " + w + "\n\n")
	}
	return b.String()
}

func TestTrusted(t *testing.T) {
	t.Parallel()
	for option, want := range map[string]bool{"": false, "trusted=yes": true, "trusted=true": true, "trusted=no": false, "by-hash=yes": false} {
		s, err := ParseLine("deb [" + option + "] http://example.org/ ./")
		assert.NilError(t, err)
		assert.Equal(t, s.Trusted(), want, option)
	}
}

func TestWith(t *testing.T) {
	t.Parallel()
	s := Source{URI: "u:", Options: opts{"Signed-By": "/a.gpg", "Trusted": "yes"}}
	assert.DeepEqual(t, s.With("Signed-By", "/b.gpg").Options, opts{"Signed-By": "/b.gpg", "Trusted": "yes"})
	assert.DeepEqual(t, s.With("Signed-By", "").Options, opts{"Trusted": "yes"})
	assert.DeepEqual(t, Source{}.With("Trusted", "yes").Options, opts{"Trusted": "yes"})
	assert.Equal(t, s.SignedBy(), "/a.gpg")
}

// What is written into a tree is read by the apt there.
func TestStanzas(t *testing.T) {
	t.Parallel()
	sources := []Source{
		{"http://example.org/a", "one", []string{"x", "y"}, opts{}, 0},
		{"http://example.org/b", "./", []string{}, opts{"Trusted": "yes", "Architectures": "amd64 i386"}, 0},
		{"http://example.org/c", "two", []string{"x"}, opts{"Signed-By": inlineKey, "Check-Valid-Until": "no", "Allow-Insecure": "yes"}, 0},
		{"http://example.org/d", "two", []string{"x"}, opts{"Signed-By": "/usr/share/keyrings/d.gpg", "InRelease-Path": "i", "PDiffs": "no"}, 0},
	}
	again, err := parseStanzas(Stanzas(sources))
	assert.NilError(t, err)
	assert.DeepEqual(t, again, sources)
	assert.Equal(t, string(Stanzas(nil)), "")

	// What the tree's apt must not follow is left out: other languages,
	// foreign architectures of the host.
	text := string(Stanzas([]Source{{"http://example.org/a", "one", []string{"x"}, opts{"Languages": "de", "Targets": "Contents", "Architectures-Add": "i386"}, 0}}))
	assert.Equal(t, text, "Types: deb\nURIs: http://example.org/a\nSuites: one\nComponents: x\n\n")
}

func TestOwn(t *testing.T) {
	t.Parallel()
	const (
		debianKey = "/usr/share/keyrings/debian-archive-keyring.gpg"
		ubuntuKey = "/usr/share/keyrings/ubuntu-archive-keyring.gpg"
		main      = "http://example.org/debian"
	)
	signed := func(line, key string) string { return strings.Replace(line, "deb ", "deb [signed-by="+key+"] ", 1) }
	debian := Host{Distribution: "debian", Codename: "bookworm"}
	ubuntu := Host{Distribution: "ubuntu", Like: []string{"debian"}, Codename: "noble"}
	tests := []struct {
		name    string
		host    Host
		lines   []string
		origins map[string]string // by URI and suite
		want    []string
	}{
		{
			"all suites of Debian, the main one first", debian,
			[]string{
				"deb http://example.org/debian-security bookworm-security main", "deb " + main + " bookworm-backports main",
				"deb " + main + " bookworm-updates main", "deb " + main + " bookworm main contrib",
			},
			nil,
			[]string{
				"deb " + main + " bookworm main contrib", "deb " + main + " bookworm-updates main",
				"deb http://example.org/debian-security bookworm-security main", "deb " + main + " bookworm-backports main",
			},
		},
		{
			"the same, once apt has fetched them", debian,
			[]string{
				"deb http://example.org/debian-security bookworm-security main", "deb " + main + " bookworm-backports main",
				"deb " + main + " bookworm-updates main", "deb " + main + " bookworm main contrib",
			},
			map[string]string{
				"http://example.org/debian-security bookworm-security": "Debian", main + " bookworm-backports": "Debian Backports",
				main + " bookworm-updates": "Debian", main + " bookworm": "Debian",
			},
			[]string{
				"deb " + main + " bookworm main contrib", "deb " + main + " bookworm-updates main",
				"deb http://example.org/debian-security bookworm-security main", "deb " + main + " bookworm-backports main",
			},
		},
		{
			"Ubuntu", ubuntu,
			[]string{
				signed("deb http://example.org/ubuntu noble main universe", ubuntuKey),
				signed("deb http://example.org/ubuntu noble-security main universe", ubuntuKey),
				signed("deb http://example.org/ppa/x noble main", "/etc/apt/keyrings/x.gpg"),
			},
			nil,
			[]string{"deb http://example.org/ubuntu noble main universe", "deb http://example.org/ubuntu noble-security main universe"},
		},
		{
			"names that are no codenames", debian,
			[]string{"deb " + main + " stable main", "deb " + main + " stable-updates main", "deb http://example.org/security stable-security main"},
			nil,
			[]string{"deb " + main + " stable main", "deb " + main + " stable-updates main", "deb http://example.org/security stable-security main"},
		},
		{
			"sid",
			Host{Distribution: "debian", Codename: "forky"},
			[]string{"deb " + main + " unstable main"},
			nil,
			[]string{"deb " + main + " unstable main"},
		},
		{
			"buster's security suite",
			Host{Distribution: "debian", Codename: "buster"},
			[]string{"deb http://example.org/security buster/updates main", "deb " + main + " buster main"},
			nil,
			[]string{"deb " + main + " buster main", "deb http://example.org/security buster/updates main"},
		},
		{
			"another release after the own", debian,
			[]string{"deb " + main + " sid main", "deb " + main + " bookworm main"},
			nil,
			[]string{"deb " + main + " bookworm main", "deb " + main + " sid main"},
		},
		{
			"third parties are told apart by their origin", debian,
			[]string{
				"deb http://example.org/docker bookworm stable", "deb " + main + " bookworm main", "deb http://example.org/chrome stable main",
				"deb http://example.org/same/ bookworm main",
			},
			map[string]string{
				"http://example.org/docker bookworm": "Docker", main + " bookworm": "Debian", "http://example.org/chrome stable": "Google LLC",
				"http://example.org/same bookworm": "Debian Multimedia",
			},
			[]string{"deb " + main + " bookworm main"},
		},
		{
			"and before the first update by their keyring", debian,
			[]string{
				signed("deb http://example.org/docker bookworm stable", "/etc/apt/keyrings/docker.asc"),
				signed("deb "+main+" bookworm main", debianKey),
			},
			nil,
			[]string{"deb " + main + " bookworm main"},
		},
		{
			"the origin weighs more than the keyring", debian,
			[]string{signed("deb "+main+" bookworm main", "/srv/keys/site.gpg"), signed("deb http://example.org/other bookworm main", debianKey)},
			map[string]string{main + " bookworm": "debian", "http://example.org/other bookworm": "Other"},
			[]string{"deb " + main + " bookworm main"},
		},
		{
			"a derivative's parent",
			Host{Distribution: "raspbian", Like: []string{"debian"}, Codename: "bookworm"},
			[]string{signed("deb "+main+" bookworm main", debianKey), "deb http://example.org/raspbian bookworm main"},
			map[string]string{main + " bookworm": "Debian", "http://example.org/raspbian bookworm": "Raspbian"},
			[]string{"deb " + main + " bookworm main", "deb http://example.org/raspbian bookworm main"},
		},
		{
			"before the first update the suite alone does not tell beside the keyring", debian,
			[]string{
				"deb http://example.org/docker bookworm stable", signed("deb "+main+" bookworm main", debianKey),
				"deb http://example.org/security bookworm-security main",
			},
			nil,
			[]string{"deb " + main + " bookworm main", "deb http://example.org/security bookworm-security main"},
		},
		{
			"nor beside the origin", debian,
			[]string{"deb http://example.org/new bookworm main", "deb " + main + " bookworm main"},
			map[string]string{main + " bookworm": "Debian"},
			[]string{"deb " + main + " bookworm main"},
		},
		{
			"several keyrings", debian,
			[]string{signed("deb "+main+" bookworm main", "/srv/keys/site.gpg,"+debianKey)},
			nil,
			[]string{"deb " + main + " bookworm main"},
		},
		{
			"other suites, flat repositories, discs", debian,
			[]string{
				"deb http://example.org/apt cloud-sdk-bookworm main", "deb http://example.org/node nodistro main", "deb file:/srv bookworm/",
				"deb cdrom:[Debian]/ bookworm main", "deb " + main + " bookworm main",
			},
			nil,
			[]string{"deb " + main + " bookworm main"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.host.Origins = map[[2]string]string{}
			for key, origin := range tt.origins {
				uri, suite, _ := strings.Cut(key, " ")
				tt.host.Origins[[2]string{uri, suite}] = origin
			}
			for _, line := range tt.lines {
				s, err := ParseLine(line)
				assert.NilError(t, err)
				tt.host.Sources = append(tt.host.Sources, s)
			}
			before := slices.Clone(tt.host.Sources)
			own, err := tt.host.Own()
			assert.NilError(t, err)
			var got []string
			for _, s := range own {
				got = append(got, s.String())
			}
			assert.DeepEqual(t, got, tt.want)
			assert.DeepEqual(t, tt.host.Sources, before)
		})
	}
}

func TestNoOwn(t *testing.T) {
	t.Parallel()
	for name, lines := range map[string][]string{
		"none":              nil,
		"only third-party":  {"deb [signed-by=/etc/apt/keyrings/docker.asc] http://example.org/docker bookworm stable"},
		"no main suite":     {"deb http://example.org/debian bookworm-updates main"},
		"another codename":  {"deb http://example.org/debian trixie main"},
		"flat repositories": {"deb http://example.org/debian ./"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := Host{Distribution: "debian", Codename: "bookworm"}
			for _, line := range lines {
				s, err := ParseLine(line)
				assert.NilError(t, err)
				h.Sources = append(h.Sources, s)
			}
			_, err := h.Own()
			assert.ErrorContains(t, err, "no repository of debian itself")
			assert.Assert(t, strings.Contains(diag.Hint(err), "--repo 'deb http://example.org/debian bookworm main'"))
		})
	}
}

func TestForSuite(t *testing.T) {
	t.Parallel()
	const debian, security = "http://example.org/debian", "http://example.org/security"
	own := []Source{
		{debian, "bookworm", []string{"main"}, opts{"Signed-By": "/k.gpg"}, 0},
		{debian, "bookworm-updates", []string{"main"}, opts{"Signed-By": "/k.gpg"}, 0},
		{security, "bookworm-security", []string{"main"}, opts{"Signed-By": "/k.gpg"}, 0},
		{debian, "bookworm-backports", []string{"main"}, opts{"Signed-By": "/k.gpg"}, 0},
		{debian, "sid", []string{"main"}, opts{"Signed-By": "/k.gpg"}, 0},
	}
	tests := []struct {
		name  string
		own   []Source
		suite string
		want  []string
	}{
		{"trixie", own, "trixie", []string{debian + " trixie", debian + " trixie-updates", security + " trixie-security"}},
		{"the same", own, "bookworm", []string{debian + " bookworm", debian + " bookworm-updates", security + " bookworm-security"}},
		{"sid", own, "sid", []string{debian + " sid"}},
		{"unstable", own, "unstable", []string{debian + " unstable"}},
		{"only the main suite", own[:1], "trixie", []string{debian + " trixie"}},
		{
			"from buster",
			[]Source{{URI: debian, Suite: "buster"}, {URI: security, Suite: "buster/updates"}},
			"bullseye",
			[]string{debian + " bullseye", security + " bullseye-security"},
		},
		{
			"Ubuntu",
			[]Source{{URI: debian, Suite: "noble"}, {URI: debian, Suite: "noble-security"}, {URI: debian, Suite: "noble-proposed"}},
			"jammy",
			[]string{debian + " jammy", debian + " jammy-security"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			before := slices.Clone(tt.own)
			var got []string
			for _, s := range ForSuite(tt.own, tt.suite) {
				got = append(got, s.URI+" "+s.Suite)
				assert.Equal(t, s.SignedBy(), tt.own[0].SignedBy())
			}
			assert.DeepEqual(t, got, tt.want)
			assert.DeepEqual(t, tt.own, before)
		})
	}
}

// aptHome is a private directory of apt's settings, lists and caches; conf is
// its apt.conf(5), which knows the directory as seenAs.
func aptHome(t *testing.T, seenAs string) (dir, conf string) {
	t.Helper()
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Fatalf("these tests need a Debian or Ubuntu system: %v", err)
	}
	dir = t.TempDir()
	if seenAs == "" {
		seenAs = dir
	}
	for _, d := range []string{"etc/sources.list.d", "etc/apt.conf.d", "etc/preferences.d", "etc/trusted.gpg.d", "state/lists/partial", "cache/archives/partial", "repo"} {
		assert.NilError(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	assert.NilError(t, os.WriteFile(filepath.Join(dir, "state/status"), nil, 0o644))
	text := strings.ReplaceAll(`Dir::Etc "DIR/etc";
Dir::State "DIR/state";
Dir::State::status "DIR/state/status";
Dir::Cache "DIR/cache";
APT::Sandbox::User "root";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
Debug::NoLocking "true";
`, "DIR", seenAs) + Config
	conf = filepath.Join(dir, "apt.conf")
	assert.NilError(t, os.WriteFile(conf, []byte(text), 0o644))
	return dir, conf
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	assert.NilError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	assert.NilError(t, os.WriteFile(path, []byte(content), 0o644))
}

func TestReadHost(t *testing.T) {
	dir, conf := aptHome(t, "")
	t.Setenv("APT_CONFIG", conf)
	file := func(name string) string { return filepath.Join(dir, "etc", name) }
	writeFile(t, file("sources.list"), "# the main one\ndeb file:///nowhere/main bookworm main # here\ndeb-src file:/nowhere/main bookworm main\n")
	writeFile(t, file("sources.list.d/c.list"), "deb [trusted=yes nonsense=1] file:/nowhere/c ./\n")
	writeFile(t, file("sources.list.d/b.sources"), "Types: deb\nURIs: file:/nowhere/b1 file:/nowhere/b2\nSuites: one two\nComponents: x\nSigned-By:"+inlineKey+"\n\nEnabled: off\nTypes: deb\nURIs: file:/nowhere/off\nSuites: ./\n")
	writeFile(t, file("sources.list.d/a.list"), "deb\tfile:/nowhere/a\tbookworm\tmain\n")
	// Names that apt passes over.
	for _, name := range []string{"d.list.save", "e e.list", "f.list~", ".list", "README", "g.sources.bak"} {
		writeFile(t, file("sources.list.d/"+name), "deb file:/nowhere/no ./\n")
	}
	h, err := ReadHost(t.Context())
	assert.NilError(t, err)
	var got []string
	for _, s := range h.Sources {
		got = append(got, s.String())
	}
	assert.DeepEqual(t, got, []string{
		"deb file:///nowhere/main bookworm main", "deb file:/nowhere/a bookworm main",
		"deb file:/nowhere/b1 one x", "deb file:/nowhere/b1 two x", "deb file:/nowhere/b2 one x", "deb file:/nowhere/b2 two x",
		"deb file:/nowhere/c ./",
	})
	assert.Equal(t, h.Sources[2].SignedBy(), inlineKey)
	assert.Equal(t, len(h.Origins), 0)
	assert.Assert(t, h.Distribution != "" && h.Architecture != "")

	// apt reads the same.
	out, err := exec.Command("apt-get", "update", "--print-uris").CombinedOutput()
	assert.NilError(t, err, "%s", out)
	var want []string
	for line := range strings.Lines(string(out)) {
		if uri, _, ok := strings.Cut(strings.TrimPrefix(line, "'"), "/InRelease'"); ok {
			want = append(want, uri)
		}
	}
	var ours []string
	for _, s := range h.Sources {
		uri := strings.Replace(s.URI, ":///", ":/", 1)
		if s.Suite == "./" {
			uri += "/."
		} else {
			uri += "/dists/" + s.Suite
		}
		ours = append(ours, uri)
	}
	assert.DeepEqual(t, ours, want)

	writeFile(t, file("sources.list.d/z.list"), "deb file:/nowhere/z\n")
	system, err := ReadSystem(t.Context())
	assert.NilError(t, err)
	assert.Equal(t, system.Distribution+" "+system.Architecture, h.Distribution+" "+h.Architecture)
	_, err = ReadHost(t.Context())
	assert.ErrorContains(t, err, "cannot find out the host's repositories: ")
	assert.ErrorContains(t, err, file("sources.list.d/z.list"))
}

// A host that reads a frozen mirror says so in its configuration.
func TestReadHostUnchecked(t *testing.T) {
	dir, conf := aptHome(t, "")
	t.Setenv("APT_CONFIG", conf)
	writeFile(t, filepath.Join(dir, "etc/sources.list"), "deb http://example.org/a one main\ndeb [check-valid-until=yes] http://example.org/a two main\n")
	writeFile(t, filepath.Join(dir, "etc/apt.conf.d/frozen"), "Acquire::Check-Valid-Until \"0\";\n")
	h, err := ReadHost(t.Context())
	assert.NilError(t, err)
	assert.DeepEqual(t, h.Sources[0].Options, opts{"Check-Valid-Until": "no"})
	assert.DeepEqual(t, h.Sources[1].Options, opts{"Check-Valid-Until": "yes"})
}

func TestReadHostWithoutSources(t *testing.T) {
	dir, conf := aptHome(t, "")
	t.Setenv("APT_CONFIG", conf)
	assert.NilError(t, os.Remove(filepath.Join(dir, "etc/sources.list.d")))
	h, err := ReadHost(t.Context())
	assert.NilError(t, err)
	assert.Equal(t, len(h.Sources), 0)
}

// The Origin of a repository is known once apt has fetched its lists.
func TestReadHostOrigins(t *testing.T) {
	dir, conf := aptHome(t, "")
	t.Setenv("APT_CONFIG", conf)
	for name, origin := range map[string]string{"debian": "Debian", "other": "Other Party", "odd_name~/x=1": "Odd"} {
		writeFile(t, filepath.Join(dir, "repo", name, "dists/bookworm/Release"), release("Origin: "+origin+"\nCodename: bookworm\n", "main/binary-amd64/Packages", pack("a", "1", "")))
		writeFile(t, filepath.Join(dir, "repo", name, "dists/bookworm/main/binary-amd64/Packages"), pack("a", "1", ""))
	}
	writeFile(t, filepath.Join(dir, "mirrors.list"), "# ours\nfile:"+dir+"/repo/debian/\tpriority:1\nfile:/nowhere\tpriority:2\n")
	writeFile(t, filepath.Join(dir, "etc/sources.list"), "deb [trusted=yes] file://"+dir+"/repo/other bookworm main\n"+
		"deb [trusted=yes] file://"+dir+"/repo/odd_name~/x=1/ bookworm main\n"+
		"deb [trusted=yes] mirror+file://"+dir+"/mirrors.list bookworm main\n")
	out, err := exec.Command("apt-get", "update").CombinedOutput()
	assert.NilError(t, err, "%s", out)
	h, err := ReadHost(t.Context())
	assert.NilError(t, err)
	assert.DeepEqual(t, h.Origins, map[[2]string]string{
		{"file:" + dir + "/repo/other", "bookworm"}: "Other Party", {"file:" + dir + "/repo/odd_name~/x=1", "bookworm"}: "Odd", {"file:" + dir + "/repo/debian", "bookworm"}: "Debian",
		{"mirror+file:" + dir + "/mirrors.list", "bookworm"}: "Debian",
	})
	h.Distribution, h.Codename = "debian", "bookworm"
	own, err := h.Own()
	assert.NilError(t, err)
	assert.DeepEqual(t, own, []Source{{"file:" + dir + "/repo/debian/", "bookworm", []string{"main"}, opts{"Trusted": "yes"}, 0}})
}

func FuzzParseLine(f *testing.F) {
	for _, seed := range []string{
		"deb http://example.org/debian bookworm main", "deb [trusted=yes arch=amd64,i386] file:/srv ./", "deb-src http://example.org x y",
		"deb [", "deb []", "deb [ ] a: b c", "deb [arch+=x arch-=y] a: b c", "deb\ta:\tb\tc", "deb [signed-by=/a,/b]a: ./", "deb [=] a: ./", "deb [+=x] a: ./",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		s, err := ParseLine(line)
		if err != nil {
			return
		}
		again, err := ParseLine(s.String())
		assert.NilError(t, err)
		again.Options = s.Options
		assert.DeepEqual(t, again, s)
		list, err := parseList([]byte(line))
		if !strings.ContainsAny(line, "#\n\r\v\f\u0085\u00a0") {
			assert.NilError(t, err)
			assert.Equal(t, len(list), 1)
		}
	})
}

func FuzzStanzas(f *testing.F) {
	for _, seed := range []string{
		"Types: deb\nURIs: http://example.org/a b:\nSuites: one two\nComponents: x\n", "Types: deb\nURIs: a:\nSuites: ./\nSigned-By:" + inlineKey + "\n",
		"Enabled: no\nTypes: deb\n", "Types: deb deb-src\n\n\n# c\nTypes: deb", "Types:deb\nURIs:\n a:\n b:\nSuites: /\nTrusted: yes\nBy-Hash: no\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		sources, err := parseStanzas(text)
		if err != nil {
			return
		}
		again, err := parseStanzas(Stanzas(sources))
		assert.NilError(t, err, "%s", Stanzas(sources))
		assert.Equal(t, len(again), len(sources))
		for i, s := range sources {
			for _, dropped := range []string{"Languages", "Targets"} {
				delete(s.Options, dropped)
			}
			assert.DeepEqual(t, again[i], s)
		}
	})
}
