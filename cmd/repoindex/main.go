// Repoindex writes the apt metadata of a directory of packages: a flat
// repository. It reads a document and indexes the directory of its packages, or
// indexes the directory given as operand without a document.
//
//	repoindex <3.json >4.json
//	repoindex /srv/modules >/dev/null
package main

import (
	"context"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/repo"
	"dkms2bin/internal/state"
	"flag"
	"os"
	"path/filepath"
)

const manual = `
Writes Packages, Packages.gz and Release into the output directory of the
document's packages, or into DIR: apt takes it as a flat repository,
'deb [trusted=yes] file:DIR ./'. Packages that cannot be read are named and left
out.`

// check looks at the operand: at most one, a directory.
func check(operands []string) error {
	if len(operands) > 1 {
		return cli.Usagef("one directory at a time")
	}
	for _, dir := range operands {
		info, err := os.Stat(dir)
		if err != nil {
			return cli.Usagef("%w", err)
		}
		if !info.IsDir() {
			return cli.Usagef("%s is not a directory", dir)
		}
	}
	return nil
}

func index(ctx context.Context, s *cli.Session, description string) error {
	var dir string
	switch {
	case len(s.Operands) == 1:
		dir = s.Operands[0]
	case s.Doc.OutDir != "":
		dir = s.Doc.OutDir
	default:
		return cli.Usagef("the document names no output directory: debextract adds it")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	s.Msg.Announce("indexing the repository %s", dir)
	result, err := repo.Index(ctx, dir, repo.Options{
		Origin: "dkms2bin", Label: "dkms2bin", Suite: "stable", Codename: "dkms2bin", Description: description,
	})
	if err != nil {
		return err
	}
	s.Doc.Index = &state.Index{Directory: dir, Packages: result.Packages, Digest: result.Release}
	for _, p := range result.Problems {
		s.Msg.Warn("%s is left out: %s", p.Path, p.Reason)
		s.Doc.Index.Left = append(s.Doc.Index.Left, state.Problem{Path: p.Path, Reason: p.Reason})
	}
	return nil
}

func main() {
	var description string
	cli.Main(cli.Program{
		Name: "repoindex", Manual: manual, Operands: "DIR",
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&description, "index-description", "Binary kernel modules built from DKMS packages", "`text` for the Description of Release")
		},
		Check:      check,
		Standalone: func(operands []string) bool { return len(operands) > 0 },
		Run:        func(ctx context.Context, s *cli.Session) error { return index(ctx, s, description) },
	})
}
