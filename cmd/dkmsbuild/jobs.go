package main

import (
	"dkms2bin/internal/dkms"
	"dkms2bin/internal/state"
	"fmt"
	"slices"
	"strings"
)

// A job is one module to be built for one kernel.
type job struct {
	pkg    *pkg
	kernel state.Kernel
	module dkms.Module // none where the package could not be installed
	conf   dkms.Conf
	unmet  []string // names in BUILD_DEPENDS that no module of this run has
	cycle  string   // the way round, where it needs itself
	needed bool     // another one needs it
	source string   // digest of all that it is made from, or ""
	old    bool     // the record was there, and is good
	cached bool     // its result is from the cache
	begun  bool
	done   bool
	record state.Build
}

func (j *job) String() string {
	if j.module == (dkms.Module{}) {
		return orRequest(j.pkg.Package)
	}
	return j.module.String()
}

// planJobs makes the jobs, in the order of packages, kernels and modules, and the
// graph of what they need.
func (b *builder) planJobs() {
	for _, p := range b.packages {
		for _, k := range b.kernels {
			if p.Error != "" {
				b.jobs = append(b.jobs, &job{pkg: p, kernel: k})
				continue
			}
			for i, m := range p.modules {
				b.jobs = append(b.jobs, &job{pkg: p, kernel: k, module: m, conf: p.confs[k.Release][i]})
			}
		}
	}
	b.graph = needsOf(b.jobs)
	for i, way := range b.graph.untie() {
		b.jobs[i].cycle = b.spell(way)
	}
	for _, needs := range b.graph {
		for _, n := range needs {
			b.jobs[n.job].needed = true
		}
	}
	for i, j := range b.jobs {
		b.digest(i)
		if old := b.find(j.pkg.Name, j.module, j.kernel); old != nil && b.keeps(j, *old) {
			j.old, j.done, j.record = true, true, *old
		}
	}
}

// spell writes a cycle as "a 1.0 needs b 1.0, which needs a 1.0".
func (b *builder) spell(way []int) string {
	text := b.jobs[way[0]].String() + " needs "
	var rest []string
	for _, i := range way[1:] {
		rest = append(rest, b.jobs[i].String())
	}
	return text + strings.Join(rest, ", which needs ")
}

// needsOf finds for each job the jobs of the same kernel that it needs: the modules of
// its BUILD_DEPENDS, of its own package before those of packages that it depends on
// before others; and all modules of the packages that its package depends on.
func needsOf(jobs []*job) graph {
	g := make(graph, len(jobs))
	for i, j := range jobs {
		for _, name := range j.conf.BuildDepends {
			at := moduleFor(jobs, j, name)
			if at < 0 {
				j.unmet = append(j.unmet, name)
				continue
			}
			g[i] = append(g[i], need{at, true})
		}
		for at, o := range jobs {
			known := slices.ContainsFunc(g[i], func(n need) bool { return n.job == at })
			if !known && o.kernel.Release == j.kernel.Release && o.pkg != j.pkg && slices.Contains(j.pkg.Depends, o.pkg.Name) {
				g[i] = append(g[i], need{at, false})
			}
		}
		slices.SortFunc(g[i], func(x, y need) int { return x.job - y.job })
	}
	return g
}

// moduleFor is the job of the module of that name which another one needs, or -1.
func moduleFor(jobs []*job, of *job, name string) int {
	best, at := 0, -1
	for i, o := range jobs {
		if o.module.Name != name || o.kernel.Release != of.kernel.Release {
			continue
		}
		rank := 1
		switch {
		case o.pkg == of.pkg:
			rank = 3
		case slices.Contains(of.pkg.Depends, o.pkg.Name):
			rank = 2
		}
		if rank > best {
			best, at = rank, i
		}
	}
	return at
}

// keeps says that a record's results are there, unchanged, and were made from what
// would be used now. What others need must be there to build upon.
func (b *builder) keeps(j *job, r state.Build) bool {
	return r.Status != state.Failed && r.Source != "" && r.Source == j.source && b.hasResult(r) &&
		(!j.needed || r.Status != state.Built || b.tree.HasLayer(r.Layer))
}

// unbuilt says why a job cannot begin: what it needs was not built. A module that is
// not meant for the kernel is missed only by those that name it in BUILD_DEPENDS, and
// then dkms decides; one that failed, by all.
func (b *builder) unbuilt(i int) string {
	j := b.jobs[i]
	if j.cycle != "" {
		return "needs itself: " + j.cycle
	}
	for _, n := range b.graph[i] {
		o := b.jobs[n.job]
		switch {
		case o.record.Status != state.Failed:
		case o.pkg.Error != "":
			return fmt.Sprintf("needs %s, which cannot be installed", o)
		default:
			return fmt.Sprintf("needs %s, whose build failed", o)
		}
	}
	return ""
}

// excluded names what a job needs by BUILD_DEPENDS and is not meant for the kernel.
func (b *builder) excluded(i int) string {
	for _, n := range b.graph[i] {
		if o := b.jobs[n.job]; n.hard && o.record.Status == state.Skipped {
			return fmt.Sprintf("needs %s, which is not meant for this kernel", o)
		}
	}
	return ""
}
