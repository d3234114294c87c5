// Repoindex makes an apt repository of a directory of packages and keeps it in
// order: a flat one, with index, signatures and a page for people. It reads a
// document and indexes the directory of its packages, or indexes the directory
// given as operand without a document. It also tells of the modules that a system
// has from such packages, and from elsewhere.
//
//	repoindex <3.json >4.json
//	repoindex --sign-with modules@example.org /srv/modules >/dev/null
//	repoindex --verify /srv/modules >/dev/null
//	repoindex --audit / >audit.json
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
status.json and index.html. Packages that cannot be read are named and left out.

With --audit it looks at a root directory instead: which kernel modules are there
that are not the kernels' own, or of no package; which package each is of, who
signed it, and whether its kernel would load it. A module that cannot load, that no
package owns or that is another file than its package had gives exit status 3.`

type options struct {
	description, signWith, url string
	keep                       repo.Keep
	grace                      time.Duration
	dryRun, verify             bool
	audit                      string
}

func (o *options) flags(fs *flag.FlagSet) {
	fs.StringVar(&o.description, "index-description", "Binary kernel modules built from DKMS packages", "`text` for the Description of Release and the title of index.html")
	fs.StringVar(&o.url, "index-url", "", "`URL` at which clients find the repository, for dkms2bin.sources (default its path)")
	fs.StringVar(&o.signWith, "sign-with", "", "sign with this `key` of gpg: a fingerprint or an e-mail address")
	fs.IntVar(&o.keep.Kernels, "keep-kernels", 0, "keep packages for the newest `N` kernels of each flavour (default all)")
	fs.IntVar(&o.keep.Versions, "keep-versions", 0, "keep the newest `N` versions of each package (default all)")
	fs.DurationVar(&o.grace, "grace-period", 24*time.Hour, "remove files this `time` after the index names them no more")
	fs.BoolVar(&o.dryRun, "dry-run", false, "only say what --keep-kernels and --keep-versions would remove")
	fs.BoolVar(&o.verify, "verify", false, "only check signatures, digests and presence of all files")
	fs.StringVar(&o.audit, "audit", "", "only list the modules in this root `directory` that are not its kernels' own")
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
	if o.audit != "" {
		if len(operands) > 0 || o.verify || o.dryRun {
			return cli.Usagef("--audit looks at a root directory, and at no repository: it goes with no operand, --verify or --dry-run")
		}
		operands = []string{o.audit}
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
	if o.audit != "" {
		return o.auditRoot(ctx, s)
	}
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
		Standalone: func(operands []string) bool { return o.audit != "" || len(operands) > 0 },
		Run:        o.run,
		Fresh: func(*cli.Messenger) error {
			_, err := o.key(context.Background())
			return err
		},
	})
}
