package modsign

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/kernel"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// A Signer signs modules with a key file by openssl, or has a command of the user's do it.
type Signer struct {
	Key        string // file, PEM; "" with a command
	Passphrase string // of the key, "" for none
	Command    string // for sh -c; the path of a module is put behind it

	cert *x509.Certificate
}

// A Signature is what stands at the end of a module, in the terms of modinfo(8).
type Signature struct {
	Signer string // common name of who issued the certificate
	Key    string // serial number of the certificate: 66:F5:4E…
	Hash   string // sha256
}

// Fingerprint is the SHA-256 of the certificate, in hexadecimal.
func (s *Signer) Fingerprint() string {
	sum := sha256.Sum256(s.cert.Raw)
	return hex.EncodeToString(sum[:])
}

// Open reads the certificate, PEM or DER, and tries the key, so that what is wrong with either shows at once.
// The certificate is what signatures are verified by.
func (s *Signer) Open(ctx context.Context, cert string) error {
	raw, err := os.ReadFile(cert)
	if err != nil {
		return fmt.Errorf("cannot read the certificate: %w", err)
	}
	for block, rest := pem.Decode(raw); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			raw = block.Bytes
			break
		}
	}
	if s.cert, err = x509.ParseCertificate(raw); err != nil {
		return fmt.Errorf("cannot read the certificate %s: it is no X.509 certificate: %w", cert, err)
	}
	switch s.cert.PublicKey.(type) {
	case *rsa.PublicKey, *ecdsa.PublicKey:
	default:
		return fmt.Errorf("the certificate %s is for a key of the kind %s: kernels verify modules by RSA, newer ones by ECDSA", cert, s.cert.PublicKeyAlgorithm)
	}
	if _, err := exec.LookPath("openssl"); err != nil {
		return diag.WithHint(errors.New("modules are signed and verified by openssl, which is not installed"), "apt-get install openssl")
	}
	if s.Command != "" {
		return nil
	}
	return s.tryKey(ctx, cert)
}

// tryKey says whether the key can be read and is the certificate's.
func (s *Signer) tryKey(ctx context.Context, cert string) error {
	if _, err := os.Stat(s.Key); err != nil {
		return fmt.Errorf("cannot read the key: %w", err)
	}
	var public bytes.Buffer
	cmd, done, err := s.withPassphrase(exec.CommandContext(ctx, "openssl", "pkey", "-in", s.Key, "-pubout", "-outform", "DER"))
	if err != nil {
		return err
	}
	cmd.Stdout = &public
	err = errors.Join(run(cmd), done())
	switch {
	case err != nil && s.Passphrase == "":
		return diag.WithHint(fmt.Errorf("cannot read the key %s: it is no private key in PEM, or has a passphrase", s.Key),
			"put the passphrase into DKMS2BIN_SIGN_PASSPHRASE, or into the file of --sign-passphrase-file")
	case err != nil:
		return fmt.Errorf("cannot read the key %s: it is no private key in PEM, or has another passphrase", s.Key)
	}
	key, err := x509.ParsePKIXPublicKey(public.Bytes())
	if err != nil {
		return fmt.Errorf("cannot use the key %s: %w", s.Key, err)
	}
	if r, ok := s.cert.PublicKey.(*rsa.PublicKey); ok && r.Equal(key) {
		return nil
	}
	if e, ok := s.cert.PublicKey.(*ecdsa.PublicKey); ok && e.Equal(key) {
		return nil
	}
	return fmt.Errorf("the key %s does not belong to the certificate %s", s.Key, cert)
}

// Warning says what the user should know of the certificate; "" when all is well. The kernel does not
// look at the time for which one is valid; other programs do.
func (s *Signer) Warning(now time.Time) string {
	switch {
	case now.After(s.cert.NotAfter):
		return fmt.Sprintf("the certificate of %s for signing modules has expired on %s", s.Name(), s.cert.NotAfter.UTC().Format(time.DateOnly))
	case now.Before(s.cert.NotBefore):
		return fmt.Sprintf("the certificate of %s for signing modules is valid from %s on", s.Name(), s.cert.NotBefore.UTC().Format(time.DateOnly))
	}
	return ""
}

