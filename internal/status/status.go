// Package status is the account of a repository for people and programs that
// want to know what it has: the records of all builds, failed ones too, merged
// over runs and hosts, and the page made of them. status.json is what [Status]
// encodes to, index.html is its [Status.Page].
//
// The package takes and gives bytes; it reads and writes no files. Everything
// that comes from a status.json or from the names of packages is foreign text.
package status

import (
	"bytes"
	"cmp"
	"dkms2bin/internal/diag"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// Version is the version of status.json that this package reads and writes.
const Version = 1

// Status is the content of status.json. Paths in it are slash-separated and
// below the repository's directory; paths of a build host and credentials are
// never in it.
type Status struct {
	Version    int        `json:"version"`
	Repository Repository `json:"repository"`
	Records    []Record   `json:"records"`
	Packages   []Package  `json:"packages"`
}

// Repository says what the repository is.
type Repository struct {
	Description string    `json:"description"`
	Origin      string    `json:"origin"`
	URL         string    `json:"url,omitempty"`       // where clients find it; empty if not known
	SignedBy    string    `json:"signed_by,omitempty"` // fingerprint of the key; empty for an unsigned one
	Updated     time.Time `json:"updated"`             // when its content last changed
}

// Record is what came of building one module for one kernel.
type Record struct {
	Architecture   string    `json:"architecture"`              // as dpkg names it
	Package        string    `json:"package"`                   // the -dkms package
	PackageVersion string    `json:"package_version,omitempty"` // empty if not known
	Module         string    `json:"module,omitempty"`          // as dkms names it; empty if the package could not be installed
	ModuleVersion  string    `json:"module_version,omitempty"`
	Kernel         string    `json:"kernel"` // as uname -r prints it
	Status         string    `json:"status"`
	Reason         string    `json:"reason,omitempty"`   // why it was skipped or failed, in one line
	Hint           string    `json:"hint,omitempty"`     // what to do about a failure
	Stage          string    `json:"stage,omitempty"`    // the program that found the failure
	LeftOut        []string  `json:"left_out,omitempty"` // why modules of it are not in its package, a line for each
	Log            string    `json:"log,omitempty"`
	Debs           []string  `json:"debs,omitempty"`    // paths of the packages made of it
	Signer         string    `json:"signer,omitempty"`  // of its modules, as modinfo prints it; empty for unsigned ones
	SigKey         string    `json:"sig_key,omitempty"` // the serial number of that one's certificate
	Date           time.Time `json:"date"`
	Seconds        float64   `json:"seconds,omitempty"` // that it took
}

// What can become of a build.
const (
	Built   = "built"
	Skipped = "skipped"
	Failed  = "failed"
)

// Package is a binary package of the repository.
type Package struct {
	Name         string `json:"name"`
	Version      string `json:"version"`
	Architecture string `json:"architecture"`
	Filename     string `json:"filename"`
	Module       string `json:"module,omitempty"` // if known; the page otherwise goes by the name
	Kernel       string `json:"kernel,omitempty"` // that it is for, also in the spelling of package names; empty for none
}

// Parse reads a status.json, whose size is for the caller to bound. What it does
// not understand, unknown fields too, is an error: written again, they were lost.
func Parse(raw []byte) (*Status, error) {
	s := &Status{}
	return s.check(raw, decode(raw, s))
}

// ParseRecords is Parse for those who know the packages better: it leaves them
// out, and where they stand as Encode writes them it does not look at them.
func ParseRecords(raw []byte) (*Status, error) {
	// No line ends within a JSON string: this is where the list begins.
	if i := bytes.Index(raw, []byte(packagesBegin)); i >= 0 && bytes.HasSuffix(raw, []byte(packagesEnd)) {
		s := &Status{}
		err := decode(slices.Concat(raw[:i], []byte(packagesBegin+packagesEnd)), s)
		if s, err = s.check(raw, err); err == nil {
			return s, nil
		}
	}
	s := &struct {
		Status
		Packages json.RawMessage `json:"packages"` // hides those of Status
	}{}
	return s.check(raw, decode(raw, s))
}

// Bounds on a status, far above any real one. Two bytes of JSON may ask for hundreds
// in memory.
const (
	maxObjects = 1 << 19
	maxValues  = 1 << 24
)

var errTooMany = fmt.Errorf("it has more than %d records and packages, or %d values", maxObjects, maxValues)

func decode(raw []byte, v any) error {
	if bytes.Count(raw, []byte("{")) > maxObjects || bytes.Count(raw, []byte(",")) > maxValues {
		return errTooMany
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows it")
	}
	return nil
}

// check returns the status that was decoded from raw, perhaps with an error, if
// it is one that this package knows.
func (s *Status) check(raw []byte, decoded error) (_ *Status, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot read the status: %w", err)
		}
	}()
	if s.Version != Version && !errors.Is(decoded, errTooMany) {
		// What else is unknown in another version is of no interest.
		if other := checkVersion(raw); other != nil {
			return nil, other
		}
	}
	if decoded != nil {
		return nil, decoded
	}
	for i, r := range s.Records {
		if !encodable(r.Date) {
			return nil, fmt.Errorf("the date of record %d is not in the years 0 to 9999", i+1)
		}
		if !slices.Contains([]string{Built, Skipped, Failed}, r.Status) {
			return nil, fmt.Errorf("record %d has the unknown status %q", i+1, r.Status)
		}
	}
	if !encodable(s.Repository.Updated) {
		return nil, errors.New("its date is not in the years 0 to 9999")
	}
	return s, nil
}

