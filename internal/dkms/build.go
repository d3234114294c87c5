package dkms

import (
	"bytes"
	"context"
	"dkms2bin/internal/sandbox"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// A BuildSpec is one module to be built for one kernel.
type BuildSpec struct {
	// Spec has a root with a writable layer that no other build uses, above
	// the package, the kernel's headers and the base system, and the layers in
	// which the modules of Needs were built.
	Spec    sandbox.Spec
	Module  Module
	Conf    Conf
	Kernel  string
	Timeout time.Duration
	Watch   io.Writer // takes the output as it comes
	Jobs    int       // commands that make runs at a time, 0 for as many as dkms likes
	// Needs are modules, built for the kernel, that are installed first, in this
	// order.
	Needs []Module
	// KeepSymbols says that other modules are to be built against this one: its
	// Module.symvers stays, beside its files, where dkms since 3.1.3 has it.
	KeepSymbols bool
	// Archive and Log are the files that are written, on the host.
	Archive, Log string
}

// An Outcome is what can come of a build.
type Outcome int

// A build's outcomes. The zero value is none of them.
const (
	OutcomeBuilt Outcome = iota + 1
	OutcomeSkipped
	OutcomeFailed
)

// A Result is what came of a build.
type Result struct {
	Outcome Outcome
	Reason  string // in one line, when it was not built
	Missing string // the packages of the function, separated by blanks
	NoSpace bool   // it failed, and the disk with its layer is full
}

// ErrTimeout is the cause of a build that took too long.
var ErrTimeout = errors.New("timed out")

// Build installs what the module needs, and runs dkms build and dkms mktarball. What
// happened is told by what is there afterwards, not by exit codes: dkms exits with 0
// when there are no headers, and when it thinks that it has built the module before. A
// build that fails is a Result; an error means that it could not be tried.
func Build(ctx context.Context, b BuildSpec) (res Result, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot build %s for %s: %w", b.Module, b.Kernel, err)
		}
	}()
	defer func() {
		if ctx.Err() == nil && (err != nil || res.Outcome == OutcomeFailed) && isFull(b.Spec.Root.Upper) {
			res = Result{Outcome: OutcomeFailed, NoSpace: true, Reason: "no space left on device: it has filled the disk that the build tree is on"}
			err = nil
		}
	}()
	log, err := os.OpenFile(b.Log, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	limited, cancel := context.WithTimeoutCause(ctx, b.Timeout, ErrTimeout)
	defer cancel()
	if b.Spec.Root.InPlace {
		if err := b.discard(); err != nil {
			return res, err
		}
	}
	r := runner{BuildSpec: b, ctx: limited, log: log}
	r.Spec.Files = append(slices.Clip(r.Spec.Files), sandbox.File{Target: keepPath, Content: []byte(keepScript), Mode: 0o755})
	if res, err = r.build(); err != nil {
		return b.stopped(ctx, err)
	}
	return res, nil
}

// discard removes what an earlier build in the same root has left.
func (b BuildSpec) discard() error {
	root, err := os.OpenRoot(b.Spec.Root.Upper)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, name := range []string{b.Kernel, "build", "tarball"} {
		err = errors.Join(err, root.RemoveAll(path.Join(state, b.Module.Name, b.Module.Version, name)))
	}
	return err
}

// A runner is one call of Build.
type runner struct {
	BuildSpec
	ctx context.Context
	log *os.File
	out bytes.Buffer // of the last command
}

// build is Build; an error may also be that of a command that was stopped.
func (r *runner) build() (res Result, err error) {
	if res, err = r.installNeeds(); err != nil || res.Outcome != 0 {
		return res, err
	}
	code, err := r.run(r.command()...)
	layer, layerErr := os.OpenRoot(r.Spec.Root.Upper)
	if layerErr != nil {
		return res, errors.Join(err, layerErr)
	}
	defer layer.Close()
	made, makeLog := r.look(layer)
	if err != nil {
		return res, err
	}
	if symvers := r.symvers(); len(made) == 0 && len(symvers) > 0 && bytes.Contains(makeLog, []byte("undefined!")) {
		// Its makefiles do not know where the symbols of the others are. They are
		// asked first: modpost refuses the same symbols given twice.
		r.Spec.Env = append(slices.Clip(r.Spec.Env), "KBUILD_EXTRA_SYMBOLS="+strings.Join(symvers, " "))
		fmt.Fprintln(r.log, "\n# once more, with KBUILD_EXTRA_SYMBOLS="+strings.Join(symvers, " "))
		if code, err = r.run(r.command()...); err != nil {
			return res, err
		}
		made, makeLog = r.look(layer)
	}
	if len(made) == 0 || code != 0 {
		return r.failed(code, made, string(makeLog)), nil
	}
	return r.archive(layer)
}

