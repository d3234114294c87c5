package main

import (
	"context"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/deb"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/dkms"
	"dkms2bin/internal/kernel"
	"dkms2bin/internal/modpkg"
	"dkms2bin/internal/modsign"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/scratch"
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
	o.sign.announce(s.Msg)
	if len(s.Operands) > 0 {
		return extractOperands(ctx, s, o)
	}
	s.Msg.Announce("exporting kernel binary module packages into %s", o.outDir)
	s.Doc.OutDir = o.outDir
	if s.Doc.Tree != nil {
		tree := rootfs.Hold(s.Doc.Tree.Path)
		defer func() { err = errors.Join(err, tree.Close()) }()
	}
	ships, done, err := newShipments(s.Doc, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	mem, err := openMemory(s)
	if err != nil {
		return err
	}
	var errs []error
	for _, release := range kernelsOf(s.Doc.Builds) {
		if err := context.Cause(ctx); err != nil {
			errs = append(errs, err)
			break
		}
		err := extractFor(ctx, s, o, ships, mem, release)
		var usage *cli.UsageError
		if errors.As(err, &usage) {
			return err // a document that cannot be worked on
		}
		errs = append(errs, err)
	}
	dropOldDebs(s.Doc)
	errs = append(errs, ships.write(s), ships.writeSets(s), saveLogs(s, o))
	return joinLines(errs)
}

// kernelsOf lists the kernels of builds, each once.
func kernelsOf(builds []state.Build) []string {
	var releases []string
	for _, b := range builds {
		if !slices.Contains(releases, b.Kernel) {
			releases = append(releases, b.Kernel)
		}
	}
	return releases
}

// extractFor writes the packages of one kernel.
func extractFor(ctx context.Context, s *cli.Session, o *options, ships *shipments, mem memory, release string) (err error) {
	candidates, stale, err := candidatesFor(s.Doc, o, ships, release)
	if err != nil || !slices.ContainsFunc(candidates, func(m *candidate) bool { return !m.kept }) {
		for _, m := range candidates {
			warnOfLeft(s, m)
		}
		return joinLines(append(stale, err))
	}
	batch, err := readBatch(s.Doc.Kernel(release).Facts)
	if err != nil {
		return fmt.Errorf("cannot check modules for %s: %w", release, err)
	}
	dir, done, err := scratch.Make()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	batch.candidates, batch.memory = candidates, mem
	if err := batch.unpackAll(ctx, dir); err != nil {
		return joinLines(append(stale, err))
	}
	batch.judge()
	return joinLines(append(stale, writeBatch(ctx, s, o, batch)))
}

// candidatesFor lists the builds of which packages are to be made, and those whose
// packages are there. Builds of packages that have changed since are errors.
func candidatesFor(doc *state.Document, o *options, ships *shipments, release string) (candidates []*candidate, stale []error, err error) {
	for i := range doc.Builds {
		b := &doc.Builds[i]
		if b.Kernel != release || b.Status != state.Built && (b.Status != state.Failed || b.Stage != "debextract") {
			continue
		}
		k, p := doc.Kernel(b.Kernel), doc.Package(b.Package)
		if k == nil || p == nil || doc.Tree == nil {
			return nil, nil, cli.Usagef("the document has a build of %s for %s, but not its package and kernel", b.Module, b.Kernel)
		}
		if b.PackageVersion != p.Version {
			stale = append(stale, diag.WithHint(fmt.Errorf("%s %s for %s was built from %s %s, and the document has %s by now",
				b.Module, b.ModuleVersion, b.Kernel, p.Name, b.PackageVersion, p.Version), "run dkmsbuild on the document for that kernel"))
			continue
		}
		m := &candidate{build: b, spec: specOf(doc, o, k, *p, *b)}
		if m.kept = kept(doc, *b, o, m.spec.Version()); !m.kept {
			if err := treeIsThere(doc.Tree); err != nil {
				return nil, nil, err
			}
			if err := errors.Join(ships.complete(&m.spec, p, k), readDocs(&m.spec, p.Doc)); err != nil {
				stale = append(stale, err)
				continue
			}
		}
		candidates = append(candidates, m)
	}
	return candidates, stale, nil
}

// specOf says what the document has for the package of a build.
func specOf(doc *state.Document, o *options, k *state.Kernel, p state.Package, b state.Build) modpkg.Spec {
	spec := kernelSpec(doc, o, k)
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
	return spec
}

// writeBatch writes the packages of a batch, and records what was found of all candidates.
// It goes on after a package that cannot be written.
func writeBatch(ctx context.Context, s *cli.Session, o *options, batch *batch) error {
	var errs []error
	for _, m := range batch.candidates {
		if ctx.Err() != nil {
			errs = append(errs, context.Cause(ctx))
			break
		}
		if m.err == nil && !m.kept {
			err := makePackage(ctx, s, o, batch, m)
			var unready *unreadyError
			if errors.As(err, &unready) {
				return joinLines(append(errs, err)) // the others would fail alike
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
		}
		b := m.build
		if m.err != nil {
			b.Status, b.Stage, b.Reason, b.Hint = state.Failed, "debextract", oneLine(m.err), diag.Hint(m.err)
			s.Msg.Warn("%s: cannot build %s %s for %s: %s", m.name(), b.Module, b.ModuleVersion, b.Kernel, b.Reason)
			if b.Hint != "" {
				s.Msg.Hint("%s", b.Hint)
			}
		} else {
			b.Status, b.Stage, b.Reason, b.Hint = state.Built, "", "", ""
		}
		if !m.kept || m.err != nil {
			batch.record(m)
		}
		warnOfLeft(s, m)
	}
	return joinLines(errs)
}

// warnOfLeft tells of the modules that a package goes without.
func warnOfLeft(s *cli.Session, m *candidate) {
	b := m.build
	for _, l := range b.Left {
		s.Msg.Warn("%s: left out of the package of %s %s for %s: %s", m.name(), b.Module, b.ModuleVersion, b.Kernel, l.Reason)
	}
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// treeIsThere is for documents from which packages are still to be made.
func treeIsThere(tree *state.Tree) error {
	if _, err := os.Stat(filepath.Join(tree.Path, "records")); err != nil {
		return diag.WithHint(cli.Usagef("the build tree %s is gone, and with it what packages are to be made of", tree.Path),
			"begin with mkchroot: a tree that is gone must be made again")
	}
	return nil
}

// An unfitError is what must not become a package. That is a failed build, however
// content dkms was.
type unfitError struct{ error }

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

// kept says that the build's package is there already, made from this archive
// with these flags, and still with the content that was written.
func kept(doc *state.Document, b state.Build, o *options, version string) bool {
	for _, d := range doc.Debs {
		if d.Archive != b.ArchiveDigest || d.Kernel != b.Kernel || d.Module != b.Module ||
			d.Version != version || filepath.Dir(d.Path) != o.outDir || !slices.Equal(d.Options, o.forModules()) || !signedBy(b, o.sign.keyID()) {
			continue
		}
		digest, err := state.FileDigest(d.Path)
		return err == nil && digest == d.Digest
	}
	return false
}

// signedBy says that all modules of a build were signed with a key; "" stands for none.
func signedBy(b state.Build, key string) bool {
	return !slices.ContainsFunc(b.Modules, func(m state.Module) bool { return m.SigKey != key })
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

// readDocs reads what a DKMS package says of rights and changes.
func readDocs(spec *modpkg.Spec, dir string) (err error) {
	for name, to := range map[string]*[]byte{"copyright": &spec.Copyright, "license": &spec.License, "changelog": &spec.Changelog} {
		if *to, err = readIfThere(dir, name); err != nil {
			return err
		}
	}
	return nil
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

// makePackage writes the package of a candidate, unless that is there, and records it.
// What cannot be a package makes the candidate unfit.
func makePackage(ctx context.Context, s *cli.Session, o *options, batch *batch, m *candidate) error {
	var err error
	m.spec.Depends = batch.relations(m)
	for _, k := range m.remaining() {
		m.spec.Licenses = append(m.spec.Licenses, k.License)
	}
	if m.spec.Time, err = packageTime(m.spec, m.build.Archive); err != nil {
		return err
	}
	p, err := batch.memory.recall(ctx, o, batch, m, func() (packed, error) { return pack(ctx, o, batch, m) })
	var unfit *unfitError
	if errors.As(err, &unfit) {
		m.err = err
		return nil
	}
	if err != nil {
		return err
	}
	m.files, m.signed = p.Files, p.Signed
	d := p.Deb
	d.Module, d.Kernel, d.Options, d.Archive = m.build.Module, m.build.Kernel, o.forModules(), m.build.ArchiveDigest
	s.Doc.Debs = slices.DeleteFunc(s.Doc.Debs, func(old state.Deb) bool { return old.Path == d.Path })
	s.Doc.Debs = append(s.Doc.Debs, d)
	s.Msg.Info("%s", filepath.Base(d.Path))
	return nil
}

// A packed is a package of modules that was written.
type packed struct {
	Deb    state.Deb
	Files  []string            // names of the modules' files
	Signed []modsign.Signature // of each
}

// pack makes the files of a candidate ready, and writes its package.
func pack(ctx context.Context, o *options, batch *batch, m *candidate) (p packed, err error) {
	if err := batch.finish(ctx, m, o.sign.signer); err != nil {
		return p, &unreadyError{err}
	}
	spec := m.spec
	spec.Files = m.files
	if spec.Origin.Compiler, err = compilers(m.remaining()); err != nil {
		return p, &unfitError{err}
	}
	for _, file := range m.files {
		p.Files = append(p.Files, filepath.Base(file))
	}
	p.Signed = m.signed
	p.Deb, err = write(o, spec.Origin, func(origin modpkg.Origin) (deb.Package, error) {
		spec.Origin = origin
		return spec.Compose()
	})
	return p, err
}

// An unreadyError is what is wrong with a tool or with the key.
type unreadyError struct{ error }

func (e *unreadyError) Unwrap() error { return e.error }

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
func extractOperands(ctx context.Context, s *cli.Session, o *options) (err error) {
	batch, err := readBatch(o.headers)
	if err != nil {
		return fmt.Errorf("cannot use --headers %s: %w", o.headers, err)
	}
	s.Msg.Announce("exporting kernel binary module packages into %s", o.outDir)
	s.Doc.OutDir = o.outDir
	dir, done, err := scratch.Make()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	var errs []error
	for n, operand := range s.Operands {
		if ctx.Err() != nil {
			errs = append(errs, context.Cause(ctx))
			break
		}
		candidates, err := unpackOperand(ctx, o, operand, filepath.Join(dir, strconv.Itoa(n)), batch.facts)
		batch.candidates = append(batch.candidates, candidates...)
		errs = append(errs, err)
	}
	batch.infer()
	batch.judge()
	errs = append(errs, writeBatch(ctx, s, o, batch))
	for _, m := range batch.candidates {
		s.Doc.Builds = append(s.Doc.Builds, *m.build)
	}
	return joinLines(errs)
}

// unpackOperand unpacks an archive into dir: a build for each kernel and module in
// it.
func unpackOperand(ctx context.Context, o *options, operand, dir string, facts kernel.Facts) ([]*candidate, error) {
	path, err := filepath.Abs(operand)
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	archives, err := dkms.Extract(ctx, path, dir, dkms.Limits{})
	if err != nil {
		return nil, err
	}
	digest, err := state.FileDigest(path)
	if err != nil {
		return nil, err
	}
	var candidates []*candidate
	for _, a := range archives {
		arch, ok := kernel.ArchOfKernel(a.Arch)
		if !ok {
			return nil, fmt.Errorf("cannot use %s: unknown architecture %q", path, a.Arch)
		}
		m := &candidate{
			build: &state.Build{Module: a.Module, ModuleVersion: a.Version, Kernel: a.Kernel, Archive: path, ArchiveDigest: digest},
			spec: modpkg.Spec{
				Module: a.Module, ModuleVersion: a.Version, Kernel: a.Kernel, Modversions: facts.Modversions,
				ModulesPrefix: "/lib/modules", Distribution: "debian", Architecture: arch.Debian, VersionSuffix: o.suffix, ImageDependency: o.image,
				Initramfs: o.initramfs, Origin: modpkg.Origin{Program: program()},
			},
		}
		m.read(a.Files)
		candidates = append(candidates, m)
	}
	return candidates, nil
}

// saveTreeLog saves what there is to know of a tree that could not be made.
func saveTreeLog(s *cli.Session, o *options) error {
	if s.Doc.Tree == nil || s.Doc.Tree.Log == "" || s.Doc.Error == nil || s.Doc.Error.Stage != "mkchroot" {
		return nil // also when this stage was interrupted before it had the document
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
