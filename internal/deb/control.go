package deb

import (
	"errors"
	"fmt"
	"strings"
)

// ValidateName reports why s is no name of a package (Policy 5.6.1): lower
// case letters, digits and "+-.", at least two, the first a letter or digit.
func ValidateName(s string) error {
	if len(s) < 2 {
		return fmt.Errorf("invalid package name %q: it has less than two characters", s)
	}
	for i := range len(s) {
		c := s[i]
		if isLower(c) || isDigit(c) || i > 0 && strings.IndexByte("+-.", c) >= 0 {
			continue
		}
		return fmt.Errorf("invalid package name %q: character %q is not allowed there", s, c)
	}
	return nil
}

// ValidateArch reports why s is no name of an architecture: lower case
// letters, digits and hyphens, the first no hyphen.
func ValidateArch(s string) error {
	if s == "" {
		return errors.New("the architecture is empty")
	}
	for i := range len(s) {
		if c := s[i]; !isLower(c) && !isDigit(c) && (i == 0 || c != '-') {
			return fmt.Errorf("invalid architecture %q", s)
		}
	}
	return nil
}

// validateControl checks what dpkg needs in the control file of a package, and
// what Policy 5.3 makes mandatory.
func validateControl(s Stanza) error {
	for _, name := range []string{"Package", "Version", "Architecture", "Maintainer", "Description"} {
		if s.Get(name) == "" {
			return fmt.Errorf("field %s is missing", name)
		}
	}
	if strings.HasPrefix(s.Get("Description"), "\n") {
		return errors.New("field Description has no synopsis in its first line")
	}
	for i, f := range s {
		if s.index(f.Name) != i {
			return fmt.Errorf("field %s given twice", f.Name)
		}
	}
	return errors.Join(
		ValidateName(s.Get("Package")),
		ValidateVersion(s.Get("Version")),
		ValidateArch(s.Get("Architecture")),
	)
}

// Filename is the name of the package's file as dpkg-deb and the archive have
// it: name_version_arch.deb, without the version's epoch. What does not belong
// into a file name is replaced by "_", as the fields may be foreign.
func Filename(control Stanza) string {
	version := control.Get("Version")
	if epoch, rest, ok := strings.Cut(version, ":"); ok && allDigits(epoch) {
		version = rest
	}
	name := control.Get("Package") + "_" + version + "_" + control.Get("Architecture") + ".deb"
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r == '/' || r == 0x7f {
			return '_'
		}
		return r
	}, name)
}
