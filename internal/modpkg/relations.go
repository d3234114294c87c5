package modpkg

import (
	"dkms2bin/internal/deb"
	"path"
	"slices"
	"strings"
)

// toolchain are the packages that serve to build a module and are of no use to
// what is built, as patterns of path.Match.
var toolchain = []string{
	// dkms, and what packages of it are made with
	"dkms", "dh-dkms", "debhelper", "dpkg-dev", "build-essential", "quilt",
	// the kernel's sources
	"linux-headers*", "linux-kbuild*", "linux-source*", "linux-libc-dev", "*-headers-*",
	// compilers and their like; libraries to compile against
	"gcc*", "g++*", "cpp*", "clang*", "llvm*", "lld*", "binutils*", "rustc*", "cargo*", "bindgen*", "*-dev", "libc-dev*",
	// what configures and runs builds
	"make", "cmake", "meson", "ninja-build", "autoconf*", "automake*", "autotools-dev", "libtool*", "pkg-config", "pkgconf*",
	"bison", "flex", "bc", "patch", "patchutils", "sparse", "dwarves", "pahole",
	// what dkms signs modules with
	"openssl", "mokutil", "sbsigntool", "shim-signed*",
	// what asks questions in maintainer scripts, which are not taken
	"debconf*", "cdebconf*",
}

// interpreters serve builds, too, but also the programs that a package may ship.
var interpreters = []string{
	"perl", "perl-base", "perl-modules*", "python3*", "libpython3*", "gawk", "mawk", "file", "lsb-release",
}

// inherited are the fields that say what a -dkms package needs and goes with.
// Pre-Depends are for scripts that run early, and these are not taken.
var inherited = []string{"Depends", "Recommends", "Suggests", "Enhances", "Breaks", "Conflicts"}

// inherit gives the relations of a -dkms package, by field, that hold for its
// modules, too. What is left out is the toolchain, unless shipsPrograms also what
// programs may need, and other packages of modules.
//
//   - Of what a -dkms package depends on, one alternative that is left out takes
//     the whole with it: a compiler will do there, or the modules of another
//     -dkms package, which have relations of their own.
//   - Conflicts and Breaks with modules in other packages, real or virtual, say
//     that their sources cannot be installed together. Kernels of Ubuntu provide
//     such names, and what provides one and conflicts with it could be installed
//     for one kernel only.
func inherit(control deb.Stanza, shipsPrograms bool) map[string][]string {
	relations := make(map[string][]string)
	for _, field := range inherited {
		from := control.Get(field)
		if field == "Depends" {
			from = control.Get("Pre-Depends") + "," + from
		}
		for group := range strings.SplitSeq(from, ",") {
			group = oneLine(group)
			if group == "" || slices.Contains(relations[field], group) {
				continue
			}
			left := func(name string) bool { return leftOut(name, shipsPrograms) }
			if field == "Breaks" || field == "Conflicts" {
				left = ofModules
			}
			if !slices.ContainsFunc(names(group), left) {
				relations[field] = append(relations[field], group)
			}
		}
	}
	return relations
}

func leftOut(name string, shipsPrograms bool) bool {
	return ofSources(name) || matchesAny(toolchain, name) || !shipsPrograms && matchesAny(interpreters, name)
}

// ofSources says whether a name is that of sources of modules.
func ofSources(name string) bool {
	return strings.HasSuffix(name, "-dkms") || strings.HasSuffix(name, "-dkms-any")
}

// ofModules says whether a name is that of modules, or of their sources.
func ofModules(name string) bool {
	return ofSources(name) || strings.HasSuffix(name, "-source") || strings.Contains(name, "-modules")
}

func matchesAny(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		ok, err := path.Match(pattern, name)
		return ok && err == nil
	})
}

// names are those of the alternatives of one relation.
func names(group string) []string {
	var list []string
	for alternative := range strings.SplitSeq(group, "|") {
		name := strings.TrimSpace(alternative)
		if end := strings.IndexAny(name, " (["); end >= 0 {
			name = name[:end]
		}
		name, _, _ = strings.Cut(name, ":")
		list = append(list, name)
	}
	return list
}

// provides are the names under which others may depend on a -dkms package: its
// own, and those that it provides itself.
func provides(control deb.Stanza) []string {
	list := []string{control.Get("Package") + " (= " + control.Get("Version") + ")"}
	for name := range strings.SplitSeq(control.Get("Provides"), ",") {
		if name = oneLine(name); name != "" {
			list = append(list, name)
		}
	}
	return list
}
