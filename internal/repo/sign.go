package repo

import (
	"bytes"
	"cmp"
	"context"
	"dkms2bin/internal/diag"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Key is an OpenPGP key of the user's gpg that every apt in use accepts.
type Key struct {
	Fingerprint string   // of the primary key
	UserID      string   // its first user id
	Warnings    []string // what will be refused one day
	signer      string   // fingerprint of the key or subkey that signs
	public      []byte   // armoured
}

// gpgKey is a key or subkey in gpg's listing, in the format of --with-colons
// (doc/DETAILS of GnuPG).
type gpgKey struct {
	validity, capabilities, curve string
	algorithm, bits               int
	created                       int64
	fingerprint                   string
	userIDs                       []string
	digests                       []int // of the signatures that bind it to the primary key
	subkeys                       []*gpgKey
}

// FindKey finds the key that is meant by name: anything that gpg --local-user
// takes. Keys, and signatures that bind them, are held against the policy of
// the strictest apt (sequoia in Debian 13): an error tells why it would refuse.
func FindKey(ctx context.Context, name string) (_ *Key, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot sign with the key %s: %w", name, err)
		}
	}()
	secret, err := gpg(ctx, nil, "--with-colons", "--list-secret-keys", "--", name)
	keys := parseKeys(secret)
	if err != nil && len(keys) == 0 {
		return nil, diag.WithHint(err, "gpg --list-secret-keys lists the keys that are there; another directory of keys is named by GNUPGHOME")
	}
	if len(keys) != 1 {
		var names []string
		for _, k := range keys {
			names = append(names, k.fingerprint+" ("+strings.Join(k.userIDs, ", ")+")")
		}
		return nil, diag.WithHint(fmt.Errorf("there are %d of that name: %s", len(keys), strings.Join(names, "; ")), "name it by its fingerprint")
	}
	// The listing of secret keys has no signatures.
	listing, err := gpg(ctx, nil, "--with-colons", "--check-sigs", "--", keys[0].fingerprint)
	if err != nil {
		return nil, err
	}
	listed := parseKeys(listing)
	if len(listed) != 1 {
		return nil, errors.New("gpg has no public key for it")
	}
	primary := listed[0]
	signer, err := primary.signer()
	if err != nil {
		return nil, err
	}
	k := &Key{Fingerprint: primary.fingerprint, signer: signer.fingerprint}
	if len(primary.userIDs) > 0 {
		k.UserID = primary.userIDs[0]
	}
	for _, used := range slices.Compact([]*gpgKey{primary, signer}) {
		warning, err := used.acceptable()
		if err != nil {
			return nil, diag.WithHint(fmt.Errorf("apt of Debian 13 and later refuses it: %w", err),
				"a good one is made by: gpg --quick-generate-key 'Name <name@example.org>' ed25519 sign never")
		}
		if warning != "" {
			k.Warnings = append(k.Warnings, warning)
		}
	}
	if k.public, err = gpg(ctx, nil, "--armor", "--export-options", "export-minimal", "--export", "--", k.Fingerprint); err != nil {
		return nil, err
	}
	return k, nil
}

// parseKeys reads a listing.
func parseKeys(listing []byte) []*gpgKey {
	var keys []*gpgKey
	var current *gpgKey
	for line := range strings.SplitSeq(string(listing), "\n") {
		f := strings.Split(line, ":")
		f = append(f, make([]string, max(0, 20-len(f)))...)
		switch f[0] {
		case "pub", "sec", "sub", "ssb":
			current = &gpgKey{validity: f[1], capabilities: f[11], curve: f[16]}
			current.bits, _ = strconv.Atoi(f[2])
			current.algorithm, _ = strconv.Atoi(f[3])
			current.created, _ = strconv.ParseInt(f[5], 10, 64)
			if f[0] == "pub" || f[0] == "sec" {
				keys = append(keys, current)
			} else if len(keys) > 0 {
				primary := keys[len(keys)-1]
				primary.subkeys = append(primary.subkeys, current)
			}
		case "fpr":
			if current != nil && current.fingerprint == "" {
				current.fingerprint = f[9]
			}
		case "uid":
			if current != nil {
				current.userIDs = append(current.userIDs, diag.Printable(f[9]))
			}
		case "sig":
			if current != nil && f[1] == "!" && f[12] == keys[len(keys)-1].fingerprint {
				digest, _ := strconv.Atoi(f[15])
				current.digests = append(current.digests, digest)
			}
		}
	}
	return keys
}

