// Package modpkg composes binary module packages: what they are called, what
// they depend on, where their files go and what their scripts do.
//
// Names and paths follow Debian's and Ubuntu's kernel packages, so that apt
// counts a module package among the packages of its kernel (the setting
// APT::VersionedKernelPackages matches ".*-modules").
package modpkg

import (
	"bytes"
	"dkms2bin/internal/deb"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/pgzip"
)

// A Spec says what a package is made of.
type Spec struct {
	Module        string // as dkms names it
	ModuleVersion string // as dkms names it
	Source        string // the -dkms package, "" if unknown
	SourceVersion string // its version, "" if unknown

	Kernel          string    // as uname -r prints it
	KernelVersion   string    // the version of its packages, "" if unknown
	Images          []Image   // the packages that ship the kernel, empty if unknown
	BuiltUsing      []string  // source packages, as "linux (= 6.1.192-2)"
	Modversions     bool      // the kernel checks symbols by CRC
	ModulesPrefix   string    // "/lib/modules" or "/usr/lib/modules"
	Distribution    string    // "debian", "ubuntu"
	Architecture    string    // as dpkg names it
	VersionSuffix   string    // is appended to the version
	ImageDependency string    // one of ImageDependencies; "" is the first
	Initramfs       bool      // the kernel's initramfs is refreshed
	Depends         []string  // further packages that it depends on, as "zfs-modules-6.1.0-56-amd64 (= 2.1.11-1+6.1.192.2)"
	Files           []string  // module files on this host
	Licenses        []string  // that the modules declare
	Copyright       []byte    // the -dkms package's, may be empty
	License         []byte    // a source directory's own file, may be empty
	Changelog       []byte    // the -dkms package's, may be empty
	Time            time.Time // of all files
	Origin          Origin    // the modules' own part is filled in
	// DKMS is the control file of the -dkms package, nil if there is none: what it
	// needs holds for its modules, too.
	DKMS deb.Stanza
	// Common is the relation to the package of what the -dkms package ships beside
	// its sources, which then has these needs; "" if there is none.
	Common string
	// ProvideDKMS has the package stand in for the -dkms package.
	ProvideDKMS bool
}

// An Image is a package that ships a kernel.
type Image struct{ Name, Version string }

// ImageDependencies are the relations that a package can have to the package of
// its kernel. Images that bring their kernel otherwise want a weaker one.
var ImageDependencies = []string{"depends", "recommends", "none"}

// Maintainer is what stands in the packages: the program, not whoever ran it.
const Maintainer = "dkms2bin <dkms2bin@packages.invalid>"

var notInName = regexp.MustCompile(`[^a-z0-9.+-]+`)

// base is the part of the name that stands for the module.
func (s Spec) base() string {
	name := notInName.ReplaceAllString(strings.ToLower(strings.ReplaceAll(s.Module, "_", "-")), "-")
	return strings.TrimLeft(name, ".+-") + "-modules"
}

// Name is the name of the package.
func (s Spec) Name() string {
	return s.base() + "-" + KernelName(s.Kernel)
}

// KernelName is a kernel's release as it stands in packages' names, where there
// are neither capitals nor underscores (Policy 5.6.7): Debian writes them so too. The
// kernel's own deb-pkg writes them as they are, which dpkg refuses.
func KernelName(release string) string {
	return strings.ToLower(strings.ReplaceAll(release, "_", "-"))
}

var numberedPart = regexp.MustCompile(`^[0-9][0-9.]*`)

// Version is the version of the package: that of the -dkms package, a plus, that
// of the kernel's package with dots for hyphens. What follows the plus begins
// with a digit: a letter would sort above the +deb12u1 of a security update.
func (s Spec) Version() string {
	source := s.SourceVersion
	if source == "" {
		source = upstreamVersion(s.ModuleVersion)
	}
	kver := s.KernelVersion
	if kver == "" {
		kver = numberedPart.FindString(strings.ReplaceAll(s.Kernel, "-", "."))
		kver = strings.TrimRight(kver, ".")
	}
	if _, after, ok := strings.Cut(kver, ":"); ok {
		kver = after
	}
	return source + "+" + strings.ReplaceAll(kver, "-", ".") + s.VersionSuffix
}

var notInVersion = regexp.MustCompile(`[^A-Za-z0-9.+~]+`)

