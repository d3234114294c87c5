package main

import (
	"bytes"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/repo"
	"dkms2bin/internal/state"
	"dkms2bin/internal/status"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

const (
	statusName = "status.json"
	pageName   = "index.html"
)

// records are the builds of the document as status.json has them.
func records(doc *state.Document, dir string) []status.Record {
	if doc.Tree == nil {
		return nil
	}
	var list []status.Record
	for _, b := range doc.Builds {
		r := status.Record{
			Architecture: doc.Tree.Architecture, Package: b.Package, PackageVersion: b.PackageVersion,
			Module: b.Module, ModuleVersion: b.ModuleVersion, Kernel: b.Kernel, Status: b.Status, Reason: b.Reason, Hint: b.Hint,
			Stage: b.Stage, Log: below(dir, b.Log), Date: b.Started, Seconds: b.Seconds,
		}
		if filepath.IsAbs(r.Package) {
			// A source directory or .deb that could not be installed: where it lies
			// is nobody's business.
			r.Package = filepath.Base(r.Package)
		}
		if r.Date.IsZero() { // it failed before it began
			r.Date = doc.Tree.Created
		}
		if len(b.Modules) > 0 { // one run signs all of them, or none
			r.Signer, r.SigKey = b.Modules[0].Signer, b.Modules[0].SigKey
		}
		for _, l := range b.Left {
			r.LeftOut = append(r.LeftOut, l.Reason)
		}
		for _, d := range doc.Debs {
			if path := below(dir, d.Path); path != "" && b.ArchiveDigest != "" && d.Archive == b.ArchiveDigest {
				r.Debs = append(r.Debs, path)
			}
		}
		list = append(list, r)
	}
	return list
}

// below is path seen from the repository, "" when it lies elsewhere.
func below(dir, path string) string {
	rel, err := filepath.Rel(dir, path)
	if err != nil || path == "" || !filepath.IsLocal(rel) {
		return ""
	}
	return filepath.ToSlash(rel)
}

func exists(dir, name string) bool {
	info, err := os.Lstat(filepath.Join(dir, name))
	return err == nil && info.Mode().IsRegular()
}

// maxStatus bounds what is read of a status.json: half a million records.
const maxStatus = 256 << 20

// previous is the status.json that is there, or an empty one.
func previous(dir string) (_ *status.Status, err error) {
	path := filepath.Join(dir, statusName)
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return &status.Status{Version: status.Version}, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only
	var text bytes.Buffer
	if info, err := f.Stat(); err == nil {
		text.Grow(int(min(info.Size(), maxStatus)) + bytes.MinRead)
	}
	if _, err := text.ReadFrom(io.LimitReader(f, maxStatus)); err != nil {
		return nil, err
	}
	s, err := status.ParseRecords(text.Bytes())
	if err != nil {
		return nil, diag.WithHint(fmt.Errorf("%s: %w", path, err), "the packages are indexed; move that file away, and the records of builds begin anew")
	}
	return s, nil
}

// account is what status.json and index.html are to be.
type account struct {
	status, page []byte
	logs         map[string]bool // that the records name
	unneeded     []string        // logs that only those named that are gone
	err          error
}

// accountOf merges the records of this run into those of all others; those of
// kernels that have had their time go.
func accountOf(added []status.Record, dir string, opt repo.Options, result repo.Result) (a account) {
	s, err := previous(dir)
	if err != nil {
		return account{err: err}
	}
	s.Repository = status.Repository{
		Description: opt.Description, Origin: opt.Origin, URL: opt.URL, Updated: result.Date,
	}
	if opt.Key != nil {
		s.Repository.SignedBy = opt.Key.Fingerprint
	}
	s.Merge(added)
	old := result.OldKernels()
	a.logs = make(map[string]bool)
	var kept []status.Record
	for _, rec := range s.Records {
		if old(rec.Architecture, rec.Kernel) {
			if rec.Log != "" {
				a.unneeded = append(a.unneeded, rec.Log)
			}
			continue
		}
		kept = append(kept, rec)
		a.logs[rec.Log] = true
	}
	s.Records = kept
	s.Packages = make([]status.Package, 0, len(result.Packages))
	for _, p := range result.Packages {
		module := ""
		if p.Kernel != "" {
			module = strings.TrimSuffix(p.Name, "-modules-"+p.Kernel)
		}
		s.Packages = append(s.Packages, status.Package{
			Name: p.Name, Version: p.Version, Architecture: p.Architecture, Filename: p.Path,
			Module: module, Kernel: p.Kernel,
		})
	}
	encoded := make(chan error, 1)
	go func() {
		var err error
		a.status, err = s.Encode()
		encoded <- err
	}()
	a.page, a.err = s.Page()
	a.err = errors.Join(<-encoded, a.err)
	return a
}

// files are status.json and index.html, none where they could not be made.
func (a account) files() map[string][]byte {
	if a.err != nil {
		return nil
	}
	return map[string][]byte{statusName: a.status, pageName: a.page}
}
