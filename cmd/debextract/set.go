package main

import (
	"dkms2bin/internal/cli"
	"dkms2bin/internal/deb"
	"dkms2bin/internal/kernel"
	"dkms2bin/internal/modpkg"
	"dkms2bin/internal/state"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// writeSets writes the metapackage of each flavour for the newest of its kernels
// for which every module of the document was built. Where there is none, nothing
// is written, and what is there from before stays the newest.
func (ships *shipments) writeSets(s *cli.Session) error {
	o := ships.o
	if o.set == "" {
		return nil
	}
	kernels := slices.Clone(s.Doc.Kernels)
	slices.SortStableFunc(kernels, func(a, b state.Kernel) int { return kernel.CompareReleases(b.Release, a.Release) })
	missing := map[string]string{} // what the newest kernel of a flavour misses
	done := map[string]bool{}
	var errs []error
	for _, k := range kernels {
		flavour := kernel.Flavour(k.Release)
		if done[flavour] || !slices.ContainsFunc(s.Doc.Builds, func(b state.Build) bool { return b.Kernel == k.Release }) {
			continue
		}
		members, without := membersFor(s.Doc, k, o.outDir)
		if without != "" {
			if missing[flavour] == "" {
				missing[flavour] = without
			}
			continue
		}
		done[flavour] = true
		d, err := ships.writeSet(k, members)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.Doc.Debs = append(s.Doc.Debs, d)
		s.Msg.Info("%s", filepath.Base(d.Path))
		if newer := newerThere(o.outDir, d); newer != "" {
			s.Msg.Warn("%s %s is there, too: for apt it is newer than %s", d.Name, newer, d.Version)
		}
	}
	for _, flavour := range slices.Sorted(maps.Keys(missing)) {
		s.Msg.Warn("%s does not move on: %s", modpkg.Set{Name: o.set, Flavour: flavour}.PackageName(), missing[flavour])
	}
	return joinLines(errs)
}

// A member is one module of a set, as a build and as a package.
type member struct {
	build state.Build
	deb   state.Deb
}

// membersFor finds the packages of all modules of the document for a kernel; or
// else why one is missing.
func membersFor(doc *state.Document, k state.Kernel, outDir string) (members []member, missing string) {
	for _, p := range doc.Packages {
		modules := modulesOf(doc, p)
		if len(modules) == 0 {
			return nil, fmt.Sprintf("%s was not built for %s", p.Request, k.Release)
		}
		for _, module := range modules {
			i := slices.IndexFunc(doc.Builds, func(b state.Build) bool {
				return b.Package == p.Name && b.Module == module && b.Kernel == k.Release
			})
			if i < 0 || doc.Builds[i].Status != state.Built {
				why := ""
				if i >= 0 {
					why = fmt.Sprintf(" (%s)", doc.Builds[i].Status)
				}
				return nil, fmt.Sprintf("%s was not built for %s%s", module, k.Release, why)
			}
			j := slices.IndexFunc(doc.Debs, func(d state.Deb) bool {
				return d.Module == module && d.Kernel == k.Release && d.Archive == doc.Builds[i].ArchiveDigest && filepath.Dir(d.Path) == outDir
			})
			if j < 0 {
				return nil, fmt.Sprintf("there is no package of %s for %s", module, k.Release)
			}
			members = append(members, member{doc.Builds[i], doc.Debs[j]})
		}
	}
	return members, ""
}

// modulesOf are the modules that a package brings, for whatever kernel.
func modulesOf(doc *state.Document, p state.Package) []string {
	var list []string
	for _, b := range doc.Builds {
		if b.Package == p.Name && b.Module != "" && !slices.Contains(list, b.Module) {
			list = append(list, b.Module)
		}
	}
	return list
}

func (ships *shipments) writeSet(k state.Kernel, members []member) (d state.Deb, err error) {
	doc, o := ships.doc, ships.o
	set := modpkg.Set{
		Name: o.set, Flavour: kernel.Flavour(k.Release), Kernel: kernelSpec(doc, o, &k),
	}
	for _, m := range members {
		source := m.build.PackageVersion
		if doc.Package(m.build.Package).Kind == state.KindSource {
			source = m.build.ModuleVersion
		}
		set.Members = append(set.Members, modpkg.Member{Package: m.deb.Name, Version: m.deb.Version, Source: source})
	}
	for _, d := range ships.before {
		if d.Name == set.PackageName() && d.Version == set.Version() && ships.intact(d) {
			return d, nil
		}
	}
	if err := treeIsThere(doc.Tree); err != nil {
		return d, err
	}
	if set.Time, err = newestOf(doc, members); err != nil {
		return d, err
	}
	if set.Time.IsZero() { // no package has a date: any one that stays the same will do
		set.Time = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	d, err = write(o, modpkg.Origin{Program: program()}, func(origin modpkg.Origin) (deb.Package, error) {
		set.Program = origin.Program
		return set.Compose()
	})
	d.Kernel = k.Release
	return d, err
}

// newestOf is the time of the newest package that a set has modules of.
func newestOf(doc *state.Document, members []member) (newest time.Time, err error) {
	for _, m := range members {
		p := doc.Package(m.build.Package)
		changelog, err := readIfThere(p.Doc, "changelog")
		if err != nil {
			return newest, err
		}
		t, err := ownTime(changelog, p.Date)
		if err != nil {
			return newest, err
		}
		if t.After(newest) {
			newest = t
		}
	}
	return newest, nil
}

// newerThere is the version of a package of the same name in the directory that
// apt would rather take.
func newerThere(dir string, d state.Deb) string {
	files, err := os.ReadDir(dir)
	if err != nil {
		return ""
	}
	newest := d.Version
	for _, f := range files {
		if !strings.HasPrefix(f.Name(), d.Name+"_") || !strings.HasSuffix(f.Name(), "_"+d.Architecture+".deb") {
			continue
		}
		if v := versionOf(filepath.Join(dir, f.Name())); v != "" && deb.CompareVersions(v, newest) > 0 {
			newest = v
		}
	}
	if newest == d.Version {
		return ""
	}
	return newest
}

// versionOf is the version of a package, "" when it cannot be read.
func versionOf(file string) string {
	return fromDeb(file, func(archive *deb.Archive) (string, error) {
		control, err := archive.Control()
		return control.Get("Version"), err
	})
}
