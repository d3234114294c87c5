package apt

import (
	"dkms2bin/internal/deb"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// installed is what dpkg notes of the packages of a tree, dpkg(1), as far as it tells
// whether another one can be installed beside them as they are.
type installed struct {
	arch     string
	versions map[string]string   // by name
	provides map[string][]string // by name: versions, "" without one
	refused  map[string]bool     // what one of them conflicts with or breaks, whatever the version
	odd      bool                // something is half installed
}

// readInstalled reads the status file of dpkg that a command in the root would see.
func (i Inside) readInstalled() (*installed, error) {
	for _, layer := range append([]string{i.Spec.Root.Upper}, i.Spec.Root.Layers...) {
		all, err := packagesIn(layer)
		if !errors.Is(err, fs.ErrNotExist) {
			return all, err
		}
	}
	return nil, errors.New("there is no status file of dpkg")
}

// onBase says that nothing was installed but the lowest layer, with which apt has made
// its indexes.
func (i Inside) onBase() bool {
	layers := i.Spec.Root.Layers
	return len(layers) > 0 && !slices.ContainsFunc(append(slices.Clone(layers[:len(layers)-1]), i.Spec.Root.Upper), func(layer string) bool {
		_, err := os.Lstat(filepath.Join(layer, statusFile))
		return !errors.Is(err, fs.ErrNotExist)
	})
}

// statusFile is where dpkg notes what is installed, relative to the root.
const statusFile = "var/lib/dpkg/status"

func packagesIn(layer string) (*installed, error) {
	root, err := os.OpenRoot(layer)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	status, err := open(root, statusFile)
	if err != nil {
		return nil, err
	}
	defer status.Close()
	return parseInstalled(status)
}

func parseInstalled(status io.Reader) (*installed, error) {
	all := installed{versions: map[string]string{}, provides: map[string][]string{}, refused: map[string]bool{}}
	foreign := map[string]bool{}
	r := deb.NewReader(status)
	for {
		s, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read the status of dpkg: %w", err)
		}
		name := s.Get("Package")
		_, state, _ := strings.Cut(s.Get("Status"), " ok ")
		switch state {
		case "installed":
		case "not-installed", "config-files":
			continue
		default:
			all.odd = true
		}
		if name == "dpkg" {
			all.arch = s.Get("Architecture")
		}
		all.versions[name] = s.Get("Version")
		foreign[s.Get("Architecture")] = true
		for _, p := range parseRelations(s.Get("Provides")) {
			all.provides[p[0].name] = append(all.provides[p[0].name], p[0].version)
		}
		for _, c := range parseRelations(s.Get("Conflicts") + "," + s.Get("Breaks")) {
			all.refused[c[0].name] = true
		}
	}
	delete(foreign, "all")
	delete(foreign, all.arch)
	all.odd = all.odd || len(foreign) > 0
	return &all, nil
}

// A relation is one of the alternatives in a field such as Depends, Debian Policy 7.1.
type relation struct{ name, operator, version string }

var relationForm = regexp.MustCompile(`^([a-z0-9][a-z0-9+.-]*)(?::any)?(?:\s*\(\s*(<<|<=|=|>=|>>)\s*([^\s)]+)\s*\))?$`)

// parseRelations reads a field. What it cannot make out is a relation without a name.
func parseRelations(field string) (list [][]relation) {
	for group := range strings.SplitSeq(field, ",") {
		if strings.TrimSpace(group) == "" {
			continue
		}
		var alternatives []relation
		for one := range strings.SplitSeq(group, "|") {
			m := relationForm.FindStringSubmatch(strings.TrimSpace(one))
			if m == nil {
				m = make([]string, 4)
			}
			alternatives = append(alternatives, relation{m[1], m[2], m[3]})
		}
		list = append(list, alternatives)
	}
	return list
}

func (r relation) allows(version string) bool {
	return deb.Fulfils(version, r.operator, r.version)
}

// has says whether what is installed satisfies a relation.
func (all *installed) has(r relation) bool {
	version, there := all.versions[r.name]
	return there && r.allows(version) || slices.ContainsFunc(all.provides[r.name], r.allows)
}

// hasAll says whether one of each group of alternatives is there.
func (all *installed) hasAll(field string) bool {
	return !slices.ContainsFunc(parseRelations(field), func(group []relation) bool {
		return !slices.ContainsFunc(group, all.has)
	})
}

// with is what is noted once packages of these stanzas are installed, too.
func (all *installed) with(packages []deb.Stanza) *installed {
	then := *all
	then.versions, then.provides = maps.Clone(all.versions), maps.Clone(all.provides)
	for _, s := range packages {
		then.versions[s.Get("Package")] = s.Get("Version")
		for _, p := range parseRelations(s.Get("Provides")) {
			then.provides[p[0].name] = append(slices.Clip(then.provides[p[0].name]), p[0].version)
		}
	}
	return &then
}

// takes says whether packages can be installed together, and all else stays as it is.
// It may say no where apt would find that they can.
func (all *installed) takes(packages ...deb.Stanza) bool {
	then := all.with(packages)
	return !all.odd && !slices.ContainsFunc(packages, func(s deb.Stanza) bool {
		if _, there := all.versions[s.Get("Package")]; there || slices.ContainsFunc(namesOf(s), func(n string) bool { return all.refused[n] }) {
			return true
		}
		for _, c := range parseRelations(s.Get("Conflicts") + "," + s.Get("Breaks")) {
			if c[0].name == "" || all.has(relation{name: c[0].name}) {
				return true
			}
			for _, other := range packages {
				if other.Get("Package") != s.Get("Package") && slices.Contains(namesOf(other), c[0].name) {
					return true
				}
			}
		}
		return !all.hasAll(s.Get("Pre-Depends")) || !then.hasAll(s.Get("Depends"))
	})
}

// namesOf are the names that a package has and provides.
func namesOf(s deb.Stanza) []string {
	names := []string{s.Get("Package")}
	for _, p := range parseRelations(s.Get("Provides")) {
		names = append(names, p[0].name)
	}
	return names
}
