// Dkmsbuild puts DKMS packages into the build tree and builds each of their
// modules for each kernel. It reads a document, adds one record for each module
// and kernel, and writes it.
//
//	dkmsbuild --dkms i40e-dkms hpsa-dkms <1.json >2.json
//	dkmsbuild <2.json >3.json     # builds again what failed
package main

import (
	"context"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/machine"
	"flag"
	"strings"
	"time"
)

const manual = `
Installs DKMS packages into layers of the build tree and builds each of their
modules for each kernel of the document. A package is a name in the archive;
name=version; name-version~, a version that begins so; the path of a .deb; or the
path of a source directory with a dkms.conf. Modules that others need (BUILD_DEPENDS,
or Depends of their packages) are built and installed first, also those of packages
that apt brings along. What does not need each other is built side by side.

What was built before of the same, for another tree, is taken from the cache.

Run again on its own document it builds what failed or is missing, and keeps
what is good; --dkms and --build-package add to what was asked for.`

type options struct {
	packages cli.List
	tools    cli.List
	kvers    cli.List
	timeout  time.Duration
	jobs     int
	noCache  bool
	shell    string
}

// memoryOfJob is what a compiler may take, in bytes. Most take a tenth of it.
const memoryOfJob = 512 << 20

// slots are how many builds run side by side, and how many compilers in all. By
// default, both are as many as there are cores for this process (by its CPU affinity
// and the CPU limit of its control group) and 512 MiB of memory for each (by what is
// available, and the memory limit of the control group), but at least one.
func (o *options) slots() slots {
	cores := machine.Cores()
	if memory := machine.Memory(); memory > 0 {
		cores = min(cores, int(memory/memoryOfJob))
	}
	cores = max(1, cores)
	if o.jobs > 0 {
		return slots{o.jobs, cores}
	}
	return slots{cores, cores}
}

func (o *options) check([]string) error {
	if o.timeout <= 0 {
		return cli.Usagef("--timeout %s: it must be positive", o.timeout)
	}
	if o.jobs < 0 {
		return cli.Usagef("--jobs %d: it must be positive", o.jobs)
	}
	for _, p := range o.packages {
		if err := checkRequest(p); err != nil {
			return err
		}
	}
	for _, t := range o.tools {
		if isPath(t) || strings.ContainsAny(t, " \t\n") {
			return cli.Usagef("--build-package %q: not the name of a package in the repositories", t)
		}
	}
	if o.shell != "" {
		if _, err := parseTarget(o.shell); err != nil {
			return err
		}
	}
	return nil
}

func main() {
	o := &options{}
	cli.Main(cli.Program{
		Name: "dkmsbuild", Manual: manual,
		Flags: func(fs *flag.FlagSet) {
			fs.Var(&o.packages, "dkms", "`package` to build modules from")
			fs.Var(&o.tools, "build-package", "`package` that builds need and the packages fail to depend on, such as libelf-dev")
			fs.Var(&o.kvers, "kver", "build for this `release` among the document's kernels; new: for those that mkchroot found by itself (default all of them)")
			fs.DurationVar(&o.timeout, "timeout", 30*time.Minute, "`time` that one build may take")
			fs.IntVar(&o.jobs, "jobs", 0, "install and build `N` at a time; the cores are divided among them (default as many as there are cores, and 512 MiB of memory for each)")
			fs.BoolVar(&o.noCache, "no-cache", false, "install and build everything afresh; neither use the cache of the build tree nor fill it")
			fs.StringVar(&o.shell, "shell", "", "open a shell on the terminal where `MODULE/VERSION,KVER` was built or failed")
		},
		Check: o.check,
		Fresh: func(*cli.Messenger) error {
			if len(o.packages) == 0 {
				return cli.Usagef("--dkms is required: a package to build modules from")
			}
			return nil
		},
		Run: func(ctx context.Context, s *cli.Session) error {
			if o.shell != "" {
				return shell(ctx, s, o.shell)
			}
			return build(ctx, s, o)
		},
		Pass: func(ctx context.Context, s *cli.Session) error {
			if o.shell != "" {
				return shell(ctx, s, o.shell)
			}
			return nil
		},
	})
}
