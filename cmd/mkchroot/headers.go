package main

import (
	"archive/tar"
	"bytes"
	"context"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/kernel"
	"dkms2bin/internal/modpkg"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/sandbox"
	"dkms2bin/internal/state"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// addKernels finds the wanted kernels and makes a layer with the headers of each,
// unless it is a dry run.
func addKernels(ctx context.Context, s *cli.Session, b *baseMaker, want selection) error {
	h := headerMaker{baseMaker: b, below: layers(s.Doc.Tree.Lists, s.Doc.Tree.Base)}
	base := b.inside
	base.Spec.Root = b.tree.Root(h.below...)
	names := sync.OnceValues(func() ([]string, error) { return base.Names(ctx) })
	offered, err := rootfs.Remember(ctx, h.cache, h.answer("the headers on offer", h.below...), func() (k known, err error) {
		all, err := names()
		if err != nil {
			return k, err
		}
		return askHeaders(ctx, base, all)
	})
	if err != nil {
		return err
	}
	targets, err := findKernels(offered.offer(s.Doc.Tree.Architecture), s.Doc.Tree, want)
	if err != nil {
		return err
	}
	if len(targets) == 0 {
		s.Msg.Info("no kernel is new: all have packages in %s", want.outDir)
	}
	for _, t := range targets {
		if want.dryRun {
			t.Headers, t.Version = t.headers[0].Name, t.headers[0].Version
			s.Doc.Kernels = append(s.Doc.Kernels, t.Kernel)
			continue
		}
		k, err := h.take(ctx, t)
		var none *noHeadersError
		if errors.As(err, &none) && !t.Requested && want.fresh {
			s.Msg.Warn("passing over the kernel %s: %v", t.Release, err)
			continue
		}
		if err != nil {
			return fmt.Errorf("cannot install the headers of %s: %w", t.Release, err)
		}
		inside := base
		inside.Spec.Root = b.tree.Root(append([]string{k.Layer}, h.below...)...)
		item := h.answer("the packages of the kernel "+k.Release, append([]string{k.Layer}, h.below...)...)
		if k.Images, err = rootfs.Remember(ctx, h.cache, item, func() ([]state.Image, error) {
			all, err := names()
			if err != nil {
				return nil, err
			}
			return findImages(ctx, base, inside, all, k, s.Doc.Tree.Architecture)
		}); err != nil {
			return err
		}
		if len(k.Images) == 0 {
			s.Msg.Warn("no package is known that ships the kernel %s itself: the packages for it will only recommend linux-image-%s", k.Release, modpkg.KernelName(k.Release))
		}
		if s.Doc.Kernel(k.Release) == nil {
			s.Doc.Kernels = append(s.Doc.Kernels, k)
		}
	}
	return nil
}

// layers leaves out those that there is no need for.
func layers(names ...string) []string {
	return slices.DeleteFunc(names, func(n string) bool { return n == "" })
}

// A headerMaker makes layers with headers, on the layers below.
type headerMaker struct {
	*baseMaker
	below []string // the topmost first
}

// A noHeadersError is packages that were installed and ship no headers of the
// kernel.
type noHeadersError struct{ reasons []string }

func (e *noHeadersError) Error() string { return strings.Join(e.reasons, "; ") }

// take takes the layer of a kernel's headers from the cache, or makes it of the
// first package that ships them.
func (h *headerMaker) take(ctx context.Context, t target) (state.Kernel, error) {
	var errs []error
	for _, c := range t.headers {
		k, err := h.takeOne(ctx, t.Kernel, c)
		if err == nil {
			return k, nil
		}
		if ctx.Err() != nil {
			return k, context.Cause(ctx)
		}
		errs = append(errs, err)
	}
	none := &noHeadersError{}
	for _, err := range errs {
		var one *noHeadersError
		if !errors.As(err, &one) {
			return t.Kernel, err // what went wrong by itself says more
		}
		none.reasons = append(none.reasons, one.reasons...)
	}
	return t.Kernel, none
}

// answer is what apt says of these layers, about something. Without layers of the
// cache nothing can be said of what it depends on.
func (h *headerMaker) answer(about string, layers ...string) rootfs.Item {
	item := rootfs.Item{Kind: "answer", About: about, On: h.tree.LayerID(layers[0])}
	for _, l := range layers {
		item.Key = append(item.Key, h.tree.LayerID(l))
	}
	item.Key = append(item.Key, about)
	return item
}

// kernelFile is what is known of the kernel, in the record of its headers' layer.
const kernelFile = "kernel.json"

func (h *headerMaker) takeOne(ctx context.Context, k state.Kernel, c apt.Candidate) (state.Kernel, error) {
	item := rootfs.Item{
		Kind: "headers", About: "the headers of " + k.Release, On: h.tree.LayerID(baseLayer),
		Key: []string{k.Release, c.Name, c.Version, c.SHA256},
	}
	layer := rootfs.LayerName("headers", k.Release, c.Name, c.Version)
	_, err := h.tree.TakeLayer(ctx, h.cache, item, rootfs.LayerSpec{
		Name: layer, On: h.below,
		Make: func(root sandbox.Root) error {
			inside := h.inside
			inside.Spec.Root = root
			return installHeaders(ctx, inside, h.tree, layer, k.Release, c)
		},
	})
	if err != nil {
		return k, err
	}
	var found state.Kernel
	if err := readRecord(h.tree, layer, kernelFile, &found); err != nil {
		return k, err
	}
	found.Flavour, found.Requested, found.Layer = k.Flavour, k.Requested, layer
	found.Facts, err = h.tree.Record(layer)
	return found, err
}

// installHeaders installs the headers of a package, and records what is to be known
// of the kernel.
func installHeaders(ctx context.Context, inside apt.Inside, tree *rootfs.Tree, layer, release string, c apt.Candidate) error {
	// Where headers bring the image along, no initramfs is wanted.
	inside.Spec.Env = append(sandbox.DefaultEnv(), "INITRD=No")
	if err := inside.InstallKnown(ctx, c); err != nil {
		return err
	}
	if err := inside.Clean(ctx); err != nil {
		return err
	}
	k := state.Kernel{Release: release, Layer: layer}
	if err := identify(ctx, inside, &k, c.Name); err != nil {
		return err
	}
	if err := saveFacts(ctx, tree, inside, &k); err != nil {
		return err
	}
	return writeRecord(tree, layer, kernelFile, k)
}

// identify finds the package that ships the kernel's build directory, among those
// that the installation of the named one brought, and how the kernel is really
// called: packages' names have no capitals.
func identify(ctx context.Context, inside apt.Inside, k *state.Kernel, installed string) error {
	dirs, err := buildDirs(ctx, inside)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(dirs, func(d buildDir) bool { return d.release == k.Release })
	if i < 0 {
		i = slices.IndexFunc(dirs, func(d buildDir) bool { return modpkg.KernelName(d.release) == modpkg.KernelName(k.Release) })
	}
	if i < 0 {
		return &noHeadersError{[]string{fmt.Sprintf("the package %s ships no /lib/modules/%s/build", installed, k.Release)}}
	}
	k.Release, k.ModulesPrefix, k.Headers = dirs[i].release, dirs[i].prefix, dirs[i].owner
	out, err := inside.Output(ctx, "dpkg-query", "--show", "--showformat", "${Version}\n${source:Package} (= ${source:Version})\n", k.Headers)
	if err != nil {
		return err
	}
	lines := strings.Split(string(out), "\n")
	k.Version, k.Source = lines[0], lines[1]
	return nil
}

// factFiles are the files of a kernel's build directory that debextract reads.
var factFiles = []string{
	"include/config/kernel.release", "include/generated/utsrelease.h",
	"include/config/auto.conf", ".config", "Module.symvers",
}

func saveFacts(ctx context.Context, tree *rootfs.Tree, inside apt.Inside, k *state.Kernel) error {
	dir, err := tree.Record(k.Layer)
	if err != nil {
		return err
	}
	const script = `cd "$1" || exit 0; shift; for f; do [ ! -e "$f" ] || echo "$f"; done | tar --create --dereference --hard-dereference --files-from -`
	out, err := inside.Output(ctx, append([]string{"sh", "-c", script, "sh", "/lib/modules/" + k.Release + "/build"}, factFiles...)...)
	if err != nil {
		return err
	}
	if err := unpackFacts(dir, out); err != nil {
		return fmt.Errorf("cannot read what the package %s says of its kernel: %w", k.Headers, err)
	}
	facts, err := kernel.ReadFacts(dir)
	if err != nil {
		return err
	}
	if facts.Release != k.Release {
		return &noHeadersError{[]string{fmt.Sprintf("what the package %s ships for %s is for the kernel %s", k.Headers, k.Release, facts.Release)}}
	}
	k.Modversions = facts.Modversions
	return nil
}

// unpackFacts writes the files of a tar archive that are among factFiles to dir.
func unpackFacts(dir string, archive []byte) error {
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg || h.Size == 0 || !slices.Contains(factFiles, h.Name) {
			continue
		}
		content, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		path := filepath.Join(dir, h.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
}