// Name is who issued the certificate, as modinfo(8) prints it: the common name, or all of the name.
func (s *Signer) Name() string { return nameOf(s.cert.Issuer) }

// KeyID is the serial number of the certificate as modinfo(8) prints it.
func (s *Signer) KeyID() string { return keyID(s.cert.SerialNumber) }

// withPassphrase lets openssl read the passphrase from a pipe: neither its command line nor its
// environment has it, and it never asks.
func (s *Signer) withPassphrase(cmd *exec.Cmd) (*exec.Cmd, func() error, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	_, err = w.WriteString(s.Passphrase + "\n") // fits in the pipe: Open's callers bound it
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, nil, errors.Join(err, r.Close())
	}
	cmd.ExtraFiles = []*os.File{r}
	cmd.Args = append(cmd.Args, "-passin", "fd:3")
	return cmd, r.Close, nil
}

// PassphraseVariable is the environment variable that may have the passphrase. Of what runs here only the
// user's own command gets it.
const PassphraseVariable = "DKMS2BIN_SIGN_PASSPHRASE"

// MaxPassphrase bounds a passphrase, in bytes.
const MaxPassphrase = 1024

// sign signs the file at path, and verifies the signature.
func (s *Signer) sign(ctx context.Context, path, hash string) (Signature, error) {
	if hash == "" {
		hash = "sha256"
	}
	before, err := os.ReadFile(path)
	if err != nil {
		return Signature{}, err
	}
	if s.Command != "" {
		err = s.runCommand(ctx, path, hash)
	} else {
		err = s.runOpenSSL(ctx, path, hash)
	}
	if err != nil {
		return Signature{}, fmt.Errorf("cannot sign it: %w", err)
	}
	sig, err := s.verify(ctx, path, before)
	if err != nil {
		return Signature{}, fmt.Errorf("the signature is no good: %w", err)
	}
	return sig, nil
}

// runCommand has the user's command sign the file.
func (s *Signer) runCommand(ctx context.Context, path, hash string) error {
	cmd := exec.CommandContext(ctx, "sh", "-c", s.Command+` "$1"`, "sh", path)
	return run(cmd, "DKMS2BIN_SIGN_HASH="+hash, PassphraseVariable+"="+s.Passphrase)
}

// runOpenSSL signs as the kernel's scripts/sign-file does: PKCS#7 without certificates and attributes.
func (s *Signer) runOpenSSL(ctx context.Context, path, hash string) error {
	dir := filepath.Dir(path)
	cert, detached := filepath.Join(dir, "certificate.pem"), path+".p7s"
	if err := s.writeCert(cert); err != nil {
		return err
	}
	cmd, done, err := s.withPassphrase(exec.CommandContext(ctx, "openssl", "cms", "-sign", "-binary", "-noattr", "-nosmimecap", "-nocerts",
		"-md", hash, "-signer", cert, "-inkey", s.Key, "-outform", "DER", "-in", path, "-out", detached))
	if err != nil {
		return err
	}
	if err := errors.Join(run(cmd), done()); err != nil {
		return err
	}
	signature, err := os.ReadFile(detached)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(kernel.AppendedSignature(signature))
	return errors.Join(err, f.Close(), os.Remove(detached))
}

func (s *Signer) writeCert(path string) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cert.Raw}), 0o600)
}

// verify checks that the file is what it was before with one signature behind it, by the key of the
// certificate.
func (s *Signer) verify(ctx context.Context, path string, before []byte) (Signature, error) {
	after, err := os.ReadFile(path)
	if err != nil {
		return Signature{}, err
	}
	if !bytes.HasPrefix(after, before) || len(after) == len(before) {
		return Signature{}, errors.New("the signer has not appended one to the file, or has changed what stood there")
	}
	pkcs7, err := kernel.ParseSignature(after[len(before):])
	if err != nil {
		return Signature{}, err
	}
	dir := filepath.Dir(path)
	cert, detached, content := filepath.Join(dir, "certificate.pem"), path+".p7s", path+".content"
	if err := errors.Join(s.writeCert(cert), os.WriteFile(detached, pkcs7, 0o600), os.WriteFile(content, before, 0o600)); err != nil {
		return Signature{}, err
	}
	// Whether the certificate is trusted is for the kernel that loads the module to say.
	err = run(exec.CommandContext(ctx, "openssl", "cms", "-verify", "-binary", "-inform", "DER", "-in", detached, "-content", content,
		"-certfile", cert, "-nointern", "-noverify", "-out", os.DevNull))
	if err = errors.Join(err, os.Remove(detached), os.Remove(content)); err != nil {
		return Signature{}, err
	}
	sig, err := parse(pkcs7)
	return Signature{Signer: s.Name(), Key: s.KeyID(), Hash: sig.Hash}, err
}

