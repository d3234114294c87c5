// Package sandbox runs a command in a root tree of its own, cut off from the host.
//
// Every run gets new user, mount, PID, IPC and UTS namespaces, and a network
// namespace with nothing but loopback unless the run needs the network. The
// host's /dev, /sys and /run are not visible inside, /proc is the run's own and
// its dangerous parts are read-only, and the command holds only the
// capabilities that package installation and compilers need.
//
// The namespaces' first process is this same binary (see Init). It dies with its
// parent, and everything inside, mounts included, dies with it: by a
// parent-death signal, by end of file on a pipe, and because the kernel kills a
// PID namespace whose first process is gone. See namespaces(7),
// user_namespaces(7), pid_namespaces(7), pivot_root(2).
package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Root says what the command sees as its root directory. Exactly one of
// Layers and Host is used.
type Root struct {
	// Layers are directories that are stacked by overlayfs, the topmost
	// first. None of them is written to.
	Layers []string
	// Upper takes all that the command writes, Work is the empty directory
	// beside it, on the same file system, that overlayfs asks for. Without
	// them the root is read-only. Without Layers Upper alone is the root.
	Upper, Work string
	// Memory, where it is not 0, is how many bytes of memory may take what a run writes,
	// where overlayfs can read Layers but cannot write to Upper. At the end of the run it
	// becomes part of Upper; of one that ctx cancels, nothing does.
	Memory int64
	// Copies, where it is set, is a directory in which the root is put together by
	// copying, where overlayfs cannot be used, or Memory is too little. It is made by the
	// first run and serves further ones with the same root; with Upper it is on the same
	// file system.
	Copies string
	// Host shows the host's own root, read-only, for the programs that make
	// the first tree. The command keeps all capabilities within its user
	// namespace, since such programs mount and chroot themselves. Of the
	// host, /dev, /sys, /run and /tmp are hidden.
	Host bool
	// InPlace runs the command in this process's own root, without any isolation, for
	// containers that are thrown away afterwards and allow no mounts. Of the rest only
	// Upper counts, which is then /, for those who look for what was written.
	InPlace bool
}

// Written are the directories in which lies what was written, after a run: who changes
// it from outside has to change it in each.
func (r Root) Written() []string {
	dirs := []string{r.Upper}
	if r.Copies != "" && !r.inMemory() {
		dirs = append(dirs, filepath.Join(r.Copies, copiedRoot))
	}
	return dirs
}

// Remove removes a file that was written, by its name relative to the root, without a
// trace: no whiteout hides one of that name in the layers.
func (r Root) Remove(name string) error {
	for _, dir := range r.Written() {
		root, err := os.OpenRoot(dir)
		if err != nil {
			return err
		}
		err = root.Remove(name)
		if err = errors.Join(err, root.Close()); err != nil {
			return err
		}
	}
	return nil
}

// A Bind makes a file or directory of the host visible inside.
type Bind struct {
	Source string // on the host
	Target string // absolute, inside; below /run and (with Root.Host) /tmp it is created
	Write  bool
}

// Outside gives a text that was printed inside with the names that files have on
// the host, for people to find them.
func Outside(text string, binds []Bind) string {
	// repository-1 begins repository-10.
	binds = slices.SortedFunc(slices.Values(binds), func(a, b Bind) int { return len(b.Target) - len(a.Target) })
	for _, b := range binds {
		text = strings.ReplaceAll(text, b.Target, b.Source)
	}
	return text
}

// A File puts given content over a file inside for the time of the run. The
// root tree itself is not changed. With IfExists a missing target is passed
// over; below /run the target is created; elsewhere it must exist.
type File struct {
	Target   string
	Content  []byte
	Mode     fs.FileMode
	IfExists bool
}

// A Spec describes one run.
type Spec struct {
	Root Root
	// Mountpoint is an empty directory of the host on which the root is put
	// together. Nothing of that is visible outside of the run.
	Mountpoint string
	Args       []string // Args[0] is looked up in the run's own PATH
	Env        []string // the whole environment; nothing is inherited
	Dir        string   // working directory inside, "/" by default
	// Network leaves the host's network reachable and hands its resolver
	// settings in. Otherwise there is only a loopback device.
	Network bool
	Binds   []Bind
	Files   []File
	Stdin   *os.File // /dev/null by default
	Stdout  io.Writer
	Stderr  io.Writer // may be the same as Stdout, the order of lines is then kept
	// RealRoot leaves the user namespace out, for programs that insist on making
	// device nodes. Only for trusted programs, and an error for who is not root.
	RealRoot bool
	// Terminal is the user's terminal: the command gets one of its own, and what
	// is typed and shown goes back and forth. Stdin, Stdout and Stderr are then
	// not used.
	Terminal *os.File

	task string // done by the first process instead of a command
}

