package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gotest.tools/v3/assert"
)

// Not parallel: other tests open files, too.
func TestNothingIsLeft(t *testing.T) {
	b := newBox(t)
	descriptors := func() int {
		found, err := os.ReadDir("/proc/self/fd")
		assert.NilError(t, err)
		return len(found)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	runs := func() {
		for _, tt := range []struct {
			ctx  context.Context
			spec Spec
		}{
			{t.Context(), b.sh("true")},
			{t.Context(), b.sh("exit 1")},
			{t.Context(), b.spec("no-such-command")},
			{t.Context(), readOnly(b.sh("kill -9 $$"))},
			{t.Context(), b.host("mount -t tmpfs none /tmp")},
			{cancelled, b.sh("true")},
		} {
			_, _ = output(tt.ctx, tt.spec)
		}
	}
	runs()
	before := descriptors()
	runs()
	assert.Equal(t, descriptors(), before)
	assert.Assert(t, !mounted(t, b.dir))
	left, err := os.ReadDir(filepath.Join(b.dir, "root"))
	assert.NilError(t, err)
	assert.Equal(t, len(left), 0)
}

func TestCancel(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	reason := errors.New("the reason")
	for name, sh := range map[string]func(string) Spec{"tree": b.sh, "host": b.host} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			arg := longSleep()
			// Neither signals nor sessions protect from it.
			spec := sh("trap '' INT TERM HUP; (setsid sleep " + arg + ") & sleep " + arg)
			var cancelled time.Time
			go func() {
				for end := time.Now().Add(10 * time.Second); len(processes(t, arg)) < 2 && time.Now().Before(end); {
					time.Sleep(10 * time.Millisecond)
				}
				cancelled = time.Now()
				cancel(reason)
			}()
			_, err := output(ctx, spec)
			assert.ErrorIs(t, err, reason)
			took := time.Since(cancelled)
			assert.Assert(t, took < 2*time.Second, "it took %s", took)
			assert.DeepEqual(t, processes(t, arg), []string(nil))
			var exit *ExitError
			assert.Assert(t, !errors.As(err, &exit))
		})
	}
	t.Run("before the start", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(reason)
		_, err := output(ctx, b.sh("echo x >/etc/ran"))
		assert.ErrorIs(t, err, reason)
		assert.ErrorContains(t, err, "cannot run sh in the sandbox")
		assert.DeepEqual(t, contents(t, b.upper()), map[string]string{})
	})
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	late := errors.New("too late")
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, late)
	defer cancel()
	arg := longSleep()
	begin := time.Now()
	_, err := output(ctx, b.sh("sleep "+arg))
	assert.ErrorIs(t, err, late)
	assert.Assert(t, time.Since(begin) < 3*time.Second)
	assert.DeepEqual(t, processes(t, arg), []string(nil))
}

// What the command leaves running does not outlive it, nor is it waited for.
func TestDaemonDiesWithTheCommand(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	arg := longSleep()
	out, err := output(t.Context(), b.sh(`
		(setsid sleep `+arg+` &)
		until grep -q sleep /proc/[0-9]*/comm; do :; done
		echo started; exit 0`))
	assert.NilError(t, err)
	assert.Equal(t, out, "started\n")
	assert.DeepEqual(t, processes(t, arg), []string(nil))
}

// A process whose parent is gone becomes the first process's child, which has to
// reap it and must not take its end for the command's.
func TestOrphansAreReaped(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	out, err := output(t.Context(), b.sh(`
		for i in $(seq 20); do (sh -c 'exit 9' &); done
		sleep 0.3
		grep -l '^State:.Z' /proc/[0-9]*/status || echo no zombies`))
	assert.NilError(t, err)
	assert.Equal(t, out, "no zombies\n")
}

// child is this binary, playing a role on b.
func child(b box, role string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{b.dir}, args...)...)
	cmd.Env = append(os.Environ(), roleVar+"="+role, "GORACE=atexit_sleep_ms=0")
	return cmd
}

