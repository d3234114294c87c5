package apt

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"gotest.tools/v3/assert"
)

func TestCutLogin(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, uri, plain, machine, user, secret string }{
		{"none", "http://example.org/a@b", "http://example.org/a@b", "", "", ""},
		{"local", "file:/srv/a@b", "file:/srv/a@b", "", "", ""},
		{"both", "https://me:secret@example.org:8080/deb/x", "https://example.org:8080/deb/x", "https://example.org:8080/deb/x", "me", "secret"},
		{"only a user", "http://me@example.org", "http://example.org", "http://example.org", "me", ""},
		{"escaped", "http://m%40e:a%2Fb%3A%25@example.org/", "http://example.org/", "http://example.org/", "m@e", "a/b:%"},
		{"an @ in the password", "http://me:a@b@example.org/", "http://example.org/", "http://example.org/", "me", "a@b"},
		{"IPv6", "http://me:x@[::1]:80/", "http://[::1]:80/", "http://[::1]:80/", "me", "x"},
		{"IPv6 without", "http://[::1]:80/a@", "http://[::1]:80/a@", "", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			plain, login, err := cutLogin(tt.uri)
			assert.NilError(t, err)
			assert.Equal(t, plain, tt.plain)
			if tt.machine == "" {
				assert.Assert(t, login == nil)
				return
			}
			assert.DeepEqual(t, *login, Login{tt.machine, tt.user, tt.secret})
		})
	}
	for _, uri := range []string{
		"http://me:s3cr/et@example.org/", "http://me:s3cr%et@example.org/", "http://me:s3cr et@example.org/", "http://:s3cret@example.org/", "http://me:s3cr%0Aet@example.org",
	} {
		_, _, err := cutLogin(uri)
		assert.Assert(t, err != nil, uri)
		assert.Assert(t, !strings.Contains(err.Error(), "s3cr"), "the password is in the message")
	}
}

func TestLogins(t *testing.T) {
	t.Parallel()
	sources, logins, err := CutLogins([]Source{
		{URI: "http://me:one@example.org/deb", Suite: "./"}, {URI: "http://example.org/free", Suite: "./"}, {URI: "http://me:two@example.org/deb/inner/", Suite: "./"},
	})
	assert.NilError(t, err)
	assert.Equal(t, sources[0].URI, "http://example.org/deb")
	conf := AuthConf(logins)
	assert.Equal(t, string(conf), "machine http://example.org/deb/inner/ login me password two\nmachine http://example.org/deb/ login me password one\n")
	_, _, err = CutLogins([]Source{{URI: "http://me:s3cr%et@example.org/", Suite: "bookworm"}})
	assert.ErrorContains(t, err, "cannot use a repository of the suite bookworm")

	conf = append(conf, "# machine http://example.net login no password no\nmachine example.net\n login you\n password three\nmachine http://proxy:3128 login pu password pp\n"...)
	for uri, want := range map[string]string{
		"http://example.org/deb":       "me one",
		"http://example.org/deb/inner": "me two",
		"http://example.org/debian":    "",
		"http://example.org/free":      "",
		"https://example.net/any":      "you three",
		"http://example.net/any":       "",
		"https://example.net.org/any":  "",
		"http://proxy:3128":            "pu pp",
		"http://proxy:31281":           "",
	} {
		user, secret, _ := FindLogin(conf, uri)
		assert.Equal(t, strings.TrimSpace(user+" "+secret), want, uri)
	}
}

func TestHostAuth(t *testing.T) {
	t.Parallel()
	etc := t.TempDir()
	got, err := HostAuth(etc)
	assert.NilError(t, err)
	assert.Equal(t, string(got), "")
	assert.NilError(t, os.Mkdir(filepath.Join(etc, "auth.conf.d"), 0o755))
	for name, text := range map[string]string{"auth.conf": "machine a", "auth.conf.d/b.conf": "machine b", "auth.conf.d/c.disabled": "machine c"} {
		assert.NilError(t, os.WriteFile(filepath.Join(etc, name), []byte(text), 0o600))
	}
	got, err = HostAuth(etc)
	assert.NilError(t, err)
	assert.Equal(t, string(got), "machine a\nmachine b\n")
}

