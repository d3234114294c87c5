// Package diag is about what people read: errors that carry what can be done about
// them, and foreign text in messages.
package diag

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"
)

type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

// WithHint returns err with advice attached; nil stays nil. The advice is a
// sentence without a full stop and is shown on a line of its own.
func WithHint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &hinted{err, fmt.Sprintf(format, args...)}
}

// Hint returns the outermost advice that err carries, or "".
func Hint(err error) string {
	var h *hinted
	if errors.As(err, &h) {
		return h.hint
	}
	return ""
}

// login fits what stands for user and password in an address, also a password with
// characters that should have been escaped.
var login = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)[^\s"']*@`)

// WithoutLogins takes users and passwords out of the addresses in a text.
func WithoutLogins(text string) string { return login.ReplaceAllString(text, "${1}…@") }

// Printable makes one line of foreign text: control characters are left out, and
// blanks and line ends folded.
func Printable(text string) string {
	if !strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return text // as most names are
	}
	text = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r):
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, ""))
	return strings.Join(strings.Fields(text), " ")
}