func TestParentIsKilled(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	arg := longSleep()
	cmd := child(b, "run", "sh", "-c", "(setsid sleep "+arg+" &) ; sleep "+arg)
	assert.NilError(t, cmd.Start())
	eventually(t, 10*time.Second, "two processes sleep inside", func() bool { return len(processes(t, arg)) == 2 })
	assert.NilError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	eventually(t, 5*time.Second, "nothing is left", func() bool { return len(processes(t, arg)) == 0 })
	assert.Assert(t, !mounted(t, b.dir))
}

// Killed at any moment, a run leaves nothing. Not parallel: other tests have
// first processes, too.
func TestParentIsKilledEarly(t *testing.T) {
	b := newBox(t)
	self, err := os.Executable()
	assert.NilError(t, err)
	ours := func() int {
		n := 0
		for _, path := range processes(t, initName) {
			if exe, err := os.Readlink(filepath.Join(filepath.Dir(path), "exe")); err == nil && exe == self {
				n++
			}
		}
		return n
	}
	for i := range 8 {
		arg := longSleep()
		cmd := child(b, "run", "sleep", arg)
		assert.NilError(t, cmd.Start())
		time.Sleep(time.Duration(i) * 10 * time.Millisecond)
		if i == 7 {
			eventually(t, 10*time.Second, "it runs", func() bool { return len(processes(t, arg)) == 2 && ours() > 0 })
		}
		assert.NilError(t, cmd.Process.Kill())
		_ = cmd.Wait()
	}
	eventually(t, 5*time.Second, "nothing is left", func() bool { return ours() == 0 })
	assert.Assert(t, !mounted(t, b.dir))
}

// What runs inside may signal the first process, which is no reason to die.
func TestFirstProcessIsSignalled(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	out, err := output(t.Context(), b.sh("for s in HUP INT QUIT USR1 USR2 PIPE ALRM TERM CONT TSTP TTIN TTOU WINCH KILL STOP; do kill -$s 1; done; sleep 0.2; echo alive"))
	assert.NilError(t, err)
	assert.Equal(t, out, "alive\n")
}

func TestFirstProcessIsKilled(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	arg := longSleep()
	ended := make(chan error)
	go func() {
		_, err := output(t.Context(), b.spec("sleep", arg))
		ended <- err
	}()
	eventually(t, 10*time.Second, "it runs", func() bool { return len(processes(t, arg)) == 1 })
	status, err := os.ReadFile(filepath.Join(filepath.Dir(processes(t, arg)[0]), "status"))
	assert.NilError(t, err)
	_, rest, _ := strings.Cut(string(status), "\nPPid:\t")
	parent, _, _ := strings.Cut(rest, "\n")
	pid, err := strconv.Atoi(parent)
	assert.NilError(t, err)
	cmdline, err := os.ReadFile("/proc/" + parent + "/cmdline")
	assert.NilError(t, err)
	assert.Equal(t, string(cmdline), initName+"\x00")
	assert.NilError(t, unix.Kill(pid, unix.SIGKILL))
	err = <-ended
	assert.ErrorIs(t, err, ErrDied)
	var exit *ExitError
	assert.Assert(t, !errors.As(err, &exit))
	assert.DeepEqual(t, processes(t, arg), []string(nil))
}