// upstreamVersion makes a version of what a dkms.conf calls one.
func upstreamVersion(v string) string {
	v = strings.Trim(notInVersion.ReplaceAllString(v, "."), ".")
	if v == "" || v[0] < '0' || v[0] > '9' {
		v = "0~" + v
	}
	return v
}

// images are the packages that ship the kernel; where they are not known, those
// with the usual names. Debian and Ubuntu name the unsigned one differently.
func (s Spec) images() []Image {
	if len(s.Images) > 0 {
		return s.Images
	}
	signed := "linux-image-" + KernelName(s.Kernel)
	unsigned := signed + "-unsigned"
	if s.Distribution == "ubuntu" {
		unsigned = "linux-image-unsigned-" + KernelName(s.Kernel)
	}
	return []Image{{signed, s.KernelVersion}, {unsigned, s.KernelVersion}}
}

// image is the relation to the kernel's package: to its exact version where
// nothing but the release protects from a kernel of another build.
func (s Spec) image() string {
	var alternatives []string
	for _, image := range s.images() {
		text := image.Name
		if !s.Modversions && image.Version != "" {
			text += " (= " + image.Version + ")"
		}
		alternatives = append(alternatives, text)
	}
	return strings.Join(alternatives, " | ")
}

// Compose gives the package. Errors name what is not usable in a package.
func (s Spec) Compose() (p deb.Package, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot make a package of %s %s for %s: %w", s.Module, s.ModuleVersion, s.Kernel, err)
		}
	}()
	if len(s.Files) == 0 {
		return p, fmt.Errorf("there are no modules")
	}
	name, version := s.Name(), s.Version()
	if err := deb.ValidateName(name); err != nil {
		return p, err
	}
	if err := deb.ValidateVersion(version); err != nil {
		return p, err
	}
	files := slices.Clone(s.Files)
	slices.Sort(files)
	dir := path.Join(s.ModulesPrefix, s.Kernel, "updates/dkms")
	var modules []string
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			return p, err
		}
		base := filepath.Base(f)
		p.Files = append(p.Files, deb.File{
			Path: path.Join(dir, base), Mode: 0o644, Size: info.Size(),
			Open: func() (io.ReadCloser, error) { return os.Open(f) },
		})
		module, _, _ := strings.Cut(base, ".ko")
		modules = append(modules, module)
	}

	source := s.Source
	if source == "" {
		source = s.Module
	}
	control := deb.Stanza{{Name: "Package", Value: name}}
	add := func(name, value string) { control = append(control, deb.Field{Name: name, Value: value}) }
	if s.Source != "" && deb.ValidateName(s.Source) == nil {
		from := s.Source
		if s.SourceVersion != "" {
			from += " (" + s.SourceVersion + ")"
		}
		add("Source", from)
	}
	add("Version", version)
	add("Architecture", s.Architecture)
	add("Maintainer", Maintainer)
	relations := s.relations()
	for _, field := range slices.Concat(inherited, []string{"Provides"}) {
		if len(relations[field]) > 0 {
			add(field, strings.Join(relations[field], ", "))
		}
	}
	if len(s.BuiltUsing) > 0 {
		add("Built-Using", strings.Join(s.BuiltUsing, ", "))
	}
	add("Section", "kernel")
	add("Priority", "optional")
	add("Description", fmt.Sprintf("%s kernel modules for Linux %s\n %s\n .\n %s",
		oneLine(s.Module), s.Kernel,
		wrapText(fmt.Sprintf("These modules were built ahead of time from %s %s, so that the machines that use them need neither compiler nor kernel headers.",
			source, oneLine(orElse(s.SourceVersion, s.ModuleVersion)))),
		wrapText("Modules: "+strings.Join(modules, ", ")+".")))
	p.Control = control
	p.Scripts = map[string]string{"postinst": s.script("configure"), "postrm": s.script("remove")}
	p.Time = s.Time

	s.Origin.Module, s.Origin.Kernel = s.Module+" "+s.ModuleVersion, s.Kernel
	doc, err := docs{
		Package: name, Version: version,
		What:      fmt.Sprintf("Built from %s %s for Linux %s.", source, oneLine(orElse(s.SourceVersion, s.ModuleVersion)), s.Kernel),
		Copyright: s.Copyright, Terms: s.terms(source), License: s.License,
		Changelog: s.Changelog, Origin: s.Origin, Time: s.Time,
	}.files()
	p.Files = append(p.Files, doc...)
	return p, err
}

