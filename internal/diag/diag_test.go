package diag

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"gotest.tools/v3/assert"
)

func TestHint(t *testing.T) {
	t.Parallel()
	plain := errors.New("it failed")
	inner := WithHint(fs.ErrNotExist, "make %s first", "it")
	tests := []struct {
		name    string
		err     error
		message string
		hint    string
	}{
		{"none", plain, "it failed", ""},
		{"one", inner, "file does not exist", "make it first"},
		{"wrapped", fmt.Errorf("cannot read: %w", inner), "cannot read: file does not exist", "make it first"},
		{"joined", errors.Join(plain, inner), "it failed\nfile does not exist", "make it first"},
		{"the outermost counts", WithHint(fmt.Errorf("cannot read: %w", inner), "look there"), "cannot read: file does not exist", "look there"},
		{"a percent sign in it", WithHint(plain, "%s", "100%d"), "it failed", "100%d"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			assert.Equal(t, tt.err.Error(), tt.message)
			assert.Equal(t, Hint(tt.err), tt.hint)
		})
	}
	assert.Assert(t, errors.Is(inner, fs.ErrNotExist))
	assert.NilError(t, WithHint(nil, "advice"))
	assert.Equal(t, Hint(nil), "")
}

func TestPrintable(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                          "",
		"plain":                     "plain",
		" two\t blanks \n":          "two blanks",
		"bell\x07 and\x1b[31m red":  "bell and[31m red",
		"not UTF-8 \xff, no break":  "not UTF-8 , no break",
		"line\r\nend\u00a0of\u200b": "line end of",
	} {
		assert.Equal(t, Printable(text), want)
	}
}

func TestWithoutLogins(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                                     "",
		"http://example.org/a@b":               "http://…@b",
		"see a@example.org":                    "see a@example.org",
		"deb https://u:p@example.org/":         "deb https://…@example.org/",
		`"http://u:p/w@x@h" and http://v:q@g/`: `"http://…@h" and http://…@g/`,
	} {
		assert.Equal(t, WithoutLogins(text), want)
	}
}
