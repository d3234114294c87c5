package repo

import (
	"cmp"
	"dkms2bin/internal/deb"
	"dkms2bin/internal/kernel"
	"slices"
	"strings"
)

// Keep says how much of the old stays in the index. 0 stands for all.
type Keep struct {
	Kernels  int // newest kernels of each architecture and flavour
	Versions int // newest versions of each package
}

// KernelOf returns the release of the kernel that a package of kernel modules
// is for, from its name NAME-modules-RELEASE; "" for other packages.
func KernelOf(name string) string {
	_, release, ok := strings.Cut(name, "-modules-")
	if !ok || release == "" || release[0] < '0' || release[0] > '9' {
		return ""
	}
	return release
}

// flavour is what has kernels of its own.
type flavour struct{ arch, name string }

// divide parts the entries into those that stay and those that go, in their
// order: what is for a kernel, or has a version, older than the newest ones
// goes, unless something that stays depends on it. control gives the fields of
// an entry.
func (k Keep) divide(entries []*entry, control func(*entry) (deb.Stanza, error)) (stay, leave []*entry, err error) {
	kernels := make(map[flavour][]string)
	versions := make(map[[2]string][]string)
	for _, e := range entries {
		if release := KernelOf(e.name); release != "" {
			f := flavour{e.arch, kernel.Flavour(release)}
			kernels[f] = append(kernels[f], release)
		}
		id := [2]string{e.name, e.arch}
		versions[id] = append(versions[id], e.version)
	}
	for _, list := range kernels {
		slices.SortFunc(list, newest(kernel.CompareReleases))
	}
	for _, list := range versions {
		slices.SortFunc(list, newest(deb.CompareVersions))
	}
	keeps := make(map[*entry]bool, len(entries))
	var queue []*entry
	add := func(e *entry) {
		if !keeps[e] {
			keeps[e] = true
			queue = append(queue, e)
		}
	}
	provided := make(map[string][]provider)
	for _, e := range entries {
		s, err := control(e)
		if err != nil {
			return nil, nil, err
		}
		provided[e.name] = append(provided[e.name], provider{e, e.version})
		for _, alternatives := range relations(s.Get("Provides")) {
			for _, p := range alternatives {
				provided[p.name] = append(provided[p.name], provider{e, p.version})
			}
		}
		release := KernelOf(e.name)
		if release != "" && !among(kernels[flavour{e.arch, kernel.Flavour(release)}], release, k.Kernels) ||
			!among(versions[[2]string{e.name, e.arch}], e.version, k.Versions) {
			continue
		}
		add(e)
	}
	for len(queue) > 0 {
		e := queue[0]
		queue = queue[1:]
		s, err := control(e)
		if err != nil {
			return nil, nil, err
		}
		for _, field := range []string{"Pre-Depends", "Depends"} {
			for _, alternatives := range relations(s.Get(field)) {
				if p := needed(e, alternatives, provided, keeps); p != nil {
					add(p)
				}
			}
		}
	}
	for _, e := range entries {
		if keeps[e] {
			stay = append(stay, e)
		} else {
			leave = append(leave, e)
		}
	}
	return stay, leave, nil
}

func newest(compare func(a, b string) int) func(a, b string) int {
	return func(a, b string) int { return cmp.Or(compare(b, a), strings.Compare(b, a)) }
}

// among says whether s is one of the first n different strings of the list; 0
// stands for all.
func among(list []string, s string, n int) bool {
	list = slices.Compact(slices.Clone(list))
	return n == 0 || slices.Contains(list[:min(n, len(list))], s)
}

type provider struct {
	entry   *entry
	version string // "" for a Provides without one
}

// needed returns the entry that must stay for a dependency of e: none when one
// that stays fulfils it, or none of the repository does; otherwise the newest
// that fulfils the first alternative that can be.
func needed(e *entry, alternatives []relation, provided map[string][]provider, keeps map[*entry]bool) *entry {
	var best *provider
	for _, rel := range alternatives {
		for _, p := range provided[rel.name] {
			if !rel.fulfilled(p.version) || p.entry.arch != e.arch && p.entry.arch != "all" && e.arch != "all" {
				continue
			}
			if keeps[p.entry] {
				return nil
			}
			if best == nil || deb.CompareVersions(p.version, best.version) > 0 {
				best = &p
			}
		}
		if best != nil {
			return best.entry
		}
	}
	return nil
}

// relation is one alternative of a dependency (Policy 7.1).
type relation struct{ name, operator, version string }

// maxRelations bounds what is read of a dependency field. The longest of Debian's
// archive have some hundred.
const maxRelations = 4096

// relations takes a dependency field apart: all of the outer list are needed,
// one of each inner list suffices. What cannot be read is left out, and what comes
// after maxRelations.
func relations(field string) [][]relation {
	var all [][]relation
	n := 0
	for group := range strings.SplitSeq(field, ",") {
		var alternatives []relation
		for text := range strings.SplitSeq(group, "|") {
			if n++; n > maxRelations {
				return all
			}
			text, _, _ = strings.Cut(text, "[")
			text, _, _ = strings.Cut(text, "<!")
			name, constraint, _ := strings.Cut(text, "(")
			name, _, _ = strings.Cut(strings.TrimSpace(name), ":")
			constraint = strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(constraint), ")"))
			version := strings.TrimLeft(constraint, "<>=")
			if name != "" {
				alternatives = append(alternatives, relation{
					name, strings.TrimSuffix(constraint, version), strings.TrimSpace(version),
				})
			}
		}
		if alternatives != nil {
			all = append(all, alternatives)
		}
	}
	return all
}

func (r relation) fulfilled(version string) bool {
	return deb.Fulfils(version, r.operator, r.version)
}

// OldKernels tells which kernels have had their time, by what Keep left out:
// those older than all that have packages in the index, of a flavour of which
// some kernel has lost all of them.
func (r Result) OldKernels() func(arch, release string) bool {
	if len(r.Outdated) == 0 {
		return func(string, string) bool { return false }
	}
	type id struct{ arch, release string }
	present := make(map[id]bool)
	oldest := make(map[flavour]string)
	for _, p := range r.Packages {
		if p.Kernel == "" {
			continue
		}
		present[id{p.Architecture, p.Kernel}] = true
		f := flavour{p.Architecture, kernel.Flavour(p.Kernel)}
		if o, ok := oldest[f]; !ok || kernel.CompareReleases(p.Kernel, o) < 0 {
			oldest[f] = p.Kernel
		}
	}
	pruned := make(map[flavour]bool)
	for _, p := range r.Outdated {
		if p.Kernel != "" && !present[id{p.Architecture, p.Kernel}] {
			pruned[flavour{p.Architecture, kernel.Flavour(p.Kernel)}] = true
		}
	}
	return func(arch, release string) bool {
		f := flavour{arch, kernel.Flavour(release)}
		return pruned[f] && kernel.CompareReleases(release, oldest[f]) < 0
	}
}
