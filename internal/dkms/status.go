package dkms

import (
	"fmt"
	"regexp"
	"strings"
)

// A Status is one line of dkms status.
type Status struct {
	Module, Version string
	Kernel, Arch    string // "" where the module is only added, or broken
	State           string // added, built, installed, broken; elsewhere than here installed-weak, built-weak
	Note            string // what dkms says after it, without the parentheses around it: Original modules exist
}

// statusLine fits "m, v, k, a: built" (up to dkms 2.8.5) and "m/v, k, a: built" (since 2.8.6).
var statusLine = regexp.MustCompile(
	`^([^/,:\s]+)(?:/|, )([^/,\s]+?)(?:, ([^/,\s]+), ([^/,:\s]+))?: (added|built|installed|broken|built-weak|installed-weak)( from [^\s()]+)?((?: ?\([^()]*\))*)$`)

// ParseStatus reads the standard output of dkms status, of any version. Standard error must not be mixed
// in: dkms 3.0 prints warnings of its helpers there. A line that is not a status is an error.
func ParseStatus(output string) ([]Status, error) {
	var list []Status
	for line := range strings.SplitSeq(output, "\n") {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		m := statusLine.FindStringSubmatch(line)
		if m == nil {
			return nil, fmt.Errorf("cannot read output of dkms status: unknown line %.200q", line)
		}
		note := strings.ReplaceAll(strings.TrimSpace(m[7]), ")(", ") (")
		note = strings.TrimSuffix(strings.TrimPrefix(note, "("), ")")
		list = append(list, Status{
			Module: m[1], Version: m[2], Kernel: m[3], Arch: m[4], State: m[5],
			Note: strings.ReplaceAll(note, ") (", "; "),
		})
	}
	return list, nil
}
