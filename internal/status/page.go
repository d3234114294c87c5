package status

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"dkms2bin/internal/deb"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/kernel"
	_ "embed" // the page's parts
	"encoding/base64"
	"fmt"
	"html/template"
	"math"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS string
	//go:embed page.js
	pageJS string

	// pageTemplate is parsed when a page is made: most runs make none.
	pageTemplate = sync.OnceValue(func() *template.Template {
		return template.Must(template.New("index.html").Parse(pageHTML))
	})
)

const (
	// maxText bounds a text on the page, in runes; reasons are shorter unless
	// someone means harm.
	maxText = 500
	// fewModules is up to how many modules a matrix has room for words.
	fewModules = 6
	// fewCells is up to how many cells all details are open from the start.
	fewCells = 60
)

// Page gives index.html: one file that needs no other, for any browser.
func (s *Status) Page() ([]byte, error) {
	var buf bytes.Buffer
	buf.Grow((len(s.Records) + len(s.Packages)) * 2 * perCell)
	if err := pageTemplate().Execute(&buf, s.page()); err != nil {
		return nil, fmt.Errorf("cannot make the page: %w", err)
	}
	return buf.Bytes(), nil
}

// page is what the template is filled with. All its texts are for people:
// printable, and not too long. All its links are usable in a URL as they are.
type page struct {
	Policy   string
	CSS      template.CSS
	JS       template.JS
	Title    string
	Origin   string
	Updated  time.Time
	SignedBy string
	URL      string // empty if not known
	Commands string // that add the repository
	Manually string // the .sources file that does without a key in it
	OneLine  string // the same for old versions of apt
	Example  string // a package to install
	Packages int
	Counts   counts
	Matrices []*matrix
	Open     bool   // all details
	Others   []link // packages that belong to no kernel
}

// counts are numbers of cells.
type counts struct{ Built, Failed, Skipped, Untried int }

func (c counts) Total() int { return c.Built + c.Failed + c.Skipped + c.Untried }

func (c *counts) add(cell *cell) {
	if cell == nil {
		c.Untried++
		return
	}
	switch cell.Status {
	case Built:
		c.Built++
	case Skipped:
		c.Skipped++
	default:
		c.Failed++
	}
}

// String names those that are not zero, the worst first.
func (c counts) String() string {
	var parts []string
	for _, p := range []struct {
		n    int
		what string
	}{{c.Failed, "failed"}, {c.Skipped, "skipped"}, {c.Built, "built"}, {c.Untried, "never tried"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.what))
		}
	}
	return strings.Join(parts, ", ")
}

// matrix is one architecture.
type matrix struct {
	Name     string
	Modules  []*module  // by name
	Flavours []*flavour // that of the architecture's name first
}

func (m *matrix) Few() bool { return len(m.Modules) <= fewModules }

func (m *matrix) Columns() int { return 1 + len(m.Modules) }

func (m *matrix) Kernels() int {
	n := 0
	for _, f := range m.Flavours {
		n += len(f.Rows)
	}
	return n
}

// module is a column of the matrix, and a section of the details.
type module struct {
	Name   string
	ID     anchor
	Counts counts
	Groups []*group
}

// anchor is an ID in the page, with all percent-encoded that a URL would have
// so; so it is found by any address that leads to it.
type anchor string

func (a anchor) Href() string { return "#" + string(a) }

// flavour is a group of rows, the newest kernel first.
type flavour struct {
	Name string
	Rows []row
}

type row struct {
	Base, Flavour string  // the kernel's release, in two parts
	Cells         []*cell // nil: never tried
}

// cell is one module for one kernel: its newest version, and earlier ones.
type cell struct {
	ID     anchor
	Kernel string
	*outcome
	Earlier []*outcome
}

// group is the cells of a module that have the same to say.
type group struct {
	*outcome
	Cells []*cell
}

// outcome is a record for people, or packages that have none.
type outcome struct {
	Status, Version, Source, Signer, Stage, Reason, Hint string
	LeftOut                                              []string
	Date                                                 time.Time // zero: not known
	Took                                                 string
	Log                                                  string // link; empty for none
	Packages                                             []link

	record Record
}

// Sign stands for the status where there is no room for a word.
func (o *outcome) Sign() string {
	switch o.Status {
	case Built:
		return "✓"
	case Failed:
		return "✗"
	case Skipped:
		return "○"
	}
	return ""
}

// headline is what outcomes of one group have in common.
func (o *outcome) headline() [8]string {
	return [8]string{o.Status, o.Version, o.Source, o.Signer, o.Stage, o.Reason, o.Hint, strings.Join(o.LeftOut, "\n")}
}

