package repo

import (
	"bytes"
	"context"
	"dkms2bin/internal/diag"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"
)

const signedText = "Origin: example\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nDescription: -----\n .\n- no field\nFrom here on\n"

// gnupgHome is a directory with keys of its own. Its tests cannot run in
// parallel, as the environment names it.
type gnupgHome struct {
	t   *testing.T
	dir string
}

func newGnupgHome(t *testing.T) *gnupgHome {
	h := &gnupgHome{t, t.TempDir()}
	assert.NilError(t, os.Chmod(h.dir, 0o700)) // or gpg warns
	t.Setenv("GNUPGHOME", h.dir)
	t.Setenv("GPG_TTY", "")
	t.Cleanup(h.killAgent)
	return h
}

func (h *gnupgHome) killAgent() {
	out, err := exec.Command("gpgconf", "--homedir", h.dir, "--kill", "all").CombinedOutput()
	assert.Check(h.t, err, "%s", out)
}

func (h *gnupgHome) gpg(args ...string) string {
	h.t.Helper()
	cmd := exec.Command("gpg", append([]string{"--batch", "--no-tty", "--quiet", "--trust-model", "always", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		h.t.Fatalf("%v: %v: %s", cmd.Args, err, exit.Stderr)
	}
	assert.NilError(h.t, err)
	return string(out)
}

// generate makes a key and returns its fingerprint. Options come first.
func (h *gnupgHome) generate(userID, algorithm, usage, expire string, options ...string) string {
	h.t.Helper()
	h.gpg(append(options, "--quick-generate-key", userID, algorithm, usage, expire)...)
	return h.fingerprints(userID)[0]
}

// add adds a signing subkey and returns its fingerprint.
func (h *gnupgHome) add(primary, algorithm string, options ...string) string {
	h.t.Helper()
	h.gpg(append(options, "--quick-add-key", primary, algorithm, "sign", "never")...)
	all := h.fingerprints(primary)
	return all[len(all)-1]
}

func (h *gnupgHome) fingerprints(name string) []string {
	var all []string
	for line := range strings.Lines(h.gpg("--with-colons", "--list-keys", name)) {
		if f := strings.Split(line, ":"); f[0] == "fpr" {
			all = append(all, f[9])
		}
	}
	return all
}

// config writes a file of the directory for the time of a test.
func (h *gnupgHome) config(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join(h.dir, name)
	assert.NilError(t, os.WriteFile(path, []byte(text), 0o600))
	t.Cleanup(func() { assert.Check(t, os.RemoveAll(path)) })
}

func TestFindKey(t *testing.T) {
	h := newGnupgHome(t)
	const past = "20200101T000000!"

	for _, algorithm := range []string{
		"ed25519", "nistp256", "nistp384", "nistp521", "rsa3072", "rsa2048",
		"rsa1024", "dsa2048", "brainpoolP256r1", "secp256k1",
	} {
		h.generate(algorithm+" <"+algorithm+"@example.org>", algorithm, "sign", "never")
	}
	h.generate("Jürgen: Ünlü", "ed25519", "sign", "never")
	h.generate("soon@example.org", "ed25519", "sign", "7d")
	h.generate("cert-only@example.org", "ed25519", "cert", "never")

	for _, digest := range []string{"SHA1", "RIPEMD160", "SHA224"} {
		h.generate("self-"+digest, "ed25519", "sign", "never", "--cert-digest-algo", digest)
	}
	renewed := h.generate("renewed", "ed25519", "sign", "never", "--cert-digest-algo", "SHA1")
	h.gpg("--cert-digest-algo", "SHA512", "--quick-set-expire", renewed, "5y")
	partly := h.generate("partly-sha1", "ed25519", "sign", "never", "--cert-digest-algo", "SHA1")
	h.gpg("--quick-add-uid", partly, "partly-sha512")

	expired := h.generate("expired@example.org", "ed25519", "sign", "1y", "--faked-system-time", past)
	h.generate("replaced <again@example.org>", "ed25519", "sign", "1y", "--faked-system-time", past)
	again := h.generate("new <again@example.org>", "ed25519", "sign", "never")
	h.generate("one <twice@example.org>", "ed25519", "sign", "never")
	h.generate("two <twice@example.org>", "ed25519", "sign", "never")
	disabled := h.generate("disabled@example.org", "ed25519", "sign", "never")
	h.gpg("--command-fd", "0", "--edit-key", disabled, "disable", "save")

	rsaSub := h.generate("rsa-sub", "ed25519", "cert", "never")
	rsaSubkey := h.add(rsaSub, "rsa2048")
	dsaPrimary := h.generate("dsa-primary", "dsa2048", "cert", "never")
	h.add(dsaPrimary, "ed25519")
	weakSub := h.generate("weak-sub", "ed25519", "cert", "never")
	h.add(weakSub, "rsa1024")
	boundWeakly := h.generate("bound-weakly", "ed25519", "cert", "never")
	h.add(boundWeakly, "rsa2048", "--cert-digest-algo", "SHA224")
	// A new binding signature keeps the old one that the subkey made.
	backWeakly := h.generate("back-weakly", "ed25519", "cert", "never")
	subkey := h.add(backWeakly, "rsa2048", "--cert-digest-algo", "SHA224")
	h.gpg("--cert-digest-algo", "SHA512", "--quick-set-expire", backWeakly, "2y", subkey)

	// Of several subkeys that can be used the newest one signs.
	several := h.generate("several", "ed25519", "sign", "never", "--faked-system-time", "20210101T000000!")
	older := h.add(several, "ed25519", "--faked-system-time", "20220101T000000!")
	newer := h.add(several, "ed25519", "--faked-system-time", "20230101T000000!")
	h.add(several, "rsa1024", "--faked-system-time", "20240101T000000!")
	h.gpg("--faked-system-time", past, "--quick-generate-key", "lapsed", "ed25519", "sign", "never")
	lapsed := h.fingerprints("lapsed")[0]
	h.gpg("--faked-system-time", past, "--quick-add-key", lapsed, "ed25519", "sign", "1y")
	lapsedSubkey := h.fingerprints("lapsed")[1]

	// A key of somebody else, and one whose primary secret key is kept elsewhere.
	public := h.generate("public@example.org", "ed25519", "sign", "never")
	h.gpg("--yes", "--delete-secret-keys", public)
	offline := h.generate("offline", "ed25519", "sign", "never", "--faked-system-time", past)
	offlineSubkey := h.add(offline, "ed25519")
	backup := filepath.Join(h.dir, "subkeys")
	h.gpg("--output", backup, "--export-secret-subkeys", offline)
	h.gpg("--yes", "--delete-secret-keys", offline)
	h.gpg("--import", backup)

	revoked := h.generate("revoked", "ed25519", "sign", "never")
	certificate, err := os.ReadFile(filepath.Join(h.dir, "openpgp-revocs.d", revoked+".rev"))
	assert.NilError(t, err)
	assert.NilError(t, os.WriteFile(backup, bytes.ReplaceAll(certificate, []byte(":-----"), []byte("-----")), 0o600))
	h.gpg("--import", backup)
	revokedSub := h.generate("revoked-sub", "ed25519", "cert", "never")
	h.add(revokedSub, "ed25519")
	edit := exec.Command("gpg", "--batch", "--no-tty", "--quiet", "--command-fd", "0", "--pinentry-mode", "loopback", "--passphrase", "",
		"--yes", "--edit-key", revokedSub)
	edit.Stdin = strings.NewReader("key 1\nrevkey\ny\n0\n\ny\nsave\n")
	out, err := edit.CombinedOutput()
	assert.NilError(t, err, "%s", out)

	tests := []struct {
		name    string
		signer  string // "" for not compared
		warning string
		err     string // "" for none
		hint    string
	}{
		{name: "ed25519@example.org"},
		{name: "nistp256@example.org"},
		{name: "nistp384@example.org"},
		{name: "nistp521@example.org"},
		{name: "rsa3072@example.org"},
		{name: "Jürgen: Ünlü"},
		{name: again, signer: again},
		{name: strings.ToLower("0x" + again), signer: again},
		{name: again[24:], signer: again},
		{name: "rsa2048@example.org", warning: "an RSA key of 2048 bits, which apt of Debian 13 refuses from 2030-02-01 on"},
		{name: "soon@example.org", warning: "it expires on "},

		{name: "rsa1024@example.org", err: "RSA with 1024 bits", hint: "--quick-generate-key"},
		{name: "dsa2048@example.org", err: "DSA", hint: "--quick-generate-key"},
		{name: "brainpoolP256r1@example.org", err: "an elliptic curve other than Ed25519", hint: "--quick-generate-key"},
		{name: "secp256k1@example.org", err: "an elliptic curve other than Ed25519", hint: "--quick-generate-key"},
		{name: "self-SHA1", err: "self-signature is made with SHA1", hint: "--cert-digest-algo SHA512 --quick-set-expire"},
		{name: "self-RIPEMD160", err: "self-signature is made with RIPEMD160", hint: "--quick-set-expire"},
		{name: "self-SHA224", err: "self-signature is made with SHA224", hint: "--quick-set-expire"},
		{name: "renewed", signer: renewed},
		{name: "partly-sha1", signer: partly},

		{name: "rsa-sub", signer: rsaSubkey, warning: "2048 bits"},
		{name: "dsa-primary", err: "refuses the key " + dsaPrimary + ": DSA", hint: "--quick-generate-key"},
		{name: "weak-sub", err: "RSA with 1024 bits", hint: "--quick-add-key " + weakSub},
		{name: "bound-weakly", err: "self-signature is made with SHA224", hint: "--quick-add-key " + boundWeakly},
		{name: "back-weakly", err: "self-signature is made with SHA224", hint: "--quick-add-key " + backWeakly},
		{name: "several", signer: newer},
		{name: older, signer: newer},
		{name: older + "!", signer: older},
		{name: "0x" + strings.ToLower(older[24:]) + "!", signer: older},
		{name: several + "!", signer: several},
		{name: "lapsed", signer: lapsed},
		{name: lapsedSubkey + "!", err: "it expired on 2020-12-31", hint: "--quick-set-expire " + lapsed + " 2y " + lapsedSubkey},
		{name: "offline", signer: offlineSubkey},
		{name: offline + "!", err: "its secret key is not there"},

		{name: "expired@example.org", err: "it expired on 2020-12-31", hint: "--quick-set-expire " + expired + " 2y"},
		{name: "revoked", err: "none of the keys that it stands for can be used: "}, // there is revoked-sub, too
		{name: revoked, err: "it is revoked"},
		{name: revokedSub, err: "it is revoked"},
		{name: "disabled@example.org", err: "it is disabled", hint: "enable save"},
		{name: "cert-only@example.org", err: "it is not meant for signing", hint: "--quick-add-key"},
		{name: "public@example.org", err: "its secret key is not there", hint: "--list-secret-keys"},
		{name: "again@example.org", signer: again},
		{name: "twice@example.org", err: "it stands for several: ", hint: "give the fingerprint of one"},
		{name: "nobody@example.org", err: "No public key", hint: "--list-secret-keys"},
		{name: "", err: "cannot sign with the key \"\""},
		{name: "--version", err: "cannot sign with the key \"--version\""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k, err := FindKey(t.Context(), tt.name)
			if tt.err != "" {
				assert.ErrorContains(t, err, tt.err)
				assert.Assert(t, cmp.Contains(diag.Hint(err), tt.hint))
				return
			}
			assert.NilError(t, err)
			if tt.signer != "" {
				assert.Equal(t, k.signer, tt.signer)
			}
			if tt.warning != "" {
				assert.Assert(t, cmp.Len(k.Warnings, 1))
				assert.Assert(t, cmp.Contains(k.Warnings[0], tt.warning))
			} else {
				assert.DeepEqual(t, k.Warnings, []string(nil))
			}
			// Which has gpgv and sqv look at it.
			in, detached, err := k.Sign(t.Context(), []byte(signedText))
			assert.NilError(t, err)
			assert.Assert(t, bytes.HasPrefix(in, []byte("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n")))
			assert.Assert(t, bytes.HasPrefix(detached, []byte("-----BEGIN PGP SIGNATURE-----\n\n")))
		})
	}

	k, err := FindKey(t.Context(), "Jürgen: Ünlü")
	assert.NilError(t, err)
	assert.Equal(t, k.UserID, "Jürgen: Ünlü")
	assert.Assert(t, k.Expires.IsZero())
	k, err = FindKey(t.Context(), renewed)
	assert.NilError(t, err)
	years := time.Until(k.Expires) / (365 * 24 * time.Hour)
	assert.Assert(t, years == 4 || years == 5, "%v", k.Expires)
}

func TestSign(t *testing.T) {
	h := newGnupgHome(t)
	fingerprint := h.generate("signer@example.org", "ed25519", "sign", "never")
	other := h.generate("other@example.org", "ed25519", "sign", "never")
	h.gpg("--passphrase", "secret", "--quick-generate-key", "locked@example.org", "ed25519", "sign", "never")
	locked := h.fingerprints("locked@example.org")[0]
	sign := func(ctx context.Context, name string) error {
		k, err := FindKey(ctx, name)
		if err == nil {
			_, _, err = k.Sign(ctx, []byte(signedText))
		}
		return err
	}

	t.Run("whatever gpg.conf says", func(t *testing.T) {
		h.config(t, "gpg.conf", "digest-algo SHA1\ndefault-sig-expire 1\ncomment mine\nemit-version\ndefault-key "+other+
			"\nlocal-user "+other+"\ncharset iso-8859-1\nverbose\nwith-fingerprint\nlist-options show-sig-subpackets\n")
		k, err := FindKey(t.Context(), fingerprint)
		assert.NilError(t, err)
		in, detached, err := k.Sign(t.Context(), []byte(signedText))
		assert.NilError(t, err)
		text, err := VerifyInRelease(t.Context(), in, k.Public())
		assert.NilError(t, err)
		assert.Equal(t, string(text), signedText)
		assert.Assert(t, !bytes.Contains(append(in, detached...), []byte("mine")))
	})
	t.Run("no way to ask for the passphrase", func(t *testing.T) {
		h.killAgent() // it knows the passphrase
		for _, program := range []string{"/bin/false", "/nonexistent", "/usr/bin/pinentry-curses"} {
			h.config(t, "gpg-agent.conf", "pinentry-program "+program+"\n")
			h.killAgent()
			err := sign(t.Context(), locked)
			assert.ErrorContains(t, err, "cannot sign with the key "+locked+": gpg: exit status 2: ")
			assert.Assert(t, cmp.Contains(diag.Hint(err), "the passphrase is needed"), "%s: %v", program, err)
		}
	})
	t.Run("a passphrase in gpg.conf", func(t *testing.T) {
		h.killAgent()
		h.config(t, "passphrase", "secret\n")
		h.config(t, "gpg.conf", "pinentry-mode loopback\npassphrase-file "+filepath.Join(h.dir, "passphrase")+"\n")
		assert.NilError(t, sign(t.Context(), locked))
		h.config(t, "passphrase", "wrong\n")
		h.killAgent()
		err := sign(t.Context(), locked)
		assert.ErrorContains(t, err, "Bad passphrase")
		assert.Assert(t, cmp.Contains(diag.Hint(err), "the passphrase is needed"))
	})
	t.Run("not in time", func(t *testing.T) {
		// A pinentry that nobody answers.
		h.config(t, "pinentry", "#!/bin/sh\necho OK\nwhile read -r _; do :; done\n")
		assert.NilError(t, os.Chmod(filepath.Join(h.dir, "pinentry"), 0o700))
		h.config(t, "gpg-agent.conf", "pinentry-program "+filepath.Join(h.dir, "pinentry")+"\n")
		h.killAgent()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		assert.ErrorIs(t, sign(ctx, locked), context.DeadlineExceeded)
		assert.Assert(t, time.Since(start) < 4*time.Second)
	})
	t.Run("no gpg", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		err := sign(t.Context(), fingerprint)
		assert.ErrorIs(t, err, exec.ErrNotFound)
		assert.Equal(t, diag.Hint(err), "apt-get install gnupg")
		_, err = VerifyInRelease(t.Context(), nil, []byte("\x98"))
		assert.Equal(t, diag.Hint(err), "apt-get install gpgv")
	})
}

