// Mkchroot makes the build tree: a base system with compiler and dkms, and
// on it a layer with the headers of each wanted kernel. It begins the chain of
// programs: it reads no document and writes the first one.
//
//	mkchroot --kver 6.1.0-56-amd64 >1.json
package main

import (
	"context"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/rootfs"
	"flag"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const manual = `
Makes the build tree: a base system with compiler and dkms, and the headers of
each wanted kernel, each in a layer of its own. Without --kver that is the
kernel that the header metapackage of the suite's default flavour points at.
Packages come from the distribution's own repositories among those that the
host's apt uses, from those that --repo names, or from Fuel's settings. With
--dry-run no headers are installed; the document only says which kernels it would be.

Begins the chain: reads no document.`

type options struct {
	kvers      cli.List
	flavour    string
	repos      cli.List
	release    string
	settings   string
	httpProxy  string
	httpsProxy string
	direct     cli.List
	certFiles  cli.List
	auth       string
	base       string
	workDir    string
	cacheDir   string
	cacheSize  string
	noCache    bool
	inPlace    bool
	outDir     string
	keep       int
	dryRun     bool

	args        []string     // the command line
	cacheLimit  int64        // of --cache-size; negative for what the cache has
	sources     []apt.Source // of --repo, in place of the host's
	directories []string     // of --repo, in addition
	fuel        apt.Settings // of --settings
	proxies     []apt.Proxy
	logins      []apt.Login // for the proxies
	authConf    []byte      // of --auth-conf
	certs       []byte      // of --load-cert, PEM
}

var (
	kverPattern    = regexp.MustCompile(`^[0-9][A-Za-z0-9.+~_-]*$`)
	flavourPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9.+-]*$`)
)

func (o *options) check([]string) (err error) {
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
	if err := o.checkRepositories(); err != nil {
		return err
	}
	if o.outDir != "" {
		if o.outDir, err = filepath.Abs(o.outDir); err != nil {
			return err
		}
	}
	if err := o.readSettings(apt.FuelSettings); err != nil {
		return err
	}
	if o.flavour = apt.FlavourOf(o.flavour); o.flavour != "" && !flavourPattern.MatchString(o.flavour) {
		return cli.Usagef("--kernel-flavor %q: not a flavour such as amd64 or generic, nor the name of its image's package", o.flavour)
	}
	if err := o.checkNetwork(); err != nil {
		return err
	}
	for flag, path := range map[string]*string{"base": &o.base, "auth-conf": &o.auth} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
		if _, err := os.Stat(*path); err != nil {
			return cli.Usagef("--%s: %w", flag, err)
		}
	}
	if err := o.readFiles(); err != nil {
		return err
	}
	if o.workDir, err = rootfs.WorkDir(o.workDir); err != nil {
		return err
	}
	if err := o.checkInPlace(); err != nil {
		return err
	}
	return o.checkCache()
}

// checkCache looks at the flags of the cache.
func (o *options) checkCache() (err error) {
	o.cacheLimit = -1
	// The files of an ordinary user's layers belong to subordinate IDs, and many of
	// them that user cannot even look at.
	if o.noCache = o.noCache || os.Geteuid() != 0 && o.cacheDir == ""; o.noCache {
		return nil
	}
	if os.Geteuid() != 0 {
		return cli.Usagef("--cache-dir: only root can have a cache")
	}
	if o.cacheSize != "" {
		if o.cacheLimit, err = parseSize(o.cacheSize); err != nil {
			return err
		}
	}
	o.cacheDir, err = rootfs.CacheDir(o.cacheDir)
	return err
}

var sizePattern = regexp.MustCompile(`^([0-9]{1,9})([KMGT]?)(?:i?B)?$`)

// parseSize reads a size in bytes, with K, M, G and T for powers of 1024.
func parseSize(text string) (int64, error) {
	m := sizePattern.FindStringSubmatch(text)
	if m == nil {
		return 0, cli.Usagef("--cache-size %q: not a size such as 500M or 20G", text)
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	shift := 10 * (strings.Index("KMGT", m[2]) + 1)
	if m[2] == "" {
		shift = 0
	}
	if n > math.MaxInt64>>shift {
		err = strconv.ErrRange
	}
	if err != nil {
		return 0, cli.Usagef("--cache-size %q: %w", text, err)
	}
	return n << shift, nil
}

// newKernels, as a release, stands for the flavour's kernels that have no packages
// in the output directory yet.
const newKernels = "new"

func (o *options) selection() selection {
	named := slices.DeleteFunc(slices.Clone([]string(o.kvers)), func(k string) bool { return k == newKernels })
	return selection{releases: named, fresh: len(named) < len(o.kvers), flavour: o.flavour, outDir: o.outDir, keep: o.keep, dryRun: o.dryRun}
}

func main() {
	o := &options{args: os.Args}
	cli.Main(cli.Program{
		Name: "mkchroot", Manual: manual, Starts: true,
		Flags: func(fs *flag.FlagSet) {
			fs.Var(&o.kvers, "kver", "`release` of a kernel to build for, as uname -r prints it; new: the flavour's kernels that have no packages in --out-dir yet")
			fs.StringVar(&o.outDir, "out-dir", "", "`directory` of the packages, for --kver new")
			fs.IntVar(&o.keep, "keep-kernels", 0, "with --kver new: pass over all but the newest `N` kernels (default all count)")
			fs.StringVar(&o.flavour, "kernel-flavor", "", "`flavour` of the kernels without --kver and of --kver new, also as the name of its image's package")
			fs.StringVar(&o.release, "release", "", "`suite` to build in: the host's mirrors with this suite, its -updates and -security; of the repositories given, the one with this suite is the distribution's (--ubuntu-release is the same)")
			fs.Var(&o.repos, "repo", "`repository` as 'deb uri suite [components][,priority]', in place of the host's, the first is the distribution's; or a directory of .debs, in addition and preferred")
			fs.StringVar(&o.settings, "settings", "", "`file` of fuel-bootstrap with repositories, proxies and kernel flavour (default "+apt.FuelSettings+" where that is and neither --repo nor --release is given)")
			fs.StringVar(&o.httpProxy, "http-proxy", "", "`address` of the proxy for http, and for https without --https-proxy")
			fs.StringVar(&o.httpsProxy, "https-proxy", "", "`address` of the proxy for https")
			fs.Var(&o.direct, "direct-repo-addr", "`host` that is asked without a proxy")
			fs.Var(&o.certFiles, "load-cert", "`file` with certificates of authorities that https repositories may have, besides the host's")
			fs.StringVar(&o.auth, "auth-conf", "", "`file` with logins for repositories and proxies, auth.conf(5)")
			fs.StringVar(&o.base, "base", "", "`path` of a ready system to build in, a tar archive or a directory; what it lacks is installed")
			fs.StringVar(&o.cacheDir, "cache-dir", "", "`directory` of what runs can use again: base systems, headers, builds (default cache in the default --work-dir)")
			fs.StringVar(&o.cacheSize, "cache-size", "", "`size` that the cache may have, such as 500M or 20G; what was not used for the longest time is removed (default what was given last, else 10G)")
			fs.BoolVar(&o.inPlace, "in-place", false, "in a container that is thrown away afterwards, and allows no mounts: do all in its own root, WITHOUT ISOLATION")
			fs.BoolVar(&o.noCache, "no-cache", false, "make everything afresh; neither use a cache nor fill it")
			fs.BoolVar(&o.dryRun, "dry-run", false, "only find the kernels; nothing can be built in the tree")
			fs.StringVar(&o.workDir, "work-dir", "", "`directory` for build trees (default /var/cache/dkms2bin, for ordinary users in their own cache directory)")
		},
		Check: o.check,
		Run:   func(ctx context.Context, s *cli.Session) error { return makeTree(ctx, s, o) },
	})
}