type link struct{ Text, Href string }

// place is where a cell is, in the spelling of fold.
type place struct{ arch, module, kernel string }

// fold is how names of modules and kernels are spelled in names of packages.
func fold(name string) string { return strings.ToLower(strings.ReplaceAll(name, "_", "-")) }

// builder brings records and packages into their cells.
type builder struct {
	outcomes map[place][]*outcome
	modules  map[string]string // by fold, as people know them
	kernels  map[string]string
}

func (s *Status) page() *page {
	b := &builder{make(map[place][]*outcome, len(s.Records)+len(s.Packages)), make(map[string]string), make(map[string]string)}
	b.addRecords(s.Records)
	p := &page{
		CSS: template.CSS(pageCSS), JS: template.JS(pageJS),
		Title:   cmp.Or(show(s.Repository.Description), show(s.Repository.Origin), "Binary kernel modules"),
		Origin:  show(s.Repository.Origin),
		Updated: s.Repository.Updated.UTC(), Packages: len(s.Packages),
		Others: b.addPackages(s.Packages),
	}
	p.Policy = fmt.Sprintf("default-src 'none'; style-src 'sha256-%s'; script-src 'sha256-%s'; base-uri 'none'; form-action 'none'",
		digest(pageCSS), digest(pageJS))
	p.Matrices = b.matrices(&p.Counts)
	p.Open = p.Counts.Total()-p.Counts.Untried <= fewCells
	p.instructions(s.Repository)
	return p
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// addRecords puts records into their cells. A package that could not be
// installed failed for all modules that it is known to have.
func (b *builder) addRecords(records []Record) {
	records = slices.SortedFunc(slices.Values(records), compareRecords)
	brings := make(map[[2]string][]string) // by architecture and package
	for _, r := range records {
		id := [2]string{r.Architecture, r.Package}
		if r.Module != "" && !slices.Contains(brings[id], r.Module) {
			brings[id] = append(brings[id], r.Module)
		}
	}
	for _, r := range records {
		modules := []string{r.Module}
		if r.Module == "" {
			modules = brings[[2]string{r.Architecture, r.Package}]
			if len(modules) == 0 {
				modules = []string{r.Package}
			}
		}
		for _, m := range modules {
			b.add(r.Architecture, m, r.Kernel, outcomeOf(r))
		}
	}
}

func (b *builder) add(arch, module, kernel string, o *outcome) {
	at := place{arch, fold(module), fold(kernel)}
	b.outcomes[at] = append(b.outcomes[at], o)
	if b.modules[at.module] == "" {
		b.modules[at.module] = show(module)
	}
	if b.kernels[at.kernel] == "" {
		b.kernels[at.kernel] = show(kernel)
	}
}

func outcomeOf(r Record) *outcome {
	o := &outcome{
		Status: r.Status, Version: show(cmp.Or(r.ModuleVersion, r.PackageVersion)),
		Signer: show(r.Signer), Stage: show(r.Stage), Reason: show(r.Reason), Hint: show(r.Hint),
		Date: r.Date.UTC(), Took: took(r.Seconds), Log: href(r.Log), record: r,
	}
	for _, why := range r.LeftOut {
		o.LeftOut = append(o.LeftOut, show(why))
	}
	if r.Package != r.Module || r.PackageVersion != r.ModuleVersion {
		o.Source = strings.TrimSpace(show(r.Package) + " " + show(r.PackageVersion))
	}
	return o
}

// addPackages links packages to the records that they were made from: those that
// name them, or else those whose version theirs begins with. A package without
// one stands for itself. Packages that belong to no kernel are returned.
func (b *builder) addPackages(packages []Package) (others []link) {
	made := make(map[[2]string][]*outcome) // by architecture and path
	for at, list := range b.outcomes {
		for _, o := range list {
			for _, deb := range o.record.Debs {
				id := [2]string{at.arch, path.Clean(deb)}
				made[id] = append(made[id], o)
			}
		}
	}
	// Those of one name that were not recorded are looked at from the newest.
	packages = slices.SortedFunc(slices.Values(packages), func(a, b Package) int {
		if c := cmp.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return cmp.Or(-deb.CompareVersions(a.Version, b.Version), cmp.Compare(a.Filename, b.Filename))
	})
	for _, p := range packages {
		l := link{show(p.Version), href(p.Filename)}
		name, _ := strings.CutSuffix(p.Name, fold(p.Kernel))
		name, ok := strings.CutSuffix(name, "-modules-")
		module := cmp.Or(p.Module, name)
		if p.Kernel == "" || p.Module == "" && !ok {
			l.Text = show(p.Name) + " " + l.Text
			others = append(others, l)
			continue
		}
		of := made[[2]string{p.Architecture, path.Clean(p.Filename)}]
		if of == nil {
			for _, o := range b.outcomes[place{p.Architecture, fold(module), fold(p.Kernel)}] {
				version := cmp.Or(o.record.PackageVersion, o.record.ModuleVersion)
				if version != "" && strings.HasPrefix(p.Version, version+"+") {
					of = append(of, o)
				}
			}
		}
		if of == nil {
			o := &outcome{Status: Built, Version: show(source(p.Version)), record: Record{PackageVersion: p.Version}}
			b.add(p.Architecture, module, p.Kernel, o)
			of = []*outcome{o}
		}
		for _, o := range of {
			o.Packages = append(o.Packages, l)
		}
	}
	slices.SortFunc(others, func(a, b link) int { return cmp.Or(cmp.Compare(a.Text, b.Text), cmp.Compare(a.Href, b.Href)) })
	return others
}

// source is the version that a package was made from: what follows the last plus
// is that of the kernel.
func source(version string) string {
	if i := strings.LastIndexByte(version, '+'); i > 0 {
		return version[:i]
	}
	return version
}

// compareOutcomes puts the newest version first. A package of unknown version
// that could not be installed is newer than its modules: see Merge.
func compareOutcomes(a, b *outcome) int {
	unknown := func(r Record) int {
		if r.Package != "" && r.Module == "" && r.PackageVersion == "" {
			return 1
		}
		return 0
	}
	return -cmp.Or(
		cmp.Compare(unknown(a.record), unknown(b.record)),
		deb.CompareVersions(a.record.PackageVersion, b.record.PackageVersion),
		deb.CompareVersions(a.record.ModuleVersion, b.record.ModuleVersion),
		a.Date.Compare(b.Date),
		compareRecords(a.record, b.record),
	)
}

// matrices makes the matrices out of the cells, and counts them.
func (b *builder) matrices(total *counts) []*matrix {
	type axes struct{ modules, kernels map[string]bool }
	archs := make(map[string]axes)
	for at := range b.outcomes {
		if archs[at.arch].modules == nil {
			archs[at.arch] = axes{make(map[string]bool), make(map[string]bool)}
		}
		archs[at.arch].modules[at.module] = true
		archs[at.arch].kernels[at.kernel] = true
	}
	var all []*matrix
	for _, arch := range sortedKeys(archs, strings.Compare) {
		m := &matrix{Name: cmp.Or(show(arch), "unknown")}
		modules := sortedKeys(archs[arch].modules, strings.Compare)
		for _, name := range modules {
			m.Modules = append(m.Modules, &module{
				Name: cmp.Or(b.modules[name], "unknown"), ID: anchor(escape(arch) + "/" + escape(name)),
			})
		}
		for _, k := range sortedKeys(archs[arch].kernels, kernelOrder(arch)) {
			name := cmp.Or(b.kernels[k], "unknown")
			r := m.row(name)
			r.Cells = make([]*cell, 0, len(modules))
			id := "/" + anchor(escape(k))
			for i, module := range modules {
				c := b.cell(place{arch, module, k}, name)
				if c != nil {
					c.ID = m.Modules[i].ID + id
				}
				r.Cells = append(r.Cells, c)
				total.add(c)
				m.Modules[i].take(c)
			}
		}
		for _, module := range m.Modules {
			slices.SortStableFunc(module.Groups, func(a, b *group) int { return urgency(a.Status) - urgency(b.Status) })
		}
		all = append(all, m)
	}
	return all
}

// row adds a row for a kernel, and a flavour where it is of another one than the
// row before.
func (m *matrix) row(release string) *row {
	name := kernel.Flavour(release)
	if n := len(m.Flavours); n == 0 || m.Flavours[n-1].Name != name {
		m.Flavours = append(m.Flavours, &flavour{Name: name})
	}
	f := m.Flavours[len(m.Flavours)-1]
	base := strings.TrimSuffix(release, name)
	dash := base[len(strings.TrimRight(base, "-")):]
	f.Rows = append(f.Rows, row{Base: strings.TrimSuffix(base, dash), Flavour: dash + name})
	return &f.Rows[len(f.Rows)-1]
}

// cell is nil where nothing was tried.
func (b *builder) cell(at place, release string) *cell {
	list := b.outcomes[at]
	if len(list) == 0 {
		return nil
	}
	slices.SortFunc(list, compareOutcomes)
	return &cell{Kernel: release, outcome: list[0], Earlier: list[1:]}
}

// take adds a cell to the group of those that say the same.
func (m *module) take(c *cell) {
	m.Counts.add(c)
	if c == nil {
		return
	}
	i := slices.IndexFunc(m.Groups, func(g *group) bool { return g.headline() == c.headline() })
	if i < 0 {
		i = len(m.Groups)
		m.Groups = append(m.Groups, &group{outcome: c.outcome})
	}
	m.Groups[i].Cells = append(m.Groups[i].Cells, c)
}

func urgency(status string) int { return slices.Index([]string{Failed, Skipped, Built}, status) }

// kernelOrder groups kernels by flavour, that of the architecture's own name
// first, and puts the newest first.
func kernelOrder(arch string) func(a, b string) int {
	other := func(flavour string) int {
		if flavour == arch {
			return 0
		}
		return 1
	}
	return func(a, b string) int {
		x, y := kernel.Flavour(a), kernel.Flavour(b)
		return cmp.Or(
			cmp.Compare(other(x), other(y)), cmp.Compare(x, y),
			kernel.CompareReleases(b, a), cmp.Compare(b, a),
		)
	}
}

func sortedKeys[V any](m map[string]V, order func(a, b string) int) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, order)
	return keys
}

