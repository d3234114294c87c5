package main

import (
	"context"
	"dkms2bin/internal/dkms"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/sandbox"
	"dkms2bin/internal/state"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// runJobs builds what is not good, side by side. Whatever happens, what was done is
// recorded in the document. An error means that the stage cannot go on.
func (b *builder) runJobs(ctx context.Context) error {
	r := &reporter{builder: b}
	settled := func(i int) bool { return b.jobs[i].old }
	err := schedule(ctx, b.graph, settled, b.most, func(i, cores int) error { return b.runJob(ctx, i, cores) }, func(i int) {
		b.jobs[i].done = true
		r.advance()
	})
	r.finish(ctx)
	return err
}

// runJob builds one module for one kernel, and fills the job's record.
func (b *builder) runJob(ctx context.Context, i, cores int) error {
	j := b.jobs[i]
	j.begun = true
	done := b.live.begin(fmt.Sprintf("building %s for %s", j, j.kernel.Release))
	defer done()
	j.record = state.Build{Package: j.pkg.Name, Kernel: j.kernel.Release, Status: state.Failed, Stage: "dkmsbuild"}
	if j.pkg.Error != "" {
		if j.pkg.Kind == state.KindSource {
			j.record.Package = j.pkg.Request // its name is known once dkms has read it
		}
		j.record.Reason = "cannot install it: " + j.pkg.Error
		if strings.Contains(j.pkg.Error, "Failed to fetch ") {
			j.record.Hint = "the repository did not deliver it: dkmsbuild, run again on its document, tries only what is missing"
		}
		layer := j.pkg.Layer
		if layer == "" {
			layer = packageLayer(j.pkg)
		}
		dir, err := b.tree.Record(layer)
		j.record.Log = filepath.Join(dir, "install.log")
		return err
	}
	j.record.PackageVersion, j.record.Module, j.record.ModuleVersion = j.pkg.Version, j.module.Name, j.module.Version
	j.record.Source = j.source
	err := b.buildModule(ctx, i, cores)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// buildModule builds a module in a layer of its own, or takes what another run has built
// of the same, or finds out why it cannot be built.
func (b *builder) buildModule(ctx context.Context, i, cores int) error {
	j := b.jobs[i]
	// Each build has a name of its own, so that no document loses what it names to
	// another run in the same tree.
	layer := rootfs.LayerName("build", j.pkg.Name, j.module.Name, j.module.Version, j.kernel.Release, fmt.Sprint(time.Now().UnixNano(), os.Getpid()))
	dir, err := b.tree.Record(layer)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, j.fileName())
	spec := dkms.BuildSpec{
		Module: j.module, Conf: j.conf, Kernel: j.kernel.Release, Timeout: b.opts.timeout, Jobs: cores,
		KeepSymbols: j.needed, Watch: b.live, Archive: file + archiveExt, Log: file + logExt,
	}
	for _, n := range b.graph.closure(i, b.notBuilt) {
		spec.Needs = append(spec.Needs, b.jobs[n].module)
	}
	for _, n := range b.graph[i] {
		if o := b.jobs[n.job]; o.record.Status == state.Built {
			j.record.Depends = append(j.record.Depends, o.module.Name+"/"+o.module.Version)
		}
	}
	cache, reason := b.cache, b.unbuilt(i)
	if reason != "" || j.source == "" {
		cache = nil
	}
	var res result
	made, err := b.tree.TakeLayer(ctx, cache, b.buildItem(j), rootfs.LayerSpec{
		Name: layer, On: b.layersBelow(i),
		Make: func(root sandbox.Root) (err error) {
			spec.Spec = b.spec(root)
			start := time.Now()
			if reason != "" {
				res.Result, err = b.refuse(ctx, spec, reason)
			} else {
				res.Result, err = dkms.Build(ctx, spec)
			}
			res.Started, res.Seconds = start.UTC().Truncate(time.Second), float64(time.Since(start).Milliseconds())/1000
			if res.NoSpace { // which the next one needs
				return errors.Join(err, errNoSpace)
			}
			if err != nil {
				return err
			}
			return res.save(dir, spec.Archive)
		},
		Keep: func() bool { return res.Outcome != dkms.OutcomeFailed },
	})
	if errors.Is(err, errNoSpace) {
		err, made, layer = nil, true, ""
	}
	if err != nil {
		return err
	}
	if !made {
		j.cached = true
		if res, err = readResult(dir); err != nil {
			return err
		}
	}
	j.record.Layer, j.record.Log = layer, spec.Log
	j.record.Started, j.record.Seconds = res.Started, res.Seconds
	return b.take(ctx, i, res, spec.Archive)
}

// errNoSpace is why the layer of a build that filled the disk is not kept.
var errNoSpace = errors.New("no space left on device")

// take puts the result of a build into the job's record.
func (b *builder) take(ctx context.Context, i int, res result, archive string) (err error) {
	j := b.jobs[i]
	r := &j.record
	switch res.Outcome {
	case dkms.OutcomeBuilt:
		r.Status, r.Stage, r.Archive, r.ArchiveDigest = state.Built, "", archive, res.Archive
	case dkms.OutcomeSkipped:
		r.Status, r.Stage, r.Reason = state.Skipped, "", res.Reason
	default:
		r.Reason = res.Reason
		if missed := b.excluded(i); missed != "" {
			r.Reason = missed + ": " + res.Reason
		}
		if len(j.unmet) > 0 {
			r.Hint = fmt.Sprintf("its BUILD_DEPENDS names %s, which no package here brings: add one that does to --dkms", strings.Join(j.unmet, ", "))
			return nil
		}
		if r.Hint, err = b.missingHint(ctx, j.pkg.Package, strings.Fields(res.Missing)); r.Hint == "" && outOfMemory.MatchString(res.Reason) {
			r.Hint = "the compiler had not enough memory: --jobs 1 builds one at a time"
		}
	}
	return err
}

// outOfMemory is what compilers say when they get no memory, and when the kernel killed
// them for want of it.
var outOfMemory = regexp.MustCompile(`(?i)out of memory|virtual memory exhausted|cannot allocate memory|Killed signal terminated|LLVM ERROR: .*memory`)

// refuse is the result of a module that lacks what it needs. One that is not meant for
// the kernel is skipped all the same.
func (b *builder) refuse(ctx context.Context, spec dkms.BuildSpec, reason string) (res dkms.Result, err error) {
	limited, cancel := context.WithTimeout(ctx, spec.Timeout)
	defer cancel()
	res = dkms.Result{Outcome: dkms.OutcomeFailed, Reason: reason}
	text, excluded, err := dkms.Excluded(limited, spec.Spec, spec.Module, spec.Kernel)
	switch {
	case ctx.Err() != nil:
		return res, err
	case err == nil && excluded:
		res = dkms.Result{Outcome: dkms.OutcomeSkipped, Reason: text}
	}
	return res, os.WriteFile(spec.Log, []byte(res.Reason+"\n"), 0o644)
}

func (b *builder) notBuilt(i int) bool { return b.jobs[i].record.Status != state.Built }

// layersBelow are the layers on which a job's build stands, the topmost first: those in
// which what it needs was built, then the packages, the kernel's headers and the base.
func (b *builder) layersBelow(i int) []string {
	j := b.jobs[i]
	var builds []string
	packages := b.layersOf(j.pkg.Package)
	for _, n := range b.graph.closure(i, b.notBuilt) {
		o := b.jobs[n]
		builds = append(builds, o.record.Layer)
		packages = append(packages, b.layersOf(o.pkg.Package)...)
	}
	slices.Reverse(builds)
	return unique(append(append(builds, packages...), j.kernel.Layer, b.Doc.Tree.Base))
}

func (b *builder) find(pkg string, m dkms.Module, k state.Kernel) *state.Build {
	for i, r := range b.Doc.Builds {
		if r.Package == pkg && r.Module == m.Name && r.ModuleVersion == m.Version && r.Kernel == k.Release {
			return &b.Doc.Builds[i]
		}
	}
	return nil
}