// signer is the key that gpg itself would take: the newest usable subkey for
// signing, else the primary key.
func (k *gpgKey) signer() (*gpgKey, error) {
	if reason := map[string]string{"e": "it has expired", "r": "it is revoked", "d": "it is disabled", "i": "it is invalid"}[k.validity]; reason != "" {
		return nil, errors.New(reason)
	}
	usable := slices.DeleteFunc(slices.Clone(k.subkeys), func(s *gpgKey) bool {
		return !strings.Contains(s.capabilities, "s") || strings.Contains("erdin", cmp.Or(s.validity, "-"))
	})
	if len(usable) > 0 {
		return slices.MaxFunc(usable, func(a, b *gpgKey) int { return cmp.Compare(a.created, b.created) }), nil
	}
	if !strings.Contains(k.capabilities, "s") {
		return nil, errors.New("neither it nor a valid subkey of it is for signing")
	}
	return k, nil
}

// acceptable says why apt of Debian 13 refuses the key, or will one day.
// Algorithms are the numbers of RFC 4880, 9.1 and 9.4, and RFC 6637.
func (k *gpgKey) acceptable() (warning string, _ error) {
	id := k.fingerprint[max(0, len(k.fingerprint)-16):]
	switch k.algorithm {
	case 1, 3:
		if k.bits < 2048 {
			return "", fmt.Errorf("%s is an RSA key of %d bits; 2048 are the least", id, k.bits)
		}
		if k.bits < 3072 {
			warning = fmt.Sprintf("%s is an RSA key of %d bits: apt refuses those below 3072 from February 2030", id, k.bits)
		}
	case 17:
		return "", fmt.Errorf("%s is a DSA key", id)
	case 19, 22:
		if k.curve != "" && !slices.Contains([]string{"ed25519", "nistp256", "nistp384", "nistp521"}, k.curve) {
			return "", fmt.Errorf("%s is a key on the curve %s", id, k.curve)
		}
	default:
		return "", fmt.Errorf("%s has the unsuited algorithm %d", id, k.algorithm)
	}
	if !slices.ContainsFunc(k.digests, func(d int) bool { return 8 <= d && d <= 10 }) {
		return "", fmt.Errorf("no valid signature by SHA-256 or better binds %s; SHA-1 does not count", id)
	}
	return warning, nil
}

// Public is the public key, armoured.
func (k *Key) Public() []byte { return k.public }

// SignedBy is the public key as a value of the field Signed-By (deb822 format
// of sources.list(5), since apt 2.3.10).
func (k *Key) SignedBy() string {
	var b strings.Builder
	for line := range strings.Lines(string(k.public)) {
		line = strings.TrimSpace(line)
		b.WriteString(" " + cmp.Or(line, ".") + "\n")
	}
	return b.String()
}

// Sign returns the content of InRelease and of Release.gpg for a Release. gpg
// makes them, with its agent or card; they are verified as apt does it.
func (k *Key) Sign(ctx context.Context, release []byte) (inRelease, detached []byte, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot sign the Release: %w", err)
		}
	}()
	// Whatever the user's gpg.conf says of digests.
	common := []string{"--digest-algo", "SHA512", "--armor", "--local-user", k.signer + "!", "--output", "-"}
	if inRelease, err = gpg(ctx, release, append(common, "--clearsign")...); err != nil {
		return nil, nil, err
	}
	if detached, err = gpg(ctx, release, append(common, "--detach-sign")...); err != nil {
		return nil, nil, err
	}
	text, err := VerifyInRelease(ctx, inRelease, k.public)
	if err != nil {
		return nil, nil, err
	}
	if !bytes.Equal(bytes.TrimRight(text, "\n"), bytes.TrimRight(release, "\n")) {
		return nil, nil, errors.New("gpg signed another text")
	}
	return inRelease, detached, VerifyDetached(ctx, release, detached, k.public)
}

