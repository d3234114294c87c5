// Package cli is the one skeleton of all programs: flags with their environment
// and configuration file, signals, the hand-over of the document, exit codes
// and messages. No other package ends the process.
package cli

import (
	"context"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/scratch"
	"dkms2bin/internal/state"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// A Program is one stage.
type Program struct {
	Name   string
	Manual string // what -h prints before the flags
	// Flags declares the program's own flags.
	Flags func(*flag.FlagSet)
	// Operands is what the help calls them; without it they are an error.
	Operands string
	// Starts says that the program begins a chain and never reads stdin.
	Starts bool
	// Check looks at the flags and operands before anything is read. Its
	// error is a usage error.
	Check func(operands []string) error
	// Standalone says whether these operands replace the document on stdin.
	Standalone func(operands []string) bool
	// Run does the work and records it in the document.
	Run func(context.Context, *Session) error
	// Pass is called instead of Run when an earlier stage recorded an error, and
	// when a signal came while this one was waiting for its document.
	Pass func(context.Context, *Session) error
	// Fresh, with --check, looks at what a run without an earlier document of
	// this stage needs, and warns of what that run would warn of.
	Fresh func(*Messenger) error
}

// A Session is one run of a program.
type Session struct {
	Doc      *state.Document
	Msg      *Messenger
	Operands []string
	// Silent leaves the document unwritten: there is none that could be
	// handed on.
	Silent bool

	stage string
}

// Copy is where the copy of the document goes that this run keeps in the tree.
// Each process has one of its own, since several may share a tree.
func (s *Session) Copy() string {
	return filepath.Join(s.Doc.Tree.Path, "documents", fmt.Sprintf("%s-%d.json", s.stage, os.Getpid()))
}

// A UsageError is a wrong flag or operand, or a document on which the program
// cannot work.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

// Usagef makes a UsageError.
func Usagef(format string, args ...any) error {
	return &UsageError{fmt.Errorf(format, args...)}
}

// errInterrupted is the cause of a context that a signal cancelled.
var errInterrupted = errors.New("interrupted")

// Main runs the program with the process's arguments and streams and ends the
// process.
func Main(p Program) {
	code := Run(p, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	os.Exit(code)
}

// Run is Main with everything given, and returns the exit code.
func Run(p Program, args []string, stdin *os.File, stdout io.Writer, stderr io.Writer) int {
	if run := os.Getenv(RunVar); run != "" {
		go dieWith(run)
	}
	s := &Session{stage: p.Name, Msg: NewMessenger(p.Name, stderr), Doc: &state.Document{Version: state.Version}}
	ctx, stop := withSignals(context.Background())
	defer stop()

	opts, err := parseFlags(p, args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, opts.usage)
		return state.ExitDone
	case err == nil && opts.version:
		fmt.Fprintf(stdout, "%s %s\n", p.Name, Version())
		return state.ExitDone
	}
	s.Operands = opts.operands
	if err == nil && p.Check != nil {
		err = p.Check(s.Operands)
	}
	if err != nil {
		var usage *UsageError
		if !errors.As(err, &usage) {
			err = &UsageError{err}
		}
		err = diag.WithHint(err, "%s", orDefault(diag.Hint(err), "--help lists all flags"))
		s.Msg.Error(err) // before stdin is read
	}
	if opts.check && err == nil && p.Fresh != nil {
		if err = p.Fresh(s.Msg); err != nil {
			s.Msg.Error(err)
		}
	}
	if opts.check {
		if err == nil {
			fmt.Fprint(stdout, settings(opts.flags))
		}
		return (&state.Document{Error: stageError(p.Name, err)}).ExitCode()
	}

	reads := !p.Starts && (p.Standalone == nil || !p.Standalone(s.Operands))
	if reads {
		if isTerminal(stdin.Fd()) {
			if err == nil {
				s.Msg.Error(diag.WithHint(errors.New("standard input is a terminal, and the document of the stage before is expected there"),
					"run it in a pipe after the stage before, or with <document"))
			}
			return state.ExitUsage
		}
		doc, readErr := state.Read(stdin)
		if readErr != nil {
			if err == nil {
				if errors.Is(readErr, state.ErrEmpty) {
					readErr = diag.WithHint(readErr, "what went wrong is among that stage's messages")
				}
				s.Msg.Error(readErr)
			}
			return state.ExitUsage
		}
		s.Doc = doc
	}

	if err == nil {
		if err = context.Cause(ctx); err == nil {
			err = dispatch(ctx, p, s)
		} else if p.Pass != nil {
			// The signal was for the stage before; what it left is dealt with.
			err = errors.Join(err, p.Pass(context.WithoutCancel(ctx), s))
		}
		if err != nil {
			if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
				err = cause // whatever it broke off
			}
			s.Msg.Error(err)
		}
	}
	// What an earlier stage left undone stays recorded: else this stage, run
	// again on the document, would take it for done.
	if earlier := s.Doc.Error; err != nil && (s.Silent || earlier == nil || earlier.Stage == p.Name) {
		s.Doc.Error = stageError(p.Name, err)
	}
	if s.Silent {
		return s.Doc.ExitCode()
	}
	return handOn(s, stdout)
}