func TestParseProxy(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"192.168.1.50:8080":         "http://192.168.1.50:8080",
		"http://proxy.example.org/": "http://proxy.example.org/",
		"DIRECT":                    "DIRECT",
		"socks5h://localhost:9050":  "socks5h://localhost:9050",
	} {
		p, login, err := ParseProxy("http", address)
		assert.NilError(t, err)
		assert.Assert(t, login == nil)
		assert.DeepEqual(t, p, Proxy{"http", "", want})
	}
	p, login, err := ParseProxy("https", "me:secret@proxy:3128/")
	assert.NilError(t, err)
	assert.DeepEqual(t, p, Proxy{"https", "", "http://proxy:3128/"})
	assert.DeepEqual(t, *login, Login{"http://proxy:3128", "me", "secret"})
	for _, address := range []string{`http://a";x`, "http://a b", "http://"} {
		_, _, err := ParseProxy("http", address)
		assert.ErrorContains(t, err, "not the address of a proxy", address)
	}
}

func TestNetworkConfig(t *testing.T) {
	t.Parallel()
	direct, err := Direct([]string{"127.0.0.1", "http://example.org:8080/debian", "[::1]:80"})
	assert.NilError(t, err)
	assert.DeepEqual(t, direct[:3], []Proxy{{"http", "127.0.0.1", "DIRECT"}, {"https", "127.0.0.1", "DIRECT"}, {"http", "example.org", "DIRECT"}})
	assert.Equal(t, direct[4].Host, "::1")
	_, err = Direct([]string{`a"; evil "`})
	assert.ErrorContains(t, err, "not the address of a host")

	proxies := append([]Proxy{{"http", "", "http://proxy:3128"}}, direct[:2]...)
	assert.Equal(t, NetworkConfig(proxies, true), `Acquire::http::Proxy "http://proxy:3128";
Acquire::http::Proxy::127.0.0.1 "DIRECT";
Acquire::https::Proxy::127.0.0.1 "DIRECT";
Acquire::https::CAInfo "/run/dkms2bin/apt/ca.pem";
`)
	auth := []byte("machine http://proxy:3128 login pu password pp\nmachine http://example.org/ login u password p\n")
	assert.Equal(t, string(Wgetrc(proxies, true, auth, "http://example.org/debian")), `http_proxy = http://proxy:3128
proxy_user = pu
proxy_password = pp
https_proxy = http://proxy:3128
proxy_user = pu
proxy_password = pp
no_proxy = 127.0.0.1
user = u
password = p
ca_certificate = /run/dkms2bin/apt/ca.pem
`)
	assert.Equal(t, string(Wgetrc(nil, false, nil, "http://example.org/")), "")
}

func TestHostProxies(t *testing.T) {
	t.Setenv("PATH", fakePrograms(t, map[string]string{"apt-config": `cat <<'END'
Acquire::http::Proxy "http://u:p@cache:3142";
Acquire::http::Proxy::example.org "DIRECT";
Acquire::http::Proxy-Auto-Detect "/x";
Acquire::ftp::Proxy "ftp://a";
Acquire::https::Timeout "60";
END
`})+":"+os.Getenv("PATH"))
	env := map[string]string{"http_proxy": "http://unused:1", "https_proxy": "http://secure:2", "no_proxy": ".internal,localhost"}
	proxies, logins, err := HostProxies(t.Context(), []Source{{URI: "http://repo.internal/debian"}, {URI: "https://other.org/"}}, func(name string) string { return env[name] })
	assert.NilError(t, err)
	assert.DeepEqual(t, proxies, []Proxy{
		{"http", "", "http://cache:3142"}, {"http", "example.org", "DIRECT"}, {"https", "", "http://secure:2"}, {"http", "repo.internal", "DIRECT"},
	})
	assert.DeepEqual(t, logins, []Login{{"http://cache:3142", "u", "p"}})
}

