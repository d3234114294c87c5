//go:build e2e

package e2e

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"dkms2bin/internal/kernel"
	"dkms2bin/internal/state"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

// The test key of the ovmf package, which its firmware variables trust.
const (
	firmwareKey  = "/usr/share/ovmf/PkKek-1-snakeoil.key"
	firmwareCert = "/usr/share/ovmf/PkKek-1-snakeoil.pem"
	passphrase   = "snakeoil"
)

// spyingModule is a module whose build fails when it can see the key or its
// passphrase.
func spyingModule(name string) map[string]string {
	files := goodModule(name)
	files["dkms.conf"] += "MAKE[0]=\"sh spy && make -C $kernel_source_dir M=$dkms_tree/$PACKAGE_NAME/$PACKAGE_VERSION/build\"\n"
	files["spy"] = `for f in /proc/[0-9]*; do
	if tr '\0' '\n' <$f/environ | grep -e ` + passphrase + ` -e SIGN_; then echo "error: I know the passphrase of $f"; exit 1; fi
	if tr '\0' '\n' <$f/cmdline | grep -e ` + passphrase + ` -e sign-key; then echo "error: I know the command line of $f"; exit 1; fi
done
if [ -e ` + firmwareKey + ` ]; then echo 'error: I have the key'; exit 1; fi
`
	return files
}

// signedModule takes the module file out of a package.
func signedModule(t *testing.T, deb string) string {
	t.Helper()
	dir := t.TempDir()
	mustRun(t, "dpkg-deb", "-x", deb, dir)
	return strings.TrimSpace(mustRun(t, "find", dir, "-name", "*.ko*"))
}

// TestSigned signs modules with a key and with a hardware token, and boots a kernel
// that takes signed modules only.
func TestSigned(t *testing.T) {
	t.Parallel()
	tree := sharedTree(t)
	k := shared.doc.Kernels[0]
	secrets := []string{"DKMS2BIN_SIGN_PASSPHRASE=" + passphrase, "DKMS2BIN_SIGN_KEY=" + firmwareKey, "DKMS2BIN_SIGN_CERT=" + firmwareCert}
	built := command{name: "dkmsbuild", stdin: tree, env: secrets, args: []string{"--kver", k.Release, "--dkms", source(t, "spy", spyingModule("spy"))}}.run(t).mustExit(t, 0)

	plain := t.TempDir()
	command{name: "debextract", stdin: built.raw, args: []string{"--out-dir", plain}}.run(t).mustExit(t, 0)
	out := t.TempDir()
	signed := command{name: "debextract", stdin: built.raw, env: secrets, args: []string{"--out-dir", out}}.run(t).mustExit(t, 0)
	signed.mustSay(t, "debextract: modules are signed by O=SnakeOil,", ", key 2D:3B:3E:2F")
	m := findBuild(t, signed.doc, "spy", k.Release).Modules[0]
	assert.Equal(t, m.Signer, "O=SnakeOil,L=Fort Collins,ST=Colorado,C=US") // its certificate has no common name
	assert.Equal(t, m.SigHash, "sha256")
	ours, unsigned := signedModule(t, debFiles(t, out)[0]), signedModule(t, debFiles(t, plain)[0])
	info := mustRun(t, "modinfo", ours)
	assert.Assert(t, strings.Contains(info, "sig_key:        "+m.SigKey), info)

	t.Run("the same bytes as by the kernel's own program", func(t *testing.T) {
		found, err := filepath.Glob(filepath.Join(shared.doc.Tree.Path, "layers/*/usr/lib/linux-kbuild-*/scripts/sign-file"))
		assert.NilError(t, err)
		assert.Assert(t, len(found) > 0)
		theirs, key := filepath.Join(t.TempDir(), "spy.ko"), filepath.Join(t.TempDir(), "key.pem")
		mustRun(t, "cp", unsigned, theirs)
		mustRun(t, "openssl", "pkey", "-in", firmwareKey, "-passin", "pass:"+passphrase, "-out", key)
		mustRun(t, found[0], "sha256", key, firmwareCert, theirs)
		assert.Assert(t, sameContent(t, ours, theirs))
	})
	t.Run("again, with another key, and without", func(t *testing.T) {
		before, err := os.Stat(debFiles(t, out)[0])
		assert.NilError(t, err)
		again := command{name: "debextract", stdin: signed.raw, env: secrets, args: []string{"--out-dir", out}}.run(t).mustExit(t, 0)
		assert.Equal(t, findBuild(t, again.doc, "spy", k.Release).Modules[0].SigKey, m.SigKey)
		after, err := os.Stat(debFiles(t, out)[0])
		assert.NilError(t, err)
		assert.Assert(t, os.SameFile(before, after))
		command{name: "debextract", stdin: signed.raw, args: []string{"--out-dir", out}}.run(t).mustExit(t, state.ExitError).mustSay(t, "with other content is there")
	})
	t.Run("a token", func(t *testing.T) { signByToken(t, built.raw, k.Release) })
	t.Run("wrong keys", func(t *testing.T) {
		for _, tt := range []struct {
			flags []string
			say   string
		}{
			{[]string{"--sign-key", firmwareKey}, "--sign-cert is required"},
			{[]string{"--sign-cert", firmwareCert}, "are for --sign-key or --sign-command"},
			{[]string{"--sign-key", firmwareKey, "--sign-command", "true"}, "one of them signs"},
			{[]string{"--sign-key", firmwareKey, "--sign-cert", firmwareCert}, "or has a passphrase"},
			{[]string{"--sign-key", firmwareKey, "--sign-cert", firmwareCert, "--sign-passphrase-file", firmwareCert}, "or has another passphrase"},
			{[]string{"--sign-key", firmwareKey, "--sign-cert", "/etc/hostname"}, "is no X.509 certificate"},
		} {
			// Nothing is made.
			command{name: "dkms2bin", args: append([]string{"--dkms", "bbswitch-dkms", "--out-dir", out, "--work-dir", "/nowhere"}, tt.flags...)}.
				run(t).mustExit(t, state.ExitUsage).mustSay(t, "debextract: error: ", tt.say)
		}
		failing := command{name: "debextract", stdin: built.raw, args: []string{"--out-dir", t.TempDir(), "--sign-cert", firmwareCert, "--sign-command", "echo no token >&2; false"}}.run(t).mustExit(t, state.ExitError)
		failing.mustSay(t, "cannot make spy.ko ready for its package: cannot sign it: sh: exit status 1: no token")
		assert.Equal(t, len(failing.doc.Debs), 0)
	})
	t.Run("an old certificate", func(t *testing.T) {
		key, cert := oldCertificate(t)
		const say = "debextract: warning: the certificate of Modules of old for signing modules has expired on 2020-12-31"
		flags := []string{"--out-dir", t.TempDir(), "--sign-key", key, "--sign-cert", cert}
		// Before anything is made, and what comes after debextract is looked at, too.
		command{name: "dkms2bin", args: append([]string{"--dkms", "bbswitch-dkms", "--work-dir", "/nowhere", "--index", "--sign-with", "nobody@example.org"}, flags...)}.
			run(t).mustExit(t, state.ExitUsage).mustSay(t, say, "repoindex: error: ")
		r := command{name: "debextract", stdin: built.raw, args: flags}.run(t).mustExit(t, 0).mustSay(t, say)
		command{name: "repoindex", stdin: r.raw}.run(t).mustExit(t, 0)
		account, err := os.ReadFile(filepath.Join(r.doc.OutDir, "status.json"))
		assert.NilError(t, err)
		assert.Assert(t, strings.Contains(string(account), `"signer":"Modules of old","sig_key":"07"`), "%s", account)
	})
	t.Run("booted", func(t *testing.T) { bootSigned(t, k, unsigned, ours) })
}

