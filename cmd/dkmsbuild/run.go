package main

import (
	"context"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/dkms"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/sandbox"
	"dkms2bin/internal/state"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// buildPackage installs one package and builds its modules for all kernels. What
// fails is recorded; an error means that the stage cannot go on.
func (b *builder) buildPackage(ctx context.Context, p *state.Package) error {
	var modules []dkms.Module
	if b.isGood(*p) {
		return nil
	}
	p.Tools, p.ToolsLayer = b.tools.packages, b.tools.layer
	for _, k := range b.kernels {
		step := b.Msg.Step("installing %s package, building for %s", orRequest(*p), k.Release)
		if modules == nil && p.Error == "" {
			found, err := b.installInTime(ctx, p, step)
			if ctx.Err() != nil {
				step.Done("INTERRUPTED")
				return context.Cause(ctx)
			}
			if err != nil {
				p.Error = strings.ReplaceAll(err.Error(), "\n", "; ")
			}
			modules = found
		}
		records, err := b.buildModules(ctx, *p, k, modules, step)
		b.record(*p, k, modules, records)
		if ctx.Err() != nil {
			step.Done("INTERRUPTED")
			return context.Cause(ctx)
		}
		if err != nil {
			step.Done("ERROR")
			return err
		}
		b.report(*p, k, records, step)
	}
	return nil
}

// buildModules builds the package's modules for one kernel, each in a layer of
// its own. Records that are good are kept.
func (b *builder) buildModules(ctx context.Context, p state.Package, k state.Kernel, modules []dkms.Module, step *cli.Step) ([]state.Build, error) {
	if p.Error != "" {
		r := state.Build{Package: p.Name, Kernel: k.Release, Status: state.Failed, Stage: "dkmsbuild", Reason: "cannot install it: " + p.Error}
		if p.Kind == state.KindSource {
			r.Package = p.Request // its name is known once dkms has read it
		}
		dir, err := b.tree.Record(packageLayer(p))
		if err != nil {
			return nil, err
		}
		r.Log = filepath.Join(dir, "install.log")
		return []state.Build{r}, nil
	}
	var records []state.Build
	for _, m := range modules {
		if old := b.find(p.Name, m, k); old != nil && b.isGoodBuild(*old, p, k) {
			records = append(records, *old)
			continue
		}
		r, err := b.buildOne(ctx, p, k, m, step)
		if err != nil {
			return records, err
		}
		records = append(records, r)
	}
	return records, nil
}

func (b *builder) buildOne(ctx context.Context, p state.Package, k state.Kernel, m dkms.Module, watch io.Writer) (state.Build, error) {
	// Each build has a name of its own, so that no document loses what it names to
	// another run in the same tree.
	start := time.Now()
	layer := rootfs.LayerName("build", p.Name, m.Name, m.Version, k.Release, fmt.Sprint(start.UnixNano(), os.Getpid()))
	dir, err := b.tree.Record(layer)
	if err != nil {
		return state.Build{}, err
	}
	file := strings.ReplaceAll(fmt.Sprintf("%s-%s-%s", m.Name, m.Version, k.Release), "/", "_")
	r := state.Build{
		Package: p.Name, PackageVersion: p.Version, Module: m.Name, ModuleVersion: m.Version, Kernel: k.Release, Layer: layer,
		Source: b.sourceDigest(p, k), Log: filepath.Join(dir, file+".log"),
		Started: start.UTC().Truncate(time.Second),
	}
	archive := filepath.Join(dir, file+".dkms.tar.gz")
	var res dkms.Result
	err = b.tree.MakeLayer(ctx, rootfs.LayerSpec{
		Name: layer, On: layers(p.Layer, p.ToolsLayer, k.Layer, b.Doc.Tree.Base),
		Make: func(root sandbox.Root) (err error) {
			res, err = dkms.Build(ctx, dkms.BuildSpec{
				Spec: b.spec(root), Module: m, Kernel: k.Release, Timeout: b.opts.timeout,
				Watch: watch, Archive: archive, Log: r.Log,
			})
			return err
		},
	})
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	if err != nil {
		return r, err
	}
	r.Seconds = float64(time.Since(start).Milliseconds()) / 1000
	switch res.Outcome {
	case dkms.OutcomeBuilt:
		r.Status, r.Archive = state.Built, archive
		if r.ArchiveDigest, err = state.FileDigest(archive); err != nil {
			return r, err
		}
	case dkms.OutcomeSkipped:
		r.Status, r.Reason = state.Skipped, res.Reason
	default:
		r.Status, r.Reason, r.Stage = state.Failed, res.Reason, "dkmsbuild"
		if r.Hint, err = b.missingHint(ctx, p, strings.Fields(res.Missing)); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (b *builder) find(pkg string, m dkms.Module, k state.Kernel) *state.Build {
	for i, r := range b.Doc.Builds {
		if r.Package == pkg && r.Module == m.Name && r.ModuleVersion == m.Version && r.Kernel == k.Release {
			return &b.Doc.Builds[i]
		}
	}
	return nil
}