// An ExitError is a command that ran and did not succeed.
type ExitError struct {
	Args   []string
	Code   int            // exit status, or -1
	Signal syscall.Signal // what killed it, or 0
	Tail   string         // the last lines that it printed
}

func (e *ExitError) Error() string {
	what := fmt.Sprintf("exit status %d", e.Code)
	if e.Signal != 0 {
		what = "killed by " + e.Signal.String()
	}
	msg := fmt.Sprintf("%s: %s", strings.Join(e.Args, " "), what)
	if e.Tail != "" {
		msg += ": " + e.Tail
	}
	return msg
}

// ErrDied says that the sandbox's first process was killed, and with it all that
// ran inside: by what ran inside, or for want of memory.
var ErrDied = errors.New("the sandbox died without a report")

// config is what the parent tells the first process of the namespaces.
type config struct {
	Root       Root
	Mountpoint string
	Args, Env  []string
	Dir        string
	Network    bool
	Binds      []Bind
	Files      []File
	Terminal   bool
	RealRoot   bool
	Task       string
}

// report is what the first process tells the parent.
type report struct {
	Error  string `json:",omitempty"` // the sandbox could not be set up
	Lack   *Lack  `json:",omitempty"` // what the probe found missing
	Full   bool   `json:",omitempty"` // it was stopped for want of Root.Memory
	Deep   bool   `json:",omitempty"` // Error is errTooDeep
	Code   int
	Signal syscall.Signal
}

// DefaultEnv is the environment of a run that asks for nothing else.
func DefaultEnv() []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/sh", "TERM=dumb",
		"LC_ALL=C.UTF-8", "TZ=UTC", "TMPDIR=/tmp",
		"DEBIAN_FRONTEND=noninteractive", "DEBCONF_NONINTERACTIVE_SEEN=true",
		"APT_LISTCHANGES_FRONTEND=none", "UCF_FORCE_CONFFOLD=1",
	}
}

// Run runs the command and waits for its end. When ctx is done, everything
// inside is killed and the error wraps ctx's cause. A command that ran and
// failed gives an *ExitError; any other error means that it could not run.
func Run(ctx context.Context, spec Spec) (err error) {
	if len(spec.Args) == 0 {
		return errors.New("cannot run in the sandbox: no command")
	}
	err = errMemory
	if spec.Root.inMemory() || spec.Root.Copies == "" {
		err = run(ctx, spec)
	}
	if errors.Is(err, errMemory) && spec.Root.Copies != "" {
		spec.Root.Memory = 0
		err = runOnCopies(ctx, spec)
	}
	if errors.Is(err, errTooDeep) {
		fmt.Fprintln(orDiscard(spec.Stderr), errTooDeep)
		err = &ExitError{Args: spec.Args, Code: -1, Tail: errTooDeep.Error()}
	}
	return err
}