func TestOutput(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	t.Run("the order is kept", func(t *testing.T) {
		out, err := output(t.Context(), b.sh("for i in $(seq 500); do echo o$i; echo e$i >&2; done"))
		assert.NilError(t, err)
		var want strings.Builder
		for i := 1; i <= 500; i++ {
			fmt.Fprintf(&want, "o%d\ne%d\n", i, i)
		}
		assert.Equal(t, out, want.String())
	})
	t.Run("apart", func(t *testing.T) {
		var stdout, stderr bytes.Buffer
		spec := b.sh("for i in $(seq 500); do echo o; echo e >&2; done; exit 1")
		spec.Stdout, spec.Stderr = &stdout, &stderr
		err := Run(t.Context(), spec)
		assert.ErrorContains(t, err, "exit status 1: ")
		assert.Equal(t, stdout.String(), strings.Repeat("o\n", 500))
		assert.Equal(t, stderr.String(), strings.Repeat("e\n", 500))
	})
	t.Run("large", func(t *testing.T) {
		const size = 50 << 20
		var n counter
		spec := b.sh("dd if=/dev/zero bs=1M count=50 2>/dev/null; exit 4")
		spec.Stdout = &n
		err := Run(t.Context(), spec)
		assert.ErrorContains(t, err, "exit status 4")
		assert.Equal(t, int(n), size)
		assert.Assert(t, len(err.Error()) < 10_000)
	})
	t.Run("nobody reads it", func(t *testing.T) {
		assert.NilError(t, Run(t.Context(), b.sh("seq 100000; seq 100000 >&2")))
	})
	t.Run("it cannot be written", func(t *testing.T) {
		spec := b.sh("seq 100000; echo x >/etc/ended")
		spec.Stdout = failing{}
		err := Run(t.Context(), spec)
		assert.ErrorIs(t, err, errFull)
	})
}

type counter int

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

var errFull = errors.New("the disk is full")

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errFull }

func TestStdin(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	out, err := output(t.Context(), b.sh("cat; echo end"))
	assert.NilError(t, err)
	assert.Equal(t, out, "end\n")

	write(t, b.dir+"/input", "input\n", 0o644)
	input, err := os.Open(b.dir + "/input")
	assert.NilError(t, err)
	defer input.Close()
	spec := b.sh("cat; echo end")
	spec.Stdin = input
	out, err = output(t.Context(), spec)
	assert.NilError(t, err)
	assert.Equal(t, out, "input\nend\n")
}

func TestAtTheSameTime(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	var wg sync.WaitGroup
	outs, errs := make([]string, 8), make([]error, 8)
	for i := range outs {
		wg.Go(func() {
			outs[i], errs[i] = output(t.Context(), readOnly(b.sh(fmt.Sprintf("sleep 0.1; echo %d $$ $(ls /tmp); touch /tmp/%d", i, i))))
		})
	}
	wg.Wait()
	for i := range outs {
		assert.NilError(t, errs[i])
		fields := strings.Fields(outs[i])
		assert.Equal(t, fields[0], strconv.Itoa(i))
		assert.Equal(t, len(fields), 2, "%s", outs[i])
	}
}

// terminal gives both ends of a new pseudo terminal, pts(4).
func terminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	assert.NilError(t, err)
	t.Cleanup(func() { master.Close() })
	assert.NilError(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetUint32(int(master.Fd()), unix.TIOCGPTN)
	assert.NilError(t, err)
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	assert.NilError(t, err)
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

func TestTerminal(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	master, slave := terminal(t)
	before, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	assert.NilError(t, err)
	script := `[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo on a terminal; read line; echo got $line; exit 5`
	cmd := child(b, "terminal", "sh", "-c", script)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	assert.NilError(t, cmd.Start())
	_, err = master.WriteString("typed\n")
	assert.NilError(t, err)
	var exit *exec.ExitError
	assert.Assert(t, errors.As(cmd.Wait(), &exit))
	after, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	assert.NilError(t, err)
	assert.Equal(t, *after, *before) // the user's shell wants it as it was
	assert.NilError(t, slave.Close())
	printed, err := io.ReadAll(master)
	if !errors.Is(err, unix.EIO) { // nobody has the other end any more
		assert.NilError(t, err)
	}
	assert.Equal(t, exit.ExitCode(), 5, "%s", printed)
	assert.Assert(t, strings.Contains(string(printed), "on a terminal\r\n"), "%s", printed)
	assert.Assert(t, strings.Contains(string(printed), "got typed\r\n"), "%s", printed)
}