var plainURL = regexp.MustCompile(`^[A-Za-z0-9._~:/@%+=,-]+$`)

// instructions says how the repository is added.
func (p *page) instructions(r Repository) {
	p.SignedBy = show(r.SignedBy)
	for _, m := range p.Matrices {
		for _, module := range m.Modules {
			if p.Example == "" && module.Counts.Built > 0 && deb.ValidateName(fold(module.Name)) == nil {
				p.Example = fold(module.Name) + "-modules-$(uname -r)"
			}
		}
	}
	// What a shell would not take as it stands is not for copying.
	u, err := url.Parse(strings.TrimRight(r.URL, "/"))
	if err != nil || u.Scheme == "" || u.User != nil || !plainURL.MatchString(r.URL) {
		return
	}
	p.URL = u.String()
	p.Commands = fmt.Sprintf("sudo wget -O /etc/apt/sources.list.d/dkms2bin.sources %s/dkms2bin.sources\nsudo apt update\n", p.URL)
	p.Manually = fmt.Sprintf("Types: deb\nURIs: %s\nSuites: ./\n", p.URL)
	if r.SignedBy == "" {
		p.Manually += "Trusted: yes\n"
		p.OneLine = fmt.Sprintf("deb [trusted=yes] %s ./", p.URL)
		return
	}
	p.Manually += "Signed-By: /etc/apt/keyrings/dkms2bin.asc\n"
	p.OneLine = fmt.Sprintf("deb [signed-by=/etc/apt/keyrings/dkms2bin.asc] %s ./", p.URL)
}

