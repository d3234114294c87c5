package main

import (
	"context"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/sandbox"
	"dkms2bin/internal/state"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// newKernels, as a release, stands for the kernels that mkchroot found by itself.
const newKernels = "new"

func (b *builder) chooseKernels() error {
	for _, want := range b.opts.kvers {
		if want != newKernels && b.Doc.Kernel(want) == nil {
			var have []string
			for _, k := range b.Doc.Kernels {
				have = append(have, k.Release)
			}
			if len(have) == 0 {
				return cli.Usagef("--kver %s: the document has no kernels: mkchroot adds them", want)
			}
			return cli.Usagef("--kver %s: the document's kernels are %s", want, strings.Join(have, ", "))
		}
	}
	for _, k := range b.Doc.Kernels {
		if len(b.opts.kvers) == 0 || slices.Contains(b.opts.kvers, k.Release) || !k.Requested && slices.Contains(b.opts.kvers, newKernels) {
			b.kernels = append(b.kernels, k)
		}
	}
	return nil
}

// choosePackages resolves what the flags add and what has to be built again.
// Packages all of whose builds are good are left as they are.
func (b *builder) choosePackages(ctx context.Context) error {
	var requests []string
	kept := map[string]state.Package{}
	for _, p := range b.Doc.Packages {
		if p.Needed { // that shows again when those that need it are installed
			continue
		}
		requests = append(requests, p.Request)
		if b.isGood(p) {
			kept[p.Request] = p
		}
	}
	again := len(requests) > len(kept)
	for _, r := range b.opts.packages {
		if isPath(r) {
			abs, err := filepath.Abs(r)
			if err != nil {
				return err
			}
			r = abs
		}
		if !slices.Contains(requests, r) {
			requests = append(requests, r)
		}
	}
	if len(requests) == 0 {
		return cli.Usagef("no package to build: name one with --dkms")
	}
	tools := slices.Clone(b.Doc.Tools)
	for _, t := range b.opts.tools {
		if !slices.Contains(tools, t) {
			tools = append(tools, t)
		}
	}
	open := slices.DeleteFunc(slices.Clone(requests), func(r string) bool { _, ok := kept[r]; return ok })
	b.lists = unique([]string{b.Doc.Tree.Lists, b.Doc.Tree.Base})
	if len(open) == 0 {
		for _, p := range b.Doc.Packages {
			if !p.Needed {
				b.packages = append(b.packages, &pkg{Package: p, kept: true})
			}
		}
		return nil
	}
	// What failed may have been mended in the archive since.
	fromArchive := slices.ContainsFunc(open, func(r string) bool { return !isPath(r) })
	if (fromArchive || len(tools) > 0) && (again || time.Since(b.Doc.Tree.Created) > time.Hour) {
		if err := b.refreshLists(ctx); err != nil {
			return err
		}
	}
	resolved, err := resolve(ctx, b.inside(b.tree.Root(b.lists...), io.Discard), open...)
	if err != nil {
		return err
	}
	if b.tools, err = b.installTools(ctx, tools); err != nil {
		return err
	}
	// A package that is asked for anew takes the place of the one of that name.
	supersedes := func(p state.Package) bool {
		return slices.ContainsFunc(resolved, func(n *pkg) bool { return n.Name == p.Name && n.Request != p.Request })
	}
	for _, r := range requests {
		if p, ok := kept[r]; ok {
			if p.Kind == state.KindSource || !supersedes(p) {
				b.packages = append(b.packages, &pkg{Package: p, kept: true})
			}
			continue
		}
		if i := slices.IndexFunc(resolved, func(p *pkg) bool { return p.Request == r }); i >= 0 {
			resolved[i].Tools, resolved[i].ToolsLayer = b.tools.packages, b.tools.layer
			b.packages = append(b.packages, resolved[i])
		}
	}
	b.save(b.neededBefore()...)
	return nil
}

// neededBefore are the packages of the document that were not asked for.
func (b *builder) neededBefore() (list []state.Package) {
	for _, p := range b.Doc.Packages {
		if p.Needed {
			list = append(list, p)
		}
	}
	return list
}

// save puts the packages of this run into the document, and others after them.
func (b *builder) save(others ...state.Package) {
	var list []state.Package
	for _, p := range b.packages {
		list = append(list, p.Package)
	}
	b.Doc.Packages = append(list, others...)
}

// isGood says that nothing of the package is to be done for the chosen kernels, as
// long as what it was built upon is the same.
func (b *builder) isGood(p state.Package) bool {
	if p.Error != "" || p.Layer == "" || !b.tree.HasLayer(p.Layer) || p.ToolsLayer != "" && !b.tree.HasLayer(p.ToolsLayer) {
		return false
	}
	if p.Kind != state.KindArchive {
		now, err := resolvePath(p.Request)
		if err != nil || now.Digest != p.Digest {
			return false
		}
	}
	modules, err := b.modulesIn(p.Layer)
	if err != nil {
		return false
	}
	for _, k := range b.kernels {
		for _, m := range modules {
			r := b.find(p.Name, m, k)
			if r == nil || r.Status == state.Failed || !b.hasResult(*r) {
				return false
			}
		}
	}
	return true
}

// hasResult says that what came of a build is there, unchanged.
func (b *builder) hasResult(r state.Build) bool {
	if r.Status == state.Skipped {
		return true
	}
	digest, err := state.FileDigest(r.Archive)
	return err == nil && digest == r.ArchiveDigest
}

func (b *builder) refreshLists(ctx context.Context) error {
	name := rootfs.LayerName("lists", time.Now().String(), fmt.Sprint(os.Getpid()))
	step := b.Msg.Wait("fetching package lists")
	defer step.Done("")
	err := b.tree.MakeLayer(ctx, rootfs.LayerSpec{
		Name: name, On: b.lists,
		Make: func(root sandbox.Root) error { return b.inside(root, step).Update(ctx) },
	})
	if err != nil {
		return err
	}
	b.fresh = name
	b.lists = append([]string{name}, b.lists...)
	return nil
}
