package cli

import (
	"bufio"
	"bytes"
	"context"
	"dkms2bin/internal/state"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gotest.tools/v3/assert"
)

// roles are programs for tests of what happens to a whole process.
var roles = map[string]Program{
	// quick adds a package.
	"quick": {Name: "quick", Run: func(_ context.Context, s *Session) error {
		s.Doc.Packages = append(s.Doc.Packages, state.Package{Name: "quick"})
		return nil
	}},
	// patient says that it has begun, and works until it is told to end.
	"patient": {Name: "patient", Run: func(ctx context.Context, s *Session) error {
		s.Msg.Info("begun")
		<-ctx.Done()
		s.Doc.Packages = append(s.Doc.Packages, state.Package{Name: "cleaned up"})
		return errors.New("exit status 1, which is of no interest")
	}},
	// cleaner cleans up after others.
	"cleaner": {
		Name: "cleaner",
		Run:  func(context.Context, *Session) error { return errors.New("not reached") },
		Pass: func(ctx context.Context, s *Session) error {
			s.Doc.Packages = append(s.Doc.Packages, state.Package{Name: "cleaned up"})
			return ctx.Err()
		},
	},
	// deaf works on, whatever it is told.
	"deaf": {Name: "deaf", Run: func(context.Context, *Session) error {
		_, err := os.Stderr.WriteString("begun\n")
		if err == nil {
			time.Sleep(20 * time.Second)
		}
		return err
	}},
}

// A process is one of the roles at work.
type process struct {
	*exec.Cmd
	stdin  *os.File
	stdout bytes.Buffer
	stderr *bufio.Reader
}

func start(t *testing.T, role string) *process {
	t.Helper()
	p := &process{Cmd: exec.CommandContext(t.Context(), "/proc/self/exe")}
	p.Env = append(os.Environ(), roleVar+"="+role, "GORACE=atexit_sleep_ms=0")
	stdin, ours, err := os.Pipe()
	assert.NilError(t, err)
	defer stdin.Close()
	stderr, err := p.StderrPipe()
	assert.NilError(t, err)
	p.Stdin, p.stdin, p.stderr, p.Stdout = stdin, ours, bufio.NewReader(stderr), &p.stdout
	assert.NilError(t, p.Start())
	return p
}

// give writes the rest of stdin.
func (p *process) give(t *testing.T, text string) {
	t.Helper()
	_, err := io.WriteString(p.stdin, text)
	assert.NilError(t, err)
	assert.NilError(t, p.stdin.Close())
}

// waitFor reads stderr up to a line with text in it.
func (p *process) waitFor(t *testing.T, text string) {
	t.Helper()
	for {
		line, err := p.stderr.ReadString('\n')
		assert.NilError(t, err, "no line with %q", text)
		if strings.Contains(line, text) {
			return
		}
	}
}

// waits returns when the process has taken all of its stdin so far, and so waits
// for more.
func (p *process) waits(t *testing.T) {
	t.Helper()
	for range 1000 {
		left, err := unix.IoctlGetInt(int(p.stdin.Fd()), unix.TIOCINQ)
		assert.NilError(t, err)
		if left == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("it does not read its stdin")
}

// end waits for the end, and returns the exit code, or that of a shell for a
// signal, and what else was printed.
func (p *process) end(t *testing.T) (code int, stderr string) {
	t.Helper()
	rest, err := io.ReadAll(p.stderr)
	assert.NilError(t, err)
	err = p.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if status := p.ProcessState.Sys().(syscall.WaitStatus); status.Signaled() {
		return 128 + int(status.Signal()), string(rest)
	}
	return p.ProcessState.ExitCode(), string(rest)
}

// takesSignal is what a program may need to take note of a signal on busy cores.
const takesSignal = time.Second

// Ctrl-C reaches all stages of a pipe at once; the document goes on all the same.
func TestSignalBeforeTheDocument(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			t.Parallel()
			p := start(t, "quick")
			_, err := io.WriteString(p.stdin, `{"version":1,"packages":[`)
			assert.NilError(t, err)
			p.waits(t)
			assert.NilError(t, p.Process.Signal(sig))
			assert.NilError(t, p.Process.Signal(sig)) // from the front end, too
			time.Sleep(takesSignal)
			p.give(t, `{"request":"kept"}]}`)
			code, stderr := p.end(t)
			assert.Equal(t, code, 130)
			doc := result{stdout: p.stdout.String()}.document(t)
			assert.DeepEqual(t, doc, &state.Document{
				Version: 1, Minor: state.Minor, Packages: []state.Package{{Request: "kept"}},
				Error: &state.Error{Stage: "quick", Kind: state.KindInterrupted, Message: "interrupted by " + unix.SignalName(sig)},
			})
			assert.Equal(t, stderr, "quick: error: interrupted by "+unix.SignalName(sig)+"\n")
		})
	}
}