// RunVar is the variable in which the front end names its folder, which it has locked
// as long as it lives.
const RunVar = "DKMS2BIN_RUN"

// dieWith kills this process when the front end is dead: nobody would take its
// document, and what it leaves is found to be stale.
func dieWith(run string) {
	if scratch.Wait(run) == nil {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	}
}

// dispatch runs the stage, or passes on what an earlier stage's error left.
func dispatch(ctx context.Context, p Program, s *Session) error {
	if s.Doc.Error != nil && s.Doc.Error.Stage != p.Name {
		if p.Pass != nil {
			return p.Pass(ctx, s)
		}
		return nil
	}
	s.Doc.Error = nil
	return p.Run(ctx, s)
}

func stageError(stage string, err error) *state.Error {
	if err == nil {
		return nil
	}
	kind := state.KindFailed
	var usage *UsageError
	switch {
	case errors.Is(err, errInterrupted):
		kind = state.KindInterrupted
	case errors.As(err, &usage):
		kind = state.KindUsage
	}
	return &state.Error{Stage: stage, Kind: kind, Message: diag.WithoutLogins(strings.ReplaceAll(err.Error(), "\n", "; ")), Hint: diag.WithoutLogins(diag.Hint(err))}
}

// handOn writes the document: first the copy in the tree, which is what is left
// when the pipe is broken, then stdout.
func handOn(s *Session, stdout io.Writer) int {
	raw, err := s.Doc.Encode()
	if err != nil {
		s.Msg.Error(err)
		return state.ExitError
	}
	kept := keepCopy(s, raw)
	if _, err := stdout.Write(raw); err != nil {
		err = fmt.Errorf("cannot hand the document on: %w", err)
		if kept != "" {
			err = diag.WithHint(err, "a copy of it is %s", kept)
		}
		s.Msg.Error(err)
		return state.ExitError
	}
	return s.Doc.ExitCode()
}

func keepCopy(s *Session, raw []byte) string {
	if s.Doc.Tree == nil || s.Doc.Tree.Removed {
		return ""
	}
	path := s.Copy()
	if _, err := os.Stat(filepath.Join(s.Doc.Tree.Path, "dkms2bin-tree")); err != nil {
		return "" // no such tree
	}
	// What a killed process leaves is removed with the tree then.
	if err := renameio.WriteFile(path, raw, 0o644, renameio.WithTempDir(filepath.Dir(path))); err != nil {
		if !errors.Is(err, os.ErrPermission) { // a user without rights to the tree only reads it
			s.Msg.Warn("cannot keep a copy of the document: %v", err)
		}
		return ""
	}
	return path
}

// sameSignal is how long after the first signal further ones count as the same:
// Ctrl-C reaches a stage from the terminal and from the front end.
const sameSignal = time.Second

// withSignals gives a context that the first SIGINT, SIGTERM or SIGHUP cancels.
// A second one ends the process as if it were not caught. A pipe whose reader is
// gone becomes an ordinary error of write(2).
func withSignals(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	caught := []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP}
	ch := make(chan os.Signal, 4)
	signal.Notify(ch, caught...)
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, unix.SIGPIPE)
	go func() {
		var first time.Time
		for sig := range ch {
			switch {
			case first.IsZero():
				first = time.Now()
				cancel(fmt.Errorf("%w by %s", errInterrupted, signalName(sig)))
			case time.Since(first) > sameSignal:
				signal.Reset(caught...)
				if s, ok := sig.(syscall.Signal); ok {
					_ = unix.Kill(os.Getpid(), s)
				}
			}
		}
	}()
	return ctx, func() {
		signal.Stop(ch)
		signal.Stop(pipe)
		close(ch)
		cancel(nil)
	}
}

func signalName(sig os.Signal) string {
	if s, ok := sig.(syscall.Signal); ok {
		return unix.SignalName(s)
	}
	return sig.String()
}

// Version is the version of these programs.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := strings.TrimPrefix(info.Main.Version, "v")
	if v == "" || v == "(devel)" {
		v = "0.1"
	}
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" && !strings.Contains(v, setting.Value[:7]) {
			v += "+" + setting.Value[:12]
		}
	}
	return v
}

func orDefault(s, def string) string {
	if s == "" {
		return def
	}
	return s
}
