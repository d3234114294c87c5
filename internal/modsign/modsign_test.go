package modsign

import (
	"bytes"
	"debug/elf"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/kernel"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

func mustRun(t testing.TB, name string, args ...string) {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	assert.NilError(t, err, "%s", out)
}

// makeKey makes a key and its certificate.
func makeKey(t testing.TB, passphrase string, more ...string) (key, cert string) {
	t.Helper()
	dir := t.TempDir()
	key, cert = filepath.Join(dir, "key.pem"), filepath.Join(dir, "cert.pem")
	args := append([]string{"req", "-new", "-x509", "-subj", "/CN=Modules of Example", "-keyout", key, "-out", cert, "-days", "2"}, more...)
	if passphrase == "" {
		args = append(args, "-noenc")
	} else {
		args = append(args, "-passout", "pass:"+passphrase)
	}
	mustRun(t, "openssl", args...)
	return key, cert
}

// makeModule compiles what has the sections of a module that count here.
func makeModule(t testing.TB) kernel.Module {
	t.Helper()
	dir := t.TempDir()
	source, path := filepath.Join(dir, "m.c"), filepath.Join(dir, "m.ko")
	assert.NilError(t, os.WriteFile(source, []byte(`
const char info[] __attribute__((section(".modinfo"))) = "license=GPL\0vermagic=6.1.0-56-amd64 SMP ";
const char btf[] __attribute__((section(".BTF"))) = "types";
static int hidden(int x) { return x * 2; }
extern int needed(int);
int entry(int x) { return needed(hidden(x)); }
`), 0o644))
	mustRun(t, "gcc", "-g", "-c", "-o", path, source)
	m, err := kernel.ReadModule(path)
	assert.NilError(t, err)
	assert.Assert(t, m.Debug)
	return m
}

func open(t testing.TB, s Signer, cert string) *Signer {
	t.Helper()
	assert.NilError(t, s.Open(t.Context(), cert))
	return &s
}

func TestFinishStripsAndKeeps(t *testing.T) {
	t.Parallel()
	m := makeModule(t)
	path, _, err := Finish(t.Context(), t.TempDir(), m, kernel.Facts{}, nil)
	assert.NilError(t, err)
	f, err := elf.Open(path)
	assert.NilError(t, err)
	defer f.Close()
	for _, s := range f.Sections {
		assert.Assert(t, !strings.Contains(s.Name, "debug"), s.Name)
	}
	assert.Assert(t, f.Section(".BTF") != nil && f.Section(".modinfo") != nil)
	symbols, err := f.Symbols()
	assert.NilError(t, err)
	var names []string
	for _, s := range symbols {
		names = append(names, s.Name)
	}
	all := strings.Join(names, " ")
	for _, name := range []string{"hidden", "entry", "needed"} {
		assert.Assert(t, strings.Contains(all, name), all)
	}
	again, _, err := Finish(t.Context(), t.TempDir(), m, kernel.Facts{}, nil)
	assert.NilError(t, err)
	assert.DeepEqual(t, content(t, path), content(t, again))
}

func content(t testing.TB, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	assert.NilError(t, err)
	return raw
}

func TestFinishCompresses(t *testing.T) {
	t.Parallel()
	m := makeModule(t)
	plain, _, err := Finish(t.Context(), t.TempDir(), m, kernel.Facts{}, nil)
	assert.NilError(t, err)
	for suffix, test := range map[string]string{"gz": "gzip", "xz": "xz", "zst": "zstd"} {
		path, _, err := Finish(t.Context(), t.TempDir(), m, kernel.Facts{Compression: suffix}, nil)
		assert.NilError(t, err)
		assert.Equal(t, filepath.Base(path), "m.ko."+suffix)
		unpacked, err := exec.Command(test, "-dc", path).Output()
		assert.NilError(t, err)
		assert.DeepEqual(t, unpacked, content(t, plain))
		// What is compressed already is packed anew, the kernel's way.
		compressed, err := kernel.ReadModule(path)
		assert.NilError(t, err)
		again, _, err := Finish(t.Context(), t.TempDir(), compressed, kernel.Facts{Compression: suffix}, nil)
		assert.NilError(t, err)
		assert.DeepEqual(t, content(t, again), content(t, path))
	}
	xz, _, err := Finish(t.Context(), t.TempDir(), m, kernel.Facts{Compression: "xz"}, nil)
	assert.NilError(t, err)
	list, err := exec.Command("xz", "--robot", "--list", "-vv", xz).Output()
	assert.NilError(t, err)
	assert.Assert(t, strings.Contains(string(list), "CRC32") && strings.Contains(string(list), "dict=1MiB"), string(list))
}

func TestFinishSigns(t *testing.T) {
	t.Parallel()
	m := makeModule(t)
	rsa, rsaCert := makeKey(t, "", "-newkey", "rsa:2048")
	locked, lockedCert := makeKey(t, "a secret", "-newkey", "rsa:2048")
	ec, ecCert := makeKey(t, "", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
	script := filepath.Join(t.TempDir(), "my signer")
	// The contract: $1 is the file, a signature is appended to it.
	assert.NilError(t, os.WriteFile(script, []byte(`#!/bin/sh
set -e
openssl cms -sign -binary -noattr -nocerts -md "$DKMS2BIN_SIGN_HASH" -signer "$2" -inkey "$1" -outform DER -in "$3" -out "$3.sig"
{ cat "$3.sig"; printf '\000\000\002\000\000\000\000\000'; printf '%08x' "$(stat -c %s "$3.sig")" | sed 's/../\\x&/g' | xargs -0 printf '%b'; echo '~Module signature appended~'; } >>"$3"
rm "$3.sig"
`), 0o755))
	tests := []struct {
		name   string
		signer Signer
		cert   string
		same   bool
	}{
		{"RSA", Signer{Key: rsa}, rsaCert, true},
		{"RSA with a passphrase", Signer{Key: locked, Passphrase: "a secret"}, lockedCert, true},
		{"ECDSA", Signer{Key: ec}, ecCert, false},
		{"command", Signer{Command: "'" + script + "' " + rsa + " " + rsaCert}, rsaCert, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := open(t, tt.signer, tt.cert)
			dir := t.TempDir()
			path, sig, err := Finish(t.Context(), dir, m, kernel.Facts{SigHash: "sha512"}, s)
			assert.NilError(t, err)
			assert.DeepEqual(t, sig, Signature{Signer: "Modules of Example", Key: s.KeyID(), Hash: "sha512"})
			info, err := exec.Command("modinfo", path).Output()
			assert.NilError(t, err)
			for _, want := range []string{"sig_key:        " + s.KeyID(), "sig_hashalgo:   sha512", "signer:         Modules of Example"} {
				assert.Assert(t, strings.Contains(string(info), want), "%s\n%s", want, info)
			}
			signed, err := kernel.ReadModule(path)
			assert.NilError(t, err)
			assert.Assert(t, signed.Signed && !signed.Debug)
			// Signed anew, the former signature goes.
			again, _, err := Finish(t.Context(), t.TempDir(), signed, kernel.Facts{SigHash: "sha512"}, s)
			assert.NilError(t, err)
			assert.Equal(t, len(content(t, again)) == len(content(t, path)) || !tt.same, true)
			assert.Equal(t, bytes.Equal(content(t, again), content(t, path)), tt.same)
			// Without a signer it stays.
			kept, none, err := Finish(t.Context(), t.TempDir(), signed, kernel.Facts{}, nil)
			assert.NilError(t, err)
			assert.DeepEqual(t, none, Signature{})
			assert.DeepEqual(t, content(t, kept), content(t, path))
		})
	}
}

func TestPassphraseIsHidden(t *testing.T) {
	t.Parallel()
	key, cert := makeKey(t, "a secret", "-newkey", "rsa:2048")
	out := filepath.Join(t.TempDir(), "seen")
	bin := t.TempDir()
	real, err := exec.LookPath("openssl")
	assert.NilError(t, err)
	assert.NilError(t, os.WriteFile(filepath.Join(bin, "openssl"), []byte("#!/bin/sh\n{ echo \"$@\"; env; } >>"+out+"\nexec "+real+" \"$@\"\n"), 0o755))
	cmd := exec.Command(os.Args[0], "-test.run", "TestSignOnce$")
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "SIGN_ONCE="+key+" "+cert, PassphraseVariable+"=a secret")
	output, err := cmd.CombinedOutput()
	assert.NilError(t, err, "%s", output)
	seen := string(content(t, out))
	assert.Assert(t, strings.Contains(seen, "-passin fd:3") && strings.Count(seen, "cms -") == 2, seen)
	assert.Assert(t, !strings.Contains(seen, "a secret"), seen)
}

