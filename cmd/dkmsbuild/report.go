package main

import (
	"dkms2bin/internal/cli"
	"dkms2bin/internal/dkms"
	"dkms2bin/internal/state"
	"slices"
	"strings"
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

// report writes what came of a package for a kernel.
func (b *builder) report(p state.Package, k state.Kernel, records []state.Build, step *cli.Step) {
	built, failed := 0, 0
	for _, r := range records {
		switch r.Status {
		case state.Built:
			built++
		case state.Failed:
			failed++
		}
	}
	switch {
	case failed > 0:
		step.Done("FAILED")
	case built == 0:
		step.Done("SKIPPED")
	default:
		step.Done("OK")
	}
	for _, r := range records {
		what := strings.TrimSpace(r.Module + " " + r.ModuleVersion)
		switch {
		case r.Status == state.Failed && r.Module == "":
			b.Msg.Warn("%s: %s", r.Package, r.Reason)
			b.Msg.Hint("the whole log is %s", r.Log)
		case r.Status == state.Failed:
			b.Msg.Warn("%s: cannot build %s for %s: %s", r.Package, what, k.Release, r.Reason)
			if r.Hint != "" {
				b.Msg.Hint("%s", r.Hint)
			}
			b.Msg.Hint("the whole log is %s", r.Log)
		case r.Status == state.Skipped:
			b.Msg.Info("%s: %s is not meant for %s: %s", r.Package, what, k.Release, r.Reason)
		}
	}
	if k.Requested && built == 0 && failed == 0 {
		b.Msg.Warn("%s yields nothing for %s", orRequest(p), k.Release)
	}
}