func run(ctx context.Context, spec Spec) (err error) {
	defer func() {
		var exit *ExitError
		if err != nil && spec.task != "" {
			err = fmt.Errorf("cannot put the root of a sandbox together: %w", err)
		} else if err != nil && !errors.As(err, &exit) {
			err = fmt.Errorf("cannot run %s in the sandbox: %w", spec.Args[0], err)
		}
	}()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	isolated := !spec.Root.InPlace
	if spec.RealRoot && os.Geteuid() != 0 {
		return errors.New("it must be the host's root, which a user's subordinate IDs cannot stand for")
	}

	conf, err := json.Marshal(config{
		Root: spec.Root, Mountpoint: spec.Mountpoint, Args: spec.Args, Env: spec.Env,
		Dir: spec.Dir, Network: spec.Network, Binds: spec.Binds, Files: spec.Files,
		Terminal: spec.Terminal != nil, RealRoot: spec.RealRoot, Task: spec.task,
	})
	if err != nil {
		return err
	}
	// Three pipes: the configuration; what came of it; and one on which nothing
	// is ever written, whose end of file says that this process is gone.
	var pipes [3][2]*os.File
	for i := range pipes {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		defer r.Close()
		defer w.Close()
		pipes[i] = [2]*os.File{r, w}
	}
	confR, confW := pipes[0][0], pipes[0][1]
	statusR, statusW := pipes[1][0], pipes[1][1]
	lifeR, lifeW := pipes[2][0], pipes[2][1]

	tail := &tailWriter{}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{initName}
	cmd.Env = []string{}
	cmd.ExtraFiles = []*os.File{confR, statusW, lifeR}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		// The identity maps are written after the start, by writeIDMaps;
		// ambient capabilities carry the new namespace's capabilities
		// through the exec that happens before.
		AmbientCaps: initCaps,
		Pdeathsig:   unix.SIGKILL,
		Setsid:      true,
	}
	if spec.RealRoot {
		cmd.SysProcAttr.Cloneflags &^= unix.CLONE_NEWUSER
		cmd.SysProcAttr.AmbientCaps = nil
	}
	if !isolated {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	} else if !spec.Network {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
	}
	var terminal *relay
	if spec.Terminal != nil {
		if terminal, err = newRelay(spec.Terminal); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, terminal.stop()) }()
		cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal.slave, terminal.slave, terminal.slave
	} else {
		if spec.Stdin != nil {
			cmd.Stdin = spec.Stdin
		}
		cmd.Stdout = io.MultiWriter(orDiscard(spec.Stdout), tail)
		if spec.Stderr == spec.Stdout {
			cmd.Stderr = cmd.Stdout
		} else {
			cmd.Stderr = io.MultiWriter(orDiscard(spec.Stderr), tail)
		}
	}

	// The parent-death signal is sent when the thread that started the child
	// ends, so that thread is kept until the child is gone.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return startError(err)
	}
	for _, f := range []*os.File{confR, statusW, lifeR} {
		f.Close()
	}
	if terminal != nil {
		if err := terminal.start(); err != nil {
			return errors.Join(err, cmd.Process.Kill(), cmd.Wait())
		}
	}
	stop := context.AfterFunc(ctx, func() {
		switch {
		case !isolated:
			lifeW.Close() // it has to end what it started
		case spec.Root.Memory > 0 && !errors.Is(ctx.Err(), context.Canceled):
			_, _ = lifeW.Write([]byte{1}) // somebody will look at what it has written
		default:
			_ = cmd.Process.Kill()
		}
	})
	defer stop()
	var mapErr, confErr error
	if !spec.RealRoot && isolated {
		mapErr = writeIDMaps(cmd.Process.Pid)
	}
	if mapErr == nil {
		_, confErr = confW.Write(conf)
	}
	confW.Close()
	if mapErr != nil || confErr != nil {
		lifeW.Close()
	}
	status, readErr := io.ReadAll(io.LimitReader(statusR, 1<<20))
	waitErr := cmd.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	var rep report
	switch {
	case mapErr != nil: // without them nothing works inside
		return mapErr
	case len(status) > 0:
		if err := json.Unmarshal(status, &rep); err != nil {
			return fmt.Errorf("cannot read the report of its first process: %w", err)
		}
	case confErr != nil:
		return confErr
	default:
		return fmt.Errorf("%w (%w)", ErrDied, errors.Join(waitErr, readErr))
	}
	if rep.Lack != nil {
		return rep.Lack
	}
	switch {
	case rep.Full:
		return errMemory
	case rep.Deep:
		return errTooDeep
	}
	if rep.Error != "" {
		return errors.New(rep.Error)
	}
	if rep.Code != 0 || rep.Signal != 0 {
		return &ExitError{Args: spec.Args, Code: rep.Code, Signal: rep.Signal, Tail: tail.String()}
	}
	// Copying the command's output can fail when the command itself did not.
	var exit *exec.ExitError
	if waitErr != nil && !errors.As(waitErr, &exit) {
		return waitErr
	}
	return nil
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// tailWriter keeps the end of what is written to it, by several at a time.
type tailWriter struct {
	mu  sync.Mutex
	buf []byte
}

const tailSize = 2048

func (t *tailWriter) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if len(t.buf) > 2*tailSize {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-tailSize:]...)
	}
	return len(p), nil
}

// String returns the last few lines, joined by " | ".
func (t *tailWriter) String() string {
	const keep = 4
	var lines []string
	for _, line := range bytes.Split(t.buf, []byte("\n")) {
		if s := strings.TrimSpace(string(line)); s != "" {
			lines = append(lines, s)
		}
	}
	return strings.Join(lines[max(0, len(lines)-keep):], " | ")
}