// fakePrograms makes a directory of shell scripts.
func fakePrograms(t *testing.T, scripts map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, script := range scripts {
		assert.NilError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o755))
	}
	return dir
}

func TestNoProxy(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		list, host string
		want       bool
	}{
		{"", "example.org", false},
		{"*", "example.org", true},
		{"example.org", "example.org", true},
		{".example.org", "a.example.org", true},
		{"*.example.org b", "a.example.org", true},
		{"ample.org", "example.org", false},
		{"a, 10.0.0.1", "10.0.0.1", true},
	} {
		assert.Equal(t, noProxy(tt.list, tt.host), tt.want, "%s in %s", tt.host, tt.list)
	}
}

func TestBound(t *testing.T) {
	t.Parallel()
	for uri, want := range map[string]string{
		"file:/srv/a": "/srv/a", "file:///srv/a/": "/srv/a", "copy:/srv/a%20b": "/srv/a b", "http://example.org/": "", "file:/srv/100%": "/srv/100%",
	} {
		assert.Equal(t, Directory(uri), want)
	}
	dir := t.TempDir()
	sources := Bound([]Source{{URI: "http://example.org/"}, {URI: "file:" + dir}})
	assert.Equal(t, sources[0].URI, "http://example.org/")
	assert.Equal(t, sources[1].URI, "copy:/run/dkms2bin/repository-1")
	binds := Binds("/nonexistent", []string{"", dir, "/nonexistent"})
	assert.Equal(t, len(binds), 1)
	assert.Equal(t, binds[0].Source+" "+binds[0].Target, dir+" /run/dkms2bin/repository-1")
}

// FuzzFindLogin: a login out of an auth.conf stands there, and is for that server.
func FuzzFindLogin(f *testing.F) {
	for _, conf := range []string{
		"machine http://example.org/debian login me password secret\n", "# machine x\nmachine example.org\n\tlogin a\n\tpassword b\n",
		"machine example.org:443 login a password b", "machine", "login a password b", "machine http:// login a password b",
	} {
		f.Add(conf, "http://example.org/debian")
		f.Add(conf, "https://example.org")
	}
	f.Fuzz(func(t *testing.T, conf, uri string) {
		user, secret, ok := FindLogin([]byte(conf), uri)
		if !ok {
			assert.Equal(t, user+secret, "")
			return
		}
		assert.Assert(t, user != "" && strings.Contains(conf, user) && strings.Contains(conf, secret))
		assert.Assert(t, HasLogin([]byte(conf)))
	})
}

// FuzzCutLogin: what is left of an address has no login in it, and apt finds the
// login that was cut off.
func FuzzCutLogin(f *testing.F) {
	for _, uri := range []string{
		"http://me:secret@example.org/debian", "https://me@example.org", "http://a:b/c@example.org/", "http://a%40b:%2f@[::1]:80/x", "file:/srv/a@b", "http://@x", "http://example.org/a@b",
	} {
		f.Add(uri)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		plain, login, err := cutLogin(uri)
		if err != nil {
			assert.Equal(t, plain, "")
			return
		}
		if login == nil {
			assert.Equal(t, plain, uri)
			return
		}
		assert.Assert(t, login.User != "" && len(plain) < len(uri))
		if strings.ContainsFunc(login.Machine+"x", unicode.IsSpace) || strings.Contains(login.Machine, "#") {
			return // no address
		}
		user, secret, ok := FindLogin(AuthConf([]Login{*login}), plain)
		if scheme, host, _ := strings.Cut(plain, "://"); scheme != "" && host != "" && login.Secret != "" {
			assert.Assert(t, ok, "%q", login.Machine)
			assert.Equal(t, user, login.User)
			assert.Equal(t, secret, login.Secret)
		}
	})
}
