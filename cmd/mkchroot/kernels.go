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
// the flavour, or of the default one, to the headers packages of the tree's repositories.
func findKernels(ctx context.Context, inside apt.Inside, tree *state.Tree, wanted []string, flavour string) ([]state.Kernel, error) {
	names, err := inside.Names(ctx, headersPrefix)
	if err != nil {
		return nil, err
	}
	shown, err := inside.Show(ctx, names...)
	if err != nil {
		return nil, err
	}
	preferred, err := inside.Preferred(ctx, names...)
	if err != nil {
		return nil, err
	}
	usable := candidates(shown, preferred)
	// Packages for all architectures hold what several kernels share.
	var releases []string
	for name, c := range usable {
		release := strings.TrimPrefix(name, headersPrefix)
		if kverPattern.MatchString(release) && c.Architecture == tree.Architecture {
			releases = append(releases, release)
		}
	}
	slices.Sort(releases)

	var kernels []state.Kernel
	for _, release := range wanted {
		if name := headersPrefix + release; len(shown[name]) > 0 && preferred[name] == "" {
			return nil, fmt.Errorf("apt has no version of %s that may be installed", name)
		}
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
		if flavour == "" {
			flavour = kernel.DefaultFlavour(tree.Distribution, tree.Architecture)
		}
		release, err := currentKernel(flavour, usable)
		if err != nil {
			return nil, diag.WithHint(err, "name a kernel with --kver; there are: %s", strings.Join(releases, ", "))
		}
		kernels = append(kernels, state.Kernel{Release: release, Flavour: flavour})
	}
	for i := range kernels {
		c := usable[headersPrefix+kernels[i].Release]
		kernels[i].Headers, kernels[i].Version = c.Name, c.Version
		kernels[i].Source = fmt.Sprintf("%s (= %s)", c.Source, c.SourceVersion)
	}
	return kernels, nil
}

// candidates picks the version that apt would install of each package. It is not
// always the newest: those of backports have a low priority.
func candidates(shown map[string][]apt.Candidate, preferred map[string]string) map[string]apt.Candidate {
	found := map[string]apt.Candidate{}
	for name, list := range shown {
		for _, c := range list {
			if c.Version == preferred[name] {
				found[name] = c
				break
			}
		}
	}
	return found
}

// currentKernel follows the flavour's metapackage to the kernel it depends on,
// each in the version that apt would install.
func currentKernel(flavour string, usable map[string]apt.Candidate) (string, error) {
	if flavour == "" {
		return "", fmt.Errorf("no default kernel flavour is known for this distribution and architecture")
	}
	name := headersPrefix + flavour
	for range 5 {
		c, ok := usable[name]
		if !ok {
			return "", fmt.Errorf("the repositories have no package %s", name)
		}
		onward := ""
		for _, dep := range strings.FieldsFunc(c.Depends, func(r rune) bool { return r == ',' || r == '|' }) {
			dep, _, _ = strings.Cut(strings.TrimSpace(dep), " ")
			next, ok := usable[dep]
			if !ok || !strings.HasPrefix(dep, headersPrefix) {
				continue
			}
			if release := strings.TrimPrefix(dep, headersPrefix); kverPattern.MatchString(release) && next.Architecture != "all" {
				return release, nil
			}
			onward = dep
		}
		if onward == "" {
			break
		}
		name = onward
	}
	return "", fmt.Errorf("the package %s leads to no kernel's headers", headersPrefix+flavour)
}