func TestSignOnce(t *testing.T) {
	key, cert, ok := strings.Cut(os.Getenv("SIGN_ONCE"), " ")
	if !ok {
		t.Skip("run by TestPassphraseIsHidden")
	}
	s := open(t, Signer{Key: key, Passphrase: os.Getenv(PassphraseVariable)}, cert)
	_, _, err := Finish(t.Context(), t.TempDir(), makeModule(t), kernel.Facts{}, s)
	assert.NilError(t, err)
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	key, cert := makeKey(t, "", "-newkey", "rsa:2048")
	locked, lockedCert := makeKey(t, "a secret", "-newkey", "rsa:2048")
	_, ed := makeKey(t, "", "-newkey", "ed25519")
	der := filepath.Join(t.TempDir(), "cert.der")
	mustRun(t, "openssl", "x509", "-in", cert, "-outform", "DER", "-out", der)
	tests := []struct {
		name        string
		signer      Signer
		cert        string
		err, advice string
	}{
		{"good", Signer{Key: key}, cert, "", ""},
		{"DER", Signer{Key: key}, der, "", ""},
		{"another key", Signer{Key: key}, lockedCert, "the key " + key + " does not belong to the certificate " + lockedCert, ""},
		{"no passphrase", Signer{Key: locked}, lockedCert, "is no private key in PEM, or has a passphrase", "DKMS2BIN_SIGN_PASSPHRASE"},
		{"wrong passphrase", Signer{Key: locked, Passphrase: "guess"}, lockedCert, "or has another passphrase", ""},
		{"no key", Signer{Key: "/nowhere/key"}, cert, "cannot read the key: stat /nowhere/key: no such file or directory", ""},
		{"a key that is none", Signer{Key: cert}, cert, "is no private key in PEM", ""},
		{"no certificate", Signer{Key: key}, "/nowhere/cert", "cannot read the certificate: open /nowhere/cert: no such file or directory", ""},
		{"a certificate that is none", Signer{Key: key}, key, "is no X.509 certificate", ""},
		{"Ed25519", Signer{Key: key}, ed, "kernels verify modules by RSA", ""},
		{"command without a certificate", Signer{Command: "true"}, key, "is no X.509 certificate", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			err := tt.signer.Open(t.Context(), tt.cert)
			if tt.err == "" {
				assert.NilError(t, err)
				assert.Equal(t, tt.signer.Warning(time.Now()), "")
				assert.Assert(t, strings.Contains(tt.signer.Warning(time.Now().AddDate(1, 0, 0)), "has expired on"))
				assert.Assert(t, strings.Contains(tt.signer.Warning(time.Now().AddDate(-1, 0, 0)), "is valid from"))
				return
			}
			assert.ErrorContains(t, err, tt.err)
			assert.Assert(t, strings.Contains(diag.Hint(err), tt.advice), diag.Hint(err))
		})
	}
}

