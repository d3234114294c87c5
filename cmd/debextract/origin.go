package main

import (
	"archive/tar"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/deb"
	"dkms2bin/internal/kernel"
	"dkms2bin/internal/modpkg"
	"dkms2bin/internal/state"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// program is who makes the packages.
func program() string { return "dkms2bin " + cli.Version() }

// originOf says what the builds of a package for a kernel are made of. Without a
// kernel it is for what there is one of for all.
func originOf(doc *state.Document, p *state.Package, k *state.Kernel) modpkg.Origin {
	o := modpkg.Origin{Digest: p.Digest, Program: program()}
	if p.Name != "" {
		o.Package = p.Name + " (= " + p.Version + ")"
	}
	if k != nil {
		o.Headers = k.Headers + " (= " + k.Version + ")"
		o.DKMS, o.BuildPackages = doc.Tree.DKMS, p.Tools
	}
	return o
}

// recorded is the origin as the document has it.
func recorded(o modpkg.Origin) *state.Origin {
	return &state.Origin{
		Package: o.Package, Digest: o.Digest, Headers: o.Headers, Compiler: o.Compiler, DKMS: o.DKMS,
		BuildPackages: o.BuildPackages, Program: o.Program,
	}
}

// compilers are those that built the modules, as they call themselves there.
func compilers(modules []kernel.Module) (string, error) {
	var list []string
	for _, m := range modules {
		name, err := kernel.Compiler(m.Path)
		if err != nil {
			return "", fmt.Errorf("cannot see what compiled %s: %w", filepath.Base(m.Path), err)
		}
		if name != "" {
			list = append(list, name)
		}
	}
	return strings.Join(slices.Compact(slices.Sorted(slices.Values(list))), ", "), nil
}

// write composes a package and writes it into the output directory. One that is
// there and differs in nothing but the version of dkms2bin that made it stays.
func write(o *options, origin modpkg.Origin, compose func(modpkg.Origin) (deb.Package, error)) (d state.Deb, err error) {
	p, err := compose(origin)
	if err != nil {
		return d, &unfitError{err}
	}
	if err := os.MkdirAll(o.outDir, 0o755); err != nil {
		return d, err
	}
	file := filepath.Join(o.outDir, deb.Filename(p.Control))
	if before := madeBy(file); before != "" && before != origin.Program {
		origin.Program = before
		if p, err = compose(origin); err != nil {
			return d, err
		}
	}
	size, digest, err := install(file, p)
	if err != nil {
		return d, err
	}
	return state.Deb{
		Path: file, Digest: digest, Size: size, Name: p.Control.Get("Package"), Version: p.Control.Get("Version"),
		Architecture: p.Control.Get("Architecture"), MadeOf: recorded(origin),
	}, nil
}

// mostData is more than any package of ours has in it, in bytes.
const mostData = 4 << 30

// madeBy says which version of dkms2bin made a package; "" when it does not tell,
// or there is none.
func madeBy(file string) string {
	return fromDeb(file, func(archive *deb.Archive) (string, error) {
		tr, c, err := archive.Data(mostData)
		if err != nil {
			return "", err
		}
		defer c.Close()
		for {
			h, err := tr.Next()
			if err != nil {
				return "", err // also its end
			}
			if ok, _ := path.Match("./usr/share/doc/*/buildinfo", h.Name); ok && h.Typeflag == tar.TypeReg {
				return programIn(tr)
			}
		}
	})
}

// fromDeb is what there is to know of a package in the output directory; "" when it
// cannot be read: whoever writes there or indexes it will say so.
func fromDeb(file string, read func(*deb.Archive) (string, error)) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	archive, err := deb.Open(f, info.Size())
	if err != nil {
		return ""
	}
	found, err := read(archive)
	if err != nil {
		return ""
	}
	return found
}

func programIn(r io.Reader) (string, error) {
	const most = 64 << 10 // bytes
	text, err := io.ReadAll(io.LimitReader(r, most))
	if err != nil {
		return "", err
	}
	s, err := deb.ParseStanza(text)
	return s.Get(modpkg.ProgramField), err
}
