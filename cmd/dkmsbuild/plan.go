package main

import (
	"context"
	"crypto/sha256"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/sandbox"
	"dkms2bin/internal/state"
	"encoding/hex"
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
	b.lists = []string{b.Doc.Tree.Base}
	if len(open) == 0 {
		return nil
	}
	// What failed may have been mended in the archive since.
	fromArchive := slices.ContainsFunc(open, func(r string) bool { return !isPath(r) })
	if (fromArchive || len(tools) > 0) && (again || time.Since(b.Doc.Tree.Created) > time.Hour) {
		if err := b.refreshLists(ctx); err != nil {
			return err
		}
	}
	resolved, err := resolve(ctx, b.inside(b.tree.Root(b.lists...), io.Discard), open)
	if err != nil {
		return err
	}
	if b.tools, err = b.installTools(ctx, tools); err != nil {
		return err
	}
	// A package that is asked for anew takes the place of the one of that name.
	supersedes := func(p state.Package) bool {
		return slices.ContainsFunc(resolved, func(n state.Package) bool { return n.Name == p.Name && n.Request != p.Request })
	}
	var packages []state.Package
	for _, r := range requests {
		if p, ok := kept[r]; ok {
			if p.Kind == state.KindSource || !supersedes(p) {
				packages = append(packages, p)
			}
			continue
		}
		if i := slices.IndexFunc(resolved, func(p state.Package) bool { return p.Request == r }); i >= 0 {
			packages = append(packages, resolved[i])
		}
	}
	b.Doc.Packages = packages
	return nil
}

// isGood says that nothing of the package is to be done for the chosen kernels.
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
	for _, k := range b.kernels {
		n := 0
		for _, r := range b.Doc.Builds {
			if r.Package == p.Name && r.Kernel == k.Release {
				if n++; !b.isGoodBuild(r, p, k) {
					return false
				}
			}
		}
		if n == 0 {
			return false
		}
	}
	return true
}

// isGoodBuild says that a record's results are there, unchanged, and were made
// from what would be used now.
func (b *builder) isGoodBuild(r state.Build, p state.Package, k state.Kernel) bool {
	if r.Status == state.Failed || r.Source != b.sourceDigest(p, k) {
		return false
	}
	if r.Status == state.Skipped {
		return true
	}
	digest, err := state.FileDigest(r.Archive)
	return err == nil && digest == r.ArchiveDigest
}

// sourceDigest stands for everything that a build is made from.
func (b *builder) sourceDigest(p state.Package, k state.Kernel) string {
	sum := sha256.New()
	fmt.Fprintf(sum, "%q %q %q %q %q %q %q", p.Name, p.Version, p.Digest, k.Headers, k.Version, b.Doc.Tree.DKMS, b.Doc.Tree.Compiler)
	if len(p.Tools) > 0 {
		fmt.Fprintf(sum, " %q", p.Tools)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

func (b *builder) refreshLists(ctx context.Context) error {
	name := rootfs.LayerName("lists", time.Now().String(), fmt.Sprint(os.Getpid()))
	step := b.Msg.Wait("fetching package lists")
	defer step.Done("")
	err := b.tree.MakeLayer(ctx, rootfs.LayerSpec{
		Name: name, On: []string{b.Doc.Tree.Base},
		Make: func(root sandbox.Root) error { return b.inside(root, step).Update(ctx) },
	})
	if err != nil {
		return err
	}
	b.fresh = name
	b.lists = []string{name, b.Doc.Tree.Base}
	return nil
}