// command is that of dkms build.
func (r *runner) command() []string {
	args := []string{"dkms", "build", "-m", r.Module.Name, "-v", r.Module.Version, "-k", r.Kernel}
	if r.Jobs > 0 {
		args = append(args, "-j", strconv.Itoa(r.Jobs))
	}
	if !r.Conf.PreBuild && pristine(r.Spec.Root.Layers, r.Module) {
		// dkms before 3.1.8 has make clean a copy of the source before it builds there,
		// and before it removes it.
		args = append(args, "--directive", "CLEAN=true")
	}
	if r.KeepSymbols && r.Conf.DropsSymbols {
		// Scripts are looked for in the build directory, six levels below the root.
		args = append(args, "--directive", strings.TrimRight("POST_BUILD=../../../../../.."+keepPath+" "+r.Kernel+" "+r.Conf.PostBuild, " "))
	}
	return args
}

// keepScript stands in for POST_BUILD: it keeps Module.symvers, which dkms before
// 3.1.3 removes with the build directory, and then does what POST_BUILD says.
const (
	keepPath   = "/run/dkms2bin/keep-symbols"
	keepScript = `#!/bin/sh
for dir in ../"$1"/*/module; do
	[ ! -f Module.symvers ] || cp Module.symvers "$dir/"
done
shift
[ $# -gt 0 ] || exit 0
[ -x "$1" ] || { echo "The post_build script is not executable."; exit 0; }
script=$PWD/$1
shift
exec "$script" "$@"
`
)

// run runs a command and returns its exit status. An error says that it could not
// come to its end.
func (r *runner) run(args ...string) (int, error) {
	fmt.Fprintf(r.log, "# %s\n", strings.Join(args, " "))
	r.out.Reset()
	spec := r.Spec
	spec.Args = args
	spec.Stdout = io.MultiWriter(&bounded{w: &r.out, left: 1 << 20}, &bounded{w: r.log, left: maxLog}, r.Watch)
	spec.Stderr = spec.Stdout
	err := sandbox.Run(r.ctx, spec)
	var exit *sandbox.ExitError
	if errors.As(err, &exit) {
		return exit.Code, nil
	}
	return 0, err
}

// installNeeds installs the modules that this one needs. Its result has no outcome
// when they are there.
func (r *runner) installNeeds() (res Result, err error) {
	const installed = 5 // before: in a layer that this one stands on
	for _, m := range r.Needs {
		// A module that is not newer than the kernel's own of that name counts all
		// the same.
		code, err := r.run("dkms", "install", "-m", m.Name, "-v", m.Version, "-k", r.Kernel, "--force-version-override")
		if err != nil {
			return res, err
		}
		fmt.Fprintln(r.log)
		if code != 0 && code != installed {
			return Result{Outcome: OutcomeFailed, Reason: fmt.Sprintf("needs %s, which dkms cannot install: %s", m, Reason("", r.out.String()))}, nil
		}
	}
	return res, nil
}

// symvers lists the Module.symvers files, inside, of the modules that are needed.
func (r *runner) symvers() (files []string) {
	for _, m := range r.Needs {
		base := path.Join(state, m.Name, m.Version, r.Kernel)
		for _, dir := range r.Spec.Root.Layers {
			layer, err := os.OpenRoot(dir)
			if err != nil {
				continue
			}
			archs, _ := subdirs(layer, base)
			for _, arch := range archs {
				file := path.Join(base, arch, "module", "Module.symvers")
				if f, err := openRegular(layer, file); err == nil {
					f.Close()
					files = append(files, "/"+file)
				}
			}
			layer.Close()
		}
	}
	slices.Sort(files)
	return slices.Compact(files)
}

