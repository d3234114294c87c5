package main

import (
	"context"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/deb"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/dkms"
	"dkms2bin/internal/kernel"
	"dkms2bin/internal/modpkg"
	"dkms2bin/internal/state"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// extract writes the packages of all builds that have none yet, and saves the
// logs. It goes on after a package that cannot be written and then fails.
func extract(ctx context.Context, s *cli.Session, o *options) (err error) {
	if len(s.Operands) > 0 {
		return extractOperands(ctx, s, o)
	}
	s.Msg.Announce("exporting kernel binary module packages into %s", o.outDir)
	s.Doc.OutDir = o.outDir
	ships, done, err := newShipments(s.Doc, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	var errs []error
	for i := range s.Doc.Builds {
		if err := context.Cause(ctx); err != nil {
			errs = append(errs, err)
			break
		}
		b := &s.Doc.Builds[i]
		if b.Status != state.Built && (b.Status != state.Failed || b.Stage != "debextract") {
			continue
		}
		k, p := s.Doc.Kernel(b.Kernel), s.Doc.Package(b.Package)
		if k == nil || p == nil || s.Doc.Tree == nil {
			return cli.Usagef("the document has a build of %s for %s, but not its package and kernel", b.Module, b.Kernel)
		}
		if b.PackageVersion != p.Version {
			errs = append(errs, diag.WithHint(fmt.Errorf("%s %s for %s was built from %s %s, and the document has %s by now",
				b.Module, b.ModuleVersion, b.Kernel, p.Name, b.PackageVersion, p.Version), "run dkmsbuild on the document for that kernel"))
			continue
		}
		spec := kernelSpec(s.Doc, o, k)
		spec.Module, spec.ModuleVersion = b.Module, b.ModuleVersion
		spec.Source, spec.SourceVersion, spec.Time = p.Name, p.Version, p.Date
		for _, source := range []string{p.Source, k.Source} {
			if source != "" {
				spec.BuiltUsing = append(spec.BuiltUsing, source)
			}
		}
		if p.Kind == state.KindSource {
			spec.Source, spec.SourceVersion = "", ""
		}
		if kept(s.Doc, *b, o, spec.Version()) {
			continue
		}
		if err := treeIsThere(s.Doc.Tree); err != nil {
			return err
		}
		if err := ships.complete(&spec, p, k); err != nil {
			errs = append(errs, err)
			continue
		}
		var err error
		if spec.Copyright, err = readIfThere(p.Doc, "copyright"); err != nil {
			errs = append(errs, err)
			continue
		}
		if spec.License, err = readIfThere(p.Doc, "license"); err != nil {
			errs = append(errs, err)
			continue
		}
		if spec.Changelog, err = readIfThere(p.Doc, "changelog"); err != nil {
			errs = append(errs, err)
			continue
		}
		err = makePackage(ctx, s, o, b, k.Facts, spec)
		var unfit *unfitError
		switch {
		case errors.As(err, &unfit):
			b.Status, b.Stage, b.Reason = state.Failed, "debextract", unfit.Error()
			s.Msg.Warn("%s: cannot build %s %s for %s: %s", b.Package, b.Module, b.ModuleVersion, b.Kernel, b.Reason)
		case err != nil:
			errs = append(errs, err)
		default:
			b.Status, b.Stage, b.Reason = state.Built, "", ""
		}
	}
	dropOldDebs(s.Doc)
	errs = append(errs, ships.write(s), ships.writeSets(s), saveLogs(s, o))
	return joinLines(errs)
}

// treeIsThere is for documents from which packages are still to be made.
func treeIsThere(tree *state.Tree) error {
	if _, err := os.Stat(filepath.Join(tree.Path, "records")); err != nil {
		return diag.WithHint(cli.Usagef("the build tree %s is gone, and with it what packages are to be made of", tree.Path),
			"begin with mkchroot: a tree that is gone must be made again")
	}
	return nil
}

// joinLines joins errors into one of one line.
func joinLines(errs []error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	switch len(errs) {
	case 0:
		return nil
	case 1:
		return errs[0]
	}
	return &joinedError{errs}
}

type joinedError struct{ errs []error }

func (e *joinedError) Error() string {
	var texts []string
	for _, err := range e.errs {
		texts = append(texts, err.Error())
	}
	return strings.Join(texts, "; ")
}

func (e *joinedError) Unwrap() []error { return e.errs }

// An unfitError is an archive that must not become a package: its modules would
// not load. That is a failed build, however content dkms was.
type unfitError struct{ error }

// kept says that the build's package is there already, made from this archive
// with these flags, and still with the content that was written.
func kept(doc *state.Document, b state.Build, o *options, version string) bool {
	for _, d := range doc.Debs {
		if d.Archive != b.ArchiveDigest || d.Kernel != b.Kernel || d.Module != b.Module ||
			d.Version != version || filepath.Dir(d.Path) != o.outDir || !slices.Equal(d.Options, o.forModules()) {
			continue
		}
		digest, err := state.FileDigest(d.Path)
		return err == nil && digest == d.Digest
	}
	return false
}

// dropOldDebs removes the records of packages whose build was since made again,
// or is no longer good. The files stay.
func dropOldDebs(doc *state.Document) {
	doc.Debs = slices.DeleteFunc(doc.Debs, func(d state.Deb) bool {
		return !slices.ContainsFunc(doc.Builds, func(b state.Build) bool {
			return b.Status == state.Built && b.Module == d.Module && b.Kernel == d.Kernel && b.ArchiveDigest == d.Archive
		})
	})
}

func readIfThere(dir, name string) ([]byte, error) {
	if dir == "" {
		return nil, nil
	}
	content, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return content, err
}

// makePackage checks one build's modules against the kernel and writes their
// package. The document's build gets its modules, the document the package.
func makePackage(ctx context.Context, s *cli.Session, o *options, b *state.Build, facts string, spec modpkg.Spec) (err error) {
	digest, err := state.FileDigest(b.Archive)
	if err != nil {
		return fmt.Errorf("cannot read the archive of %s %s for %s: %w", b.Module, b.ModuleVersion, b.Kernel, err)
	}
	if b.ArchiveDigest != "" && digest != b.ArchiveDigest {
		return fmt.Errorf("the archive %s is not the one that dkmsbuild recorded: run dkmsbuild on the document again", b.Archive)
	}
	dir, done, err := tempDir()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	archives, err := dkms.Extract(ctx, b.Archive, dir, dkms.Limits{})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return &unfitError{err}
	}
	i := slices.IndexFunc(archives, func(a dkms.Archive) bool { return a.Kernel == b.Kernel })
	if i < 0 {
		return &unfitError{fmt.Errorf("its archive holds modules for %s only", archives[0].Kernel)}
	}
	b.ArchiveDigest = digest
	d, err := writePackage(o, b, archives[i], facts, spec)
	if err != nil {
		return err
	}
	d.Archive = digest
	s.Doc.Debs = slices.DeleteFunc(s.Doc.Debs, func(old state.Deb) bool { return old.Path == d.Path })
	s.Doc.Debs = append(s.Doc.Debs, d)
	s.Msg.Info("%s", filepath.Base(d.Path))
	return nil
}

// writePackage checks the modules of an archive and writes them as a package.
func writePackage(o *options, b *state.Build, a dkms.Archive, factsDir string, spec modpkg.Spec) (d state.Deb, err error) {
	facts, err := kernel.ReadFacts(factsDir)
	if err != nil {
		return d, fmt.Errorf("cannot check modules for %s: %w", b.Kernel, err)
	}
	b.Modules = nil
	for _, file := range a.Files {
		m, err := kernel.ReadModule(file)
		if err != nil {
			return d, &unfitError{err}
		}
		if err := facts.Check(m); err != nil {
			return d, &unfitError{err}
		}
		b.Modules = append(b.Modules, state.Module{File: filepath.Base(file), Vermagic: strings.TrimSpace(m.Vermagic)})
		spec.Licenses = append(spec.Licenses, m.License)
	}
	spec.Files = a.Files
	if spec.Time, err = packageTime(spec, b.Archive); err != nil {
		return d, err
	}
	if spec.Origin.Compiler, err = compilers(a.Files); err != nil {
		return d, &unfitError{err}
	}
	d, err = write(o, spec.Origin, func(origin modpkg.Origin) (deb.Package, error) {
		spec.Origin = origin
		return spec.Compose()
	})
	d.Module, d.Kernel, d.Options = b.Module, b.Kernel, o.forModules()
	return d, err
}

// packageTime is the time of all files of a package: SOURCE_DATE_EPOCH, else
// that of the newest entry of the source's changelog, else of its newest file,
// else of the archive. See reproducible-builds.org/specs/source-date-epoch.
func packageTime(spec modpkg.Spec, archive string) (time.Time, error) {
	if epoch, err := sourceDateEpoch(); err != nil || !epoch.IsZero() {
		return epoch, err
	}
	if t := modpkg.ChangelogTime(spec.Changelog); !t.IsZero() {
		return t, nil
	}
	if !spec.Time.IsZero() {
		return spec.Time, nil
	}
	info, err := os.Stat(archive)
	if err != nil {
		return time.Time{}, err
	}
	return info.ModTime().UTC(), nil
}

// extractOperands makes packages of the archives on the command line, and a
// document that tells of them.
func extractOperands(ctx context.Context, s *cli.Session, o *options) error {
	facts, err := kernel.ReadFacts(o.headers)
	if err != nil {
		return fmt.Errorf("cannot use --headers %s: %w", o.headers, err)
	}
	s.Msg.Announce("exporting kernel binary module packages into %s", o.outDir)
	s.Doc.OutDir = o.outDir
	dir, done, err := tempDir()
	if err != nil {
		return err
	}
	var errs []error
	for n, operand := range s.Operands {
		if ctx.Err() != nil {
			errs = append(errs, context.Cause(ctx))
			break
		}
		to := filepath.Join(dir, strconv.Itoa(n))
		if err := os.Mkdir(to, 0o700); err != nil {
			errs = append(errs, err)
			break
		}
		errs = append(errs, extractOperand(ctx, s, o, operand, to, facts))
	}
	errs = append(errs, done())
	return joinLines(errs)
}

func extractOperand(ctx context.Context, s *cli.Session, o *options, operand, dir string, facts kernel.Facts) error {
	path, err := filepath.Abs(operand)
	if err != nil {
		return err
	}
	archives, err := dkms.Extract(ctx, path, dir, dkms.Limits{})
	if err != nil {
		return err
	}
	digest, err := state.FileDigest(path)
	if err != nil {
		return err
	}
	for _, a := range archives {
		b := state.Build{Module: a.Module, ModuleVersion: a.Version, Kernel: a.Kernel, Archive: path, ArchiveDigest: digest, Status: state.Built}
		arch, ok := kernel.ArchOfKernel(a.Arch)
		if !ok {
			return fmt.Errorf("cannot use %s: unknown architecture %q", path, a.Arch)
		}
		d, err := writePackage(o, &b, a, o.headers, modpkg.Spec{
			Module: a.Module, ModuleVersion: a.Version, Kernel: a.Kernel, Modversions: facts.Modversions,
			ModulesPrefix: "/lib/modules", Distribution: "debian", Architecture: arch.Debian, VersionSuffix: o.suffix, ImageDependency: o.image,
			Initramfs: o.initramfs, Origin: modpkg.Origin{Program: program()},
		})
		var unfit *unfitError
		switch {
		case errors.As(err, &unfit):
			b.Status, b.Stage, b.Reason = state.Failed, "debextract", unfit.Error()
			s.Msg.Warn("%s: %s", path, b.Reason)
		case err != nil:
			return err
		default:
			d.Archive = digest
			s.Doc.Debs = append(s.Doc.Debs, d)
			s.Msg.Info("%s", filepath.Base(d.Path))
		}
		s.Doc.Builds = append(s.Doc.Builds, b)
	}
	return nil
}

// saveTreeLog saves what there is to know of a tree that could not be made.
func saveTreeLog(s *cli.Session, o *options) error {
	if s.Doc.Tree == nil || s.Doc.Tree.Log == "" || s.Doc.Error.Stage != "mkchroot" {
		return nil
	}
	to := filepath.Join(o.logDir, "mkchroot.log")
	if err := copyLog(s.Doc.Tree.Log, to); err != nil {
		return fmt.Errorf("cannot save the log of the chroot environment: %w", err)
	}
	s.Doc.Tree.Log = to
	s.Msg.Info("the log of the chroot environment is %s", to)
	return nil
}

// saveLogs copies the builds' logs out of the tree, so that they survive it, and
// lets the document name the copies.
func saveLogs(s *cli.Session, o *options) error {
	saved := 0
	taken := map[string]string{} // name of a log: package that it is of
	for i := range s.Doc.Builds {
		b := &s.Doc.Builds[i]
		if b.Log == "" || filepath.Dir(b.Log) == o.logDir {
			continue
		}
		name := filepath.Base(b.Log)
		if b.Module == "" {
			name = strings.ReplaceAll(filepath.Base(b.Package), "/", "_") + "-" + b.Kernel + ".log"
		}
		if other, ok := taken[name]; ok && other != b.Package {
			name = filepath.Base(b.Package) + "-" + name
		}
		taken[name] = b.Package
		to := filepath.Join(o.logDir, name)
		if err := copyLog(b.Log, to); err != nil {
			return fmt.Errorf("cannot save the log of %s for %s: %w", b.Package, b.Kernel, err)
		}
		b.Log = to
		if b.Status == state.Failed {
			saved++
		}
	}
	if saved > 0 {
		s.Msg.Info("the logs of failed builds are in %s", o.logDir)
	}
	return nil
}
