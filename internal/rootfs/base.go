package rootfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/machine"
	"dkms2bin/internal/sandbox"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A BaseSpec says what the first layer of a tree is made of.
type BaseSpec struct {
	// Given is a ready tree on the host, a tar archive or a directory, that is
	// taken as it is. Nothing else but Log is used then.
	Given    string
	Suite    string
	Mirror   string // the main repository, for debootstrap
	Parts    []string
	Keyring  string // that signs the main repository, for debootstrap; may be ""
	Trusted  bool   // the main repository's signature is not checked, for debootstrap
	Wgetrc   []byte // for debootstrap
	Sources  []byte // all repositories, deb822 format, with keyrings of the host
	Packages []string
	AptConf  []byte // apt.conf(5), for the time of the run
	Fetch    []sandbox.Bind
	// Lists is a directory with lists to begin with, as Fetch shows it, or "". They are
	// there when it has a file ListsReady, or is gone.
	Lists string
	Log   io.Writer
}

// ListsReady says that all there is in BaseSpec.Lists is there.
const ListsReady = "ready"

// PathExcludes keep out of the tree what no build reads, dpkg.cfg(5). The
// copyright files and changelogs go into the packages.
var PathExcludes = []string{
	"path-exclude=/usr/share/man/*", "path-exclude=/usr/share/locale/*", "path-exclude=/usr/share/info/*",
	"path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright", "path-include=/usr/share/doc/*/changelog*",
}

// inMemory is how much memory must be available for the base to be put together
// there: with the packages it takes about 1.2 GB, and the disk is what makes it slow.
const inMemory = 3 << 30

// MakeBase fills dir, an empty directory, with a base system: the given one, or
// one by mmdebstrap, or by debootstrap where that is missing. The last leaves the
// packages out; installed says whether they are in.
func MakeBase(ctx context.Context, mountpoint, dir string, spec BaseSpec) (installed bool, err error) {
	var tail bytes.Buffer
	log := io.MultiWriter(&tail, spec.Log)
	run := sandbox.Spec{
		Root: sandbox.Root{Host: true}, Mountpoint: mountpoint, Network: spec.Given == "",
		Env: sandbox.DefaultEnv(), Stdout: log, Stderr: log,
		Binds: []sandbox.Bind{{Source: dir, Target: "/tmp/base", Write: true}},
		Files: []sandbox.File{
			{Target: "/tmp/base.sources", Content: spec.Sources, Mode: 0o644},
		},
	}
	if spec.Given == "" {
		run.Binds = append(run.Binds, spec.Fetch...)
	}
	switch {
	case spec.Given != "":
		run.Binds = append(run.Binds, sandbox.Bind{Source: spec.Given, Target: givenBase})
		run.Args = []string{"sh", "-ec", unpackBase}
	case Maker() == "mmdebstrap":
		target := "/tmp/base"
		switch {
		case !rootInNamespace(ctx):
			run.RealRoot = true // and on disk, where device nodes can be made
		case machine.Memory() > inMemory:
			target = "/tmp/memory"
		}
		run.Files = append(run.Files, aheadFiles(spec)...)
		ahead := ""
		if len(spec.Packages) > 0 && target != "/tmp/base" { // in memory, where there is room for both
			ahead = "yes"
		}
		run.Args = append([]string{
			"sh", "-ec", `mkdir -p "$1"; target=$1 copy=$2 ahead=$3; shift 3
			[ -z "$ahead" ] || sh -e /tmp/base.update >/dev/null 2>&1 </dev/null &
			mmdebstrap "$@"; [ "$target" = /tmp/base ] || sh -ec "$copy" sh "$target"`, "sh", target, copyScript, ahead,
			"--mode=root", "--format=directory", "--variant=apt", "--aptopt=/tmp/base.conf", "--skip=cleanup/apt/lists", "--skip=check/signed-by", "--extract-hook=" + excludeHook,
		}, spec.Suite, target, "/tmp/base.sources")
		if len(spec.Packages) > 0 {
			run.Args = append(run.Args, "--include="+strings.Join(spec.Packages, ","))
		}
		if ahead != "" {
			run.Env = aheadEnv(run.Env)
			run.Args = append(run.Args, "--setup-hook="+aheadHook, "--essential-hook="+waitHook)
		}
		installed = true
	case Maker() == "debootstrap":
		// debootstrap tries mknod, which only real root may.
		run.RealRoot = true
		run.Args = debootstrap(spec)
		run.Files = append(run.Files, sandbox.File{Target: wgetrc, Content: spec.Wgetrc, Mode: 0o600})
		run.Env = append(run.Env, "WGETRC="+wgetrc)
	default:
		return false, diag.WithHint(errors.New("neither mmdebstrap nor debootstrap is installed"), "apt-get install mmdebstrap")
	}
	if err := sandbox.Run(ctx, run); err != nil {
		return false, baseError(err, spec, tail.String())
	}
	if spec.Given == "" {
		return installed, nil
	}
	return false, completeBase(dir)
}

