package main

import (
	"cmp"
	"context"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/kernel"
	"dkms2bin/internal/modpkg"
	"dkms2bin/internal/repo"
	"dkms2bin/internal/state"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// A selection says which kernels to build for.
type selection struct {
	releases []string // as uname -r prints them
	fresh    bool     // the flavour's kernels that have no packages in outDir, too
	flavour  string   // what its headers metapackage is called for; "" is the distribution's default
	outDir   string
	keep     int // newest kernels of the flavour that count for fresh; 0 stands for all
	dryRun   bool
}

// A target is a kernel to build for, and the packages that may ship its headers,
// the likeliest first.
type target struct {
	state.Kernel
	headers []apt.Candidate
}

// headersName takes the name of a headers package apart. What the distributions,
// vendors and the kernel's own deb-pkg ship ends in the release: linux-headers-K,
// proxmox-headers-K, linux-lowlatency-headers-K.
var headersName = regexp.MustCompile(`^(?:[a-z0-9.+-]+-)?headers-([0-9][a-z0-9.+~-]*)$`)

// An offer is what the repositories, and the base system, have of headers.
type offer struct {
	usable    map[string]apt.Candidate // in the version that apt would install
	unusable  []string                 // packages of which apt may install no version
	byRelease map[string][]string      // release as in packages' names: packages called for it
}

// findKernels resolves the kernels that were asked for, or the current one of the
// flavour, to packages that may ship their headers. Whether they do shows when
// they are installed.
func findKernels(o offer, tree *state.Tree, want selection) ([]target, error) {
	var targets []target
	add := func(k state.Kernel) error {
		if slices.ContainsFunc(targets, func(t target) bool { return t.Release == k.Release }) {
			return nil
		}
		headers, err := o.headersOf(k.Release)
		targets = append(targets, target{k, headers})
		return err
	}
	for _, release := range want.releases {
		if err := add(state.Kernel{Release: release, Requested: true}); err != nil {
			return nil, err
		}
	}
	if len(want.releases) > 0 && !want.fresh {
		return targets, nil
	}
	flavour := cmp.Or(want.flavour, kernel.DefaultFlavour(tree.Distribution, tree.Architecture))
	current, err := o.current(flavour)
	if err != nil {
		return nil, diag.WithHint(err, "name a kernel with --kver; there are: %s", strings.Join(o.releases(), ", "))
	}
	releases := []string{current}
	if want.fresh {
		there, err := kernelsWithPackages(want.outDir, tree.Architecture)
		if err != nil {
			return nil, err
		}
		releases = fresh(o.series(current), there, want.keep)
	}
	for _, release := range releases {
		if err := add(state.Kernel{Release: release, Flavour: flavour}); err != nil {
			return nil, err
		}
	}
	return targets, nil
}

// known is what apt and dpkg know of packages that may ship headers.
type known struct {
	Shown     map[string][]apt.Candidate
	Preferred map[string]string
	Present   map[string]apt.Candidate
}

func (k known) offer(arch string) offer { return newOffer(k.Shown, k.Preferred, k.Present, arch) }

// askHeaders asks apt and dpkg for all packages that may ship headers, among all.
func askHeaders(ctx context.Context, inside apt.Inside, all []string) (k known, err error) {
	var names []string
	for _, n := range all {
		if strings.Contains(n, "headers") {
			names = append(names, n)
		}
	}
	offers, err := inside.Look(ctx, names...)
	if err != nil {
		return k, err
	}
	k.Shown, k.Preferred = map[string][]apt.Candidate{}, map[string]string{}
	for name, o := range offers {
		if o.Preferred != "" {
			k.Preferred[name] = o.Preferred
		}
		if len(o.Versions) > 0 {
			k.Shown[name] = o.Versions
		}
	}
	k.Present, err = installedHeaders(ctx, inside)
	return k, err
}

// newOffer sorts what apt shows. Packages for all architectures hold what several
// kernels share, and metapackages depend on other headers: neither ships any.
// Those in present, by release, are in the base system.
func newOffer(shown map[string][]apt.Candidate, preferred map[string]string, present map[string]apt.Candidate, arch string) offer {
	o := offer{usable: map[string]apt.Candidate{}, byRelease: map[string][]string{}}
	for name, list := range shown {
		i := slices.IndexFunc(list, func(c apt.Candidate) bool { return c.Version == preferred[name] })
		switch {
		case preferred[name] == "":
			o.unusable = append(o.unusable, name)
		case i >= 0:
			o.usable[name] = list[i]
		}
	}
	for name, c := range o.usable {
		m := headersName.FindStringSubmatch(name)
		if m != nil && c.Architecture == arch && len(o.onward(c)) == 0 {
			o.byRelease[m[1]] = append(o.byRelease[m[1]], name)
		}
	}
	for release, c := range present {
		form := modpkg.KernelName(release)
		if !slices.Contains(o.byRelease[form], c.Name) {
			o.byRelease[form] = append(o.byRelease[form], c.Name)
			o.usable[c.Name] = c
		}
	}
	for release, names := range o.byRelease {
		slices.SortFunc(names, func(a, b string) int {
			usual := func(n string) bool { return n == "linux-headers-"+release }
			if usual(a) != usual(b) {
				if usual(a) {
					return -1
				}
				return 1
			}
			return cmp.Compare(a, b)
		})
	}
	return o
}

// releases are the kernels that packages are called for, sorted.
func (o offer) releases() []string { return slices.Sorted(maps.Keys(o.byRelease)) }

// onward are the usable packages with headers of one architecture that c depends
// on, as a metapackage does.
func (o offer) onward(c apt.Candidate) []string {
	var names []string
	for _, dep := range strings.FieldsFunc(c.Depends, func(r rune) bool { return r == ',' || r == '|' }) {
		dep, _, _ = strings.Cut(strings.TrimSpace(dep), " ")
		if next, ok := o.usable[dep]; ok && strings.Contains(dep, "headers") && next.Architecture != "all" && dep != c.Name {
			names = append(names, dep)
		}
	}
	return names
}

// headersOf are the packages that may ship the headers of a kernel: those that are
// called for it. Where there are none, those that provide headers of it or
// describe themselves by its release: not all vendors name packages by it.
func (o offer) headersOf(release string) ([]apt.Candidate, error) {
	form := modpkg.KernelName(release)
	var found []apt.Candidate
	for _, name := range o.byRelease[form] {
		found = append(found, o.usable[name])
	}
	if len(found) > 0 {
		return found, nil
	}
	mentions := regexp.MustCompile(`(?:^|[^A-Za-z0-9.+~_-]|headers-)(?:` + regexp.QuoteMeta(release) + `|` + regexp.QuoteMeta(form) + `)(?:[^A-Za-z0-9.+~_-]|\.?$)`)
	for _, name := range slices.Sorted(maps.Keys(o.usable)) {
		if c := o.usable[name]; c.Architecture != "all" && (mentions.MatchString(c.Provides) || mentions.MatchString(c.Description)) {
			found = append(found, c)
		}
	}
	if len(found) > 0 {
		return found, nil
	}
	if name := "linux-headers-" + form; slices.Contains(o.unusable, name) {
		return nil, fmt.Errorf("apt has no version of %s that may be installed", name)
	}
	err := fmt.Errorf("the repositories have no headers for the kernel %s", release)
	if len(o.byRelease) == 0 {
		return nil, diag.WithHint(err, "they have none for any kernel: is the right repository among them?")
	}
	return nil, diag.WithHint(err, "the nearest that they have: %s", strings.Join(kernel.Nearest(release, o.releases(), 5), ", "))
}

// current follows the flavour's metapackage to the kernel it depends on, each in
// the version that apt would install. A flavour without a metapackage, as kernels
// of one's own have it, is what its kernels' releases end in: the newest counts.
func (o offer) current(flavour string) (string, error) {
	if flavour == "" {
		return "", fmt.Errorf("no default kernel flavour is known for this distribution and architecture")
	}
	meta := "linux-headers-" + flavour
	if _, ok := o.usable[meta]; !ok {
		releases := slices.DeleteFunc(o.releases(), func(r string) bool { return kernel.Flavour(r) != flavour })
		if len(releases) == 0 {
			return "", fmt.Errorf("the repositories have no package %s", meta)
		}
		return slices.MaxFunc(releases, kernel.CompareReleases), nil
	}
	name := meta
	for range 5 {
		next := o.onward(o.usable[name])
		for _, n := range next {
			if m := headersName.FindStringSubmatch(n); m != nil && slices.Contains(o.byRelease[m[1]], n) {
				return m[1], nil
			}
		}
		if len(next) == 0 {
			break
		}
		name = next[len(next)-1]
	}
	return "", fmt.Errorf("the package %s leads to no kernel's headers", meta)
}

// seriesOf is the series of a release: 6.1 of 6.1.0-56-amd64.
var seriesOf = regexp.MustCompile(`^[0-9]+\.[0-9]+`)

// series are the kernels of the flavour and series of the current one, the newest
// first. Another series, as that of backports, has a metapackage of its own.
func (o offer) series(current string) []string {
	releases := slices.DeleteFunc(o.releases(), func(r string) bool {
		return kernel.Flavour(r) != kernel.Flavour(current) || seriesOf.FindString(r) != seriesOf.FindString(current)
	})
	slices.SortStableFunc(releases, func(a, b string) int { return kernel.CompareReleases(b, a) })
	return releases
}

// fresh are those of the releases, the newest first, that have no packages yet,
// among the newest keep of these and those that have.
func fresh(releases []string, there map[string]bool, keep int) []string {
	var found []string
	for i, release := range releases {
		newer := i
		for old := range there {
			if kernel.Flavour(old) == kernel.Flavour(release) && kernel.CompareReleases(old, release) > 0 && !slices.Contains(releases, old) {
				newer++
			}
		}
		if !there[release] && (keep == 0 || newer < keep) {
			found = append(found, release)
		}
	}
	return found
}

// kernelsWithPackages are the kernels, as packages' names have them, that module
// packages for the architecture in a directory or below it are for.
func kernelsWithPackages(dir, arch string) (map[string]bool, error) {
	found := map[string]bool{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if strings.HasPrefix(d.Name(), ".") && path != dir {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		base, ok := strings.CutSuffix(d.Name(), "_"+arch+".deb")
		name, _, _ := strings.Cut(base, "_")
		if release := repo.KernelOf(name); ok && release != "" && d.Type().IsRegular() {
			found[release] = true
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot look for packages in %s: %w", dir, err)
	}
	return found, nil
}

// installedHeaders are the packages of the base system that ship a kernel's
// headers, by its release.
func installedHeaders(ctx context.Context, inside apt.Inside) (map[string]apt.Candidate, error) {
	dirs, err := buildDirs(ctx, inside)
	if err != nil || len(dirs) == 0 {
		return nil, err
	}
	installed, err := inside.Installed(ctx)
	if err != nil {
		return nil, err
	}
	found := map[string]apt.Candidate{}
	for _, d := range dirs {
		found[d.release] = apt.Candidate{Name: d.owner, Version: installed[d.owner]}
	}
	return found, nil
}

// findImages are the packages that ship the kernel itself, the one that people
// install first: whose it is where the headers brought it along, those called for
// the kernel, those that say so in Provides, and the sibling of the headers. What the
// lists say, which have all these names, is asked for where nothing was installed since
// apt made its index of them.
func findImages(ctx context.Context, lists, inside apt.Inside, all []string, k state.Kernel, arch string) ([]state.Image, error) {
	form := modpkg.KernelName(k.Release)
	var names []string
	siblings := imageSiblings(k.Headers)
	for _, n := range all { // apt would look for others among all names, as patterns
		if isImage(n, form) || slices.Contains(siblings, n) {
			names = append(names, n)
		}
	}
	provide, err := lists.Providers(ctx, "linux-image-"+form)
	if err != nil {
		return nil, err
	}
	names = append(names, provide...)
	owners, err := inside.Owners(ctx, "/boot/vmlinuz-"+k.Release, "/boot/vmlinux-"+k.Release,
		"/lib/modules/"+k.Release+"/vmlinuz", "/usr/lib/modules/"+k.Release+"/vmlinuz")
	if err != nil {
		return nil, err
	}
	for _, o := range owners {
		names = append(names, o.Package)
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(imageOrder(a), imageOrder(b)), cmp.Compare(a, b))
	})
	names = slices.Compact(names)
	offers, err := lists.Look(ctx, names...)
	if err != nil {
		return nil, err
	}
	var images []state.Image
	for _, name := range names {
		version := offers[name].Preferred
		owns := slices.ContainsFunc(owners, func(o apt.Owner) bool { return o.Package == name })
		offered := slices.ContainsFunc(offers[name].Versions, func(c apt.Candidate) bool { return c.Version == version && c.Architecture == arch })
		// A name without the release says little: its version must say it.
		named := isImage(name, form) || slices.Contains(provide, name) || version == k.Version
		if version != "" && (owns || offered && named) {
			images = append(images, state.Image{Package: name, Version: version})
		}
	}
	return images, nil
}

// isImage tells a package called for the kernel, of that form in packages' names,
// from its headers, debugging symbols and further modules.
func isImage(name, form string) bool {
	name = strings.TrimSuffix(strings.TrimSuffix(name, "-unsigned"), "-signed")
	name, ok := strings.CutSuffix(name, "-"+form)
	if !ok || strings.Contains(name, "signed-image") { // Ubuntu's, which has but the signature
		return false
	}
	name = strings.TrimSuffix(strings.TrimSuffix(name, "-unsigned"), "-signed")
	return strings.HasSuffix(name, "-image") || strings.HasSuffix(name, "-kernel")
}

// imageSiblings are what the image may be called beside headers of that name.
func imageSiblings(headers string) []string {
	return []string{
		strings.Replace(headers, "headers", "image", 1),
		strings.Replace(headers, "headers", "kernel", 1),
		strings.Replace(headers, "-headers", "", 1),
	}
}

// imageOrder puts the signed image first, as metapackages do.
func imageOrder(name string) int {
	switch {
	case strings.Contains(name, "unsigned"):
		return 2
	case strings.HasSuffix(name, "-signed"), strings.HasPrefix(name, "linux-image-"):
		return 0
	}
	return 1
}

// A buildDir is a kernel's build directory that an installed package ships.
type buildDir struct{ release, prefix, owner string }

func buildDirs(ctx context.Context, inside apt.Inside) ([]buildDir, error) {
	owners, err := inside.Owners(ctx, "/lib/modules/*/build", "/usr/lib/modules/*/build")
	if err != nil {
		return nil, err
	}
	var dirs []buildDir
	for _, o := range owners {
		release := filepath.Base(filepath.Dir(o.Path))
		prefix := filepath.Dir(filepath.Dir(o.Path))
		if kverPattern.MatchString(release) && (prefix == "/lib/modules" || prefix == "/usr/lib/modules") {
			dirs = append(dirs, buildDir{release, prefix, o.Package})
		}
	}
	return dirs, nil
}
