package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// initName is the argument zero that makes the binary the first process of a
// sandbox instead of the program that it is otherwise.
const initName = "dkms2bin-sandbox-init"

// Descriptors that the first process inherits.
const (
	fdConfig = 3 + iota
	fdStatus
	fdLife
)

// In the first process of a sandbox this never returns. It is no function for main to
// call, since that would come after the tables and expressions of all other packages
// have been made, which takes longer than all that is done here.
func init() {
	if len(os.Args) != 1 || os.Args[0] != initName {
		return
	}
	// Capabilities, no_new_privs and the parent-death signal belong to a
	// thread, so everything happens on this one.
	runtime.LockOSThread()
	rep := report{}
	err := enter(&rep)
	if rep.Deep = errors.Is(err, errTooDeep); err != nil {
		rep.Error = err.Error()
	}
	out, err := json.Marshal(rep)
	if err == nil {
		_, _ = unix.Write(fdStatus, out)
	}
	unix.Exit(0)
}

func enter(rep *report) error {
	// Whatever else was open in the process that called the program would lead
	// the command out of the sandbox.
	if err := unix.CloseRange(fdConfig, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("cannot close inherited descriptors (Linux 5.11 is needed): %w", err)
	}
	// The command may be a hostile one, and has the right to signal this process.
	// Ignored signals would stay ignored in the command; caught ones do not.
	signal.Notify(make(chan os.Signal, 1))
	// The configuration comes after the identity maps have been written.
	raw, err := io.ReadAll(os.NewFile(fdConfig, "config"))
	if err != nil {
		return err
	}
	var conf config
	if err := json.Unmarshal(raw, &conf); err != nil {
		return fmt.Errorf("cannot read the configuration: %w", err)
	}
	if conf.Root.InPlace {
		return runInPlace(conf, rep)
	}
	if err := becomeRoot(); err != nil {
		return err
	}
	// Changing credentials clears the parent-death signal. A parent that died
	// before this line is noticed on the pipe.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("cannot set the parent-death signal: %w", err)
	}
	var stopped atomic.Bool
	go func() {
		if n, _ := unix.Read(fdLife, make([]byte, 1)); n == 1 {
			stopped.Store(true)
			killOthers()
			_, _ = unix.Read(fdLife, make([]byte, 1))
		}
		unix.Exit(1)
	}()
	unix.Umask(0o022)
	if conf.Task != "" {
		return doTask(conf, rep)
	}
	if err := unix.Sethostname([]byte("dkms2bin")); err != nil {
		return fmt.Errorf("cannot set the host name: %w", err)
	}
	if !conf.Network {
		if err := loopbackUp(); err != nil {
			return err
		}
	}
	if err := forgetHost(); err != nil {
		return err
	}
	w, err := makeRoot(conf)
	if err != nil {
		return err
	}
	if !conf.Root.Host {
		if err := dropCapabilities(); err != nil {
			return err
		}
	}
	if err := filterCalls(); err != nil {
		return err
	}
	err = runCommand(conf, rep, func() {
		if stopped.Load() {
			killOthers()
		}
		if w != nil && !conf.Terminal { // a shell's user sees that there is no space
			go w.watch()
		}
	})
	if err != nil || w == nil {
		return err
	}
	if err := reapAll(); err != nil {
		return err
	}
	if rep.Full = !conf.Terminal && w.tooMuch(); rep.Full {
		return nil
	}
	return w.keep("/proc")
}

// forgetHost gives up what a process inherits and namespaces do not take away.
func forgetHost() error {
	// The session's keys. A kernel without keys has none to forget, and in a
	// container whose filter refuses this one, the command gets at none either.
	_, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0)
	if err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("cannot leave the session's keyring: %w", err)
	}
	// A program that crashes makes the kernel start the host's handler of core
	// dumps, as root of the host. A limit of one byte, and only that, keeps it from
	// doing so: it is how the kernel knows the handler's own crashes.
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1}); err != nil {
		return fmt.Errorf("cannot forbid core dumps: %w", err)
	}
	return nil
}

// becomeRoot takes identity 0 of the user namespace, with no other groups. The
// system calls go to this thread alone, as capabilities do.
func becomeRoot() error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
		return fmt.Errorf("cannot drop supplementary groups: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, 0, 0, 0); errno != 0 {
		return fmt.Errorf("cannot take group 0: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 0, 0, 0); errno != 0 {
		return fmt.Errorf("cannot take user 0: %w", errno)
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open a socket: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("cannot bring the loopback device up: %w", err)
	}
	return nil
}

// initCaps are the capabilities that the first process needs to set the sandbox
// up and to hand on to the command.
var initCaps = func() []uintptr {
	var caps []uintptr
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if c <= unix.CAP_AUDIT_READ { // later ones are not known to every kernel, nor needed
			caps = append(caps, c)
		}
	}
	return caps
}()

// keptCaps are the capabilities of the command: what dpkg, apt, maintainer
// scripts and dkms use. CAP_SYS_ADMIN is not among them, so that the command
// cannot undo the read-only mounts or mount anything else.
var keptCaps = map[uintptr]bool{
	unix.CAP_CHOWN: true, unix.CAP_DAC_OVERRIDE: true, unix.CAP_DAC_READ_SEARCH: true,
	unix.CAP_FOWNER: true, unix.CAP_FSETID: true, unix.CAP_KILL: true,
	unix.CAP_SETGID: true, unix.CAP_SETUID: true, unix.CAP_SETPCAP: true, unix.CAP_SETFCAP: true,
	unix.CAP_NET_BIND_SERVICE: true, unix.CAP_SYS_CHROOT: true, unix.CAP_AUDIT_WRITE: true,
}

func dropCapabilities() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot clear ambient capabilities: %w", err)
	}
	for c := uintptr(0); ; c++ {
		if keptCaps[c] {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) { // beyond the kernel's last one
			break
		}
		if err != nil {
			return fmt.Errorf("cannot drop capability %d: %w", c, err)
		}
	}
	// The command of root gets the inheritable set besides the bounding set,
	// and raising ambient capabilities has filled it. See capabilities(7).
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return fmt.Errorf("cannot read capabilities: %w", err)
	}
	sets[0].Inheritable, sets[1].Inheritable = 0, 0
	if err := unix.Capset(&header, &sets[0]); err != nil {
		return fmt.Errorf("cannot clear inheritable capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot set no_new_privs: %w", err)
	}
	return nil
}

// runCommand starts the command, calls started, reaps whatever ends inside, and returns
// when the command itself has ended.
func runCommand(conf config, rep *report, started func()) error {
	path, err := lookPath(conf.Args[0], conf.Env)
	if err != nil {
		return err
	}
	attr := &syscall.ProcAttr{Dir: conf.Dir, Env: conf.Env, Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{}}
	if conf.Terminal {
		attr.Sys.Setsid, attr.Sys.Setctty, attr.Sys.Ctty = true, true, 0
	}
	pid, err := syscall.ForkExec(path, conf.Args, attr)
	if err != nil {
		return fmt.Errorf("cannot start %s: %w", path, err)
	}
	started()
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("cannot wait for %s: %w", path, err)
		}
		if got != pid {
			continue
		}
		rep.Code = status.ExitStatus()
		if status.Signaled() {
			rep.Signal = status.Signal()
		}
		return nil
	}
}

func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, kv := range env {
		list, ok := strings.CutPrefix(kv, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(list) {
			path := filepath.Join(dir, name)
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("%s: %w in the tree", name, exec.ErrNotFound)
}
