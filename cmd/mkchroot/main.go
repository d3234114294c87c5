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

	sources []apt.Source // parsed --repo
}

var kverPattern = regexp.MustCompile(`^[0-9][A-Za-z0-9.+~_-]*$`)

func (o *options) check([]string) error {
	for _, k := range o.kvers {
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

func main() {
	sandbox.Init()
	o := &options{}
	cli.Main(cli.Program{
		Name: "mkchroot", Manual: manual, Starts: true,
		Flags: func(fs *flag.FlagSet) {
			fs.Var(&o.kvers, "kver", "`release` of a kernel to build for, as uname -r prints it")
			fs.StringVar(&o.release, "release", "", "`suite` to build in: the host's mirrors with this suite, its -updates and -security")
			fs.Var(&o.repos, "repo", "`repository` as 'deb uri suite components', in place of the host's; the first is the distribution's")
			fs.StringVar(&o.workDir, "work-dir", "", "`directory` for build trees (default /var/cache/dkms2bin, for ordinary users in their own cache directory)")
		},
		Check: o.check,
		Run:   func(ctx context.Context, s *cli.Session) error { return makeTree(ctx, s, o) },
	})
}