// oldCertificate makes a key for signing modules, and a certificate that has expired.
func oldCertificate(t *testing.T) (key, cert string) {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	assert.NilError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "Modules of old"},
		NotBefore: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2020, 12, 31, 0, 0, 0, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	assert.NilError(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	assert.NilError(t, err)
	dir := t.TempDir()
	key, cert = filepath.Join(dir, "key.pem"), filepath.Join(dir, "cert.der")
	assert.NilError(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600))
	assert.NilError(t, os.WriteFile(cert, der, 0o644))
	return key, cert
}

// signByToken signs with a key that is in a token (PKCS#11) and comes out of it never.
func signByToken(t *testing.T, doc []byte, kver string) {
	dir := t.TempDir()
	signer := filepath.Join(dir, "sign with the token")
	assert.NilError(t, os.WriteFile(signer, []byte(`#!/bin/sh
set -eu
here=$(dirname -- "$0")
export SOFTHSM2_CONF="$here/softhsm.conf" PKCS11_MODULE_PATH=/usr/lib/softhsm/libsofthsm2.so
signature=$(mktemp)
openssl cms -sign -engine pkcs11 -keyform engine -inkey 'pkcs11:token=modules;object=signer;pin-value=1234' \
	-signer "$here/cert.pem" -binary -noattr -nocerts -nosmimecap -md "$DKMS2BIN_SIGN_HASH" -outform DER -in "$1" -out "$signature"
size=$(stat -c %s "$signature")
{
	cat "$signature"
	printf '\0\0\2\0\0\0\0\0'
	printf "$(printf '\\%03o\\%03o\\%03o\\%03o' 0 0 $((size / 256)) $((size % 256)))"
	echo '~Module signature appended~'
} >>"$1"
rm "$signature"
`), 0o755))
	mustRun(t, "sh", "-ec", `cd "$1"; mkdir tokens; export SOFTHSM2_CONF=$1/softhsm.conf
		printf 'directories.tokendir = %s\nobjectstore.backend = file\n' "$1/tokens" >softhsm.conf
		openssl req -new -x509 -newkey rsa:2048 -noenc -subj '/CN=Token of Example' -days 30 -keyout key.pem -out cert.pem
		openssl pkcs8 -topk8 -nocrypt -in key.pem -out key.p8
		softhsm2-util --init-token --free --label modules --pin 1234 --so-pin 5678
		softhsm2-util --import key.p8 --token modules --label signer --id 01 --pin 1234
		rm key.pem key.p8`, "sh", dir)
	out := t.TempDir()
	r := command{name: "debextract", stdin: doc, args: []string{"--out-dir", out, "--sign-cert", filepath.Join(dir, "cert.pem"), "--sign-command", "'" + signer + "'"}}.run(t).mustExit(t, 0)
	assert.Equal(t, findBuild(t, r.doc, "spy", kver).Modules[0].Signer, "Token of Example")
	assert.Assert(t, strings.Contains(mustRun(t, "modinfo", signedModule(t, debFiles(t, out)[0])), "signer:         Token of Example"))
}

