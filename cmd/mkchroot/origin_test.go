package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/diag"
	"encoding/pem"
	"errors"
	"math/big"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

func TestCheckRepositories(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "debs", "inner", "a.deb"), "")
	write(t, filepath.Join(dir, "none", ".hidden", "a.deb"), "")
	write(t, filepath.Join(dir, "mirror", "dists", "x", "Release"), "")
	o := &options{repos: cli.List{dir + "/debs/", "deb http://example.org/ ./,1001"}}
	assert.NilError(t, o.checkRepositories())
	assert.DeepEqual(t, o.directories, []string{dir + "/debs"})
	assert.Equal(t, len(o.sources), 1)
	assert.Equal(t, o.sources[0].Priority, 1001)
	for given, want := range map[string]string{
		dir + "/nothing": dir + "/nothing: there is no such directory", dir + "/none": "there is no .deb in it", dir + "/mirror": "that is a repository", "./nowhere": "--repo ./nowhere: there is no such directory",
		dir + "/debs/inner/a.deb": "not a directory", "http://example.org/": "its type is",
	} {
		assert.ErrorContains(t, (&options{repos: cli.List{given}}).checkRepositories(), want)
	}
	err := (&options{repos: cli.List{dir + "/mirror"}}).checkRepositories()
	assert.Equal(t, diag.Hint(err), "write it as 'deb file:"+dir+"/mirror suite components'")
}

func TestReadSettings(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	usual := filepath.Join(dir, "usual.yaml")
	write(t, usual, `
repos: [{uri: http://example.org/usual, suite: trusty, section: main}]
ubuntu_release: trusty
kernel_flavor: linux-image-generic-lts-xenial
http_proxy: proxy:1
https_proxy: proxy:2
direct_repo_addresses: [10.20.0.2]
`)
	given := apt.Source{URI: "http://example.org/given", Suite: "xenial", Components: []string{"main"}}
	tests := []struct {
		name             string
		o                options
		usual            string
		uri, release     string
		http, https, dir string
		flavour          string
	}{
		{"none", options{}, dir + "/none", "", "", "", "", "", ""},
		{"by itself", options{}, usual, "http://example.org/usual", "trusty", "proxy:1", "proxy:2", "10.20.0.2", "linux-image-generic-lts-xenial"},
		{"not with repositories", options{sources: []apt.Source{given}}, usual, given.URI, "", "", "", "", ""},
		{"not with a release", options{release: "xenial"}, usual, "", "xenial", "", "", "", ""},
		{"with directories", options{directories: []string{dir}}, usual, "http://example.org/usual", "trusty", "proxy:1", "proxy:2", "10.20.0.2", "linux-image-generic-lts-xenial"},
		{
			"flags win",
			options{
				settings: usual, sources: []apt.Source{given}, httpProxy: "mine:1", httpsProxy: "mine:2", direct: cli.List{"1.2.3.4"}, flavour: "generic",
			},
			"",
			given.URI, "", "mine:1", "mine:2", "1.2.3.4", "generic",
		},
		{"each for itself", options{settings: usual, release: "xenial", httpProxy: "mine:1"}, "", "http://example.org/usual", "xenial", "mine:1", "proxy:2", "10.20.0.2", "linux-image-generic-lts-xenial"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := tt.o
			assert.NilError(t, o.readSettings(tt.usual))
			uri := ""
			if len(o.sources) > 0 {
				uri = o.sources[0].URI
			}
			assert.DeepEqual(t, []string{uri, o.release, o.httpProxy, o.httpsProxy, o.direct.String(), o.flavour},
				[]string{tt.uri, tt.release, tt.http, tt.https, tt.dir, tt.flavour})
		})
	}
	assert.ErrorContains(t, (&options{settings: dir + "/none"}).readSettings(usual), "--settings: cannot read the settings")
}

func TestMainFirst(t *testing.T) {
	t.Parallel()
	sources := []apt.Source{{URI: "a", Suite: "mos"}, {URI: "b", Suite: "trusty"}, {URI: "c", Suite: "trusty"}}
	for release, want := range map[string]string{"": "abc", "mos": "abc", "trusty": "bac"} {
		got, err := mainFirst(sources, release)
		assert.NilError(t, err)
		text := ""
		for _, s := range got {
			text += s.URI
		}
		assert.Equal(t, text, want)
	}
	_, err := mainFirst(sources, "xenial")
	assert.ErrorContains(t, err, "none of the repositories given has the suite xenial")
}

