package main

import (
	"context"
	"crypto/x509"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/repo"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/state"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// isDirectory tells a directory of .debs from a repository, which begins with its
// type.
func isDirectory(repo string) bool {
	return strings.HasPrefix(repo, "/") || strings.HasPrefix(repo, ".")
}

func (o *options) checkRepositories() error {
	for _, text := range o.repos {
		if isDirectory(text) {
			dir, err := checkDirectory(text)
			if err != nil {
				return err
			}
			o.directories = append(o.directories, dir)
			continue
		}
		s, err := apt.ParseLine(text)
		if err != nil {
			return cli.Usagef("--repo: %w", err)
		}
		o.sources = append(o.sources, s)
	}
	return nil
}

func checkDirectory(given string) (string, error) {
	dir, err := filepath.Abs(given)
	if err != nil {
		return "", err
	}
	switch info, err := os.Stat(dir); {
	case errors.Is(err, fs.ErrNotExist):
		return "", cli.Usagef("--repo %s: there is no such directory", given)
	case err == nil && !info.IsDir():
		return "", cli.Usagef("--repo %s: that is not a directory", given)
	}
	if _, err := os.Stat(filepath.Join(dir, "dists")); err == nil {
		return "", diag.WithHint(cli.Usagef("--repo %s: that is a repository, not a directory of .debs", given), "write it as 'deb file:%s suite components'", dir)
	}
	debs, err := findDebs(dir)
	if err != nil {
		return "", cli.Usagef("--repo: %w", err)
	}
	if len(debs) == 0 {
		return "", cli.Usagef("--repo %s: there is no .deb in it", given)
	}
	return dir, nil
}

// findDebs lists the packages in a directory and below, relative to it. As for
// repoindex, names that begin with a dot are passed over.
func findDebs(dir string) ([]string, error) {
	var debs []string
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		hidden := path != "." && strings.HasPrefix(d.Name(), ".")
		switch {
		case err != nil:
			return err
		case d.IsDir() && hidden:
			return fs.SkipDir
		case !d.IsDir() && !hidden && strings.HasSuffix(path, ".deb"):
			debs = append(debs, path)
		}
		return nil
	})
	return debs, err
}

// readSettings takes from Fuel's settings what neither flag nor environment say.
// Without --settings, those at the usual place count unless the repositories are
// named otherwise.
func (o *options) readSettings(usual string) (err error) {
	if o.settings == "" {
		if _, err := os.Stat(usual); err != nil || len(o.sources) > 0 || o.release != "" {
			return nil
		}
		o.settings = usual
	}
	if o.fuel, err = apt.ReadSettings(o.settings); err != nil {
		return cli.Usagef("--settings: %w", err)
	}
	if len(o.sources) == 0 {
		o.sources = o.fuel.Sources
		if o.release == "" {
			o.release = o.fuel.Release
		}
	}
	if o.flavour == "" {
		o.flavour = o.fuel.Flavour
	}
	if o.httpProxy == "" {
		o.httpProxy = o.fuel.HTTPProxy
	}
	if o.httpsProxy == "" {
		o.httpsProxy = o.fuel.HTTPSProxy
	}
	if len(o.direct) == 0 {
		o.direct = o.fuel.Direct
	}
	return nil
}

func (o *options) checkNetwork() error {
	for _, p := range []struct{ scheme, address string }{{"http", o.httpProxy}, {"https", o.httpsProxy}} {
		if p.address == "" {
			continue
		}
		proxy, login, err := apt.ParseProxy(p.scheme, p.address)
		if err != nil {
			return err
		}
		o.proxies = append(o.proxies, proxy)
		if login != nil {
			o.logins = append(o.logins, *login)
		}
	}
	direct, err := apt.Direct(o.direct)
	o.proxies = append(o.proxies, direct...)
	return err
}

// readFiles reads what apt will fetch by, so that --check finds what is wrong with it.
func (o *options) readFiles() (err error) {
	if o.auth != "" {
		if o.authConf, err = os.ReadFile(o.auth); err != nil {
			return cli.Usagef("--auth-conf: %w", err)
		}
		if !apt.HasLogin(o.authConf) {
			return diag.WithHint(cli.Usagef("--auth-conf %s: there is no login in it", o.auth), "a login is written as 'machine http://example.org/debian login … password …'")
		}
	}
	for _, path := range o.certFiles {
		text, err := os.ReadFile(path)
		if err != nil {
			return cli.Usagef("--load-cert: %w", err)
		}
		certs, err := certificates(text, time.Now())
		if err != nil {
			return cli.Usagef("--load-cert %s: %w", path, err)
		}
		o.certs = append(o.certs, certs...)
	}
	return nil
}

