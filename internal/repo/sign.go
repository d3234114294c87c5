package repo

import (
	"bytes"
	"cmp"
	"context"
	"dkms2bin/internal/diag"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Key is an OpenPGP key of the user's gpg that every apt since 2.2 accepts.
type Key struct {
	Fingerprint string    // of the primary key: 40 upper-case hexadecimal digits
	UserID      string    // the first one
	Expires     time.Time // when primary key or signing key expires; zero for never
	// Warnings are reasons why clients will refuse the key later on, a sentence
	// without a full stop each.
	Warnings []string

	signer string // fingerprint of the key or subkey that signs
	card   bool   // it is on a smart card
	public []byte
}

const expiryWarning = 30 * 24 * time.Hour

// FindKey looks up a key in the user's gpg by anything that gpg takes for one:
// fingerprint, key ID, e-mail address, part of the user ID, or the fingerprint
// or ID of a subkey with a "!" to have just this subkey sign. Otherwise the
// newest signing subkey that can be used signs, or else the primary key.
//
// It is an error when there is no such key, when there are several that could
// be used, or when the secret key is missing, expired, revoked, disabled, not
// meant for signing, or one that some apt refuses. No passphrase is asked for.
func FindKey(ctx context.Context, name string) (_ *Key, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot sign with the key %q: %w", name, err)
		}
	}()
	out, _, err := gpg(ctx, nil, "--with-colons", "--fixed-list-mode", "--with-secret", "--list-keys", "--", name)
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && ctx.Err() == nil {
		return nil, diag.WithHint(err, "gpg --list-secret-keys lists the keys there are")
	}
	if err != nil {
		return nil, err
	}
	exact := ""
	if id, ok := strings.CutSuffix(name, "!"); ok {
		exact = strings.TrimPrefix(strings.ToUpper(strings.ReplaceAll(id, " ", "")), "0X")
	}
	var (
		found   []*Key
		refused []error
		names   []string // of all in found, or else in refused
	)
	for _, l := range parseListing(out) {
		k, err := l.choose(ctx, exact)
		if ctx.Err() != nil {
			return nil, err
		}
		if err != nil {
			refused = append(refused, err)
			continue
		}
		found = append(found, k)
		names = append(names, fmt.Sprintf("%s (%s)", k.Fingerprint, k.UserID))
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, diag.WithHint(fmt.Errorf("it stands for several: %s", strings.Join(names, ", ")),
			"give the fingerprint of one")
	case len(refused) == 1:
		return nil, refused[0]
	}
	for _, err := range refused {
		names = append(names, err.Error())
	}
	return nil, diag.WithHint(fmt.Errorf("none of the keys that it stands for can be used: %s", strings.Join(names, "; ")),
		"%s", diag.Hint(errors.Join(refused...)))
}

// listing is a key as gpg --list-keys has it.
type listing struct {
	userID string
	keys   []listedKey // the primary one first
}

type listedKey struct {
	fingerprint      string
	validity         string
	created, expires time.Time
	usage            string // capital letters are about the whole
	token            string // "+", or the number of the card; else the secret key is not there
}

// parseListing reads the format of GnuPG's doc/DETAILS.
func parseListing(out []byte) []*listing {
	var all []*listing
	var last *listing
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimRight(line, "\n"), ":")
		if len(f) < 10 {
			continue
		}
		switch f[0] {
		case "pub":
			last = &listing{}
			all = append(all, last)
			fallthrough
		case "sub":
			if last != nil && len(f) > 14 {
				last.keys = append(last.keys, listedKey{
					validity: f[1], created: seconds(f[5]), expires: seconds(f[6]), usage: f[11], token: f[14],
				})
			}
		case "fpr":
			if last != nil && len(last.keys) > 0 {
				last.keys[len(last.keys)-1].fingerprint = f[9]
			}
		case "uid":
			if last != nil && last.userID == "" {
				last.userID = diag.Printable(unescape(f[9]))
			}
		}
	}
	return all
}

func seconds(s string) time.Time {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.Unix(n, 0).UTC()
}

var escaped = regexp.MustCompile(`\\x[0-9a-fA-F]{2}`)

func unescape(s string) string {
	return escaped.ReplaceAllStringFunc(s, func(e string) string {
		b, _ := hex.DecodeString(e[2:]) // two digits, says the expression
		return string(b)
	})
}