func TestAuthorities(t *testing.T) {
	t.Parallel()
	none, err := (&origin{sources: []apt.Source{{URI: "http://example.org/"}}}).authorities(nil)
	assert.NilError(t, err)
	assert.Assert(t, none == nil)
	own, err := (&origin{}).authorities([]byte("given\n"))
	assert.NilError(t, err)
	assert.Assert(t, bytes.HasSuffix(own, []byte("\ngiven\n")))
}

// certificate makes one that is good for the year 2026.
func certificate(t testing.TB) (cert, key []byte) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(nil)
	assert.NilError(t, err)
	date := func(year int) time.Time { return time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC) }
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: date(2026), NotAfter: date(2027), IsCA: true}
	der, err := x509.CreateCertificate(nil, template, template, private.Public(), private)
	assert.NilError(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	assert.NilError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
}

// A file of certificates gives these alone: the tree's copy is for everybody.
func TestCertificates(t *testing.T) {
	t.Parallel()
	cert, key := certificate(t)
	block, _ := pem.Decode(cert)
	for name, tt := range map[string]struct {
		text []byte
		year int
		want []byte
		err  string
	}{
		"one":               {cert, 2026, cert, ""},
		"with text and key": {slices.Concat([]byte("Internal CA\n"), key, cert, key), 2026, cert, ""},
		"two":               {slices.Concat(cert, cert), 2026, slices.Concat(cert, cert), ""},
		"expired":           {cert, 2027, nil, "the certificate in it expired on 2027-01-01"},
		"not PEM":           {block.Bytes, 2026, nil, "there is no certificate in it"},
		"a key":             {key, 2026, nil, "there is no certificate in it"},
		"empty":             {nil, 2026, nil, "there is no certificate in it"},
		"damaged":           {bytes.Replace(cert, []byte("\nMI"), []byte("\nAI"), 1), 2026, nil, "a certificate in it cannot be read"},
		"damaged after one": {slices.Concat(cert, []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")), 2026, nil, "a certificate in it cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := certificates(tt.text, time.Date(tt.year, 1, 2, 0, 0, 0, 0, time.UTC))
			if tt.err != "" {
				assert.ErrorContains(t, err, tt.err)
				return
			}
			assert.NilError(t, err)
			assert.Equal(t, string(got), string(tt.want))
		})
	}
}

// What --check must find.
func TestReadFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.pem")
	write(t, bad, "no certificate")
	for want, o := range map[string]*options{
		"--load-cert " + bad + ": there is no certificate in it": {certFiles: cli.List{bad}},
		"--load-cert: read " + dir + ": is a directory":          {certFiles: cli.List{dir}},
		"--auth-conf: read " + dir + ": is a directory":          {auth: dir},
		"--auth-conf " + bad + ": there is no login in it":       {auth: bad},
	} {
		assert.Error(t, o.readFiles(), want)
	}
	write(t, filepath.Join(dir, "auth.conf"), "# none\nmachine example.org login a password b\n")
	assert.NilError(t, (&options{auth: filepath.Join(dir, "auth.conf")}).readFiles())
}

func TestAdvise(t *testing.T) {
	t.Parallel()
	assert.NilError(t, advise(nil))
	for text, want := range map[string]string{
		"cannot complete the base system: Failed to fetch http://127.0.0.1:8643/./Packages  401  Unauthorized [IP: 127.0.0.1 8643]":                "it wants a login",
		"cannot make the base system: Failed to fetch http://example.org/dists/x/InRelease  407  Proxy Authentication Required":                    "the proxy wants a login",
		"Failed to fetch https://127.0.0.1/  Certificate verification failed: The certificate is NOT trusted.":                                     "--load-cert names",
		"GPG error: http://example.org x InRelease: The following signatures couldn't be verified because the public key is not available":         "signed by a key that was not given",
		"The repository 'http://example.org/debian x Release' does not have a Release file.":                                                       "look at the mirror's address",
		"Release file for copy:/srv/old/./Release is expired (invalid since 1059d 14h 21min 9s). Updates for this repository will not be applied.": "check-valid-until=no",
		"something else": "",
	} {
		got := diag.Hint(advise(errors.New(text)))
		assert.Assert(t, strings.Contains(got, want), "%s: %s", text, got)
		assert.Equal(t, got == "", want == "")
	}
	first := diag.WithHint(errors.New("401  Unauthorized"), "first")
	assert.Equal(t, diag.Hint(advise(first)), "first")
}

// FuzzCertificates: of a PEM file nothing is taken but certificates.
func FuzzCertificates(f *testing.F) {
	good, _ := certificate(f)
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		certs, err := certificates(text, time.Now())
		if err != nil {
			return
		}
		again, err := certificates(certs, time.Now())
		assert.NilError(t, err)
		assert.Equal(t, string(again), string(certs))
	})
}
