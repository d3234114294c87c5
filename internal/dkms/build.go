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
	"time"

	"github.com/google/renameio/v2"
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
		spec.Stdout = io.MultiWriter(&bounded{w: out, left: 1 << 20}, log, b.Watch)
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
	switch {
	case errors.Is(runErr, ErrTimeout) && ctx.Err() == nil:
		return Result{Outcome: OutcomeFailed, Reason: fmt.Sprintf("timed out after %s", b.Timeout)}, nil
	case runErr != nil:
		return res, runErr
	}
	if !found {
		if reason, ok := Skipped(code, out.String()); ok {
			return Result{Outcome: OutcomeSkipped, Reason: reason}, nil
		}
		reason := Reason(string(makeLog), out.String())
		if reason == "" {
			reason = fmt.Sprintf("dkms build ended with exit status %d and made no module", code)
		}
		return Result{Outcome: OutcomeFailed, Reason: reason}, nil
	}
	if code != 0 {
		reason := Reason(string(makeLog), out.String())
		return Result{Outcome: OutcomeFailed, Reason: fmt.Sprintf("dkms build made %s, but ended with exit status %d: %s", strings.Join(made, ", "), code, reason)}, nil
	}

	fmt.Fprintln(log)
	out.Reset()
	code, runErr = run("dkms", "mktarball", b.Module.Name+"/"+b.Module.Version, "-k", b.Kernel, "--binaries-only")
	switch {
	case errors.Is(runErr, ErrTimeout) && ctx.Err() == nil:
		return Result{Outcome: OutcomeFailed, Reason: fmt.Sprintf("timed out after %s", b.Timeout)}, nil
	case runErr != nil:
		return res, runErr
	}
	if err := saveTarball(layer, b.Module, b.Archive); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return Result{Outcome: OutcomeFailed, Reason: fmt.Sprintf("dkms mktarball made no archive (exit status %d): %s", code, Reason("", out.String()))}, nil
		}
		return res, err
	}
	return Result{Outcome: OutcomeBuilt}, nil
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
		files, err := fs.Glob(layer.FS(), path.Join(globQuote(base), globQuote(arch), "module", "*.ko*"))
		if err != nil {
			continue
		}
		for _, f := range files {
			names = append(names, path.Base(f))
		}
	}
	return names, len(names) > 0
}

var globQuote = strings.NewReplacer(`*`, `\*`, `?`, `\?`, `[`, `\[`, `\`, `\\`).Replace

const maxLog = 64 << 20

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
		if f, err := layer.Open(p); err == nil {
			text, _ := io.ReadAll(io.LimitReader(f, maxLog))
			f.Close()
			return text
		}
	}
	return nil
}

// saveTarball copies the one archive that dkms mktarball left out of the layer.
func saveTarball(layer *os.Root, m Module, to string) error {
	dir := path.Join(state, m.Name, m.Version, "tarball")
	entries, err := fs.ReadDir(layer.FS(), dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || !strings.HasSuffix(e.Name(), ".tar.gz") {
			continue
		}
		from, err := layer.Open(path.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		defer from.Close()
		return copyTo(to, from)
	}
	return &fs.PathError{Op: "find an archive in", Path: dir, Err: fs.ErrNotExist}
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