// choose picks the key that signs and checks it. exact, unless empty, is the
// end of the fingerprint that it must have.
func (l *listing) choose(ctx context.Context, exact string) (_ *Key, err error) {
	primary := l.keys[0]
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s (%s): %w", primary.fingerprint, l.userID, err)
		}
	}()
	if strings.Contains(primary.usage, "D") {
		return nil, diag.WithHint(errors.New("it is disabled"), "gpg --edit-key %s enable save", primary.fingerprint)
	}
	public, _, err := gpg(ctx, nil, "--armor", "--no-emit-version", "--no-comments",
		"--export-options", "export-minimal,no-export-attributes", "--export", "--", primary.fingerprint)
	if err != nil {
		return nil, err
	}
	cert, err := dearmour(public)
	if err != nil {
		return nil, err
	}
	// In gpg's order: subkeys, newest first, then the primary key.
	order := slices.Clone(l.keys[1:])
	slices.SortStableFunc(order, func(a, b listedKey) int { return b.created.Compare(a.created) })
	for _, c := range append(order, primary) {
		if !strings.Contains(c.usage, "s") || !strings.HasSuffix(c.fingerprint, exact) {
			continue
		}
		refusal := c.check(primary.fingerprint)
		var warning string
		if refusal == nil {
			warning, refusal = judge(cert, c.fingerprint)
		}
		if refusal != nil {
			err = cmp.Or(err, refusal)
			continue
		}
		k := &Key{
			Fingerprint: primary.fingerprint, UserID: l.userID, Expires: earlier(primary.expires, c.expires),
			signer: c.fingerprint, card: c.token != "+", public: public,
		}
		if warning != "" {
			k.Warnings = append(k.Warnings, warning)
		}
		if !k.Expires.IsZero() && time.Until(k.Expires) < expiryWarning {
			k.Warnings = append(k.Warnings, "it expires on "+k.Expires.Format(time.DateOnly)+"; clients then refuse the repository until they have a newer copy of it")
		}
		return k, nil
	}
	if err == nil {
		err = diag.WithHint(errors.New("it is not meant for signing"),
			"gpg --quick-add-key %s %s sign 5y adds a subkey that is", primary.fingerprint, strongKeys)
	}
	return nil, err
}

// check refuses what gpg would refuse, with better words.
func (c listedKey) check(primary string) error {
	switch {
	case strings.HasPrefix(c.validity, "r"):
		return errors.New("it is revoked")
	case strings.HasPrefix(c.validity, "e"):
		hint := "gpg --quick-set-expire " + primary + " 2y makes it last"
		if c.fingerprint != primary {
			hint = fmt.Sprintf("gpg --quick-set-expire %s 2y %s makes it last", primary, c.fingerprint)
		}
		return diag.WithHint(fmt.Errorf("it expired on %s", c.expires.Format(time.DateOnly)), "%s", hint)
	case strings.HasPrefix(c.validity, "i"):
		return errors.New("gpg holds it invalid")
	case c.token == "" || c.token == "#":
		return diag.WithHint(errors.New("its secret key is not there"), "gpg --list-secret-keys lists the keys there are")
	}
	return nil
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// Public is the armoured public key for an .asc file: user IDs, subkeys and
// their newest self-signatures.
func (k *Key) Public() []byte { return k.public }

// SignedBy is the public key as the value of the field Signed-By in a .sources
// file: continuation lines, without the field's name. apt takes that since
// 2.3.10; an older one needs the path of a file with Public.
func (k *Key) SignedBy() string {
	var b strings.Builder
	for line := range strings.Lines(string(k.public)) {
		if line == "\n" {
			line = ".\n"
		}
		b.WriteString(" " + line)
	}
	return b.String()
}

// Sign signs the text of Release, which ends with a line feed and has no line
// with blanks at its end. Both signatures have been verified, as a client would
// do, when they are returned. gpg may ask for the passphrase, through its agent.
func (k *Key) Sign(ctx context.Context, release []byte) (inRelease, releaseGPG []byte, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot sign with the key %s: %w", k.Fingerprint, err)
		}
	}()
	if inRelease, err = k.sign(ctx, release, "--clearsign"); err != nil {
		return nil, nil, err
	}
	text, err := VerifyInRelease(ctx, inRelease, k.public)
	if err != nil {
		return nil, nil, err
	}
	if !bytes.Equal(text, release) {
		return nil, nil, errors.New("gpg signed another text")
	}
	if releaseGPG, err = k.sign(ctx, release, "--detach-sign"); err != nil {
		return nil, nil, err
	}
	return inRelease, releaseGPG, VerifyDetached(ctx, release, releaseGPG, k.public)
}