// gpg runs gpg and returns what it prints. Its agent may ask for a passphrase,
// or for a card.
func gpg(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	return runTool(ctx, "gpg", stdin, append([]string{"--batch", "--quiet", "--no-auto-key-locate", "--fixed-list-mode"}, args...)...)
}

func runTool(ctx context.Context, name string, stdin []byte, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.WaitDelay = 5 * time.Second
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Run()
	switch {
	case err == nil:
		return out.Bytes(), nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, exec.ErrNotFound):
		return nil, diag.WithHint(err, "apt-get install gnupg gpgv")
	}
	lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
	err = fmt.Errorf("%s: %w: %s", name, err, diag.Printable(strings.Join(lines[max(0, len(lines)-3):], "; ")))
	if s := stderr.String(); strings.Contains(s, "Inappropriate ioctl") || strings.Contains(s, "No pinentry") || strings.Contains(s, "cannot open '/dev/tty'") {
		err = diag.WithHint(err, "gpg cannot ask for the passphrase here: run it once in a terminal with GPG_TTY set, or give gpg.conf 'pinentry-mode loopback' and 'passphrase-file'")
	}
	return out.Bytes(), err
}

const (
	signedBegin = "-----BEGIN PGP SIGNED MESSAGE-----\n"
	signedEnd   = "-----END PGP SIGNATURE-----"
)

// VerifyInRelease checks an InRelease with gpgv, as apt does, and returns the
// text that is signed. keyring is the public key, armoured.
func VerifyInRelease(ctx context.Context, inRelease, keyring []byte) ([]byte, error) {
	text := string(inRelease)
	if !strings.HasPrefix(text, signedBegin) || strings.Count(text, signedBegin) != 1 ||
		!strings.HasSuffix(strings.TrimRight(text, "\n"), signedEnd) || strings.Count(text, signedEnd) != 1 {
		return nil, errors.New("it is not one signed text and nothing else")
	}
	return gpgv(ctx, keyring, inRelease, nil)
}

// VerifyDetached checks a Release.gpg with gpgv, as apt does, and with sqv where
// that is installed, which newer apts use. keyring is the public key, armoured.
func VerifyDetached(ctx context.Context, release, signature, keyring []byte) error {
	_, err := gpgv(ctx, keyring, signature, release)
	return err
}

// gpgv verifies signed, or the detached signature signed of data.
func gpgv(ctx context.Context, keyring, signed, data []byte) (_ []byte, err error) {
	dir, err := os.MkdirTemp("", "dkms2bin-gpgv-")
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(filepath.Dir(dir))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	defer func() { err = errors.Join(err, root.RemoveAll(filepath.Base(dir))) }()
	// gpgv takes no armoured keys before GnuPG 2.4.
	binary, err := runTool(ctx, "gpg", keyring, "--batch", "--no-options", "--homedir", dir, "--dearmor")
	if err != nil {
		return nil, fmt.Errorf("cannot read the public key: %w", err)
	}
	for name, content := range map[string][]byte{"key.asc": keyring, "key.gpg": binary, "signed": signed, "data": data} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return nil, err
		}
	}
	args := []string{"--homedir", dir, "--keyring", filepath.Join(dir, "key.gpg")}
	if data == nil {
		return runTool(ctx, "gpgv", nil, append(args, "--output", "-", filepath.Join(dir, "signed"))...)
	}
	if out, err := runTool(ctx, "gpgv", nil, append(args, filepath.Join(dir, "signed"), filepath.Join(dir, "data"))...); err != nil {
		return out, err
	}
	if _, err := exec.LookPath("sqv"); err == nil {
		return runTool(ctx, "sqv", nil, "--keyring", filepath.Join(dir, "key.asc"), filepath.Join(dir, "signed"), filepath.Join(dir, "data"))
	}
	return nil, nil
}