// look says which modules are there, and returns what make printed, which goes into
// the log.
func (r *runner) look(layer *os.Root) (made []string, makeLog []byte) {
	makeLog = readMakeLog(layer, r.Module, r.Kernel, r.log)
	made, _ = findModules(layer, r.Module, r.Kernel)
	return made, makeLog
}

// failed is what came of a dkms build that made no module, or that was not content
// with what it made.
func (r *runner) failed(code int, made []string, makeLog string) Result {
	if len(made) == 0 {
		if reason, ok := Skipped(code, r.out.String()); ok {
			return Result{Outcome: OutcomeSkipped, Reason: reason}
		}
	}
	reason := Reason(makeLog, r.out.String())
	res := Result{Outcome: OutcomeFailed, Reason: reason, Missing: strings.Join(Missing(reason, makeLog, r.out.String()), " ")}
	if len(made) > 0 {
		res.Reason = fmt.Sprintf("dkms build made %s, but ended with exit status %d: %s", strings.Join(made, ", "), code, reason)
	}
	return res
}

// archive has dkms make an archive of the module, and takes it out of the layer.
func (r *runner) archive(layer *os.Root) (res Result, err error) {
	fmt.Fprintln(r.log)
	code, err := r.run("dkms", "mktarball", r.Module.Name+"/"+r.Module.Version, "-k", r.Kernel, "--binaries-only")
	if err != nil {
		return res, err
	}
	var odd *oddError
	switch err := saveTarball(layer, r.Module, r.Archive); {
	case errors.As(err, &odd):
		reason := odd.Error()
		if errors.Is(err, fs.ErrNotExist) {
			reason = Reason("", r.out.String())
		}
		return Result{Outcome: OutcomeFailed, Reason: fmt.Sprintf("dkms mktarball made no archive (exit status %d): %s", code, reason)}, nil
	case err != nil:
		return res, err
	}
	return Result{Outcome: OutcomeBuilt}, nil
}

// Excluded asks dkms whether a module is not meant for a kernel, by what its dkms.conf
// says, and gives the reason. Nothing is built. Spec is that of a build.
func Excluded(ctx context.Context, spec sandbox.Spec, m Module, kernel string) (reason string, ok bool, err error) {
	var out bytes.Buffer
	// dkms looks at this first. What it would run otherwise is made to fail.
	spec.Args = []string{
		"dkms", "build", "-m", m.Name, "-v", m.Version, "-k", kernel,
		"--directive", "PRE_BUILD=", "--directive", "MAKE=false",
	}
	spec.Stdout = &bounded{w: &out, left: 1 << 20}
	spec.Stderr = spec.Stdout
	err = sandbox.Run(ctx, spec)
	var exit *sandbox.ExitError
	if !errors.As(err, &exit) {
		return "", false, err
	}
	reason, ok = Skipped(exit.Code, out.String())
	return reason, ok, nil
}

// isFull says whether the file system of dir has next to no space or no inodes left.
func isFull(dir string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(dir, &fs) == nil && (fs.Bfree*uint64(fs.Bsize) < 4<<20 || fs.Files > 0 && fs.Ffree == 0)
}

// stopped says what came of a build whose command could not come to its end.
func (b BuildSpec) stopped(ctx context.Context, runErr error) (Result, error) {
	switch {
	case ctx.Err() != nil:
		return Result{}, runErr
	case errors.Is(runErr, ErrTimeout):
		return Result{Outcome: OutcomeFailed, Reason: fmt.Sprintf("timed out after %s", b.Timeout)}, nil
	case errors.Is(runErr, sandbox.ErrDied):
		return Result{Outcome: OutcomeFailed, Reason: "its sandbox was killed: it did that itself, or memory was short"}, nil
	}
	return Result{}, runErr
}

// bounded passes the first bytes on and drops the rest.
type bounded struct {
	w    io.Writer
	left int
}

func (b *bounded) Write(p []byte) (int, error) {
	keep := min(b.left, len(p))
	b.left -= keep
	if _, err := b.w.Write(p[:keep]); err != nil {
		return 0, err
	}
	return len(p), nil
}

