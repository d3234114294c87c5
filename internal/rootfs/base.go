package rootfs

import (
	"bytes"
	"context"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/sandbox"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

// A BaseSpec says what the first layer of a tree is made of.
type BaseSpec struct {
	Suite    string
	Mirror   string // the main repository, for debootstrap
	Parts    []string
	Keyring  string // that signs the main repository, for debootstrap; may be ""
	Trusted  bool   // the main repository's signature is not checked, for debootstrap
	Sources  []byte // all repositories, deb822 format, with keyrings of the host
	Packages []string
	AptConf  []byte // apt.conf(5), for the time of the run
	Log      io.Writer
}

// pathExcludes keep out of the tree what no build reads. The copyright files and
// changelogs go into the packages.
var pathExcludes = []string{
	"path-exclude=/usr/share/man/*", "path-exclude=/usr/share/locale/*", "path-exclude=/usr/share/info/*",
	"path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright", "path-include=/usr/share/doc/*/changelog*",
}

// inMemory is how much memory must be available for the base to be put together
// there: it takes about 700 MB, and the disk is what makes it slow.
const inMemory = 3 << 30

// MakeBase fills dir, an empty directory, with a base system: by mmdebstrap, or
// by debootstrap where that is missing.
func MakeBase(ctx context.Context, mountpoint, dir string, spec BaseSpec) error {
	var tail bytes.Buffer
	log := io.MultiWriter(&tail, spec.Log)
	run := sandbox.Spec{
		Root: sandbox.Root{Host: true}, Mountpoint: mountpoint, Network: true,
		Env: sandbox.DefaultEnv(), Stdout: log, Stderr: log,
		Binds: []sandbox.Bind{{Source: dir, Target: "/tmp/base", Write: true}},
		Files: []sandbox.File{
			{Target: "/tmp/base.sources", Content: spec.Sources, Mode: 0o644},
			{Target: "/tmp/base.conf", Content: spec.AptConf, Mode: 0o644},
			{Target: "/tmp/base.dpkg", Content: []byte(strings.Join(pathExcludes, "\n") + "\n"), Mode: 0o644},
		},
	}
	packages := strings.Join(spec.Packages, ",")
	switch {
	case haveProgram("mmdebstrap"):
		target := "/tmp/base"
		switch {
		case !rootInNamespace(ctx):
			run.RealRoot = true // and on disk, where device nodes can be made
		case availableMemory() > inMemory:
			target = "/tmp/memory"
		}
		run.Args = append([]string{
			"sh", "-ec", `mkdir -p "$1"; target=$1; shift; mmdebstrap "$@"; [ "$target" = /tmp/base ] || cp -a "$target/." /tmp/base/`, "sh", target,
			"--mode=root", "--format=directory", "--variant=apt", "--include=" + packages,
			"--aptopt=/tmp/base.conf", "--skip=cleanup/apt/lists",
		}, spec.Suite, target, "/tmp/base.sources")
		for _, opt := range pathExcludes {
			run.Args = append(run.Args, "--dpkgopt="+opt)
		}
	case haveProgram("debootstrap"):
		// debootstrap tries mknod, which only real root may.
		run.RealRoot = true
		run.Args = debootstrap(spec)
	default:
		return diag.WithHint(errors.New("neither mmdebstrap nor debootstrap is installed"), "apt-get install mmdebstrap")
	}
	err := sandbox.Run(ctx, run)
	var exit *sandbox.ExitError
	if errors.As(err, &exit) {
		reason := baseReason(tail.String(), exit)
		err = fmt.Errorf("cannot make the base system: %s", reason)
		switch {
		case strings.Contains(reason, "GPG error"):
			return diag.WithHint(err, "the repository is signed by a key that was not given: --repo 'deb [signed-by=KEYRING] uri suite components'")
		case strings.Contains(reason, "Failed to fetch"), strings.Contains(reason, "does not have a Release file"):
			return diag.WithHint(err, "look at the mirror's address, the suite's name and the network; --repo takes another mirror")
		case strings.Contains(reason, "No space left"):
			return diag.WithHint(err, "a tree needs about 1 GB; --work-dir names another place")
		}
		return err
	}
	if err != nil {
		return fmt.Errorf("cannot make the base system: %w", err)
	}
	return nil
}

// debootstrap is the command that makes the base system in /tmp/base where there
// is no mmdebstrap.
func debootstrap(spec BaseSpec) []string {
	script := `debootstrap --variant=minbase ${6:+--no-check-gpg} ${4:+--keyring="$4"} --components="$3" "$1" /tmp/base "$2"
packages=$5
shift 6
rm -f /tmp/base/etc/apt/sources.list
cp /tmp/base.sources /tmp/base/etc/apt/sources.list.d/dkms2bin.sources
cp /tmp/base.conf /tmp/base/etc/apt/apt.conf.d/90dkms2bin
cp /tmp/base.dpkg /tmp/base/etc/dpkg/dpkg.cfg.d/dkms2bin
cp -L /etc/resolv.conf /tmp/base/etc/resolv.conf
for key; do mkdir -p "/tmp/base${key%/*}"; cp "$key" "/tmp/base$key"; done
for key in /etc/apt/trusted.gpg /etc/apt/trusted.gpg.d/*.gpg /etc/apt/trusted.gpg.d/*.asc; do
	if [ -r "$key" ] && [ ! -e "/tmp/base$key" ]; then cp "$key" "/tmp/base$key"; fi
done
mount --bind /proc /tmp/base/proc
trap 'umount /tmp/base/proc' EXIT
printf '#!/bin/sh\nexit 101\n' >/tmp/base/usr/sbin/policy-rc.d
chmod 755 /tmp/base/usr/sbin/policy-rc.d
chroot /tmp/base apt-get update
chroot /tmp/base apt-get -y dist-upgrade
chroot /tmp/base apt-get -y install $packages
chroot /tmp/base apt-get clean`
	trusted := ""
	if spec.Trusted {
		trusted = "yes"
	}
	return append([]string{
		"sh", "-ec", script, "sh", spec.Suite, spec.Mirror, strings.Join(spec.Parts, ","), spec.Keyring, strings.Join(spec.Packages, " "), trusted,
	}, keyrings(spec.Sources)...)
}

// keyrings lists the files that sources name as keyrings, sources.list(5): there
// may be several to a repository, separated by blanks or commas.
func keyrings(sources []byte) []string {
	var files []string
	for line := range strings.Lines(string(sources)) {
		value, ok := strings.CutPrefix(line, "Signed-By:")
		if !ok {
			continue
		}
		for _, word := range strings.FieldsFunc(value, func(r rune) bool { return r == ',' || unicode.IsSpace(r) }) {
			if strings.HasPrefix(word, "/") && !slices.Contains(files, word) {
				files = append(files, word)
			}
		}
	}
	return files
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
		vague := strings.HasPrefix(text, "apt-get ") || strings.Contains(text, "failed: ") || strings.HasPrefix(text, "Sub-process") || strings.HasPrefix(text, "Some index files")
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
	out, err := exec.CommandContext(ctx, "mmdebstrap", "--version").CombinedOutput() // on stdout or stderr, as the version is
	if err != nil {
		return true // let it say itself what is wrong
	}
	var major, minor, patch int
	_, _ = fmt.Sscanf(string(out), "mmdebstrap %d.%d.%d", &major, &minor, &patch)
	return slices.Compare([]int{major, minor, patch}, []int{0, 8, 6}) >= 0
}

func haveProgram(name string) bool {
	_, err := exec.LookPath(name)
	return err == nil
}

// availableMemory is MemAvailable of /proc/meminfo in bytes, or 0.
func availableMemory() int64 {
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(info)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	return 0
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