func checkVersion(raw []byte) error {
	var head struct {
		Version *int `json:"version"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return err
	}
	if head.Version == nil {
		return errors.New("it has no version")
	}
	if *head.Version != Version {
		return diag.WithHint(fmt.Errorf("it has version %d, this program knows version %d", *head.Version, Version),
			"use the same version of dkms2bin on all hosts that share a repository")
	}
	return nil
}

// encodable says whether RFC 3339 has a form for a time in UTC: it may have one
// in another zone alone.
func encodable(t time.Time) bool {
	year := t.UTC().Year()
	return 0 <= year && year <= 9999
}

// Encode gives what Parse reads: the same bytes for the same records and
// packages, whatever their order.
func (s *Status) Encode() ([]byte, error) {
	sorted := Status{
		Version: Version, Repository: s.Repository,
		Records: slices.Clone(s.Records), Packages: slices.Clone(s.Packages),
	}
	sorted.Repository.Updated = s.Repository.Updated.UTC()
	for i := range sorted.Records {
		sorted.Records[i].Date = sorted.Records[i].Date.UTC()
	}
	slices.SortFunc(sorted.Records, compareRecords)
	slices.SortFunc(sorted.Packages, func(a, b Package) int {
		if c := cmp.Compare(a.Filename, b.Filename); c != 0 {
			return c
		}
		return cmp.Compare(fmt.Sprintf("%q", a), fmt.Sprintf("%q", b))
	})
	const perLine = 256 // bytes, to begin with
	var e encoder
	e.buf.Grow((len(sorted.Records) + len(sorted.Packages)) * perLine)
	e.raw(`{"version":`)
	e.value(sorted.Version)
	e.raw(`,"repository":`)
	e.value(sorted.Repository)
	e.raw(`,"records":[`)
	for i := range sorted.Records {
		e.line(i, &sorted.Records[i])
	}
	e.raw(packagesBegin)
	for i := range sorted.Packages {
		e.line(i, &sorted.Packages[i])
	}
	e.raw(packagesEnd)
	if e.err != nil {
		return nil, fmt.Errorf("cannot encode the status: %w", e.err)
	}
	return e.buf.Bytes(), nil
}

// What Encode writes around the packages.
const (
	packagesBegin = "\n],\"packages\":["
	packagesEnd   = "\n]}\n"
)

// encoder writes JSON with each element of a list on a line of its own, for line
// tools and version control.
type encoder struct {
	buf bytes.Buffer
	enc *json.Encoder
	err error
}

func (e *encoder) raw(text string) { e.buf.WriteString(text) }

func (e *encoder) value(v any) {
	if e.enc == nil {
		e.enc = json.NewEncoder(&e.buf)
		e.enc.SetEscapeHTML(false)
	}
	if e.err == nil {
		if e.err = e.enc.Encode(v); e.err == nil {
			e.buf.Truncate(e.buf.Len() - 1) // the end of the line
		}
	}
}

func (e *encoder) line(i int, v any) {
	if i > 0 {
		e.raw(",")
	}
	e.raw("\n")
	e.value(v)
}

// key is what there is one record of.
type key struct{ arch, pkg, version, module, moduleVersion, kernel string }

func (r Record) key() key {
	return key{r.Architecture, r.Package, r.PackageVersion, r.Module, r.ModuleVersion, r.Kernel}
}

// installation is the key of a package that could not be installed: it brought
// no module, and perhaps no version.
func (k key) installation(version string) key {
	return key{arch: k.arch, pkg: k.pkg, version: version, kernel: k.kernel}
}

// compareRecords orders records by their keys, those of one key by date and,
// where that is the same, by all the rest: only equal records compare as equal.
func compareRecords(a, b Record) int {
	x, y := a.key(), b.key()
	c := cmp.Or(
		cmp.Compare(x.arch, y.arch), cmp.Compare(x.pkg, y.pkg), cmp.Compare(x.version, y.version),
		cmp.Compare(x.module, y.module), cmp.Compare(x.moduleVersion, y.moduleVersion), cmp.Compare(x.kernel, y.kernel),
		a.Date.Compare(b.Date),
	)
	if c != 0 {
		return c
	}
	rest := func(r Record) string {
		return fmt.Sprintf("%q %v", append([]string{r.Status, r.Reason, r.Hint, r.Stage, r.Log, r.Signer, r.SigKey, strings.Join(r.LeftOut, "\n")}, r.Debs...), r.Seconds)
	}
	return cmp.Compare(rest(a), rest(b))
}

// Merge adds records, perhaps of other runs or hosts. Of those for the same
// architecture, package, module, versions of both, and kernel the one with the
// latest date stays. That a package could not be installed is forgotten once
// there is a module of that version for that kernel that is not older; of any
// version, where the record has none.
//
// The result depends neither on the order of the records nor on how often they
// are merged.
func (s *Status) Merge(records []Record) {
	latest := make(map[key]Record)
	for _, r := range slices.Concat(s.Records, records) {
		r.Date = r.Date.UTC()
		if old, ok := latest[r.key()]; !ok || compareRecords(r, old) > 0 {
			latest[r.key()] = r
		}
	}
	installed := make(map[key]time.Time)
	for k, r := range latest {
		if k.module == "" {
			continue
		}
		for _, version := range []string{k.version, ""} {
			i := k.installation(version)
			if date, ok := installed[i]; !ok || r.Date.After(date) {
				installed[i] = r.Date
			}
		}
	}
	maps.DeleteFunc(latest, func(k key, r Record) bool {
		date, ok := installed[k.installation(k.version)]
		return k.module == "" && ok && !date.Before(r.Date)
	})
	s.Records = slices.SortedFunc(maps.Values(latest), compareRecords)
}