func TestCommandsThatDoNotSign(t *testing.T) {
	t.Parallel()
	m := makeModule(t)
	key, cert := makeKey(t, "", "-newkey", "rsa:2048")
	otherKey, otherCert := makeKey(t, "", "-newkey", "rsa:2048")
	byOther, _, err := Finish(t.Context(), t.TempDir(), m, kernel.Facts{}, open(t, Signer{Key: otherKey}, otherCert))
	assert.NilError(t, err)
	good, _, err := Finish(t.Context(), t.TempDir(), m, kernel.Facts{}, open(t, Signer{Key: key}, cert))
	assert.NilError(t, err)
	flipped := content(t, good)
	flipped[len(flipped)-100] ^= 1 // in the signature itself
	damaged := filepath.Join(t.TempDir(), "damaged")
	assert.NilError(t, os.WriteFile(damaged, flipped, 0o644))
	for command, want := range map[string]string{
		"true":                            "has not appended one",
		"false":                           "cannot sign it: sh: exit status 1",
		"echo no token >&2; exit 3;":      "exit status 3: no token",
		"sed -i s/needed/NEEDED/":         "has changed what stood there",
		"truncate -s 10":                  "has changed what stood there",
		"rm":                              "no such file",
		"echo more >>":                    "is not one signature in PKCS#7",
		"cp " + byOther:                   "the signature is no good: openssl",
		"cp " + damaged:                   "the signature is no good: openssl",
		"cp " + good:                      "",
		"cat " + good + " " + good + " >": "not one signature",
	} {
		s := open(t, Signer{Command: command}, cert)
		_, _, err := Finish(t.Context(), t.TempDir(), m, kernel.Facts{}, s)
		if want == "" {
			assert.NilError(t, err)
			continue
		}
		assert.ErrorContains(t, err, want)
		assert.ErrorContains(t, err, "cannot make m.ko ready for its package: ")
	}
}

