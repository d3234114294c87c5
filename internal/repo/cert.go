package repo

import (
	"cmp"
	"crypto/sha1"
	"dkms2bin/internal/diag"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// gpg and gpgv pass much that the apt of Debian 13 and later refuses, which asks
// sqv(1) under the policy of /usr/share/apt/default-sequoia.config. Its rules
// are applied here. What they have no say in, such as expiry and revocation, is
// left to gpg and gpgv.

const (
	// strongKeys is the algorithm that hints recommend: older apts know it, too.
	strongKeys = "rsa4096"
	strongRSA  = 3072 // bits
)

// rsa2048End is when the policy ends for RSA below strongRSA.
var rsa2048End = time.Date(2030, time.February, 1, 0, 0, 0, 0, time.UTC)

// isStrong tells whether every apt accepts a signature of that version made
// over a digest of the algorithm (RFC 4880, section 9.4).
func isStrong(version, digest int) bool {
	return version == 4 && (digest == 8 || digest == 9 || digest == 10) // SHA256, SHA384, SHA512
}

func digestName(digest int) string {
	if name, ok := map[int]string{1: "MD5", 2: "SHA1", 3: "RIPEMD160", 11: "SHA224"}[digest]; ok {
		return name
	}
	return strconv.Itoa(digest)
}

// certKey is a key or subkey of a certificate, with what speaks against it.
type certKey struct {
	primary     *certKey // itself, for a primary key
	fingerprint string
	warning     string
	refusal     string // because of its algorithm
	bound       bool   // by a strong signature of the primary key
	weak        string // why another such signature does not count
}

// judge applies the policy of apt to a key or subkey of a certificate and to
// those signatures in it that bind it. Revocation and expiry are not looked at.
func judge(cert []byte, fingerprint string) (warning string, refusal error) {
	keys, err := readCert(cert)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(keys, func(k *certKey) bool { return k.fingerprint == fingerprint })
	if i < 0 {
		return "", fmt.Errorf("there is no key %s in the public key", fingerprint)
	}
	k := keys[i]
	for _, k := range []*certKey{k.primary, k} {
		what := "the key"
		advice := fmt.Sprintf(`gpg --quick-generate-key "NAME <name@example.org>" %s sign 5y makes a key that it takes`, strongKeys)
		if k.refusal == "" && !k.bound {
			advice = fmt.Sprintf("gpg --cert-digest-algo SHA512 --quick-set-expire %s 5y makes a new self-signature", k.fingerprint)
		}
		if k != k.primary {
			what = "the subkey"
			advice = fmt.Sprintf("gpg --quick-add-key %s %s sign 5y adds a subkey that it takes", k.primary.fingerprint, strongKeys)
		}
		if reason := cmp.Or(k.refusal, k.weak, "it has no self-signature"); k.refusal != "" || !k.bound {
			return "", diag.WithHint(fmt.Errorf("apt of Debian 13 refuses %s %s: %s", what, k.fingerprint, reason), "%s", advice)
		}
	}
	return cmp.Or(k.warning, k.primary.warning), nil
}

// readCert reads the packets of certificates (RFC 4880, sections 4, 5 and 11.1).
func readCert(b []byte) ([]*certKey, error) {
	var keys []*certKey
	var last *certKey
	for len(b) > 0 {
		tag, body, rest, err := nextPacket(b)
		if err != nil {
			return nil, err
		}
		b = rest
		switch tag {
		case 6, 14: // primary key, subkey
			k, err := readKey(body)
			if err != nil {
				return nil, err
			}
			k.primary = k
			if tag == 14 {
				if last == nil {
					return nil, errNoCert
				}
				k.primary = last.primary
			}
			last = k
			keys = append(keys, k)
		case 2: // of the last key, or of a user ID
			if last == nil {
				return nil, errNoCert
			}
			last.addSignature(readSignature(body))
		}
	}
	return keys, nil
}

var errNoCert = errors.New("the public key is damaged")

func nextPacket(b []byte) (tag byte, body, rest []byte, err error) {
	head := b[0]
	b = b[1:]
	var size int
	switch {
	case head&0xc0 == 0xc0:
		tag = head & 0x3f
		size, b, err = newLength(b)
		if err != nil {
			return 0, nil, nil, err
		}
	case head&0x80 != 0 && head&3 != 3:
		tag = head >> 2 & 0xf
		n := 1 << (head & 3)
		if len(b) < n {
			return 0, nil, nil, errNoCert
		}
		for _, c := range b[:n] {
			size = size<<8 | int(c)
		}
		b = b[n:]
	default:
		return 0, nil, nil, errNoCert
	}
	if size > len(b) {
		return 0, nil, nil, errNoCert
	}
	return tag, b[:size], b[size:], nil
}

// newLength reads the length of a packet of the new format, or of a subpacket.
// Packets of unknown length, as data may have, are no part of a certificate.
func newLength(b []byte) (int, []byte, error) {
	switch {
	case len(b) >= 1 && b[0] < 192:
		return int(b[0]), b[1:], nil
	case len(b) >= 2 && b[0] >= 192 && b[0] < 224:
		return int(b[0]-192)<<8 + int(b[1]) + 192, b[2:], nil
	case len(b) >= 5 && b[0] == 255:
		if n := binary.BigEndian.Uint32(b[1:]); n <= math.MaxInt32 {
			return int(n), b[5:], nil
		}
	}
	return 0, nil, errNoCert
}

func readKey(b []byte) (*certKey, error) {
	if len(b) < 8 || len(b) > math.MaxUint16 {
		return nil, errNoCert
	}
	if b[0] != 4 {
		return &certKey{refusal: fmt.Sprintf("its format has version %d, not 4", b[0])}, nil
	}
	h := sha1.New() // what a fingerprint of version 4 is
	_, _ = h.Write(binary.BigEndian.AppendUint16([]byte{0x99}, uint16(len(b))))
	_, _ = h.Write(b)
	k := &certKey{fingerprint: strings.ToUpper(hex.EncodeToString(h.Sum(nil)))}
	k.warning, k.refusal = judgeAlgorithm(b[5], b[6:])
	return k, nil
}

// judgeAlgorithm takes the number of a public key algorithm and the numbers of
// the key, at least two bytes.
func judgeAlgorithm(algorithm byte, numbers []byte) (warning, refusal string) {
	switch algorithm {
	case 1, 3: // RSA
		bits := binary.BigEndian.Uint16(numbers)
		switch {
		case bits < 2048, bits < strongRSA && !time.Now().Before(rsa2048End):
			return "", fmt.Sprintf("RSA with %d bits", bits)
		case bits < strongRSA:
			return fmt.Sprintf("it is an RSA key of %d bits, which apt of Debian 13 refuses from %s on",
				bits, rsa2048End.Format(time.DateOnly)), ""
		}
		return "", ""
	case 19, 22: // ECDSA, EdDSA
		size := min(int(numbers[0]), len(numbers)-1)
		switch hex.EncodeToString(numbers[1 : 1+size]) {
		case "2a8648ce3d030107", "2b81040022", "2b81040023", "2b06010401da470f01":
			return "", ""
		}
		return "", "an elliptic curve other than Ed25519, NIST P-256, P-384 and P-521"
	case 17:
		return "", "DSA"
	}
	return "", fmt.Sprintf("public key algorithm %d", algorithm)
}

// signature is a signature packet, as far as it matters here.
type signature struct {
	version, kind, digest int
	issuer                string // end of the fingerprint; "" when it does not say
	back                  *signature
}

const (
	userIDSignature = 0x10 // to 0x13
	subkeyBinding   = 0x18
	primaryBinding  = 0x19 // of a subkey that can sign, inside subkeyBinding
	directSignature = 0x1f
)

// addSignature takes into account what a signature says of the key.
func (k *certKey) addSignature(s signature) {
	if !strings.HasSuffix(k.primary.fingerprint, s.issuer) {
		return
	}
	if k == k.primary {
		if s.kind&^3 != userIDSignature && s.kind != directSignature {
			return
		}
	} else if s.kind != subkeyBinding {
		return
	}
	weak := s.weakness()
	if weak == "" && s.kind == subkeyBinding {
		if s.back == nil {
			weak = "it has no signature of its own that binds it to the primary key"
		} else {
			weak = s.back.weakness()
		}
	}
	k.bound = k.bound || weak == ""
	k.weak = cmp.Or(k.weak, weak)
}

func (s signature) weakness() string {
	switch {
	case s.version != 4:
		return fmt.Sprintf("its self-signature has version %d", s.version)
	case !isStrong(s.version, s.digest):
		return "its self-signature is made with " + digestName(s.digest)
	}
	return ""
}

// readSignature reads a signature packet; the zero value stands for a damaged one.
func readSignature(b []byte) signature {
	if len(b) < 6 || b[0] != 4 {
		if len(b) > 2 {
			return signature{version: int(b[0]), kind: int(b[2])} // version 3: length, then kind
		}
		return signature{}
	}
	s := signature{version: 4, kind: int(b[1]), digest: int(b[3])}
	b = b[4:]
	for range 2 { // hashed subpackets, others
		if len(b) < 2 {
			return signature{}
		}
		size := int(binary.BigEndian.Uint16(b))
		b = b[2:]
		if size > len(b) {
			return signature{}
		}
		area := b[:size]
		b = b[size:]
		for len(area) > 0 {
			n, rest, err := newLength(area)
			if err != nil || n < 1 || n > len(rest) {
				return signature{}
			}
			kind, value := rest[0]&0x7f, rest[1:n]
			area = rest[n:]
			switch {
			case kind == 16 && len(value) == 8:
				s.issuer = strings.ToUpper(hex.EncodeToString(value))
			case kind == 32:
				if back := readSignature(value); back.kind == primaryBinding {
					s.back = &back
				}
			}
		}
	}
	return s
}

const armourHead = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n"

// dearmour turns armoured public keys into binary ones, and leaves others as
// they are. The checksum is not looked at.
func dearmour(b []byte) ([]byte, error) {
	text := strings.ReplaceAll(string(b), "\r\n", "\n")
	if !strings.Contains(text, armourHead) {
		if len(b) == 0 || b[0]&0x80 == 0 {
			return nil, errors.New("there is no public key")
		}
		return b, nil
	}
	var out []byte
	for _, block := range strings.Split(text, armourHead)[1:] {
		block, _, ended := strings.Cut(block, "\n-----END PGP PUBLIC KEY BLOCK-----")
		// Headers, and the empty line that ends them.
		_, data, ok := strings.Cut("\n"+block, "\n\n")
		if !ended || !ok {
			return nil, errNoCert
		}
		data, _, _ = strings.Cut(data, "\n=")
		key, err := base64.StdEncoding.DecodeString(data) // passes over line ends
		if err != nil {
			return nil, errNoCert
		}
		out = append(out, key...)
	}
	return out, nil
}
