package modpkg

import (
	"bytes"
	"dkms2bin/internal/deb"
	"fmt"
	"path"
	"regexp"
	"strings"
	"time"
)

// docs are the files in a package's directory of documentation, and its lintian
// overrides.
type docs struct {
	Package, Version string

	What      string // the entry of the changelog
	Copyright []byte // a copyright file of a Debian package; where there is none:
	Terms     string // what is known instead, in one paragraph
	License   []byte // the source's own file, may be empty
	Changelog []byte // of what it was made from, may be empty
	Origin    Origin
	Overrides []override // beside those that all packages may need
	Time      time.Time
}

// An override has lintian accept what cannot be mended.
type override struct{ tag, reason string }

func (d docs) files() ([]deb.File, error) {
	dir := path.Join("/usr/share/doc", d.Package)
	var files []deb.File
	add := func(name string, text []byte) error {
		if len(text) == 0 {
			return nil
		}
		if strings.HasSuffix(name, ".gz") {
			var err error
			if text, err = compress(text); err != nil {
				return err
			}
		}
		files = append(files, inMemory(name, text))
		return nil
	}
	changelog := "changelog.gz"
	if strings.Contains(d.Version, "-") {
		changelog = "changelog.Debian.gz"
	}
	for _, f := range []struct {
		name string
		text []byte
	}{
		{path.Join(dir, "copyright"), d.copyright()},
		{path.Join(dir, "COPYING.gz"), d.License},
		{path.Join(dir, changelog), d.changelog()},
		{path.Join(dir, "buildinfo"), d.Origin.text()},
		{path.Join("/usr/share/lintian/overrides", d.Package), d.overrides()},
	} {
		if err := add(f.name, f.text); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// changelog is that of what the package was made from, with an entry for this
// package on top, a second newer.
func (d docs) changelog() []byte {
	entry := fmt.Appendf(nil, "%s (%s) unstable; urgency=medium\n\n  * %s\n\n -- %s  %s\n",
		d.Package, d.Version, strings.ReplaceAll(wrapText(d.What), "\n", "\n   "), Maintainer, d.Time.UTC().Add(time.Second).Format("Mon, 02 Jan 2006 15:04:05 -0700"))
	if len(d.Changelog) == 0 {
		return entry
	}
	return append(append(entry, '\n'), d.Changelog...)
}

func (d docs) copyright() []byte {
	if len(d.Copyright) > 0 {
		return d.Copyright
	}
	text := d.Terms + "\n"
	if len(d.License) > 0 {
		text += "\nThe license of the source is in the file COPYING.gz beside this one.\n"
	}
	if strings.Contains(d.Terms, "GPL") {
		text += "\nThe GNU General Public License, version 2, is in\n/usr/share/common-licenses/GPL-2.\n"
	}
	return []byte(text)
}

// oldAddress is what lintian takes for an address that the Free Software Foundation
// no longer has.
var oldAddress = regexp.MustCompile(`(?s)Free\s*Software\s*Foundation.*02139|02111-1307|02110-1301`)

// overrides are for lintian, each with its reason.
func (d docs) overrides() []byte {
	const (
		mostDots    = 2 // that lintian takes for a revision, as in 1.1~bpo12
		longestName = 80
		longestArch = len("kfreebsd-amd64") // lintian counts all as if they were for it
	)
	var list []override
	if i := strings.LastIndex(d.Version, "-"); i >= 0 && strings.Count(d.Version[i:], ".") > mostDots {
		list = append(list, override{"debian-revision-not-well-formed", "The revision is that of the -dkms package, and the version of the kernel's package follows it."})
	}
	name := deb.Filename(deb.Stanza{{Name: "Package", Value: d.Package}, {Name: "Version", Value: d.Version}})
	if len(name)+longestArch > longestName {
		list = append(list, override{"package-has-long-file-name", "The name tells module and kernel, the version those of both."})
	}
	if oldAddress.Match(d.Copyright) {
		list = append(list, override{"old-fsf-address-in-copyright-file", "The file is that of the -dkms package."})
	}
	if len(d.Copyright) == 0 {
		list = append(list, override{"copyright-without-copyright-notice", "There was no copyright file to take over."})
	}
	if len(d.Copyright) == 0 && len(d.License) > 0 {
		list = append(list, override{"extra-license-file", "The license of the source, word for word as it came."})
	}
	var b bytes.Buffer
	for _, o := range append(list, d.Overrides...) {
		fmt.Fprintf(&b, "# %s\n%s: %s\n", o.reason, d.Package, o.tag)
	}
	return b.Bytes()
}