// certificates returns the certificates of a PEM file, without anything else that
// is in it, such as keys. At least one must be good at that time.
func certificates(text []byte, now time.Time) (certs []byte, err error) {
	var expired error
	good := false
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("a certificate in it cannot be read: %w", err)
		}
		if now.After(cert.NotAfter) {
			expired = fmt.Errorf("the certificate in it expired on %s", cert.NotAfter.UTC().Format(time.DateOnly))
		} else {
			good = true
		}
		certs = append(certs, pem.EncodeToMemory(block)...)
	}
	switch {
	case certs == nil:
		return nil, diag.WithHint(errors.New("there is no certificate in it"), "it must be in the PEM format: openssl x509 -inform DER converts it")
	case !good:
		return nil, expired
	}
	return certs, nil
}

// An origin is where packages come from, and by what way.
type origin struct {
	host        apt.Host
	sources     []apt.Source // without logins; the first is the distribution's
	directories []string     // of .debs
	proxies     []apt.Proxy
	auth        []byte // auth.conf(5)
	certs       []byte // PEM; nil where nothing is fetched by https
}

// loginInURI fits an address with a password.
var loginInURI = regexp.MustCompile(`://[^/\s]*:[^\s]*@`)

func findOrigin(ctx context.Context, msg *cli.Messenger, o *options) (*origin, error) {
	if slices.ContainsFunc(o.args, loginInURI.MatchString) {
		msg.Warn("a password on the command line can be seen by all users of this host")
		msg.Hint("put it into the environment (DKMS2BIN_REPO, DKMS2BIN_HTTP_PROXY), into a file for --config or --settings, or into one for --auth-conf")
	}
	if o.settings != "" {
		msg.Info("repositories, proxies and kernel flavour that are not given otherwise are those of %s", o.settings)
	}
	host, sources, err := repositoriesFor(ctx, o)
	if err != nil {
		return nil, err
	}
	from := &origin{host: host, directories: o.directories, proxies: o.proxies}
	var logins []apt.Login
	if from.sources, logins, err = apt.CutLogins(sources); err != nil {
		return nil, err
	}
	logins = append(logins, o.logins...)
	if o.httpProxy == "" && o.httpsProxy == "" {
		proxies, more, err := apt.HostProxies(ctx, from.sources, os.Getenv)
		if err != nil {
			return nil, err
		}
		from.proxies, logins = append(proxies, from.proxies...), append(logins, more...)
	}
	if from.auth, err = authConf(logins, o.authConf); err != nil {
		return nil, err
	}
	from.certs, err = from.authorities(o.certs)
	return from, err
}

// repositoriesFor are those that are named, or the distribution's own among the
// host's. Only for these the host's are read.
func repositoriesFor(ctx context.Context, o *options) (apt.Host, []apt.Source, error) {
	if len(o.sources) > 0 {
		host, err := apt.ReadSystem(ctx)
		if err != nil {
			return host, nil, err
		}
		sources, err := mainFirst(o.sources, o.release)
		return host, sources, err
	}
	host, err := apt.ReadHost(ctx)
	if err != nil {
		return host, nil, err
	}
	sources, err := host.Own()
	if err == nil && o.release != "" {
		sources = apt.ForSuite(sources, o.release)
	}
	return host, sources, err
}

// mainFirst puts the repository of the release first, which is the distribution's.
func mainFirst(sources []apt.Source, release string) ([]apt.Source, error) {
	if release == "" {
		return sources, nil
	}
	i := slices.IndexFunc(sources, func(s apt.Source) bool { return s.Suite == release })
	if i < 0 {
		return nil, diag.WithHint(cli.Usagef("none of the repositories given has the suite %s", release), "the one with the suite of --release is the distribution's")
	}
	return slices.Concat(sources[i:i+1], sources[:i], sources[i+1:]), nil
}

// authConf puts together the logins of addresses, those given, and the host's.
func authConf(logins []apt.Login, given []byte) ([]byte, error) {
	auth := apt.AuthConf(logins)
	if given != nil {
		auth = append(append(auth, given...), '\n')
	}
	host, err := apt.HostAuth("/etc/apt")
	if err != nil {
		return nil, fmt.Errorf("cannot read the host's logins: %w", err)
	}
	return append(auth, host...), nil
}

// hostAuthorities are the certificate authorities that the host trusts.
const hostAuthorities = "/etc/ssl/certs/ca-certificates.crt"

// authorities are the host's and those given. With them the tree needs none of
// its own.
func (f *origin) authorities(given []byte) ([]byte, error) {
	https := slices.ContainsFunc(f.sources, func(s apt.Source) bool { return strings.HasPrefix(s.URI, "https:") }) ||
		slices.ContainsFunc(f.proxies, func(p apt.Proxy) bool { return strings.HasPrefix(p.Address, "https:") })
	if given == nil && !https {
		return nil, nil
	}
	certs, err := os.ReadFile(hostAuthorities)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot read the host's certificate authorities: %w", err)
	}
	return slices.Concat(certs, []byte("\n"), given), nil
}

