package modpkg

import (
	"cmp"
	"dkms2bin/internal/deb"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A Set is a metapackage for one kernel and packages of modules for it.
type Set struct {
	Name    string // without the flavour
	Flavour string // of the kernel, "" for one without
	Kernel  Spec   // says which kernel; what it says of modules does not count
	Members []Member
	// Time is that of all files; changelogs have seconds.
	Time time.Time
	// Program made it, such as "dkms2bin 1.0".
	Program string
}

// A Member is a package of modules that belongs to a set.
type Member struct {
	Package, Version string
	Source           string // the version of the -dkms package or of the module
}

// maxSetVersion bounds the version: apt and dpkg make file names of it, of which
// no file system takes more than 255 bytes.
const maxSetVersion = 160

var setName = regexp.MustCompile(`^[a-z0-9][a-z0-9.+-]+$`)

// CheckSetName says why there can be no set of that name.
func CheckSetName(name string) error {
	if !setName.MatchString(name) {
		return fmt.Errorf("%q is no package name: lower case letters, digits and . + - may stand in it, at least two", name)
	}
	return nil
}

// PackageName is the name of the metapackage.
func (s Set) PackageName() string {
	if s.Flavour == "" {
		return s.Name
	}
	return s.Name + "-" + KernelName(s.Flavour)
}

// Version sorts by the kernel's version, then by those of the members in the order
// of their names. It says nothing else, so that the same members give the same one.
// Epochs are left out: of a member that leaves, one would stay behind for ever.
func (s Set) Version() string {
	kernel := s.Kernel
	kernel.SourceVersion, kernel.VersionSuffix = "0", ""
	_, version, _ := strings.Cut(kernel.Version(), "+")
	for _, m := range s.sorted() {
		source := m.Source
		if _, after, ok := strings.Cut(source, ":"); ok {
			source = after
		}
		version += "+" + strings.Trim(notInVersion.ReplaceAllString(source, "."), ".")
	}
	return version + s.Kernel.VersionSuffix
}

// sorted are the members, by name.
func (s Set) sorted() []Member {
	list := slices.Clone(s.Members)
	slices.SortFunc(list, func(a, b Member) int { return cmp.Compare(a.Package, b.Package) })
	return list
}

// Compose gives the metapackage. It depends on the members in exactly these
// versions: to go back to it is to go back to them.
func (s Set) Compose() (p deb.Package, err error) {
	name, version := s.PackageName(), s.Version()
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot make the metapackage %s: %w", name, err)
		}
	}()
	if len(version) > maxSetVersion {
		return p, fmt.Errorf("its version, with those of %d packages in it, would have %d characters, more than %d: divide the packages among several sets",
			len(s.Members), len(version), maxSetVersion)
	}
	if err := deb.ValidateName(name); err != nil {
		return p, err
	}
	if _, kernel, ok := strings.Cut(name, "-modules-"); ok && kernel != "" && kernel[0] >= '0' && kernel[0] <= '9' {
		return p, fmt.Errorf("that is the name of modules for a kernel %s", kernel)
	}
	var depends, recommends, modules []string
	switch s.Kernel.ImageDependency {
	case "", "depends":
		depends = append(depends, s.Kernel.image())
	case "recommends":
		recommends = append(recommends, s.Kernel.image())
	}
	for _, m := range s.sorted() {
		depends = append(depends, m.Package+" (= "+m.Version+")")
		modules = append(modules, strings.TrimSuffix(m.Package, "-modules-"+KernelName(s.Kernel.Kernel)))
	}
	p.Control = deb.Stanza{
		{Name: "Package", Value: name},
		{Name: "Version", Value: version},
		{Name: "Architecture", Value: s.Kernel.Architecture},
		{Name: "Maintainer", Value: Maintainer},
		{Name: "Depends", Value: strings.Join(depends, ", ")},
	}
	if len(recommends) > 0 {
		p.Control.Set("Recommends", strings.Join(recommends, ", "))
	}
	p.Control.Set("Section", "metapackages")
	p.Control.Set("Priority", "optional")
	p.Control.Set("Description", fmt.Sprintf("kernel and modules of the set %s (metapackage)\n %s\n .\n %s", name,
		wrapText("This package depends on Linux "+s.Kernel.Kernel+" and on modules that were built for it ahead of time. A newer version of it comes only when all of them are there for a newer kernel."),
		wrapText("Modules: "+strings.Join(modules, ", ")+".")))
	p.Time = s.Time
	p.Files, err = docs{
		Package: name, Version: version,
		What:   fmt.Sprintf("For Linux %s: %s.", s.Kernel.Kernel, strings.Join(modules, ", ")),
		Terms:  "This package was made by dkms2bin and has no content of its own.",
		Origin: Origin{Kernel: s.Kernel.Kernel, Program: s.Program}, Time: s.Time,
	}.files()
	return p, err
}