// relations are those of the package, by field.
func (s Spec) relations() map[string][]string {
	relations := make(map[string][]string)
	switch {
	case s.Common != "":
		relations["Depends"] = []string{s.Common}
	case s.DKMS != nil:
		relations = inherit(s.DKMS, false)
	}
	relations["Depends"] = slices.Concat(s.Depends, relations["Depends"])
	first := func(field, relation string) { relations[field] = slices.Insert(relations[field], 0, relation) }
	switch s.ImageDependency {
	case "", "depends":
		first("Depends", s.image())
	case "recommends":
		first("Recommends", s.image())
	}
	relations["Provides"] = []string{s.base() + " (= " + s.Version() + ")"}
	if s.ProvideDKMS && s.DKMS != nil {
		for _, name := range provides(s.DKMS) {
			if names(name)[0] != s.base() {
				relations["Provides"] = append(relations["Provides"], name)
			}
		}
	}
	return relations
}

func orElse(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// wrapText breaks a paragraph of a description into lines of at most 78
// characters that begin with a blank, all but the first.
func wrapText(s string) string {
	var b strings.Builder
	width := 0
	for i, word := range strings.Fields(s) {
		switch {
		case i == 0:
		case width+1+len(word) > 78:
			b.WriteString("\n ")
			width = 0
		default:
			b.WriteByte(' ')
			width++
		}
		b.WriteString(word)
		width += len(word)
	}
	return b.String()
}

func inMemory(path string, content []byte) deb.File {
	return deb.File{
		Path: path, Mode: 0o644, Size: int64(len(content)),
		Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil },
	}
}

func compress(content []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := pgzip.NewWriterLevel(&b, pgzip.BestCompression) // as lintian wants it
	if err != nil {
		return nil, err
	}
	w.ModTime = time.Unix(0, 0) // no time; pgzip writes nonsense for Go's zero time
	if _, err := w.Write(content); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// script is a maintainer script that brings the kernel's list of modules up to
// date, and its initramfs if asked for. It passes when there is no such kernel, as
// on a machine that gets its kernel later, and when there is no depmod.
func (s Spec) script(action string) string {
	kernel := "/lib/modules/" + s.Kernel
	initramfs := ""
	if s.Initramfs {
		initramfs = s.refresh()
	}
	return fmt.Sprintf(`#!/bin/sh
set -e
# modules.builtin comes with the kernel: without it there is nothing to index.
if [ "$1" = %s ] && [ -e %s/modules.builtin ] && command -v depmod >/dev/null; then
    depmod -a %s
%sfi
exit 0
`, action, kernel, s.Kernel, initramfs)
}

// refresh makes the kernel's initramfs anew where it has one. dpkg's trigger
// update-initramfs would not do: it is for the newest kernel alone, or for all. The
// dracut of Debian 12 has no update-initramfs.
func (s Spec) refresh() string {
	image := "/boot/initrd.img-" + s.Kernel
	return fmt.Sprintf(`    if [ -e %s ]; then
        if command -v update-initramfs >/dev/null; then
            update-initramfs -u -k %s
        elif command -v dracut >/dev/null; then
            dracut --quiet --force %s %s
        fi
    fi
`, image, s.Kernel, image, s.Kernel)
}

// terms are what the modules say themselves.
func (s Spec) terms(source string) string {
	licenses := slices.Compact(slices.Sorted(slices.Values(s.Licenses)))
	return fmt.Sprintf("These kernel modules were built from %s %s.\n\nIts source came without a copyright file. The modules declare the license: %s.",
		source, oneLine(orElse(s.SourceVersion, s.ModuleVersion)), strings.Join(licenses, ", "))
}

var signOff = regexp.MustCompile(`(?m)^ -- .*>  ?(.*)$`)

// ChangelogTime is the date of the newest entry of a Debian changelog, or the
// zero time: also for years that no file can have been packaged in, and that
// ar(5) and tar(5) may have no room for. See deb-changelog(5).
func ChangelogTime(changelog []byte) time.Time {
	m := signOff.FindSubmatch(changelog)
	if m == nil {
		return time.Time{}
	}
	for _, layout := range []string{"Mon, _2 Jan 2006 15:04:05 -0700", "Mon, 2 Jan 2006 15:04:05 -0700"} {
		if t, err := time.Parse(layout, strings.TrimSpace(string(m[1]))); err == nil {
			if t = t.UTC(); t.Year() < 1980 || t.Year() > 2100 {
				return time.Time{}
			}
			return t
		}
	}
	return time.Time{}
}
