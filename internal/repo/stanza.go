package repo

import (
	"dkms2bin/internal/deb"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// fieldOrder is the order in which apt-ftparchive writes the fields of a
// Packages file (observed with apt 2.6); all others follow in the order of the
// control file.
var fieldOrder = []string{
	"Package", "Package-Type", "Architecture", "Subarchitecture", "Version", "Kernel-Version",
	"Built-Using", "Static-Built-Using", "Built-For-Profiles", "Auto-Built-Package", "Multi-Arch",
	"Priority", "Build-Essential", "Protected", "Important", "Essential", "Installer-Menu-Item",
	"Section", "Source", "Origin", "Phased-Update-Percentage", "Maintainer", "Original-Maintainer",
	"Bugs", "Config-Version", "Conffiles", "Installed-Size", "Provides", "Pre-Depends", "Depends",
	"Recommends", "Suggests", "Conflicts", "Breaks", "Replaces", "Enhances", "Filename", "Size",
	"SHA256", "Homepage", "Description", "Description-md5", "Tag", "Task",
}

// fieldRank is the place of a field, by its name in lower case and as it is
// mostly spelled.
var fieldRank = func() map[string]int {
	rank := make(map[string]int, 2*len(fieldOrder))
	for i, name := range fieldOrder {
		rank[strings.ToLower(name)], rank[name] = i, i
	}
	return rank
}()

// notFromControl are the fields that describe the file and not the package: a
// control file that has them is not believed.
var notFromControl = map[string]bool{
	"filename": true, "size": true, "md5sum": true, "sha1": true, "sha256": true, "sha512": true, "status": true,
	"Filename": true, "Size": true, "SHA256": true, // as in fieldOrder
}

// indexStanza returns the stanza of a package for Packages. path is that of
// the .deb below the repository's directory. apt takes Filename as it stands,
// blanks and percent signs too, and quotes it itself in a URL.
func indexStanza(control deb.Stanza, path string, sum []byte, size int64) (deb.Stanza, error) {
	if strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return nil, fmt.Errorf("control character in the file name %q", path)
	}
	type ranked struct {
		deb.Field
		rank int
	}
	fields := make([]ranked, 0, len(control)+3)
	for _, f := range control {
		name := f.Name
		rank, ok := fieldRank[name]
		if !ok {
			name = strings.ToLower(name)
			if rank, ok = fieldRank[name]; !ok {
				rank = len(fieldOrder)
			}
		}
		if !notFromControl[name] {
			fields = append(fields, ranked{f, rank})
		}
	}
	for _, f := range []deb.Field{
		{Name: "Filename", Value: "./" + path},
		{Name: "Size", Value: strconv.FormatInt(size, 10)},
		{Name: "SHA256", Value: hex.EncodeToString(sum)},
	} {
		fields = append(fields, ranked{f, fieldRank[f.Name]})
	}
	slices.SortStableFunc(fields, func(a, b ranked) int { return a.rank - b.rank })
	s := make(deb.Stanza, len(fields))
	for i, f := range fields {
		s[i] = f.Field
	}
	return s, nil
}
