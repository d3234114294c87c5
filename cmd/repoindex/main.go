// Repoindex makes an apt repository of a directory of packages and keeps it in
// order: a flat one, with index, signatures and a page for people. It reads a
// document and indexes the directory of its packages, or indexes the directory
// given as operand without a document.
//
//	repoindex <3.json >4.json
//	repoindex --sign-with modules@example.org /srv/modules >/dev/null
//	repoindex --verify /srv/modules >/dev/null
package main

import (
	"context"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/repo"
	"dkms2bin/internal/rootfs"
	"errors"
	"flag"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"
)

const manual = `
Makes a flat apt repository of the output directory of the document's packages,
or of DIR: Packages, Release, signatures, dkms2bin.sources for its clients,
status.json and index.html. Packages that cannot be read are named and left out.`

type options struct {
	description, signWith, url string
	keep                       repo.Keep
	grace                      time.Duration
	dryRun, verify             bool
}

func (o *options) flags(fs *flag.FlagSet) {
	fs.StringVar(&o.description, "index-description", "Binary kernel modules built from DKMS packages", "`text` for the Description of Release")
	fs.StringVar(&o.url, "index-url", "", "`URL` at which clients find the repository, for dkms2bin.sources (default its path)")
	fs.StringVar(&o.signWith, "sign-with", "", "sign with this `key` of gpg: a fingerprint or an e-mail address")
	fs.IntVar(&o.keep.Kernels, "keep-kernels", 0, "keep packages for the newest `N` kernels of each flavour (default all)")
	fs.IntVar(&o.keep.Versions, "keep-versions", 0, "keep the newest `N` versions of each package (default all)")
	fs.DurationVar(&o.grace, "grace-period", 24*time.Hour, "remove files this `time` after the index names them no more")
	fs.BoolVar(&o.dryRun, "dry-run", false, "only say what --keep-kernels and --keep-versions would remove")
	fs.BoolVar(&o.verify, "verify", false, "only check signatures, digests and presence of all files")
}

// check looks at flags and operand: at most one, a directory.
func (o *options) check(operands []string) error {
	if o.keep.Kernels < 0 || o.keep.Versions < 0 || o.grace < 0 {
		return cli.Usagef("--keep-kernels, --keep-versions and --grace-period cannot be negative")
	}
	if u, err := url.Parse(o.url); err != nil || o.url != "" && u.Scheme == "" {
		return cli.Usagef("--index-url %q is no URL such as http://example.org/modules", o.url)
	}
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

func (o *options) run(ctx context.Context, s *cli.Session) (err error) {
	if s.Doc.Tree != nil {
		tree := rootfs.Hold(s.Doc.Tree.Path)
		defer func() { err = errors.Join(err, tree.Close()) }()
	}
	var dir string
	switch {
	case len(s.Operands) == 1:
		dir = s.Operands[0]
	case s.Doc.OutDir != "":
		dir = s.Doc.OutDir
	default:
		return cli.Usagef("the document names no output directory: debextract adds it")
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return err
	}
	if o.verify {
		return o.verifyIndex(ctx, s, dir)
	}
	return o.index(ctx, s, dir)
}

func main() {
	// It ends soon, and has little in memory: a tenth of its time went into
	// collecting what was not worth it.
	debug.SetGCPercent(200)
	var o options
	cli.Main(cli.Program{
		Name: "repoindex", Manual: manual, Operands: "DIR",
		Flags: o.flags, Check: o.check,
		Standalone: func(operands []string) bool { return len(operands) > 0 },
		Run:        o.run,
		Fresh: func(*cli.Messenger) error {
			_, err := o.key(context.Background())
			return err
		},
	})
}
