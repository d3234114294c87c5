package main

import (
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
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// addKernels finds the wanted kernels and makes a layer with the headers of each.
func addKernels(ctx context.Context, s *cli.Session, tree *rootfs.Tree, base apt.Inside, want selection) error {
	targets, err := findKernels(ctx, base, s.Doc.Tree, want)
	if err != nil {
		return err
	}
	if len(targets) == 0 {
		s.Msg.Info("no kernel is new: all have packages in %s", want.outDir)
	}
	for _, t := range targets {
		k, err := installHeaders(ctx, tree, base, t)
		var none *noHeadersError
		if errors.As(err, &none) && !t.Requested && want.fresh {
			s.Msg.Warn("passing over the kernel %s: %v", t.Release, err)
			continue
		}
		if err != nil {
			return fmt.Errorf("cannot install the headers of %s: %w", t.Release, err)
		}
		inside := base
		inside.Spec.Root = tree.Root(k.Layer, baseLayer)
		if k.Images, err = findImages(ctx, inside, k, s.Doc.Tree.Architecture); err != nil {
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

// A noHeadersError is packages that were installed and ship no headers of the
// kernel.
type noHeadersError struct{ reasons []string }

func (e *noHeadersError) Error() string { return strings.Join(e.reasons, "; ") }

// installHeaders makes the layer of a kernel's headers, of the first package that
// ships them, and saves what is to be known of the kernel.
func installHeaders(ctx context.Context, tree *rootfs.Tree, base apt.Inside, t target) (state.Kernel, error) {
	var errs []error
	for _, c := range t.headers {
		k := t.Kernel
		k.Layer = rootfs.LayerName("headers", k.Release, c.Name, c.Version)
		err := tree.MakeLayer(ctx, rootfs.LayerSpec{
			Name: k.Layer, On: []string{baseLayer},
			Make: func(root sandbox.Root) error {
				inside := base
				inside.Spec.Root = root
				// Where headers bring the image along, no initramfs is wanted.
				inside.Spec.Env = append(sandbox.DefaultEnv(), "INITRD=No")
				if err := inside.Install(ctx, c.Name+"="+c.Version); err != nil {
					return err
				}
				if err := inside.Clean(ctx); err != nil {
					return err
				}
				if err := identify(ctx, inside, &k, c.Name); err != nil {
					return err
				}
				return saveFacts(ctx, tree, inside, &k)
			},
		})
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
	build := "/lib/modules/" + k.Release + "/build/"
	for _, name := range factFiles {
		content, err := inside.Output(ctx, "sh", "-c", `[ ! -e "$1" ] || cat "$1"`, "sh", build+name)
		if err != nil {
			return err
		}
		if len(content) == 0 {
			continue
		}
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
	facts, err := kernel.ReadFacts(dir)
	if err != nil {
		return err
	}
	if facts.Release != k.Release {
		return &noHeadersError{[]string{fmt.Sprintf("what the package %s ships for %s is for the kernel %s", k.Headers, k.Release, facts.Release)}}
	}
	k.Facts, k.Modversions = dir, facts.Modversions
	return nil
}
