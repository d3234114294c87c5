package main

import (
	"context"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/sandbox"
	"dkms2bin/internal/state"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// tools are packages that builds need and nothing depends on, in a layer of their
// own on the base. The zero value is none.
type tools struct {
	layer    string
	packages []string // as "libelf-dev (= 0.188-2.1)"
}

// installTools makes the layer of the build packages, and records them.
func (b *builder) installTools(ctx context.Context, requests []string) (t tools, err error) {
	if len(requests) == 0 {
		return t, nil
	}
	var install []string
	inside := b.inside(b.tree.Root(b.lists...), io.Discard)
	preferred, err := inside.Preferred(ctx, requests...)
	if err != nil {
		return t, err
	}
	for _, request := range requests {
		name, version, ok := strings.Cut(request, "=")
		if !ok {
			version = preferred[name]
		}
		if version == "" {
			return t, unknown(ctx, inside, name, "")
		}
		install = append(install, name+"="+version)
		t.packages = append(t.packages, fmt.Sprintf("%s (= %s)", name, version))
	}
	slices.Sort(t.packages)
	t.layer = rootfs.LayerName("tools", t.packages...)
	step := b.Msg.Wait("installing %s", strings.Join(requests, ", "))
	defer step.Done("")
	item := rootfs.Item{
		Kind: "tools", About: "the build packages " + strings.Join(requests, " "), On: b.tree.LayerID(b.Doc.Tree.Base),
		Key: slices.Concat(t.packages, b.listIDs()),
	}
	_, err = b.tree.TakeLayer(ctx, b.cacheOfLists(), item, rootfs.LayerSpec{
		Name: t.layer, On: b.lists,
		Make: func(root sandbox.Root) error {
			inside := b.inside(root, step)
			return errors.Join(inside.Install(ctx, install...), inside.Clean(ctx))
		},
	})
	if err != nil {
		return t, fmt.Errorf("cannot install the build packages %s: %w", strings.Join(requests, ", "), err)
	}
	b.Doc.Tools = requests
	return t, nil
}

// missingHint is the advice for a failed build that gives away a package it
// misses: the first of the names that the repositories have.
func (b *builder) missingHint(ctx context.Context, p state.Package, missing []string) (string, error) {
	if len(missing) == 0 {
		return "", nil
	}
	preferred, err := b.inside(b.tree.Root(b.lists...), io.Discard).Preferred(ctx, missing...)
	if err != nil {
		return "", err
	}
	for _, name := range missing {
		there := slices.ContainsFunc(p.Tools, func(t string) bool { return strings.HasPrefix(t, name+" ") })
		if preferred[name] != "" && !there {
			return fmt.Sprintf("it may miss %s: add --build-package %s", name, name), nil
		}
	}
	return "", nil
}