func (k *Key) sign(ctx context.Context, text []byte, command string) ([]byte, error) {
	// What gpg.conf may say otherwise is set here.
	out, status, err := gpg(ctx, text, "--armor", "--no-emit-version", "--no-comments", "--digest-algo", "SHA512",
		"--default-sig-expire", "0", "--local-user", k.signer+"!", command)
	if err != nil {
		return nil, diag.WithHint(err, "%s", k.hint(status))
	}
	return out, nil
}

// hint tells what to do after gpg failed. Its status line FAILURE has a code of
// libgpg-error: the source in the upper byte, the error in the lower ones.
func (k *Key) hint(status []string) string {
	const (
		pinentry, scdaemon                                = 5, 6            // sources
		badPassphrase, noPinentry, canceled, noPassphrase = 11, 85, 99, 177 // errors
		cardFirst, cardLast                               = 108, 113
	)
	for _, line := range status {
		f := strings.Fields(line)
		if len(f) < 3 || f[0] != "FAILURE" {
			continue
		}
		n, _ := strconv.ParseUint(f[2], 10, 32) // 0 is no error that matters here
		source, code := n>>24&0x7f, n&0xffff
		switch {
		case source == scdaemon, code >= cardFirst && code <= cardLast, k.card && source == pinentry:
			return "insert the card of this key; gpg --card-status shows what is inserted"
		case source == pinentry, code == badPassphrase, code == noPinentry, code == canceled, code == noPassphrase:
			return "the passphrase is needed: install a pinentry that works here (pinentry-curses, and GPG_TTY set), " +
				"or hand it to the agent with gpg-preset-passphrase, or put pinentry-mode loopback and passphrase-file into gpg.conf"
		}
	}
	return "try it by hand: echo | gpg --clearsign --local-user " + k.signer + "!"
}

// VerifyInRelease verifies an InRelease by the public key keyring, armoured or
// not, and returns the text that is signed. It is an error, too, when some text
// is not signed, and when an apt would refuse key or digest.
func VerifyInRelease(ctx context.Context, inRelease, keyring []byte) (text []byte, err error) {
	text, err = verify(ctx, keyring, inRelease)
	if err != nil {
		return nil, err
	}
	// gpgv passes over what stands before, after and, in the armour, beside it.
	m := clearsigned.FindSubmatch(inRelease)
	if m == nil {
		return nil, errors.New("there is text outside of the signed one")
	}
	if !bytes.Equal(dashed.ReplaceAll(m[1], nil), text) {
		return nil, errors.New("it is not laid out as gpg does")
	}
	return text, nil
}

var (
	// clearsigned is the layout of RFC 4880, section 7; the text is dash-escaped.
	clearsigned = regexp.MustCompile(`(?s)\A-----BEGIN PGP SIGNED MESSAGE-----\n(?:Hash: [A-Z0-9, ]+\n)*\n` +
		`(.*)-----BEGIN PGP SIGNATURE-----\n(?:[A-Za-z]+: [^\n]*\n)*\n(?:[A-Za-z0-9+/=]+\n)+-----END PGP SIGNATURE-----\n\z`)
	dashed = regexp.MustCompile(`(?m)^- `)
)

// VerifyDetached verifies the detached signature sig of Release by the public
// key keyring, armoured or not. It is an error, too, when an apt would refuse
// key or digest; sqv is asked as well, where it is installed.
func VerifyDetached(ctx context.Context, release, sig, keyring []byte) error {
	if _, err := verify(ctx, keyring, sig, release); err != nil {
		return err
	}
	if _, err := exec.LookPath("sqv"); err != nil {
		return nil //nolint:nilerr // it is not installed
	}
	keyring, err := dearmour(keyring)
	if err != nil {
		return err
	}
	_, _, err = run(ctx, nil, [][]byte{keyring, sig, release}, "sqv", "--keyring", "/dev/fd/4", "/dev/fd/5", "/dev/fd/6")
	return err
}

// verify returns what the signature signs, unless it is detached.
func verify(ctx context.Context, keyring, sig []byte, detachedFrom ...[]byte) ([]byte, error) {
	keyring, err := dearmour(keyring)
	if err != nil {
		return nil, err
	}
	argv := []string{"gpgv", "--status-fd", "3", "--keyring", "/dev/fd/4", "--output", "-", "--", "/dev/fd/5"}
	if len(detachedFrom) > 0 {
		argv = append(argv, "/dev/fd/6")
	}
	out, status, err := run(ctx, nil, append([][]byte{keyring, sig}, detachedFrom...), argv...)
	// gpgv fails when one of several signatures cannot be checked; the status
	// tells more.
	if exit := (*exec.ExitError)(nil); err != nil && (!errors.As(err, &exit) || ctx.Err() != nil) {
		return nil, err
	}
	return out, goodSignature(status, keyring)
}

