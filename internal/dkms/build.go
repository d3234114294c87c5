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
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// A BuildSpec is one module to be built for one kernel.
type BuildSpec struct {
	// Spec has a root with a writable layer that no other build uses, above
	// the package, the kernel's headers and the base system.
	Spec    sandbox.Spec
	Module  Module
	Kernel  string
	Timeout time.Duration
	Watch   io.Writer // takes the output as it comes
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

// Build runs dkms build and dkms mktarball. What happened is told by what is
// there afterwards, not by exit codes: dkms exits with 0 when there are no
// headers, and when it thinks that it has built the module before. A build that
// fails is a Result; an error means that it could not be tried.
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
	out := &bytes.Buffer{}
	run := func(args ...string) (int, error) {
		fmt.Fprintf(log, "# %s\n", strings.Join(args, " "))
		spec := b.Spec
		spec.Args = args
		spec.Stdout = io.MultiWriter(&bounded{w: out, left: 1 << 20}, &bounded{w: log, left: maxLog}, b.Watch)
		spec.Stderr = spec.Stdout
		err := sandbox.Run(limited, spec)
		var exit *sandbox.ExitError
		if errors.As(err, &exit) {
			return exit.Code, nil
		}
		return 0, err
	}

	code, runErr := run("dkms", "build", "-m", b.Module.Name, "-v", b.Module.Version, "-k", b.Kernel)
	layer, err := os.OpenRoot(b.Spec.Root.Upper)
	if err != nil {
		return res, errors.Join(runErr, err)
	}
	defer layer.Close()
	made, found := findModules(layer, b.Module, b.Kernel)
	makeLog := readMakeLog(layer, b.Module, b.Kernel)
	if len(makeLog) > 0 {
		fmt.Fprintf(log, "\n# make.log\n%s", makeLog)
	}
	if runErr != nil {
		return b.stopped(ctx, runErr)
	}
	if !found {
		if reason, ok := Skipped(code, out.String()); ok {
			return Result{Outcome: OutcomeSkipped, Reason: reason}, nil
		}
		reason := Reason(string(makeLog), out.String())
		if reason == "" {
			reason = fmt.Sprintf("dkms build ended with exit status %d and made no module", code)
		}
		return Result{Outcome: OutcomeFailed, Reason: reason, Missing: strings.Join(Missing(reason, string(makeLog), out.String()), " ")}, nil
	}
	if code != 0 {
		reason := Reason(string(makeLog), out.String())
		return Result{Outcome: OutcomeFailed, Missing: strings.Join(Missing(reason, string(makeLog), out.String()), " "), Reason: fmt.Sprintf("dkms build made %s, but ended with exit status %d: %s", strings.Join(made, ", "), code, reason)}, nil
	}

	fmt.Fprintln(log)
	out.Reset()
	code, runErr = run("dkms", "mktarball", b.Module.Name+"/"+b.Module.Version, "-k", b.Kernel, "--binaries-only")
	if runErr != nil {
		return b.stopped(ctx, runErr)
	}
	var odd *oddError
	switch err := saveTarball(layer, b.Module, b.Archive); {
	case errors.As(err, &odd):
		reason := odd.Error()
		if errors.Is(err, fs.ErrNotExist) {
			reason = Reason("", out.String())
		}
		return Result{Outcome: OutcomeFailed, Reason: fmt.Sprintf("dkms mktarball made no archive (exit status %d): %s", code, reason)}, nil
	case err != nil:
		return res, err
	}
	return Result{Outcome: OutcomeBuilt}, nil
}

// isFull says whether the file system of dir has next to no space or no inodes left.
func isFull(dir string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(dir, &fs) == nil && (int64(fs.Bfree)*fs.Bsize < 4<<20 || fs.Files > 0 && fs.Ffree == 0)
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

// readMakeLog returns what make printed: beside the result, or, when it failed,
// in the build directory.
func readMakeLog(layer *os.Root, m Module, kver string) []byte {
	base := path.Join(state, m.Name, m.Version)
	paths := []string{path.Join(base, "build", "make.log")}
	if archs, err := subdirs(layer, path.Join(base, kver)); err == nil {
		for _, arch := range archs {
			paths = append([]string{path.Join(base, kver, arch, "log", "make.log")}, paths...)
		}
	}
	for _, p := range paths {
		if f, err := openRegular(layer, p); err == nil {
			text, _ := io.ReadAll(io.LimitReader(f, maxLog))
			f.Close()
			return text
		}
	}
	return nil
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

// saveTarball copies the one archive that dkms mktarball left out of the layer.
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
		from, err := openRegular(layer, path.Join(dir, e.Name()))
		if err != nil {
			return odd(err)
		}
		defer from.Close()
		info, err := from.Stat()
		if err != nil {
			return err
		}
		if info.Size() > maxArchive {
			return odd(fmt.Errorf("%s has %d bytes, more than any archive", e.Name(), info.Size()))
		}
		return copyTo(to, from)
	}
	return odd(&fs.PathError{Op: "find an archive in", Path: dir, Err: fs.ErrNotExist})
}

// copyTo writes a file that appears whole.
func copyTo(to string, from io.Reader) (err error) {
	pending, err := renameio.NewPendingFile(to, renameio.WithPermissions(0o644))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pending.Cleanup()) }()
	if _, err := io.Copy(pending, from); err != nil {
		return err
	}
	return pending.CloseAtomicallyReplace()
}