// TestSignatureOf reads what openssl made, by number of the certificate and by identifier
// of the key.
func TestSignatureOf(t *testing.T) {
	t.Parallel()
	key, cert := makeKey(t, "", "-newkey", "rsa:2048", "-set_serial", "0x66f54e")
	module := content(t, makeModule(t).Path)
	sign := func(more ...string) []byte {
		dir := t.TempDir()
		in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
		assert.NilError(t, os.WriteFile(in, module, 0o600))
		mustRun(t, "openssl", append([]string{
			"cms", "-sign", "-binary", "-noattr", "-nosmimecap", "-nocerts", "-md", "sha512",
			"-signer", cert, "-inkey", key, "-outform", "DER", "-in", in, "-out", out,
		}, more...)...)
		return append(bytes.Clone(module), kernel.AppendedSignature(content(t, out))...)
	}
	sig, signed, err := SignatureOf(sign())
	assert.NilError(t, err)
	assert.Assert(t, signed)
	assert.DeepEqual(t, sig, Signature{Signer: "Modules of Example", Key: "66:F5:4E", Hash: "sha512"})

	sig, signed, err = SignatureOf(sign("-keyid"))
	assert.NilError(t, err)
	assert.Assert(t, signed)
	assert.Equal(t, sig.Signer, "")
	assert.Equal(t, len(sig.Key), len("00:")*20-1, sig.Key) // SHA-1 of the key
	assert.Equal(t, sig.Hash, "sha512")

	_, signed, err = SignatureOf(module)
	assert.NilError(t, err)
	assert.Assert(t, !signed)
	_, signed, err = SignatureOf(append(bytes.Clone(module), kernel.AppendedSignature([]byte("0\x80"))...))
	assert.Assert(t, signed)
	assert.Assert(t, err != nil)
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("0\x80"))
	f.Fuzz(func(_ *testing.T, raw []byte) { _, _ = parse(raw) })
}
