// Mkchroot makes the build tree: a base system with compiler, dkms and
// debhelper, and on it a layer with the headers of each wanted kernel. It
// begins the chain of programs: it reads no document and writes the first one.
//
//	mkchroot --kver 6.1.0-56-amd64 >1.json
package main

import (
	"context"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/sandbox"
	"flag"
	"regexp"
	"slices"
)

const manual = `
Makes the build tree: a base system with compiler, dkms and debhelper, and the
headers of each wanted kernel, each in a layer of its own. Without --kver that is
the kernel that the header metapackage of the suite's default flavour points at.
Packages come from the distribution's own repositories among those that the
host's apt uses.

Begins the chain: reads no document.`

type options struct {
	kvers   cli.List
	repos   cli.List
	release string
	workDir string
	outDir  string
	keep    int

	sources []apt.Source // parsed --repo
}

var kverPattern = regexp.MustCompile(`^[0-9][A-Za-z0-9.+~_-]*$`)

func (o *options) check([]string) error {
	if o.keep < 0 {
		return cli.Usagef("--keep-kernels %d: it must not be negative", o.keep)
	}
	for _, k := range o.kvers {
		if k == newKernels {
			if err := cli.Required("out-dir", o.outDir); err != nil {
				return cli.Usagef("%w with --kver new: the directory whose packages tell which kernels are new", err)
			}
			continue
		}
		if !kverPattern.MatchString(k) {
			return cli.Usagef("--kver %q: not a kernel release such as uname -r prints", k)
		}
	}
	for _, line := range o.repos {
		s, err := apt.ParseLine(line)
		if err != nil {
			return cli.Usagef("--repo: %w", err)
		}
		o.sources = append(o.sources, s)
	}
	if o.release != "" && len(o.repos) > 0 {
		return cli.Usagef("--release takes the host's repositories with another suite, and --repo replaces them: give one of the two")
	}
	var err error
	o.workDir, err = rootfs.WorkDir(o.workDir)
	return err
}

// newKernels, as a release, stands for the flavour's kernels that have no packages
// in the output directory yet.
const newKernels = "new"

func (o *options) selection() selection {
	named := slices.DeleteFunc(slices.Clone([]string(o.kvers)), func(k string) bool { return k == newKernels })
	return selection{releases: named, fresh: len(named) < len(o.kvers), outDir: o.outDir, keep: o.keep}
}

func main() {
	sandbox.Init()
	o := &options{}
	cli.Main(cli.Program{
		Name: "mkchroot", Manual: manual, Starts: true,
		Flags: func(fs *flag.FlagSet) {
			fs.Var(&o.kvers, "kver", "`release` of a kernel to build for, as uname -r prints it; new: the flavour's kernels that have no packages in --out-dir yet")
			fs.StringVar(&o.outDir, "out-dir", "", "`directory` of the packages, for --kver new")
			fs.IntVar(&o.keep, "keep-kernels", 0, "with --kver new: pass over all but the newest `N` kernels (default all count)")
			fs.StringVar(&o.release, "release", "", "`suite` to build in: the host's mirrors with this suite, its -updates and -security")
			fs.Var(&o.repos, "repo", "`repository` as 'deb uri suite components', in place of the host's; the first is the distribution's")
			fs.StringVar(&o.workDir, "work-dir", "", "`directory` for build trees (default /var/cache/dkms2bin, for ordinary users in their own cache directory)")
		},
		Check: o.check,
		Run:   func(ctx context.Context, s *cli.Session) error { return makeTree(ctx, s, o) },
	})
}
