package modpkg

import (
	"bytes"
	"dkms2bin/internal/deb"
	"strings"
)

// An Origin says what a package was made of and by, so that it can be made again.
// What is not known is empty.
type Origin struct {
	Package       string   // "v4l2loopback-dkms (= 0.12.7-2)"
	Digest        string   // SHA-256 of its .deb, or of the source directory's content
	Module        string   // "v4l2loopback 0.12.7", as dkms names it
	Kernel        string   // as uname -r prints it
	Headers       string   // "linux-headers-6.1.0-56-amd64 (= 6.1.192-2)"
	Compiler      string   // what it calls itself in the modules
	DKMS          string   // version of dkms's package
	BuildPackages []string // that were there besides, as "libelf-dev (= 0.188-2.1)"
	Program       string   // "dkms2bin 1.0"
}

// ProgramField is the field of the buildinfo file that changes with every version
// of dkms2bin.
const ProgramField = "Made-By"

// text is the buildinfo file: one stanza (deb822(5)).
func (o Origin) text() []byte {
	var s deb.Stanza
	for _, f := range []deb.Field{
		{Name: "Dkms-Package", Value: o.Package},
		{Name: "Dkms-Package-SHA256", Value: o.Digest},
		{Name: "Module", Value: o.Module},
		{Name: "Kernel", Value: o.Kernel},
		{Name: "Kernel-Headers", Value: o.Headers},
		{Name: "Compiler", Value: o.Compiler},
		{Name: "Dkms", Value: o.DKMS},
		{Name: "Build-Packages", Value: strings.Join(o.BuildPackages, ", ")},
		{Name: ProgramField, Value: o.Program},
	} {
		if f.Value = oneLine(f.Value); f.Value != "" {
			s = append(s, f)
		}
	}
	var b bytes.Buffer
	if _, err := s.WriteTo(&b); err != nil {
		return nil // cannot be: values of one line
	}
	return b.Bytes()
}