// The stage before was interrupted, too, and what it left undone is told by its
// error.
func TestSignalToAllStages(t *testing.T) {
	t.Parallel()
	p := start(t, "quick")
	_, err := io.WriteString(p.stdin, "{")
	assert.NilError(t, err)
	p.waits(t)
	assert.NilError(t, p.Process.Signal(unix.SIGINT))
	time.Sleep(takesSignal)
	p.give(t, `"version":1,"error":{"stage":"mkchroot","kind":"interrupted","message":"m"}}`)
	code, _ := p.end(t)
	assert.Equal(t, code, 130)
	assert.DeepEqual(t, result{stdout: p.stdout.String()}.document(t).Error,
		&state.Error{Stage: "mkchroot", Kind: state.KindInterrupted, Message: "m"})
}

// What a signal to the whole pipe leaves is cleaned up by the stage that does so
// after an error, whether the stage before has told of one or had just ended.
func TestSignalBeforeTheDocumentToBePassedOn(t *testing.T) {
	t.Parallel()
	before := &state.Error{Stage: "mkchroot", Kind: state.KindInterrupted, Message: "m"}
	for name, tt := range map[string]struct {
		stdin string
		want  *state.Error
	}{
		"of an interrupted stage": {`"version":1,"error":{"stage":"mkchroot","kind":"interrupted","message":"m"}}`, before},
		"of one that was done":    {`"version":1}`, &state.Error{Stage: "cleaner", Kind: state.KindInterrupted, Message: "interrupted by SIGINT"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := start(t, "cleaner")
			_, err := io.WriteString(p.stdin, "{")
			assert.NilError(t, err)
			p.waits(t)
			assert.NilError(t, p.Process.Signal(unix.SIGINT))
			time.Sleep(takesSignal)
			p.give(t, tt.stdin)
			code, _ := p.end(t)
			assert.Equal(t, code, 130)
			assert.DeepEqual(t, result{stdout: p.stdout.String()}.document(t),
				&state.Document{Version: 1, Minor: state.Minor, Packages: []state.Package{{Name: "cleaned up"}}, Error: tt.want})
		})
	}
}

func TestSignalDuringRun(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			t.Parallel()
			p := start(t, "patient")
			p.give(t, empty)
			p.waitFor(t, "begun")
			assert.NilError(t, p.Process.Signal(sig))
			code, stderr := p.end(t)
			assert.Equal(t, code, 130)
			assert.DeepEqual(t, result{stdout: p.stdout.String()}.document(t), &state.Document{
				Version: 1, Minor: state.Minor, Packages: []state.Package{{Name: "cleaned up"}},
				Error: &state.Error{Stage: "patient", Kind: state.KindInterrupted, Message: "interrupted by " + unix.SignalName(sig)},
			})
			assert.Equal(t, stderr, "patient: error: interrupted by "+unix.SignalName(sig)+"\n")
		})
	}
}

func TestSecondSignalKills(t *testing.T) {
	t.Parallel()
	for _, second := range []syscall.Signal{unix.SIGINT, unix.SIGTERM} {
		t.Run(unix.SignalName(second), func(t *testing.T) {
			t.Parallel()
			p := start(t, "deaf")
			p.give(t, empty)
			p.waitFor(t, "begun")
			assert.NilError(t, p.Process.Signal(unix.SIGINT))
			time.Sleep(sameSignal / 2)
			assert.NilError(t, p.Process.Signal(second)) // the same keystroke
			time.Sleep(sameSignal)
			assert.NilError(t, unix.Kill(p.Process.Pid, 0), "it must still be there")
			assert.NilError(t, p.Process.Signal(second))
			code, _ := p.end(t)
			assert.Equal(t, code, 128+int(second))
			assert.Equal(t, p.stdout.String(), "")
		})
	}
}

// While it waits for its document, too.
func TestSecondSignalKillsTheWaiting(t *testing.T) {
	t.Parallel()
	p := start(t, "quick")
	_, err := io.WriteString(p.stdin, "{")
	assert.NilError(t, err)
	p.waits(t)
	assert.NilError(t, p.Process.Signal(unix.SIGINT))
	time.Sleep(sameSignal + 100*time.Millisecond)
	assert.NilError(t, p.Process.Signal(unix.SIGINT))
	code, _ := p.end(t)
	assert.Equal(t, code, 128+int(unix.SIGINT))
}

// The next stage is gone: write(2) kills a process that does not expect it.
func TestBrokenPipe(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	assert.NilError(t, err)
	assert.NilError(t, r.Close())
	defer w.Close()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVar+"=quick", "GORACE=atexit_sleep_ms=0")
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(empty), w, &stderr
	var exit *exec.ExitError
	assert.Assert(t, errors.As(cmd.Run(), &exit))
	assert.Equal(t, exit.ExitCode(), 1, "%s", exit)
	assert.Equal(t, stderr.String(), "quick: error: cannot hand the document on: write /dev/stdout: broken pipe\n")
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	assert.NilError(t, err)
	defer full.Close()
	var c call
	r, w, err := os.Pipe()
	assert.NilError(t, err)
	defer r.Close()
	_, err = io.WriteString(w, empty)
	assert.NilError(t, err)
	assert.NilError(t, w.Close())
	var stderr bytes.Buffer
	assert.Equal(t, Run(recorder(&c, nil), nil, r, full, &stderr), 1)
	assert.Equal(t, stderr.String(), "recorder: error: cannot hand the document on: write /dev/full: no space left on device\n")
}