func TestVerifySignature(t *testing.T) {
	h := newGnupgHome(t)
	find := func(name string) *Key {
		k, err := FindKey(t.Context(), name)
		assert.NilError(t, err)
		return k
	}
	export := func(name string) []byte { return []byte(h.gpg("--armor", "--export", name)) }
	k := find(h.generate("signer@example.org", "ed25519", "sign", "never"))
	stranger := find(h.generate("stranger@example.org", "ed25519", "sign", "never"))
	in, detached, err := k.Sign(t.Context(), []byte(signedText))
	assert.NilError(t, err)
	by := func(args ...string) (in, detached string) {
		file := filepath.Join(t.TempDir(), "Release")
		assert.NilError(t, os.WriteFile(file, []byte(signedText), 0o600))
		args = append(args, "--armor", "--output", "-")
		return h.gpg(append(args, "--clearsign", file)...), h.gpg(append(args, "--detach-sign", file)...)
	}
	sha1In, sha1Detached := by("--local-user", k.Fingerprint, "--digest-algo", "SHA1")
	twiceIn, twiceDetached := by("--local-user", k.Fingerprint, "--local-user", stranger.Fingerprint, "--digest-algo", "SHA512")
	shortIn, shortDetached := by("--local-user", k.Fingerprint, "--digest-algo", "SHA512", "--default-sig-expire", "seconds=1")
	rsa1024 := h.generate("rsa1024", "rsa1024", "sign", "never")
	weakIn, weakDetached := by("--local-user", rsa1024, "--digest-algo", "SHA512")
	time.Sleep(2 * time.Second)

	good := string(in)
	replace := func(old, text string) string {
		assert.Assert(t, cmp.Contains(good, old))
		return strings.Replace(good, old, text, 1)
	}
	tests := []struct {
		name     string
		in       string
		detached string // "" for none
		keyring  []byte
		err      string // "" for none
	}{
		{"good", good, string(detached), k.Public(), ""},
		{"more than one key", good, string(detached), append(stranger.Public(), k.Public()...), ""},
		{"signed by an unknown key, too", twiceIn, twiceDetached, k.Public(), ""},
		{"signed by an unknown key, too, other way round", twiceIn, twiceDetached, stranger.Public(), ""},
		{"another key", good, string(detached), stranger.Public(), "it is signed by another key: " + k.Fingerprint[24:]},
		{"SHA1", sha1In, sha1Detached, k.Public(), "digest SHA1"},
		{"expired signature", shortIn, shortDetached, k.Public(), "has expired"},
		{"weak key", weakIn, weakDetached, export(rsa1024), "RSA with 1024 bits"},
		{"no keyring", good, string(detached), nil, "there is no public key"},
		{"garbage as keyring", good, string(detached), []byte("garbage"), "there is no public key"},
		{"binary garbage as keyring", good, string(detached), []byte("\x98garbage"), "another key"},
		{"damaged keyring", good, string(detached), bytes.Replace(k.Public(), []byte("\n\n"), []byte("\n\n!"), 1), "the public key is damaged"},
		{"truncated keyring", good, string(detached), k.Public()[:100], "the public key is damaged"},

		{"changed text", replace("example", "exemple"), "", k.Public(), "does not belong to this text"},
		{"a line more", replace("From", "Label: x\nFrom"), "", k.Public(), "does not belong to this text"},
		{"a blank more", replace("UTC\n", "UTC \n"), "", k.Public(), "it is not laid out as gpg does"},
		{"text before", "Origin: evil\n" + good, "", k.Public(), "text outside"},
		{"empty line before", "\n" + good, "", k.Public(), "text outside"},
		{"text after", good + "Origin: evil\n", "", k.Public(), "text outside"},
		{"twice", good + good, "", k.Public(), "it is not laid out as gpg does"},
		{"text among the headers", replace("SHA512\n", "SHA512\nOrigin: evil\n"), "", k.Public(), "does not belong to this text"},
		{"text before the signature", replace("-----BEGIN PGP SIGNATURE-----\n", "-----BEGIN PGP SIGNATURE-----\nOrigin:evil\n"), "", k.Public(), "there is"},
		{"CRLF", strings.ReplaceAll(good, "\n", "\r\n"), "", k.Public(), "text outside"},
		{"not signed", signedText, "", k.Public(), "there is no signature"},
		{"empty", "", "", k.Public(), "there is no signature"},
		{"only the text", good[:strings.Index(good, "-----BEGIN PGP SIGNATURE")], "", k.Public(), "there is no signature"},
		{"truncated signature", good[:len(good)-80], "", k.Public(), "there is"},
		{"without its end", strings.TrimSuffix(good, "-----END PGP SIGNATURE-----\n"), "", k.Public(), "there is"},
		{"another kind of message", string(detached), "", k.Public(), "there is"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			text, err := VerifyInRelease(t.Context(), []byte(tt.in), tt.keyring)
			if tt.err == "" {
				assert.NilError(t, err)
				assert.Equal(t, string(text), signedText)
			} else {
				assert.ErrorContains(t, err, tt.err)
			}
			if tt.detached == "" {
				return
			}
			err = VerifyDetached(t.Context(), []byte(signedText), []byte(tt.detached), tt.keyring)
			if tt.err == "" {
				assert.NilError(t, err)
			} else {
				assert.ErrorContains(t, err, tt.err)
			}
		})
	}
	for name, sig := range map[string]string{"empty": "", "garbage": "garbage", "InRelease": good, "truncated": string(detached[:100])} {
		assert.ErrorContains(t, VerifyDetached(t.Context(), []byte(signedText), []byte(sig), k.Public()), "there is no signature", name)
	}
	assert.ErrorContains(t, VerifyDetached(t.Context(), []byte("Origin: evil\n"), detached, k.Public()), "does not belong to this text")

	// Cut anywhere, or with any one byte changed, it is never taken for another text.
	for i := 0; i < len(good); i += 13 {
		for _, broken := range []string{good[:i], good[:i] + string(good[i]^1) + good[i+1:]} {
			text, err := VerifyInRelease(t.Context(), []byte(broken), k.Public())
			assert.Assert(t, err != nil || string(text) == signedText, "%d", i)
		}
	}

	// What goes into files is what other programs take.
	assert.Equal(t, strings.ReplaceAll(strings.ReplaceAll(k.SignedBy(), "\n .\n", "\n \n"), "\n ", "\n")[1:], string(k.Public()))
	assert.Assert(t, !strings.Contains(k.SignedBy(), "\n \n"))

	// A key may end after it has signed.
	h.gpg("--quick-set-expire", k.Fingerprint, "seconds=1")
	time.Sleep(2 * time.Second)
	_, err = VerifyInRelease(t.Context(), in, export(k.Fingerprint))
	assert.ErrorContains(t, err, "has expired")
	_, err = VerifyInRelease(t.Context(), in, k.Public())
	assert.NilError(t, err)
}

