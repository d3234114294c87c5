package repo

import (
	"crypto/sha256"
	"dkms2bin/internal/deb"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// dateLayout is the form of RFC 1123 that all versions of apt read.
const dateLayout = "Mon, 02 Jan 2006 15:04:05 UTC"

// maxRelease bounds what is read of the Release that is there already.
const maxRelease = 16 << 20

func (o Options) validate() error {
	for _, f := range append(o.fields(), deb.Field{Name: "URL", Value: o.URL}) {
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

// digest stands for all options that the index depends on, and for the form in
// which this version writes it.
func (o Options) digest() string {
	h := sha256.New()
	fmt.Fprintf(h, "2 %q %q %+v", o.fields(), o.URL, o.Keep)
	if o.Key != nil {
		fmt.Fprintf(h, " %q %s", o.Key.Fingerprint, o.Key.Public())
	}
	return hex.EncodeToString(h.Sum(nil))
}

// newDate is the Date of the new Release. It is later than that of the old one.
func (o Options) newDate(old time.Time) time.Time {
	date := o.Date
	if date.IsZero() {
		date = time.Now()
	}
	date = date.UTC().Truncate(time.Second)
	if !date.After(old) {
		return old.Add(time.Second)
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

// releaseText is the content of Release, with the fields in apt-ftparchive's
// order. SHA256 is the only digest: apt asks for no weaker one, and by-hash for
// the strongest.
func releaseText(opt Options, date time.Time, sel selection, files []*file) (string, error) {
	var archs []string
	for _, e := range sel.packages {
		if !slices.Contains(archs, e.arch) {
			archs = append(archs, e.arch)
		}
	}
	slices.Sort(archs)
	var s deb.Stanza
	set := func(name, value string) {
		if value != "" {
			s.Set(name, value)
		}
	}
	set("Origin", opt.Origin)
	set("Label", opt.Label)
	set("Suite", opt.Suite)
	set("Codename", opt.Codename)
	set("Date", date.Format(dateLayout))
	set("Architectures", strings.Join(archs, " "))
	set("Description", opt.Description)
	set("Acquire-By-Hash", "yes")
	var sums strings.Builder
	for _, f := range files {
		fmt.Fprintf(&sums, "\n %s %16d %s", f.digest(), f.size, f.name)
	}
	s.Set("SHA256", sums.String())
	var text strings.Builder
	_, err := s.WriteTo(&text)
	return text.String(), err
}
