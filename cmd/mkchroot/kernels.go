package main

import (
	"context"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/kernel"
	"dkms2bin/internal/state"
	"fmt"
	"slices"
	"strings"
)

const headersPrefix = "linux-headers-"

// findKernels resolves the kernels that were asked for, or the current one of
// the default flavour, to the headers packages of the tree's repositories.
func findKernels(ctx context.Context, inside apt.Inside, tree *state.Tree, wanted []string) ([]state.Kernel, error) {
	names, err := inside.Names(ctx, headersPrefix)
	if err != nil {
		return nil, err
	}
	shown, err := inside.Show(ctx, names...)
	if err != nil {
		return nil, err
	}
	// Packages for all architectures hold what several kernels share.
	var releases []string
	for name, list := range shown {
		release := strings.TrimPrefix(name, headersPrefix)
		if kverPattern.MatchString(release) && list[0].Architecture == tree.Architecture {
			releases = append(releases, release)
		}
	}
	slices.Sort(releases)

	var kernels []state.Kernel
	for _, release := range wanted {
		if !slices.Contains(releases, release) {
			err := fmt.Errorf("the repositories have no headers for the kernel %s", release)
			if len(releases) == 0 {
				return nil, diag.WithHint(err, "they have none for any kernel: is the right repository among them?")
			}
			return nil, diag.WithHint(err, "the nearest that they have: %s", strings.Join(kernel.Nearest(release, releases, 5), ", "))
		}
		if !slices.ContainsFunc(kernels, func(k state.Kernel) bool { return k.Release == release }) {
			kernels = append(kernels, state.Kernel{Release: release, Requested: true})
		}
	}
	if len(wanted) == 0 {
		flavour := kernel.DefaultFlavour(tree.Distribution, tree.Architecture)
		release, err := currentKernel(flavour, shown)
		if err != nil {
			return nil, diag.WithHint(err, "name a kernel with --kver; there are: %s", strings.Join(releases, ", "))
		}
		kernels = append(kernels, state.Kernel{Release: release, Flavour: flavour})
	}
	for i := range kernels {
		kernels[i].Headers = headersPrefix + kernels[i].Release
		preferred, err := inside.Preferred(ctx, kernels[i].Headers)
		if err != nil {
			return nil, err
		}
		if kernels[i].Version = preferred[kernels[i].Headers]; kernels[i].Version == "" {
			return nil, fmt.Errorf("apt has no version of %s that may be installed", kernels[i].Headers)
		}
		for _, c := range shown[kernels[i].Headers] {
			if c.Version == kernels[i].Version {
				kernels[i].Source = fmt.Sprintf("%s (= %s)", c.Source, c.SourceVersion)
			}
		}
	}
	return kernels, nil
}

// currentKernel follows the flavour's metapackage to the kernel it depends on.
func currentKernel(flavour string, shown map[string][]apt.Candidate) (string, error) {
	if flavour == "" {
		return "", fmt.Errorf("no default kernel flavour is known for this distribution and architecture")
	}
	name := headersPrefix + flavour
	for range 5 {
		list := shown[name]
		if len(list) == 0 {
			return "", fmt.Errorf("the repositories have no package %s", name)
		}
		next := ""
		for _, dep := range strings.FieldsFunc(list[0].Depends, func(r rune) bool { return r == ',' || r == '|' }) {
			dep, _, _ = strings.Cut(strings.TrimSpace(dep), " ")
			if !strings.HasPrefix(dep, headersPrefix) || len(shown[dep]) == 0 {
				continue
			}
			if release := strings.TrimPrefix(dep, headersPrefix); kverPattern.MatchString(release) && shown[dep][0].Architecture != "all" {
				return release, nil
			}
			next = dep
		}
		if next == "" {
			break
		}
		name = next
	}
	return "", fmt.Errorf("the package %s leads to no kernel's headers", headersPrefix+flavour)
}
