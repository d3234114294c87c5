package main

import (
	"context"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/dkms"
	"dkms2bin/internal/state"
	"slices"
	"strings"
	"sync"
)

// record puts the records of a package and kernel into the document, in place of
// older ones, in the order of packages, modules and kernels as asked for.
func (b *builder) record(p state.Package, k state.Kernel, modules []dkms.Module, records []state.Build) {
	stale := func(r state.Build) bool {
		if r.Kernel != k.Release || (r.Package != p.Name && r.Package != p.Request) {
			return false
		}
		// An interrupted run leaves what it has not come to.
		redone := slices.ContainsFunc(records, func(n state.Build) bool { return n.Module == r.Module && n.ModuleVersion == r.ModuleVersion })
		known := slices.ContainsFunc(modules, func(m dkms.Module) bool { return m.Name == r.Module && m.Version == r.ModuleVersion })
		return redone || !known
	}
	all := append(slices.DeleteFunc(b.Doc.Builds, stale), records...)
	place := func(r state.Build) (int, string, int) {
		pi := slices.IndexFunc(b.Doc.Packages, func(o state.Package) bool { return o.Name == r.Package || o.Request == r.Package })
		ki := slices.IndexFunc(b.Doc.Kernels, func(o state.Kernel) bool { return o.Release == r.Kernel })
		return pi, r.Module, ki
	}
	slices.SortStableFunc(all, func(x, y state.Build) int {
		xp, xm, xk := place(x)
		yp, ym, yk := place(y)
		if xp != yp {
			return xp - yp
		}
		if c := strings.Compare(xm, ym); c != 0 {
			return c
		}
		return xk - yk
	})
	b.Doc.Builds = all
}

// A reporter writes what came of the jobs, in their order, whichever ended first: a
// line for each package and kernel, and a warning for each failure.
type reporter struct {
	*builder
	next int // the first job that is not reported
}

// advance reports the packages and kernels whose jobs have all ended.
func (r *reporter) advance() {
	for r.next < len(r.jobs) {
		group := r.group()
		if !all(group, func(j *job) bool { return j.done }) {
			return
		}
		r.take(group)
		if !all(group, func(j *job) bool { return j.old }) {
			r.report(group)
		}
	}
}

// finish reports what is left after an error or an interruption.
func (r *reporter) finish(ctx context.Context) {
	for r.advance(); r.next < len(r.jobs); r.advance() {
		group := r.group()
		r.take(group)
		if !all(group, func(j *job) bool { return !j.begun }) {
			outcome := "ERROR"
			if ctx.Err() != nil {
				outcome = "INTERRUPTED"
			}
			r.line(group, outcome)
		}
	}
	cached := 0
	for _, j := range r.jobs {
		if j.done && j.cached {
			cached++
		}
	}
	if cached > 0 {
		r.Msg.Info("builds from the cache: %d of %d", cached, len(r.jobs))
	}
}

// group are the jobs of a package and kernel that are reported next.
func (r *reporter) group() []*job {
	end := r.next
	for end < len(r.jobs) && r.jobs[end].pkg == r.jobs[r.next].pkg && r.jobs[end].kernel.Release == r.jobs[r.next].kernel.Release {
		end++
	}
	return r.jobs[r.next:end]
}

// take records a group.
func (r *reporter) take(group []*job) {
	var records []state.Build
	for _, j := range group {
		if j.done {
			records = append(records, j.record)
		}
	}
	r.record(group[0].pkg.Package, group[0].kernel, group[0].pkg.modules, records)
	r.next += len(group)
}

func (r *reporter) line(group []*job, outcome string) {
	r.Msg.Announce("installing %s package, building for %s .. %s", orRequest(group[0].pkg.Package), group[0].kernel.Release, outcome)
}

// report writes what came of a package for a kernel.
func (r *reporter) report(group []*job) {
	built, failed := 0, 0
	for _, j := range group {
		switch j.record.Status {
		case state.Built:
			built++
		case state.Failed:
			failed++
		}
	}
	switch {
	case failed > 0:
		r.line(group, "FAILED")
	case built == 0:
		r.line(group, "SKIPPED")
	default:
		r.line(group, "OK")
	}
	for _, j := range group {
		b := j.record
		switch b.Status {
		case state.Failed:
			if b.Module == "" {
				r.Msg.Warn("%s: %s", b.Package, b.Reason)
			} else {
				r.Msg.Warn("%s: cannot build %s for %s: %s", b.Package, j, b.Kernel, b.Reason)
			}
			if b.Hint != "" {
				r.Msg.Hint("%s", b.Hint)
			}
			r.Msg.Hint("the whole log is %s", b.Log)
		case state.Skipped:
			r.Msg.Info("%s: %s is not meant for %s: %s", b.Package, j, b.Kernel, b.Reason)
		}
	}
	if k := group[0].kernel; k.Requested && built == 0 && failed == 0 {
		r.Msg.Warn("%s yields nothing for %s", orRequest(group[0].pkg.Package), k.Release)
	}
}

// A live shows on a terminal what is at work, and the last line that it printed.
type live struct {
	*cli.Step
	mu   sync.Mutex
	work []string // in the order in which it began
}

func newLive(m *cli.Messenger) *live { return &live{Step: m.Wait("looking at the packages")} }

// begin adds what is at work, until the returned function is called.
func (l *live) begin(text string) (done func()) {
	l.change(func() { l.work = append(l.work, text) })
	return func() {
		l.change(func() {
			i := slices.Index(l.work, text)
			l.work = slices.Delete(l.work, i, i+1)
		})
	}
}

func (l *live) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	switch n := len(l.work); n {
	case 0:
	case 1:
		l.Show("%s", l.work[0])
	default:
		l.Show("%s and %d more", l.work[0], n-1)
	}
}
