package apt

import (
	"bytes"
	"context"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/sandbox"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// Where the files and repositories of the host are that apt needs to fetch, see
// Binds. They are there only while it fetches, and no package's script runs then.
const (
	privateDir  = "/run/dkms2bin/apt"
	AuthFile    = "auth.conf" // of logins, auth.conf(5)
	CertFile    = "ca.pem"    // of certificate authorities
	ListsDir    = "lists"     // of CopyLists, for the base system
	ListsInside = privateDir + "/" + ListsDir
	repository  = "/run/dkms2bin/repository-"
)

// Binds shows the directory private, with AuthFile, CertFile and ListsDir, to apt while it
// fetches, and the local repositories: directories has "" for the others.
func Binds(private string, directories []string) []sandbox.Bind {
	binds := []sandbox.Bind{{Source: private, Target: privateDir}}
	for i, dir := range directories {
		if dir != "" {
			binds = append(binds, sandbox.Bind{Source: dir, Target: fmt.Sprint(repository, i)})
		}
	}
	// What is gone is apt's to complain about, should it be wanted.
	return slices.DeleteFunc(binds, func(b sandbox.Bind) bool {
		_, err := os.Stat(b.Source)
		return err != nil
	})
}

// Directory is the directory of a local repository, or "".
func Directory(uri string) string {
	for _, scheme := range []string{"file:", "copy:"} {
		if path, ok := strings.CutPrefix(uri, scheme); ok {
			if path = "/" + strings.TrimLeft(path, "/"); strings.Contains(path, "%") {
				if plain, err := url.PathUnescape(path); err == nil {
					path = plain
				}
			}
			return filepath.Clean(path)
		}
	}
	return ""
}

// Bound gives the sources as they are called where Binds shows them: by "copy:",
// since apt would let dpkg read those of "file:" when they are no longer there.
func Bound(sources []Source) []Source {
	out := slices.Clone(sources)
	for i, s := range out {
		if Directory(s.URI) != "" {
			out[i].URI = fmt.Sprint("copy:", repository, i)
		}
	}
	return out
}

// A Login is the name and password for one server, or for a part of it.
type Login struct {
	Machine string // as in auth.conf(5), with scheme, port and path
	User    string
	Secret  string
}

// errLogin does not quote what it is about.
var errLogin = errors.New("user or password cannot be read")

// cutLogin takes user and password off a URI.
func cutLogin(uri string) (plain string, login *Login, err error) {
	scheme, rest, ok := strings.Cut(uri, "://")
	if !ok {
		return uri, nil, nil
	}
	host, path, hasPath := strings.Cut(rest, "/")
	at := strings.LastIndexByte(host, '@')
	if at < 0 {
		if portEnd.MatchString(host) || !strings.Contains(path, "@") {
			return uri, nil, nil
		}
		at, host = 0, "" // a password with a slash
	}
	user, secret, _ := strings.Cut(host[:at], ":")
	user, errUser := url.PathUnescape(user)
	secret, errSecret := url.PathUnescape(secret)
	odd := func(s string) bool { return strings.ContainsFunc(s, unicode.IsSpace) }
	if errUser != nil || errSecret != nil || user == "" || odd(user) || odd(secret) {
		return "", nil, diag.WithHint(errLogin, "write characters such as / @ : %% in them as %%2F %%40 %%3A %%25, and none that is blank; or use --auth-conf")
	}
	host = host[at+1:]
	login = &Login{Machine: scheme + "://" + host, User: user, Secret: secret}
	if plain = login.Machine; hasPath {
		plain += "/" + path
		login.Machine += "/" + path
	}
	return plain, login, nil
}

// portEnd fits a host's name with or without a port.
var portEnd = regexp.MustCompile(`^(\[[^\]]*\]|[^:\[\]]*)(:\d*)?$`)

// CutLogins takes users and passwords off the sources' addresses.
func CutLogins(sources []Source) ([]Source, []Login, error) {
	out := slices.Clone(sources)
	var logins []Login
	for i, s := range out {
		plain, login, err := cutLogin(s.URI)
		if err != nil {
			return nil, nil, fmt.Errorf("cannot use a repository of the suite %s: %w", s.Suite, err)
		}
		if out[i].URI = plain; login != nil {
			login.Machine = strings.TrimSuffix(login.Machine, "/") + "/"
			logins = append(logins, *login)
		}
	}
	return out, logins, nil
}

// AuthConf gives logins in the format of auth.conf(5), where the first that fits
// counts: those of longer paths come first.
func AuthConf(logins []Login) []byte {
	logins = slices.Clone(logins)
	slices.SortStableFunc(logins, func(a, b Login) int { return len(b.Machine) - len(a.Machine) })
	var b bytes.Buffer
	for _, l := range logins {
		fmt.Fprintf(&b, "machine %s login %s password %s\n", l.Machine, l.User, l.Secret)
	}
	return b.Bytes()
}

// FindLogin looks in an auth.conf for the login of a URI without one, by the
// rules of auth.conf(5).
func FindLogin(conf []byte, uri string) (user, secret string, ok bool) {
	scheme, rest, _ := strings.Cut(uri, "://")
	words := strings.Fields(uncommented(conf))
	fits := false
	for i := 0; i+1 < len(words); i += 2 {
		switch value := words[i+1]; words[i] {
		case "machine":
			if fits && user != "" {
				return user, secret, true
			}
			of, machine, has := strings.Cut(value, "://")
			if !has {
				of, machine = "https", value
			}
			after, begins := strings.CutPrefix(rest+"/", machine)
			whole := begins && (strings.Contains(machine, "/") || strings.HasPrefix(after, "/") || strings.HasPrefix(after, ":"))
			fits, user, secret = of == scheme && whole, "", ""
		case "login":
			user = value
		case "password":
			secret = value
		}
	}
	if !fits || user == "" {
		return "", "", false
	}
	return user, secret, true
}

// HasLogin says whether there is any login in an auth.conf.
func HasLogin(conf []byte) bool {
	return slices.Contains(strings.Fields(uncommented(conf)), "machine")
}

func uncommented(conf []byte) string {
	var b strings.Builder
	for line := range strings.Lines(string(conf)) {
		if !strings.HasPrefix(strings.TrimSpace(line), "#") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// HostAuth is the host's own auth.conf and the files beside it, as far as they
// can be read.
func HostAuth(etc string) ([]byte, error) {
	paths, err := filepath.Glob(filepath.Join(etc, "auth.conf.d", "*.conf"))
	if err != nil {
		return nil, err
	}
	var all []byte
	for _, path := range append([]string{filepath.Join(etc, "auth.conf")}, paths...) {
		text, err := readFile(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(append(all, text...), '\n')
	}
	return all, nil
}

// A Proxy is a line of apt's configuration: which proxy to use for a scheme, and
// for a host if one is named. The address "DIRECT" is none.
type Proxy struct {
	Scheme, Host, Address string
}

// ParseProxy reads the address of a proxy, as Fuel has it also without a scheme.
func ParseProxy(scheme, address string) (Proxy, *Login, error) {
	if !strings.EqualFold(address, "DIRECT") && !strings.Contains(address, "://") {
		address = "http://" + address
	}
	plain, login, err := cutLogin(address)
	if err != nil {
		return Proxy{}, nil, fmt.Errorf("cannot use the proxy for %s: %w", scheme, err)
	}
	if strings.ContainsAny(plain, "\"\\;{}") || strings.ContainsFunc(plain, unicode.IsSpace) || strings.HasSuffix(plain, "://") {
		return Proxy{}, nil, diag.WithHint(fmt.Errorf("%q is not the address of a proxy", plain), "write it as http://proxy.example.org:3128")
	}
	if login != nil {
		login.Machine = strings.TrimSuffix(login.Machine, "/")
	}
	return Proxy{Scheme: scheme, Address: plain}, login, nil
}

// Direct says that these hosts are asked without a proxy. Of a URI the host
// counts.
func Direct(hosts []string) ([]Proxy, error) {
	var proxies []Proxy
	for _, host := range hosts {
		name := host
		if _, rest, ok := strings.Cut(name, "://"); ok {
			name = rest
		}
		name, _, _ = strings.Cut(name, "/")
		if u, err := url.Parse("http://" + name); err == nil && u.Hostname() != "" {
			name = u.Hostname()
		}
		if !hostName.MatchString(name) {
			return nil, fmt.Errorf("%q is not the address of a host", host)
		}
		for _, scheme := range []string{"http", "https"} {
			proxies = append(proxies, Proxy{scheme, name, "DIRECT"})
		}
	}
	return proxies, nil
}

var hostName = regexp.MustCompile(`^[0-9A-Za-z.:_-]+$`)

// HostProxies are those that the host's own apt would use for the sources: of its
// configuration, else of the environment.
func HostProxies(ctx context.Context, sources []Source, getenv func(string) string) ([]Proxy, []Login, error) {
	dump, err := output(ctx, "apt-config", "dump")
	if err != nil {
		return nil, nil, err
	}
	var proxies []Proxy
	var logins []Login
	add := func(scheme, host, address string) error {
		p, login, err := ParseProxy(scheme, address)
		if err != nil {
			return fmt.Errorf("the host's settings: %w", err)
		}
		p.Host = host
		if login != nil {
			logins = append(logins, *login)
		}
		proxies = append(proxies, p)
		return nil
	}
	for _, m := range proxyLine.FindAllStringSubmatch(dump, -1) {
		if err := add(m[1], m[2], m[3]); err != nil {
			return nil, nil, err
		}
	}
	for _, scheme := range []string{"http", "https"} {
		address := getenv(scheme + "_proxy")
		if address == "" || slices.ContainsFunc(proxies, func(p Proxy) bool { return p.Scheme == scheme && p.Host == "" }) {
			continue
		}
		if err := add(scheme, "", address); err != nil {
			return nil, nil, err
		}
	}
	for _, s := range sources {
		u, err := url.Parse(s.URI)
		if err == nil && u.Hostname() != "" && noProxy(getenv("no_proxy"), u.Hostname()) {
			proxies = append(proxies, Proxy{u.Scheme, u.Hostname(), "DIRECT"})
		}
	}
	return proxies, logins, nil
}

// proxyLine fits a line of apt-config dump that names a proxy.
var proxyLine = regexp.MustCompile(`(?m)^Acquire::(https?)::[Pp]roxy(?:::([^" ]+))? "([^"]+)";$`)

// noProxy says whether a host is in the list of the environment's no_proxy.
func noProxy(list, host string) bool {
	for word := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ',' || unicode.IsSpace(r) }) {
		domain := "." + strings.TrimPrefix(strings.TrimPrefix(word, "*"), ".")
		if word == "*" || strings.HasSuffix("."+host, domain) {
			return true
		}
	}
	return false
}

// NetworkConfig is apt's configuration for the proxies; with certs the
// authorities are those of CertFile.
func NetworkConfig(proxies []Proxy, certs bool) string {
	var b strings.Builder
	for _, p := range proxies {
		key := "Acquire::" + p.Scheme + "::Proxy"
		if p.Host != "" {
			key += "::" + p.Host
		}
		fmt.Fprintf(&b, "%s %q;\n", key, p.Address)
	}
	if certs {
		fmt.Fprintf(&b, "Acquire::https::CAInfo %q;\n", privateDir+"/"+CertFile)
	}
	return b.String()
}

// Wgetrc is NetworkConfig for wget, with the logins of conf for the mirror and
// the proxies.
func Wgetrc(proxies []Proxy, certs bool, conf []byte, mirror string) []byte {
	var b bytes.Buffer
	var direct []string
	// apt uses the proxy for http also for https that has none; wget does not.
	general := func(p Proxy) bool { return p.Host == "" }
	if i := slices.IndexFunc(proxies, general); i >= 0 && !slices.ContainsFunc(proxies, func(p Proxy) bool { return general(p) && p.Scheme == "https" }) {
		proxies = append(slices.Clone(proxies), Proxy{Scheme: "https", Address: proxies[i].Address})
	}
	for _, p := range proxies {
		switch {
		case p.Host != "" && p.Address == "DIRECT":
			if !slices.Contains(direct, p.Host) {
				direct = append(direct, p.Host)
			}
		case p.Host == "" && p.Address != "DIRECT":
			fmt.Fprintf(&b, "%s_proxy = %s\n", p.Scheme, p.Address)
			if user, secret, ok := FindLogin(conf, p.Address); ok {
				fmt.Fprintf(&b, "proxy_user = %s\nproxy_password = %s\n", user, secret)
			}
		}
	}
	if len(direct) > 0 {
		fmt.Fprintf(&b, "no_proxy = %s\n", strings.Join(direct, ","))
	}
	if user, secret, ok := FindLogin(conf, mirror); ok {
		fmt.Fprintf(&b, "user = %s\npassword = %s\n", user, secret)
	}
	if certs {
		fmt.Fprintf(&b, "ca_certificate = %s/%s\n", privateDir, CertFile)
	}
	return b.Bytes()
}