func TestSignedRepository(t *testing.T) {
	h := newGnupgHome(t)
	k, err := FindKey(t.Context(), h.generate("signer@example.org", "ed25519", "sign", "never"))
	assert.NilError(t, err)
	other, err := FindKey(t.Context(), h.generate("other@example.org", "ed25519", "sign", "never"))
	assert.NilError(t, err)
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

func FuzzReadCert(f *testing.F) {
	f.Add([]byte(ed25519Cert))
	f.Add([]byte{})
	f.Fuzz(func(_ *testing.T, b []byte) {
		cert, err := dearmour(b)
		if err == nil {
			_, _ = readCert(cert)
		}
	})
}

// ed25519Cert is of an Ed25519 key with a subkey that signs.
const ed25519Cert = `-----BEGIN PGP PUBLIC KEY BLOCK-----

mDMEawOneRYJKwYBBAHaRw8BAQdAuZamqqFXW/Gj/ITc8RVXn0CElX1AYssrtTRk
vjSli6C0HEV4YW1wbGUgPHNpZ25lckBleGFtcGxlLm9yZz6IkAQTFggAOBYhBMSh
oDEhFadOYSb6yrKRUlheYCTKBQJrA6d5AhsBBQsJCAcCBhUKCQgLAgQWAgMBAh4B
AheAAAoJELKRUlheYCTKP4gBAIa9lQbk37z6WDdwl05coU+20UAALwmos2bQFQmG
xnAUAQD22FZVgl/i4PQuitXPFGjIR9qcYsAmfksvPdXWtik4CLgzBGsDp3kWCSsG
AQQB2kcPAQEHQKlB25b4fSqr4fFIajkGuNZC3ApCXdkY0hDx/yNWUNJeiO8EGBYI
ACAWIQTEoaAxIRWnTmEm+sqykVJYXmAkygUCawOneQIbAgCBCRCykVJYXmAkynYg
BBkWCAAdFiEEHTd7DFdFO2QH6XNtOy9IdjUtsWkFAmsDp3kACgkQOy9IdjUtsWmA
XQEA2rXjOlYyuRJOpHAauBtdVGWP7hCQKkixC4SdAYsOwS8BANBNcJ67ypdvj+SA
op/uxFCzmnrVy7zCZPmW8CCVNQ8EfmQA/ip86PkmFlcwx3OXKKqt8GdMHorHWY0a
wliAzb2LSUXzAP96TG9wOzc+hFRUWJp9gw72HsUZcN9EffhDb/WwnhuFCQ==
=E0FZ
-----END PGP PUBLIC KEY BLOCK-----
`