// baseError says why there is no base system, with what to do about it.
func baseError(err error, spec BaseSpec, output string) error {
	var exit *sandbox.ExitError
	if !errors.As(err, &exit) {
		return fmt.Errorf("cannot make the base system: %w", err)
	}
	if spec.Given != "" {
		err = fmt.Errorf("cannot take %s as the base system: %s", spec.Given, exit.Tail)
		if strings.Contains(exit.Tail, "Cannot exec") {
			return diag.WithHint(err, "install the program that unpacks it on this host")
		}
		return diag.WithHint(err, "it must be a tar archive, or the directory, of a whole Debian or Ubuntu system with apt in it")
	}
	reason := baseReason(output, exit)
	err = fmt.Errorf("cannot make the base system: %s", sandbox.Outside(reason, spec.Fetch))
	if strings.Contains(reason, "No space left") {
		return diag.WithHint(err, "a tree needs about 1 GB; --work-dir names another place")
	}
	return err
}

// Maker is the program that makes base systems here, or "".
func Maker() string {
	for _, name := range []string{"mmdebstrap", "debootstrap"} {
		if haveProgram(name) {
			return name
		}
	}
	return ""
}

// GivenDigest is a digest of a BaseSpec.Given: of the content of an archive, of
// what a look at the inodes tells of a directory.
func GivenDigest(path string) (digest string, err error) {
	defer wrap(&err, "cannot read the given base system")
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return "", err
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if info.IsDir() {
		digest, _, err = contentDigest(path)
		return digest, err
	}
	sum := sha256.New()
	err = addFile(sum, path)
	return hex.EncodeToString(sum.Sum(nil)), err
}

const (
	givenBase = "/run/dkms2bin/base"
	wgetrc    = "/run/dkms2bin/wgetrc"
)

// unpackBase unpacks or copies a given base system, without what the sandbox
// mounts over anyway: device nodes cannot be made in it, and are refused
// elsewhere. The host is read-only meanwhile, so that no member of a hostile
// archive leads to it.
const unpackBase = `cd /tmp/base
set -- --extract --preserve-permissions --numeric-owner --anchored --no-wildcards-match-slash 	--exclude='./dev/*' --exclude='dev/*' --exclude='./proc/*' --exclude='proc/*' --exclude='./sys/*' --exclude='sys/*' --exclude='./run/*' --exclude='run/*'
if [ -d ` + givenBase + ` ]; then
	{ tar --create --one-file-system --numeric-owner -C ` + givenBase + ` --anchored --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' --exclude='./run/*' . || touch /tmp/failed; } | tar "$@"
	[ ! -e /tmp/failed ]
else
	tar "$@" --file=` + givenBase + `
fi`

