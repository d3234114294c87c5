package deb

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// CompareVersions compares two package versions in the order of
// deb-version(7), as "dpkg --compare-versions" does, and returns -1, 0 or +1.
// A missing epoch or revision counts as 0.
//
// Strings that [ValidateVersion] refuses are ordered too, always in the same
// way, but dpkg may order them otherwise.
func CompareVersions(a, b string) int {
	va, vb := splitVersion(a), splitVersion(b)
	if c := compareDigits(va.epoch, vb.epoch); c != 0 {
		return c
	}
	if c := comparePart(va.upstream, vb.upstream); c != 0 {
		return c
	}
	return comparePart(va.revision, vb.revision)
}

// ValidateVersion reports why s is not a version that dpkg-deb accepts in a
// package it builds: [epoch:]upstream[-revision], where the epoch is a number
// below 2^31, upstream starts with a digit and consists of letters, digits and
// ".+-:~", and revision of letters, digits and ".+~".
func ValidateVersion(s string) error {
	if err := validateVersion(s); err != nil {
		return fmt.Errorf("invalid version %q: %w", s, err)
	}
	return nil
}

func validateVersion(s string) error {
	if s == "" {
		return errors.New("it is empty")
	}
	if epoch, rest, ok := strings.Cut(s, ":"); ok {
		if rest == "" {
			return errors.New("nothing follows the epoch")
		}
		if epoch == "" || !allDigits(epoch) {
			return errors.New("the epoch is not a number")
		}
		if n, err := strconv.ParseInt(epoch, 10, 64); err != nil || n > math.MaxInt32 {
			return errors.New("the epoch is too big")
		}
	}
	v := splitVersion(s)
	if v.upstream == "" {
		return errors.New("the upstream version is empty")
	}
	if v.hyphen && v.revision == "" {
		return errors.New("the revision is empty")
	}
	if !isDigit(v.upstream[0]) {
		return errors.New("the upstream version does not start with a digit")
	}
	for i := range len(v.upstream) {
		if c := v.upstream[i]; !isAlnum(c) && !strings.ContainsRune(".+-:~", rune(c)) {
			return fmt.Errorf("invalid character %q in the upstream version", c)
		}
	}
	for i := range len(v.revision) {
		if c := v.revision[i]; !isAlnum(c) && !strings.ContainsRune(".+~", rune(c)) {
			return fmt.Errorf("invalid character %q in the revision", c)
		}
	}
	return nil
}

// version is a version taken apart.
type version struct {
	epoch, upstream, revision string
	hyphen                    bool // a revision is present, if perhaps empty
}

// splitVersion cuts at the first colon, if a number stands before it, and at
// the last hyphen: an upstream version may hold hyphens, a revision may not.
func splitVersion(s string) version {
	var v version
	if epoch, rest, ok := strings.Cut(s, ":"); ok && allDigits(epoch) {
		v.epoch, s = epoch, rest
	}
	v.upstream = s
	if i := strings.LastIndexByte(s, '-'); i >= 0 {
		v.upstream, v.revision, v.hyphen = s[:i], s[i+1:], true
	}
	return v
}

// comparePart compares upstream versions or revisions: in turns a run of
// other characters, by weight, and a run of digits, as a number.
func comparePart(a, b string) int {
	for a != "" || b != "" {
		for startsText(a) || startsText(b) {
			wa, wb := weight(a), weight(b)
			if wa != wb {
				return sign(wa - wb)
			}
			// Equal weights, one of them of a character: both are.
			a, b = a[1:], b[1:]
		}
		na, nb := digits(a), digits(b)
		if c := compareDigits(a[:na], b[:nb]); c != 0 {
			return c
		}
		a, b = a[na:], b[nb:]
	}
	return 0
}

func startsText(s string) bool { return s != "" && !isDigit(s[0]) }

// weight is the rank of the first character of s in a run of non-digits: the
// tilde before the end, the end (of the string or of the run) before letters,
// letters before all others.
func weight(s string) int {
	switch {
	case s == "" || isDigit(s[0]):
		return 0
	case s[0] == '~':
		return -1
	case isAlpha(s[0]):
		return int(s[0])
	default:
		return int(s[0]) + 256
	}
}

// compareDigits compares two runs of digits as numbers of any length; an empty
// run is zero.
func compareDigits(a, b string) int {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	if len(a) != len(b) {
		return sign(len(a) - len(b))
	}
	return strings.Compare(a, b)
}

// digits is the length of the run of digits that s starts with.
func digits(s string) int {
	n := 0
	for n < len(s) && isDigit(s[n]) {
		n++
	}
	return n
}

func sign(n int) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}

func allDigits(s string) bool { return digits(s) == len(s) }
func isDigit(c byte) bool     { return '0' <= c && c <= '9' }
func isLower(c byte) bool     { return 'a' <= c && c <= 'z' }
func isAlpha(c byte) bool     { return isLower(c) || 'A' <= c && c <= 'Z' }
func isAlnum(c byte) bool     { return isAlpha(c) || isDigit(c) }
