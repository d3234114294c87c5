package main

import (
	"dkms2bin/internal/cli"
	"dkms2bin/internal/deb"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/modpkg"
	"dkms2bin/internal/scratch"
	"dkms2bin/internal/state"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// shipments are what the document's DKMS packages say and ship beside their
// sources.
type shipments struct {
	doc    *state.Document
	o      *options
	before []state.Deb // what the document had
	dir    string      // of their files
	list   []*shipment
}

type shipment struct {
	of     *state.Package
	dkms   deb.Stanza     // its control file, nil for a source directory
	common *modpkg.Common // nil where there is nothing for such a package
	err    error
}

// newShipments begins with none; done removes what was unpacked.
func newShipments(doc *state.Document, o *options) (_ *shipments, done func() error, err error) {
	dir, done, err := scratch.Make()
	if err != nil {
		return nil, nil, err
	}
	return &shipments{doc: doc, o: o, before: slices.Clone(doc.Debs), dir: dir}, done, nil
}

// complete tells a package of modules what its -dkms package says of it.
func (s *shipments) complete(spec *modpkg.Spec, p *state.Package, k *state.Kernel) error {
	ship := s.of(p)
	if ship.err != nil {
		return ship.err
	}
	spec.DKMS, spec.ProvideDKMS, spec.Initramfs = ship.dkms, s.o.provideDKMS, s.o.initramfs
	spec.Origin = originOf(s.doc, p, k)
	if ship.common != nil {
		spec.Common = ship.common.Relation()
	}
	return nil
}

// of reads a package when it is asked for the first time.
func (s *shipments) of(p *state.Package) *shipment {
	if i := slices.IndexFunc(s.list, func(o *shipment) bool { return o.of == p }); i >= 0 {
		return s.list[i]
	}
	ship := &shipment{of: p}
	s.list = append(s.list, ship)
	if p.Kind != state.KindSource {
		ship.err = s.read(ship)
	}
	return ship
}

func (s *shipments) read(ship *shipment) error {
	p := ship.of
	file := filepath.Join(p.Doc, state.PackageFile)
	digest, err := state.FileDigest(file)
	if errors.Is(err, os.ErrNotExist) || err == nil && digest != p.Digest {
		return diag.WithHint(fmt.Errorf("the tree has not kept the package %s that the document names", p.Name), "begin with mkchroot")
	}
	if err != nil {
		return err
	}
	dir := filepath.Join(s.dir, strconv.Itoa(len(s.list)))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	contents, err := modpkg.ReadShipment(file, dir)
	if err != nil {
		return err
	}
	ship.dkms = contents.Control
	if contents.Empty() {
		return nil
	}
	common := &modpkg.Common{Shipment: contents, VersionSuffix: s.o.suffix, Origin: originOf(s.doc, p, nil)}
	for _, b := range s.doc.Builds {
		if b.Package == p.Name && b.Module != "" {
			common.Modules = append(common.Modules, b.Module)
		}
	}
	if common.Copyright, err = readIfThere(p.Doc, "copyright"); err != nil {
		return err
	}
	if common.Changelog, err = readIfThere(p.Doc, "changelog"); err != nil {
		return err
	}
	common.Time, err = ownTime(common.Changelog, contents.Newest)
	ship.common = common
	return err
}

// ownTime is the time of a package that another run, for other kernels, makes
// again: that of the newest entry of the changelog, else of the newest file. So
// SOURCE_DATE_EPOCH counts only where it is earlier.
func ownTime(changelog []byte, newest time.Time) (time.Time, error) {
	t := modpkg.ChangelogTime(changelog)
	if t.IsZero() {
		t = newest
	}
	epoch, err := sourceDateEpoch()
	if err == nil && !epoch.IsZero() && epoch.Before(t) {
		t = epoch
	}
	return t, err
}

// write writes the packages that those of modules depend on. Of DKMS packages all of
// whose packages were kept it keeps them, too.
func (s *shipments) write(session *cli.Session) error {
	var errs []error
	for i := range s.doc.Packages {
		p := &s.doc.Packages[i]
		built := func(b state.Build) bool { return b.Package == p.Name && b.Status == state.Built }
		if !slices.ContainsFunc(s.doc.Builds, built) {
			continue
		}
		asked := slices.ContainsFunc(s.list, func(o *shipment) bool { return o.of == p })
		had := slices.IndexFunc(s.before, func(d state.Deb) bool { return d.Module == "" && d.Archive != "" && d.Archive == p.Digest })
		switch {
		case !asked && had < 0:
			continue
		case !asked && s.intact(s.before[had]):
			s.doc.Debs = append(s.doc.Debs, s.before[had])
			continue
		}
		ship := s.of(p)
		if ship.err != nil && !asked {
			errs = append(errs, ship.err)
		}
		if ship.common == nil {
			continue
		}
		d, err := write(s.o, ship.common.Origin, func(origin modpkg.Origin) (deb.Package, error) {
			common := *ship.common
			common.Origin = origin
			return common.Compose()
		})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		d.Archive = p.Digest
		s.doc.Debs = append(s.doc.Debs, d)
		session.Msg.Info("%s", filepath.Base(d.Path))
	}
	return joinLines(errs)
}

// intact says that a package is in the output directory as it was written.
func (s *shipments) intact(d state.Deb) bool {
	digest, err := state.FileDigest(d.Path)
	return err == nil && digest == d.Digest && filepath.Dir(d.Path) == s.o.outDir
}

// sourceDateEpoch is the time of SOURCE_DATE_EPOCH, or the zero time. See
// reproducible-builds.org/specs/source-date-epoch.
func sourceDateEpoch() (time.Time, error) {
	epoch := os.Getenv("SOURCE_DATE_EPOCH")
	if epoch == "" {
		return time.Time{}, nil
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("cannot read SOURCE_DATE_EPOCH: %w", err)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// kernelSpec is what packages say of their kernel.
func kernelSpec(doc *state.Document, o *options, k *state.Kernel) modpkg.Spec {
	spec := modpkg.Spec{
		Kernel: k.Release, KernelVersion: k.Version, Modversions: k.Modversions,
		ModulesPrefix: k.ModulesPrefix, Distribution: doc.Tree.Distribution, Architecture: doc.Tree.Architecture,
		VersionSuffix: o.suffix, ImageDependency: o.image,
	}
	for _, image := range k.Images {
		spec.Images = append(spec.Images, modpkg.Image{Name: image.Package, Version: image.Version})
	}
	if len(k.Images) == 0 && o.image == "depends" {
		spec.ImageDependency = "recommends" // apt would refuse what depends on a name that nobody knows
	}
	return spec
}