// completeBase checks that a given tree is a system with apt, and makes the
// directories that the sandbox mounts on.
func completeBase(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, name := range []string{"usr/bin/dpkg", "usr/bin/apt-get", "var/lib/dpkg/status"} {
		if _, err := root.Stat(name); err != nil {
			return diag.WithHint(fmt.Errorf("the given base system is none: there is no /%s in it", name),
				"it must be a tar archive, or the directory, of a whole Debian or Ubuntu system with apt in it")
		}
	}
	for _, name := range []string{"dev", "proc", "sys", "run", "tmp"} {
		if err := root.Mkdir(name, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return root.Chmod("tmp", 0o777|os.ModeSticky)
}

// debootstrap is the command that makes a small base system in /tmp/base where
// there is no mmdebstrap.
func debootstrap(spec BaseSpec) []string {
	args := []string{"debootstrap", "--variant=minbase"}
	if spec.Trusted {
		args = append(args, "--no-check-gpg")
	}
	if spec.Keyring != "" {
		args = append(args, "--keyring="+spec.Keyring)
	}
	return append(args, "--components="+strings.Join(spec.Parts, ","), spec.Suite, "/tmp/base", spec.Mirror)
}

// baseReason picks the lines that say why: apt's and the tool's own errors.
func baseReason(output string, exit *sandbox.ExitError) string {
	var reasons []string
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		text, isError := strings.CutPrefix(line, "E: ")
		if !isError {
			if text, isError = strings.CutPrefix(line, "W: "); !isError || !strings.Contains(text, "GPG error") {
				continue
			}
		}
		vague := strings.HasPrefix(text, "apt-get ") || text == "mmdebstrap failed to run" || strings.Contains(text, "failed: ") || strings.HasPrefix(text, "Sub-process") || strings.HasPrefix(text, "Some index files")
		if !vague && len(reasons) < 2 {
			reasons = append(reasons, text)
		}
	}
	if len(reasons) == 0 {
		// Not the arguments: there may be a password in them.
		return fmt.Sprintf("exit status %d: %s", exit.Code, exit.Tail)
	}
	return strings.Join(reasons, "; ")
}

// rootInNamespace says whether the host's mmdebstrap works as the root of a user
// namespace: since 0.8.6. Ubuntu 22.04 has an older one.
func rootInNamespace(ctx context.Context) bool {
	var major, minor, patch int
	if path, err := exec.LookPath("mmdebstrap"); err == nil {
		// It is a script, and takes a fifth of a second to say it.
		if script, err := os.ReadFile(path); err == nil {
			if _, text, ok := strings.Cut(string(script), "\nour $VERSION = '"); ok {
				_, _ = fmt.Sscanf(text, "%d.%d.%d", &major, &minor, &patch)
			}
		}
	}
	if major == 0 && minor == 0 {
		out, err := exec.CommandContext(ctx, "mmdebstrap", "--version").CombinedOutput() // on stdout or stderr, as the version is
		if err != nil {
			return true // let it say itself what is wrong
		}
		_, _ = fmt.Sscanf(string(out), "mmdebstrap %d.%d.%d", &major, &minor, &patch)
	}
	return slices.Compare([]int{major, minor, patch}, []int{0, 8, 6}) >= 0
}

func haveProgram(name string) bool {
	_, err := exec.LookPath(name)
	return err == nil
}

// A ConfigFile is a file that is put into the base layer.
type ConfigFile struct {
	Path    string // absolute, in the tree
	Content []byte
	Mode    os.FileMode
}

// Configure puts files into the layer at dir, in place of what is there, and
// removes others.
func Configure(dir string, files []ConfigFile, remove ...string) (err error) {
	defer wrap(&err, "cannot configure the base system")
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	rel := func(path string) string { return strings.TrimPrefix(path, "/") }
	for _, path := range remove {
		if err := root.RemoveAll(rel(path)); err != nil {
			return err
		}
	}
	for _, f := range files {
		path := rel(f.Path)
		if err := root.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := root.Remove(path); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
		if err := errors.Join(root.WriteFile(path, f.Content, f.Mode), root.Chmod(path, f.Mode)); err != nil {
			return err
		}
	}
	return nil
}