// show makes one short line of foreign text, without what would change how the
// text around it is read.
func show(text string) string {
	const bytesPerRune = 4
	if len(text) > maxText*bytesPerRune {
		text = text[:maxText*bytesPerRune]
	}
	text = diag.Printable(text)
	if len(text) <= maxText {
		return text
	}
	if runes := []rune(text); len(runes) > maxText {
		text = string(runes[:maxText-1]) + "…"
	}
	return text
}

// href makes a link of a path below the repository, or "" of what is none.
func href(file string) string {
	if !filepath.IsLocal(file) {
		return ""
	}
	var b strings.Builder
	escapeTo(&b, path.Clean(file), "-._~/")
	return b.String()
}

// escape percent-encodes all but the unreserved characters of RFC 3986, among
// them the colon, which would make a scheme of what is before it, and the plus,
// which some servers take for a blank.
func escape(segment string) string {
	var b strings.Builder
	escapeTo(&b, segment, "-._~")
	return b.String()
}

// escapeTo percent-encodes all but letters, digits and the plain characters.
func escapeTo(b *strings.Builder, text, plain string) {
	b.Grow(len(text) + 16)
	done := 0
	for i := range len(text) {
		c := text[i]
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte(plain, c) >= 0 {
			continue
		}
		const digits = "0123456789ABCDEF"
		b.WriteString(text[done:i])
		b.WriteByte('%')
		b.WriteByte(digits[c>>4])
		b.WriteByte(digits[c&15])
		done = i + 1
	}
	b.WriteString(text[done:])
}

// took tells a duration in the unit that people would use.
func took(seconds float64) string {
	switch {
	case !(seconds > 0) || seconds > math.MaxInt32: // not known, or not true
		return ""
	case seconds < 90:
		return fmt.Sprintf("%.0f s", math.Ceil(seconds))
	case seconds < 90*60:
		return fmt.Sprintf("%.0f min", seconds/60)
	}
	return fmt.Sprintf("%.1f h", seconds/3600)
}