var digests = map[string]string{
	"1.3.14.3.2.26": "sha1", "2.16.840.1.101.3.4.2.4": "sha224",
	"2.16.840.1.101.3.4.2.1": "sha256", "2.16.840.1.101.3.4.2.2": "sha384", "2.16.840.1.101.3.4.2.3": "sha512",
	"2.16.840.1.101.3.4.2.8": "sha3-256", "2.16.840.1.101.3.4.2.9": "sha3-384", "2.16.840.1.101.3.4.2.10": "sha3-512",
}

// SignatureOf returns what the signature behind a decompressed module says of itself, without
// verifying it; false when there is none.
func SignatureOf(module []byte) (Signature, bool, error) {
	body, signed, err := kernel.TrimSignature(module)
	if err != nil || !signed {
		return Signature{}, false, err
	}
	pkcs7, err := kernel.ParseSignature(module[len(body):])
	if err != nil {
		return Signature{}, true, err
	}
	sig, err := parse(pkcs7)
	return sig, true, err
}

// parse reads a PKCS#7 signature (RFC 5652, section 5.1).
func parse(pkcs7 []byte) (Signature, error) {
	var info struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue `asn1:"explicit,tag:0"`
	}
	var data struct {
		Version int
		Digests []pkix.AlgorithmIdentifier `asn1:"set"`
		Content asn1.RawValue
		Certs   asn1.RawValue `asn1:"optional,tag:0"`
		CRLs    asn1.RawValue `asn1:"optional,tag:1"`
		Signers []struct {
			Version int
			ID      asn1.RawValue
		} `asn1:"set"`
	}
	if _, err := asn1.Unmarshal(pkcs7, &info); err != nil {
		return Signature{}, err
	}
	if _, err := asn1.Unmarshal(info.Content.Bytes, &data); err != nil {
		return Signature{}, err
	}
	if len(data.Digests) != 1 || len(data.Signers) != 1 {
		return Signature{}, fmt.Errorf("%d digests and %d signers, where the kernel wants one", len(data.Digests), len(data.Signers))
	}
	oid := data.Digests[0].Algorithm.String()
	sig := Signature{Hash: digests[oid]}
	if sig.Hash == "" {
		sig.Hash = oid
	}
	id := data.Signers[0].ID
	if id.Class == asn1.ClassContextSpecific { // the key's identifier alone (sign-file -k)
		sig.Key = colons(id.Bytes)
		return sig, nil
	}
	var by struct {
		Issuer pkix.RDNSequence
		Serial *big.Int
	}
	if _, err := asn1.Unmarshal(id.FullBytes, &by); err != nil {
		return Signature{}, err
	}
	var name pkix.Name
	name.FillFromRDNSequence(&by.Issuer)
	sig.Signer, sig.Key = nameOf(name), keyID(by.Serial)
	return sig, nil
}

// nameOf is a name as modinfo(8) prints it: the common name, or all of it.
func nameOf(name pkix.Name) string {
	if name.CommonName != "" {
		return name.CommonName
	}
	return name.String()
}

// keyID is a serial number as modinfo(8) prints it.
func keyID(serial *big.Int) string {
	raw, err := asn1.Marshal(serial)
	if err != nil || len(raw) < 3 {
		return ""
	}
	return colons(raw[2:])
}

func colons(b []byte) string { return strings.ReplaceAll(fmt.Sprintf("% X", b), " ", ":") }