// prioritised says whether apt must be told to prefer some repositories.
func (f *origin) prioritised() bool {
	return slices.ContainsFunc(f.sources, func(s apt.Source) bool { return s.Priority != 0 })
}

// givenPriority is that of directories of .debs: above all else, and high enough
// that what is older in them is taken, too.
const givenPriority = 1001

// advise adds to an error what to do about it, where apt says why it could not fetch.
func advise(err error) error {
	if err == nil || diag.Hint(err) != "" {
		return err
	}
	says := func(text string) bool { return strings.Contains(err.Error(), text) }
	switch {
	case says("GPG error"):
		return diag.WithHint(err, "the repository is signed by a key that was not given: --repo 'deb [signed-by=KEYRING] uri suite components'")
	case says("401  "):
		return diag.WithHint(err, "it wants a login: --auth-conf names a file with it, as in 'machine http://example.org/debian login … password …'; without http:// a login is for https alone")
	case says("407  "):
		return diag.WithHint(err, "the proxy wants a login: --auth-conf names a file with it, as in 'machine http://proxy.example.org:3128 login … password …'")
	case says("certificate"), says("Certificate"):
		return diag.WithHint(err, "--load-cert names the certificate of an authority of your own")
	case says(" is expired"):
		return diag.WithHint(err, "the mirror is old; --repo 'deb [check-valid-until=no] uri suite components' takes it all the same")
	case says("Failed to fetch"), says("does not have a Release file"):
		return diag.WithHint(err, "look at the mirror's address, the suite's name and the network; --repo takes another mirror")
	}
	return err
}

// provide puts what apt fetches by into the tree, with copies of the directories
// of .debs as repositories of their own, and tells the repositories as the document
// has them.
func (f *origin) provide(ctx context.Context, msg *cli.Messenger, tree *rootfs.Tree) ([]state.Repository, error) {
	var told []state.Repository
	for _, s := range f.sources {
		told = append(told, state.Repository{
			URI: s.URI, Suite: s.Suite, Components: s.Components, Trusted: s.Trusted(), Priority: s.Priority, Directory: apt.Directory(s.URI),
		})
	}
	for i, dir := range f.directories {
		to := givenDirectory(tree, i)
		if err := f.copyDebs(ctx, msg, dir, to); err != nil {
			return nil, fmt.Errorf("cannot use the directory %s as a repository: %w", dir, err)
		}
		s := apt.Source{URI: fileURI(to), Suite: "./", Priority: givenPriority}.With("Trusted", "yes")
		f.sources = append(f.sources, s)
		told = append(told, state.Repository{URI: fileURI(dir), Suite: s.Suite, Trusted: true, Priority: s.Priority, Directory: to})
	}
	if len(f.auth) > 0 {
		if err := os.WriteFile(filepath.Join(tree.Apt(), apt.AuthFile), f.auth, 0o600); err != nil {
			return nil, err
		}
	}
	if f.certs != nil {
		// For the user that apt becomes while it fetches.
		path := filepath.Join(tree.Apt(), apt.CertFile)
		if err := errors.Join(os.WriteFile(path, f.certs, 0o644), os.Chmod(path, 0o644)); err != nil {
			return nil, err
		}
	}
	return told, nil
}

// givenDirectory is where the copy of a directory of .debs lies.
func givenDirectory(tree *rootfs.Tree, i int) string {
	return filepath.Join(tree.Apt(), fmt.Sprint("given-", i))
}

func fileURI(path string) string { return "file:" + (&url.URL{Path: path}).EscapedPath() }

// copyDebs makes a repository of the .debs of a directory, which may change or go
// afterwards.
func (f *origin) copyDebs(ctx context.Context, msg *cli.Messenger, dir, to string) (err error) {
	debs, err := findDebs(dir)
	if err != nil {
		return err
	}
	// Others read it, whatever the umask.
	if err := errors.Join(os.Mkdir(to, 0o755), os.Chmod(to, 0o755)); err != nil {
		return err
	}
	names := map[string]string{}
	for i, name := range debs {
		copied := fmt.Sprintf("%d.deb", i)
		names[copied] = name
		if err := copyFile(filepath.Join(dir, name), filepath.Join(to, copied)); err != nil {
			return err
		}
	}
	r, err := repo.Open(ctx, to, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	// A label of its own tells it from all others.
	label := filepath.Base(to)
	result, err := r.Index(ctx, repo.Options{Origin: "dkms2bin", Label: label, Suite: label})
	for _, p := range result.Problems {
		msg.Warn("%s is left out: %s", diag.Printable(filepath.Join(dir, names[p.Path])), p.Reason)
	}
	return err
}

// copyFile copies a file that everybody may read then.
func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(0o644))
}
