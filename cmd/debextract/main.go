// Debextract turns the archives of a document's builds into binary module
// packages in the output directory. It reads a document, adds one record for
// each package written, and writes it; with archives as operands it needs no
// document. It needs neither root nor mounts.
//
//	debextract --out-dir /srv/modules <2.json >3.json
//	debextract --out-dir . --headers /usr/src/linux-headers-6.1.0-56-amd64 v4l2loopback-0.12.7-….dkms.tar.gz
package main

import (
	"context"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/modpkg"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const manual = `
Takes the modules out of the archives that dkmsbuild had made, checks that the
kernel they are for would load them, and writes one binary package for each dkms
module and kernel. A module that needs a symbol that nobody exports is left out of
it when others remain. Packages appear whole, and one that is there is never replaced
by other content under the same name. The builds' logs are saved, too.

What a DKMS package ships beside sources and documentation, such as udev rules and
firmware, goes into a package NAME-modules-common, on which those of the modules
depend.

With operands it works on these archives instead of a document: tarballs of dkms
mktarball, packages of dkms mkbmdeb, driver disks of dkms mkdriverdisk for
Ubuntu. Then --headers says which kernel to check against.

With --sign-cert and either --sign-key or --sign-command the modules are signed. The
command is given to sh -c with the path of a module behind it, and must append a
signature to that file; DKMS2BIN_SIGN_HASH says by which hash.`

type options struct {
	outDir, logDir string
	headers        string
	suffix         string
	image          string
	set            string
	initramfs      bool
	provideDKMS    bool
	sign           signing
}

var suffixPattern = regexp.MustCompile(`^[A-Za-z0-9.+~]*$`)

func (o *options) check(operands []string) error {
	if err := cli.Required("out-dir", o.outDir); err != nil {
		return err
	}
	if !suffixPattern.MatchString(o.suffix) {
		return cli.Usagef("--version-suffix %q: only letters, digits and . + ~ may stand in it", o.suffix)
	}
	if !slices.Contains(modpkg.ImageDependencies, o.image) {
		return cli.Usagef("--image-dependency %q: it is one of %s", o.image, strings.Join(modpkg.ImageDependencies, ", "))
	}
	if o.set != "" {
		if err := modpkg.CheckSetName(o.set); err != nil {
			return cli.Usagef("--set: %w", err)
		}
	}
	if len(operands) > 0 && (o.set != "" || o.provideDKMS) {
		return cli.Usagef("--set and --provide-dkms need a document: archives do not tell which packages they are of")
	}
	if o.headers == "" && len(operands) > 0 {
		return cli.Usagef("--headers is required with archives as operands: the kernel's build directory to check against")
	}
	var err error
	for _, path := range []*string{&o.outDir, &o.logDir, &o.headers} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	if o.logDir == "" {
		o.logDir = filepath.Join(o.outDir, "logs")
	}
	if o.headers != "" {
		if info, err := os.Stat(o.headers); err != nil || !info.IsDir() {
			return cli.Usagef("--headers %s: not a directory", o.headers)
		}
	}
	if err := o.sign.open(); err != nil {
		return err
	}
	for flag, dir := range map[string]string{"out-dir": o.outDir, "log-dir": o.logDir} {
		if err := writable(dir); err != nil {
			return cli.Usagef("--%s: %w", flag, err)
		}
	}
	return nil
}

// forModules are the flags that packages of modules depend on, those that are not
// as by default. The suffix shows in the version.
func (o *options) forModules() []string {
	var list []string
	if o.image != modpkg.ImageDependencies[0] {
		list = append(list, "image-dependency="+o.image)
	}
	if o.initramfs {
		list = append(list, "initramfs")
	}
	if o.provideDKMS {
		list = append(list, "provide-dkms")
	}
	return list
}

// writable says why files cannot be made in dir, which need not exist yet.
func writable(dir string) error {
	for {
		info, err := os.Stat(dir)
		if err == nil && !info.IsDir() {
			return fmt.Errorf("%s is not a directory", dir)
		}
		if target, link := os.Readlink(dir); err != nil && link == nil {
			return fmt.Errorf("%s is a link to %s, which is not there", dir, target)
		}
		if err == nil {
			if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
				return fmt.Errorf("cannot write in %s: %w", dir, err)
			}
			return nil
		}
		if !os.IsNotExist(err) {
			return err
		}
		dir = filepath.Dir(dir)
	}
}

func main() {
	// Packing leaves megabytes of garbage for each package: with the usual 100 the
	// heap of many builds grows beyond 100 MB, at a gain of a millisecond for each.
	debug.SetGCPercent(50)
	o := &options{}
	cli.Main(cli.Program{
		Name: "debextract", Manual: manual, Operands: "ARCHIVE...",
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&o.outDir, "out-dir", "", "`directory` for the packages (required)")
			fs.StringVar(&o.logDir, "log-dir", "", "`directory` for the builds' logs (default logs in the output directory)")
			fs.StringVar(&o.headers, "headers", "", "build `directory` of the kernel that the operands are for")
			fs.StringVar(&o.image, "image-dependency", modpkg.ImageDependencies[0], "`relation` of the packages to that of their kernel: "+strings.Join(modpkg.ImageDependencies, ", "))
			fs.BoolVar(&o.initramfs, "initramfs", false, "have the packages refresh the initramfs of their kernel")
			fs.BoolVar(&o.provideDKMS, "provide-dkms", false, "have the packages stand in for the DKMS packages, so that what depends on these can be installed")
			fs.StringVar(&o.set, "set", "", "write a metapackage `NAME`-FLAVOUR of the newest kernel for which all modules were built")
			fs.StringVar(&o.suffix, "version-suffix", "", "`text` to append to the packages' versions, such as +site2")
			o.sign.flags(fs)
		},
		Check: o.check,
		Fresh: func(msg *cli.Messenger) error {
			o.sign.warn(msg)
			return nil
		},
		Standalone: func(operands []string) bool { return len(operands) > 0 },
		Run:        func(ctx context.Context, s *cli.Session) error { return extract(ctx, s, o) },
		Pass:       func(_ context.Context, s *cli.Session) error { return errors.Join(saveTreeLog(s, o), saveLogs(s, o)) },
	})
}
