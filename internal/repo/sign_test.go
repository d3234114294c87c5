package repo

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

// keyring makes an empty GNUPGHOME, whose agent ends with the test.
func keyring(t *testing.T) {
	t.Helper()
	home, err := os.MkdirTemp("/tmp", "gpg") // sockets want a short path
	assert.NilError(t, err)
	t.Setenv("GNUPGHOME", home)
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--kill", "all").Run()
		assert.NilError(t, os.RemoveAll(home))
	})
}

// gpgRun runs gpg for the test.
func gpgRun(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.Command("gpg", append([]string{"--batch", "--quiet", "--passphrase", ""}, args...)...).CombinedOutput()
	assert.NilError(t, err, "%q: %s", args, out)
}

// Not parallel: GNUPGHOME is the process's. No subtest has a key of another one's name.
func TestFindKey(t *testing.T) {
	keyring(t)
	for _, tc := range []struct{ name, algorithm, expires, extra, want, warning string }{
		{"ed25519", "ed25519", "never", "", "", ""},
		{"rsa3072", "rsa3072", "never", "", "", ""},
		{"nistp256", "nistp256", "never", "", "", ""},
		{"rsa2048", "rsa2048", "never", "", "", "from February 2030"},
		{"rsa1024", "rsa1024", "never", "", "RSA key of 1024 bits", ""},
		{"dsa2048", "dsa2048", "never", "", "is a DSA key", ""},
		{"brainpool", "brainpoolP256r1", "never", "", "on the curve brainpoolP256r1", ""},
		{"sha1", "ed25519", "never", "--cert-digest-algo=SHA1", "SHA-1 does not count", ""},
		{"expired", "ed25519", "seconds=1", "--faked-system-time=20200101T000000", "it has expired", ""},
	} {
		address := tc.name + "@example.org"
		args := []string{"--quick-generate-key", "<" + address + ">", tc.algorithm, "sign", tc.expires}
		if tc.extra != "" {
			args = append([]string{tc.extra}, args...)
		}
		gpgRun(t, args...)
		k, err := FindKey(t.Context(), address)
		if tc.want != "" {
			assert.ErrorContains(t, err, tc.want, tc.name)
			continue
		}
		assert.NilError(t, err, tc.name)
		assert.Assert(t, strings.Contains(strings.Join(k.Warnings, "\n"), tc.warning) && (tc.warning == "") == (len(k.Warnings) == 0), "%q", k.Warnings)
		in, detached, err := k.Sign(t.Context(), []byte("Origin: x\n-----BEGIN\n"))
		assert.NilError(t, err, tc.name)
		assert.Assert(t, strings.Contains(string(in), "Hash: SHA512\n"))
		assert.Assert(t, strings.HasPrefix(string(detached), "-----BEGIN PGP SIGNATURE-----\n"))
	}
	_, err := FindKey(t.Context(), "nobody@example.org")
	assert.ErrorContains(t, err, "nobody@example.org")
	_, err = FindKey(t.Context(), "example.org")
	assert.ErrorContains(t, err, "9 of that name")

	// A primary key that only certifies, and subkeys to sign; gpg.conf asks for
	// a digest that apt refuses.
	gpgRun(t, "--quick-generate-key", "<sub@example.org>", "ed25519", "cert", "never")
	_, err = FindKey(t.Context(), "sub@example.org")
	assert.ErrorContains(t, err, "neither it nor a valid subkey of it is for signing")
	out, err := exec.Command("gpg", "--with-colons", "--list-keys", "sub@example.org").Output()
	assert.NilError(t, err)
	primary := parseKeys(out)[0].fingerprint
	gpgRun(t, "--quick-add-key", primary, "ed25519", "sign", "never")
	assert.NilError(t, os.WriteFile(filepath.Join(os.Getenv("GNUPGHOME"), "gpg.conf"), []byte("digest-algo SHA1\n"), 0o600))
	k, err := FindKey(t.Context(), "sub@example.org")
	assert.NilError(t, err)
	assert.Assert(t, k.Fingerprint == primary && k.signer != primary)
	release := []byte("Origin: x\n")
	in, detached, err := k.Sign(t.Context(), release)
	assert.NilError(t, err)

	for name, bad := range map[string]string{
		"tampered":    strings.Replace(string(in), "Origin: x", "Origin: y", 1),
		"text before": "Origin: y\n" + string(in),
		"text after":  string(in) + "Origin: y\n",
		"cut":         string(in[:len(in)-40]),
		"empty":       "",
	} {
		_, err := VerifyInRelease(t.Context(), []byte(bad), k.Public())
		assert.Assert(t, err != nil, name)
	}
	assert.Assert(t, VerifyDetached(t.Context(), []byte("Origin: y\n"), detached, k.Public()) != nil)
	other, err := FindKey(t.Context(), "ed25519@example.org")
	assert.NilError(t, err)
	assert.Assert(t, VerifyDetached(t.Context(), release, detached, other.Public()) != nil)
	_, err = VerifyInRelease(t.Context(), in, []byte("no key"))
	assert.Assert(t, err != nil)

	// A repository signed with it.
	dir := t.TempDir()
	writeDeb(t, filepath.Join(dir, "a.deb"), control("aa", "1", "amd64"), "")
	opt := testOptions()
	opt.Key, opt.URL = k, "http://example.org/modules"
	res, err := index(t.Context(), dir, opt)
	assert.NilError(t, err)
	assert.Assert(t, res.Changed)
	assert.Equal(t, read(t, dir, KeyName), string(k.Public()))
	assert.Assert(t, strings.HasPrefix(read(t, dir, SourcesName), "Types: deb\nURIs: http://example.org/modules\nSuites: ./\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n"))
	v, err := Verify(t.Context(), dir, nil)
	assert.NilError(t, err)
	assert.Assert(t, v.Signed && v.Key == KeyName && len(v.Problems) == 0, "%+v", v)
	v, err = Verify(t.Context(), dir, other.Public())
	assert.NilError(t, err)
	assert.Equal(t, len(v.Problems), 2, "%+v", v)
	_, err = index(t.Context(), dir, testOptions())
	assert.ErrorContains(t, err, "it is signed")
	opt.Key = other
	res, err = index(t.Context(), dir, opt)
	assert.NilError(t, err)
	assert.Assert(t, res.Changed) // another key
}