// findModules looks for /var/lib/dkms/M/V/K/ARCH/module/*.ko* in the layer.
func findModules(layer *os.Root, m Module, kver string) (names []string, found bool) {
	base := path.Join(state, m.Name, m.Version, kver)
	archs, err := subdirs(layer, base)
	if err != nil {
		return nil, false
	}
	for _, arch := range archs {
		files, err := readDir(layer, path.Join(base, arch, "module"))
		if err != nil {
			continue
		}
		for _, f := range files {
			if strings.Contains(f.Name(), ".ko") {
				names = append(names, f.Name())
			}
		}
	}
	return names, len(names) > 0
}

const (
	maxLog     = 64 << 20
	maxArchive = 4 << 30 // the largest real ones have 0.1 GB
)

// readMakeLog copies what make printed into the log, and returns its beginning and
// its end. It is beside the result, or, when make failed, in the build directory.
func readMakeLog(layer *os.Root, m Module, kver string, log io.Writer) []byte {
	base := path.Join(state, m.Name, m.Version)
	paths := []string{path.Join(base, "build", "make.log")}
	if archs, err := subdirs(layer, path.Join(base, kver)); err == nil {
		for _, arch := range archs {
			paths = append([]string{path.Join(base, kver, arch, "log", "make.log")}, paths...)
		}
	}
	for _, p := range paths {
		if f, err := openRegular(layer, p); err == nil {
			defer f.Close()
			var kept ends
			fmt.Fprintln(log, "\n# make.log")
			_, _ = io.Copy(io.MultiWriter(log, &kept), io.LimitReader(f, maxLog))
			return append(kept.head, kept.tail...)
		}
	}
	return nil
}

// mostKept is how much of each end of a log is kept in memory.
const mostKept = 1 << 20

// ends keeps the beginning and the end of what is written to it.
type ends struct{ head, tail []byte }

func (e *ends) Write(p []byte) (int, error) {
	n := min(len(p), mostKept-len(e.head))
	e.head = append(e.head, p[:n]...)
	e.tail = append(e.tail, p[n:]...)
	if len(e.tail) > 2*mostKept {
		e.tail = append(e.tail[:0], e.tail[len(e.tail)-mostKept:]...)
	}
	return len(p), nil
}

// An oddError is something in the layer that the build made, or did not make,
// and dkms would not.
type oddError struct{ err error }

func (e *oddError) Error() string { return tidy(e.err.Error()) }
func (e *oddError) Unwrap() error { return e.err }

// odd makes an oddError of what went wrong in the layer, unless the machine is
// to blame.
func odd(err error) error {
	for _, host := range []error{syscall.EIO, syscall.ENOSPC, syscall.EDQUOT, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ESTALE} {
		if errors.Is(err, host) {
			return err
		}
	}
	return &oddError{err}
}

// saveTarball moves the one archive that dkms mktarball left out of the layer.
func saveTarball(layer *os.Root, m Module, to string) error {
	dir := path.Join(state, m.Name, m.Version, "tarball")
	entries, err := readDir(layer, dir)
	if err != nil {
		return odd(err)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || !strings.HasSuffix(e.Name(), ".tar.gz") {
			continue
		}
		if err := saveArchive(layer, path.Join(dir, e.Name()), to); err != nil {
			return err
		}
		return layer.RemoveAll(dir) // in which nothing is open, which NFS would keep
	}
	return odd(&fs.PathError{Op: "find an archive in", Path: dir, Err: fs.ErrNotExist})
}

func saveArchive(layer *os.Root, name, to string) error {
	from, err := openRegular(layer, name)
	if err != nil {
		return odd(err)
	}
	defer from.Close()
	info, err := from.Stat()
	if err != nil {
		return err
	}
	if info.Size() > maxArchive {
		return odd(fmt.Errorf("%s has %d bytes, more than any archive", path.Base(name), info.Size()))
	}
	return copyTo(to, from)
}

// copyTo writes a file that appears whole.
func copyTo(to string, from io.Reader) (err error) {
	pending, err := renameio.NewPendingFile(to, renameio.WithPermissions(0o644), renameio.WithTempDir(filepath.Dir(to)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pending.Cleanup()) }()
	if _, err := io.Copy(pending, from); err != nil {
		return err
	}
	return pending.CloseAtomicallyReplace()
}