// bootSigned boots the distribution's kernel under Secure Boot, whose keys it trusts,
// and loads a module without signature, two that were changed after they were signed, and
// the signed one.
func bootSigned(t *testing.T, k state.Kernel, unsigned, signed string) {
	dir := t.TempDir()
	content, err := os.ReadFile(signed)
	assert.NilError(t, err)
	body, _, err := kernel.TrimSignature(content)
	assert.NilError(t, err)
	code, signature := append([]byte(nil), content...), append([]byte(nil), content...)
	code[len(body)/2] ^= 1
	signature[len(signature)-100] ^= 1
	for name, bytes := range map[string][]byte{"signed": content, "code": code, "signature": signature} {
		assert.NilError(t, os.WriteFile(filepath.Join(dir, name+".ko"), bytes, 0o644))
	}
	mustRun(t, "cp", unsigned, filepath.Join(dir, "unsigned.ko"))
	assert.NilError(t, os.WriteFile(filepath.Join(dir, "init"), []byte(`#!/bin/sh
mount -t proc proc /proc
for m in unsigned code signature signed; do
	if insmod /$m.ko 2>/said; then echo "RESULT $m: loaded"; else echo "RESULT $m: $(cat /said)"; fi
done
echo "RESULT $(cut -d' ' -f1 /proc/modules)"
poweroff -f
`), 0o755))
	mustRun(t, "sh", "-ec", `cd "$1"; apt-get -q download "$2" >&2
		dpkg-deb --fsys-tarfile "$2"_*.deb | tar -x --wildcards './boot/vmlinuz-*'; rm "$2"_*.deb
		openssl pkey -in "$3" -passin "pass:$5" -out key.pem
		sbsign --key key.pem --cert "$4" --output kernel boot/vmlinuz-* >&2
		mkdir -p root/bin root/proc root/dev; mv init ./*.ko root; cp /bin/busybox root/bin
		for name in sh mount insmod cut cat poweroff; do ln -s busybox root/bin/$name; done
		(cd root && find . | cpio -o -H newc --quiet | gzip) >initrd
		cp /usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd variables.fd`, "sh", dir, k.Images[0].Package, firmwareKey, firmwareCert, passphrase)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	start := time.Now()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-machine", "q35,smm=on,accel=tcg", "-cpu", "max", "-m", "768",
		"-nographic", "-no-reboot", "-nic", "none", "-global", "driver=cfi.pflash01,property=secure,value=on",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
		"-drive", "if=pflash,format=raw,unit=1,file=variables.fd",
		"-kernel", "kernel", "-initrd", "initrd", "-append", "console=ttyS0 quiet module.sig_enforce=1")
	cmd.Dir = dir
	console, err := cmd.CombinedOutput()
	assert.NilError(t, err, "%s", console)
	t.Logf("booted and off in %v", time.Since(start))
	var results []string
	for line := range strings.Lines(string(console)) {
		if _, result, ok := strings.Cut(strings.TrimSpace(line), "RESULT "); ok {
			results = append(results, result)
		}
	}
	// EKEYREJECTED: no signature, or a bad one.
	refused := func(name string) string {
		return fmt.Sprintf("%[1]s: insmod: can't insert '/%[1]s.ko': Key was rejected by service", name)
	}
	assert.DeepEqual(t, results, []string{refused("unsigned"), refused("code"), refused("signature"), "signed: loaded", "spy"})
}
