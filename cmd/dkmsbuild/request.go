package main

import (
	"context"
	"crypto/sha256"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/deb"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/state"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// isPath tells a path from a package's name, which has no slash.
func isPath(request string) bool {
	return strings.Contains(request, "/") || strings.HasSuffix(request, ".deb")
}

// checkRequest looks at the form of a request, and at the host's files.
func checkRequest(request string) error {
	if !isPath(request) {
		if strings.ContainsAny(request, " \t\n") {
			return cli.Usagef("--dkms %q: a package name has no blanks", request)
		}
		return nil
	}
	info, err := os.Stat(request)
	if err != nil {
		return cli.Usagef("--dkms: %w", err)
	}
	if info.IsDir() {
		if _, err := os.Stat(filepath.Join(request, "dkms.conf")); err != nil {
			return cli.Usagef("--dkms %s: the directory holds no dkms.conf", request)
		}
		return nil
	}
	if !info.Mode().IsRegular() || !strings.HasSuffix(request, ".deb") {
		return cli.Usagef("--dkms %s: neither a .deb nor a source directory", request)
	}
	return nil
}

// resolve finds what each request stands for. Nothing is installed yet, so that
// a mistyped name costs no build. All requests that cannot be resolved are
// reported together.
func resolve(ctx context.Context, inside apt.Inside, requests ...string) ([]*pkg, error) {
	o, err := look(ctx, inside, requests)
	if err != nil {
		return nil, err
	}
	var packages []*pkg
	var errs []error
	for _, request := range requests {
		p, err := o.resolve(ctx, request)
		if err != nil {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			errs = append(errs, err)
			continue
		}
		if i := slices.IndexFunc(packages, func(o *pkg) bool {
			return o.Name == p.Name && o.Kind != state.KindSource && p.Kind != state.KindSource
		}); i >= 0 {
			// Requests come in the order in which they were made: the last one
			// counts, since it may replace what failed.
			packages[i] = p
			continue
		}
		packages = append(packages, p)
	}
	if len(errs) == 1 {
		return nil, errs[0]
	}
	if len(errs) > 1 {
		var hints []string
		for _, err := range errs {
			if h := diag.Hint(err); h != "" {
				hints = append(hints, h)
			}
		}
		err := errors.New(strings.ReplaceAll(errors.Join(errs...).Error(), "\n", "; "))
		if len(hints) > 0 {
			err = diag.WithHint(err, "%s", strings.Join(hints, "; "))
		}
		return nil, err
	}
	return packages, nil
}

// An offer is what the repositories have of some packages.
type offer struct {
	inside   apt.Inside
	packages map[string]apt.Offer
}

// look asks apt, once, for all that requests may stand for.
func look(ctx context.Context, inside apt.Inside, requests []string) (o offer, err error) {
	var all []string
	for _, r := range requests {
		if isPath(r) {
			continue
		}
		name, _, pinned := strings.Cut(r, "=")
		prefix, open := strings.CutSuffix(r, "~")
		switch {
		case pinned:
			all = append(all, name)
		case open:
			for _, c := range cuts(prefix) {
				all = append(all, c.name)
			}
		default:
			all = append(all, r)
		}
	}
	o.inside = inside
	if len(all) > 0 {
		o.packages, err = inside.Look(ctx, all...)
	}
	return o, err
}

// resolve finds what a request stands for.
func (o offer) resolve(ctx context.Context, request string) (*pkg, error) {
	if isPath(request) {
		return resolvePath(request)
	}
	name, version, pinned := strings.Cut(request, "=")
	if prefix, open := strings.CutSuffix(request, "~"); open && !pinned {
		return o.resolvePrefix(ctx, request, prefix)
	}
	if !pinned {
		version = o.packages[name].Preferred
	}
	found := o.packages[name].Versions
	i := slices.IndexFunc(found, func(c apt.Candidate) bool { return c.Version == version })
	switch {
	case i >= 0:
		return fromArchive(request, found[i]), nil
	case pinned && len(found) > 0:
		return nil, diag.WithHint(fmt.Errorf("the repositories have no version %s of %s", version, name),
			"of %s they have %s", name, strings.Join(versions(found), ", "))
	}
	return nil, unknown(ctx, o.inside, name, "-dkms")
}

func fromArchive(request string, c apt.Candidate) *pkg {
	return &pkg{
		Package: state.Package{
			Request: request, Kind: state.KindArchive, Name: c.Name, Version: c.Version, Digest: c.SHA256,
			Source: fmt.Sprintf("%s (= %s)", c.Source, c.SourceVersion),
		},
		offered: &c, depends: relations(c.Depends), provides: names(c.Provides, ","),
	}
}

// relations are the names of the packages in a field such as Depends: of each relation
// the alternatives.
func relations(field string) (list [][]string) {
	for relation := range strings.SplitSeq(field, ",") {
		if names := names(relation, "|"); len(names) > 0 {
			list = append(list, names)
		}
	}
	return list
}

// names are those of the packages in a field, without versions and architectures.
func names(field, separator string) (list []string) {
	for part := range strings.SplitSeq(field, separator) {
		words := strings.FieldsFunc(part, func(r rune) bool { return strings.ContainsRune(" \t\n(:[<", r) })
		if len(words) > 0 {
			list = append(list, words[0])
		}
	}
	return list
}

// A cut is one way to read "name-version".
type cut struct{ name, version string }

// cuts are all of them: any hyphen may be the one between name and version.
func cuts(text string) (list []cut) {
	for i, r := range text {
		if r == '-' && i > 0 && i+1 < len(text) {
			list = append(list, cut{text[:i], text[i+1:]})
		}
	}
	return list
}

// resolvePrefix reads "name-version~".
func (o offer) resolvePrefix(ctx context.Context, request, prefix string) (*pkg, error) {
	ways := cuts(prefix)
	if len(ways) == 0 {
		return nil, fmt.Errorf("%s: not of the form name-version~", request)
	}
	var matches, others []apt.Candidate
	for _, c := range ways {
		for _, candidate := range o.packages[c.name].Versions {
			_, upstream, hasEpoch := strings.Cut(candidate.Version, ":")
			if strings.HasPrefix(candidate.Version, c.version) || (hasEpoch && strings.HasPrefix(upstream, c.version)) {
				matches = append(matches, candidate)
			} else {
				others = append(others, candidate)
			}
		}
	}
	switch {
	case len(matches) == 1:
		return fromArchive(request, matches[0]), nil
	case len(matches) > 1:
		return nil, diag.WithHint(fmt.Errorf("%s is ambiguous", request), "it may mean %s", strings.Join(pinned(matches), ", "))
	case len(others) > 0:
		return nil, diag.WithHint(fmt.Errorf("the repositories have no package for %s", request), "there are %s", strings.Join(pinned(others), ", "))
	}
	return nil, unknown(ctx, o.inside, ways[len(ways)-1].name, "-dkms")
}

func versions(list []apt.Candidate) []string {
	var out []string
	for _, c := range list {
		out = append(out, c.Version)
	}
	return out
}

func pinned(list []apt.Candidate) []string {
	var out []string
	for _, c := range list {
		out = append(out, c.Name+"="+c.Version)
	}
	return out
}

// unknown is the error for a name that the repositories do not have. What it may
// stand for ends in suffix.
func unknown(ctx context.Context, inside apt.Inside, name, suffix string) error {
	err := fmt.Errorf("the repositories have no package %s", name)
	if _, statErr := os.Stat(filepath.Join(name, "dkms.conf")); statErr == nil {
		return diag.WithHint(err, "to build the directory here, write ./%s", name)
	}
	all, listErr := inside.Names(ctx)
	if listErr != nil {
		return errors.Join(err, listErr)
	}
	all = slices.DeleteFunc(all, func(n string) bool { return !strings.HasSuffix(n, suffix) })
	if similar := apt.Similar(name, all, 5); len(similar) > 0 {
		return diag.WithHint(err, "did you mean %s?", strings.Join(similar, ", "))
	}
	ending := ""
	if suffix != "" {
		ending = " whose names end in " + suffix
	}
	return diag.WithHint(err, "they have %d packages%s; is a repository or component missing?", len(all), ending)
}

// resolvePath reads what a .deb or a source directory says of itself, as far as
// that can be read without running it.
func resolvePath(request string) (p *pkg, err error) {
	p = &pkg{}
	defer func() {
		if err != nil {
			p, err = nil, fmt.Errorf("cannot use %s: %w", request, err)
		}
	}()
	path, err := filepath.Abs(request)
	if err != nil {
		return p, err
	}
	p.Request = path
	info, err := os.Stat(path)
	if err != nil {
		return p, err
	}
	if info.IsDir() {
		p.Kind = state.KindSource
		p.Name = filepath.Base(path) // until dkms has read its dkms.conf
		p.Digest, p.Date, err = digestDir(path)
		return p, err
	}
	f, err := os.Open(path)
	if err != nil {
		return p, err
	}
	defer f.Close()
	archive, err := deb.Open(f, info.Size())
	if err != nil {
		return p, err
	}
	control, err := archive.Control()
	if err != nil {
		return p, err
	}
	p.Kind, p.Name, p.Version = state.KindDeb, control.Get("Package"), control.Get("Version")
	p.depends, p.provides = relations(control.Get("Pre-Depends")+","+control.Get("Depends")), names(control.Get("Provides"), ",")
	source, version := apt.SourceOf(control)
	p.Source = fmt.Sprintf("%s (= %s)", source, version)
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return p, err
	}
	p.Digest, err = state.Digest(f)
	return p, err
}

// digestDir is a digest of the names, modes and contents of a directory, and the
// time of its newest file.
func digestDir(dir string) (digest string, newest time.Time, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", newest, err
	}
	defer root.Close()
	sum := sha256.New()
	err = fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(sum, "%q %v\n", path, info.Mode())
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := root.Readlink(path)
			fmt.Fprintf(sum, "%q\n", target)
			return err
		case info.Mode().IsRegular():
			if info.ModTime().After(newest) {
				newest = info.ModTime().UTC().Truncate(time.Second)
			}
			content, err := state.FileDigest(filepath.Join(dir, path))
			fmt.Fprintln(sum, content)
			return err
		}
		return nil
	})
	return hex.EncodeToString(sum.Sum(nil)), newest, err
}