// goodSignature looks for one in the status lines of gpgv (doc/DETAILS), and
// returns what is wrong when there is none, or a bad one beside it.
func goodSignature(status []string, cert []byte) error {
	problem := errors.New("there is no signature that gpgv can read")
	good, found := false, false
	for _, line := range status {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "NEWSIG":
			good = false
		case "GOODSIG":
			good = true
		case "BADSIG":
			return fmt.Errorf("the signature by key %s does not belong to this text", f[1])
		case "EXPSIG":
			problem = fmt.Errorf("the signature by key %s has expired", f[1])
		case "EXPKEYSIG":
			problem = fmt.Errorf("the key %s has expired", f[1])
		case "REVKEYSIG":
			problem = fmt.Errorf("the key %s is revoked", f[1])
		case "NO_PUBKEY":
			problem = fmt.Errorf("it is signed by another key: %s", f[1])
		case "VALIDSIG":
			if !good || len(f) < 10 {
				continue
			}
			version, _ := strconv.Atoi(f[5]) // gpgv's own numbers
			digest, _ := strconv.Atoi(f[8])
			if !isStrong(version, digest) {
				problem = fmt.Errorf("apt of Debian 13 refuses the signature: version %d, digest %s", version, digestName(digest))
			} else if _, err := judge(cert, f[1]); err != nil {
				problem = err
			} else {
				found = true
			}
		}
	}
	if found {
		return nil
	}
	return problem
}

// gpg runs gpg, and returns what it printed and its status lines.
func gpg(ctx context.Context, stdin []byte, args ...string) (stdout []byte, status []string, err error) {
	argv := append([]string{
		"gpg", "--batch", "--no-tty", "--status-fd", "3", "--no-auto-key-locate",
		"--utf8-strings", "--display-charset", "utf-8",
	}, args...)
	return run(ctx, stdin, nil, argv...)
}

// run runs a command in English. Its file descriptor 3 is for status lines; 4
// and up are the files. They have no names, so that nothing is left over. When
// ctx ends, so does the command.
func run(ctx context.Context, stdin []byte, files [][]byte, argv ...string) (stdout []byte, status []string, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", argv[0], err)
		}
	}()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	if errors.Is(cmd.Err, exec.ErrNotFound) {
		pkg := map[string]string{"gpg": "gnupg"}[argv[0]]
		return nil, nil, diag.WithHint(cmd.Err, "apt-get install %s", cmp.Or(pkg, argv[0]))
	}
	for _, content := range append([][]byte{nil}, files...) {
		f, err := nameless(content)
		if err != nil {
			return nil, nil, err
		}
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	var out, messages bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &messages
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if tty := terminal(); tty != "" && os.Getenv("GPG_TTY") == "" {
		cmd.Env = append(cmd.Env, "GPG_TTY="+tty)
	}
	if policy := sqvPolicy(); policy != "" {
		cmd.Env = append(cmd.Env, "SEQUOIA_CRYPTO_POLICY="+policy)
	}
	// gpg removes its own locks at SIGTERM.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Run()
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	text, readErr := io.ReadAll(io.NewSectionReader(cmd.ExtraFiles[0], 0, math.MaxInt64))
	if readErr != nil {
		return nil, nil, readErr
	}
	for line := range strings.Lines(string(text)) {
		status = append(status, strings.TrimSpace(strings.TrimPrefix(line, "[GNUPG:] ")))
	}
	if err != nil {
		err = fmt.Errorf("%w: %s", err, lastLines(messages.String()))
	}
	return out.Bytes(), status, err
}

// nameless makes an open file that is in no directory, memfd_create(2).
func nameless(content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("dkms2bin", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "dkms2bin")
	if _, err := f.Write(content); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// lastLines makes one line of the last few of a program's messages.
func lastLines(text string) string {
	lines := slices.Collect(strings.Lines(text))
	return diag.Printable(strings.Join(lines[max(0, len(lines)-3):], "; "))
}

// terminal is the one that a passphrase may be asked on: gpg knows only that of
// its stdin, which is taken.
func terminal() string {
	for fd := range 3 {
		name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		if err == nil && (strings.HasPrefix(name, "/dev/pts/") || strings.HasPrefix(name, "/dev/tty")) {
			return name
		}
	}
	return ""
}

// sqvPolicy is the file that apt has sqv go by; "" when there is none.
func sqvPolicy() string {
	for _, path := range []string{"/etc/crypto-policies/back-ends/apt-sequoia.config", "/usr/share/apt/default-sequoia.config"} {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}
