package repo

import (
	"dkms2bin/internal/deb"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// dateLayout is the form of RFC 1123 that all versions of apt read.
const dateLayout = "Mon, 02 Jan 2006 15:04:05 UTC"

// maxRelease bounds what is read of the Release that is there already.
const maxRelease = 1 << 20

func (o Options) validate() error {
	for _, f := range o.fields() {
		if strings.ContainsFunc(f.Value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return fmt.Errorf("%s %q: control character in it", f.Name, f.Value)
		}
		if strings.TrimSpace(f.Value) != f.Value {
			return fmt.Errorf("%s %q: blank at its beginning or end", f.Name, f.Value)
		}
	}
	return nil
}

func (o Options) fields() []deb.Field {
	return []deb.Field{
		{Name: "Origin", Value: o.Origin},
		{Name: "Label", Value: o.Label},
		{Name: "Suite", Value: o.Suite},
		{Name: "Codename", Value: o.Codename},
		{Name: "Description", Value: o.Description},
	}
}

// date is the Date of the new Release, whose old version is at path.
func (o Options) date(path string) time.Time {
	date := o.Date
	if date.IsZero() {
		date = time.Now()
	}
	date = date.UTC().Truncate(time.Second)
	if old := oldDate(path); old.After(date) {
		return old
	}
	return date
}

// oldDate returns the Date of a Release, the zero time when it has none that
// can be read: then no apt has taken it over.
func oldDate(path string) time.Time {
	f, err := os.Open(path)
	if err != nil {
		return time.Time{}
	}
	defer f.Close() // read only
	s, err := deb.NewReader(io.LimitReader(f, maxRelease)).Next()
	if err != nil {
		return time.Time{}
	}
	for _, layout := range []string{dateLayout, time.RFC1123, time.RFC1123Z} {
		if t, err := time.Parse(layout, s.Get("Date")); err == nil {
			return t.UTC()
		}
	}
	return time.Time{}
}

// releaseFile is the content of Release.
type releaseFile struct {
	opt   Options
	date  time.Time
	archs map[string]bool
	files []*file
}

// write writes it, with the fields in apt-ftparchive's order. SHA256 is the
// only digest: apt asks for no weaker one, and by-hash for the strongest.
func (r releaseFile) write(w io.Writer) error {
	var s deb.Stanza
	set := func(name, value string) {
		if value != "" {
			s.Set(name, value)
		}
	}
	set("Origin", r.opt.Origin)
	set("Label", r.opt.Label)
	set("Suite", r.opt.Suite)
	set("Codename", r.opt.Codename)
	set("Date", r.date.Format(dateLayout))
	set("Architectures", strings.Join(slices.Sorted(maps.Keys(r.archs)), " "))
	set("Description", r.opt.Description)
	var sums strings.Builder
	for _, f := range r.files {
		fmt.Fprintf(&sums, "\n %s %16d %s", f.digest(), f.size, f.name)
	}
	s.Set("SHA256", sums.String())
	_, err := s.WriteTo(w)
	return err
}
