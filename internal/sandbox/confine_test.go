package sandbox

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"gotest.tools/v3/assert"
	is "gotest.tools/v3/assert/cmp"
)

// everyRoot runs a test for each kind of root.
func everyRoot(t *testing.T, test func(t *testing.T, sh func(string) Spec)) {
	b := newBox(t)
	roots := []struct {
		name string
		sh   func(string) Spec
	}{
		{"writable", b.sh},
		{"read-only", func(script string) Spec { return readOnly(b.sh(script)) }},
		{"host", b.host},
	}
	for _, root := range roots {
		t.Run(root.name, func(t *testing.T) { test(t, root.sh) })
	}
}

// try is a script that says for each command whether it succeeded.
func try(commands ...string) string {
	var b strings.Builder
	for _, c := range commands {
		fmt.Fprintf(&b, "if ( %s ) 2>/dev/null; then echo 'done: %s'; else echo 'refused: %s'; fi\n", c, c, c)
	}
	return b.String()
}

func TestReadOnlyRoot(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	second := newBox(t)
	one := readOnly(b.sh(""))
	two := readOnly(b.sh(""))
	two.Root.Layers = append(two.Root.Layers, second.base())
	before := contents(t, b.base())
	for name, spec := range map[string]Spec{"one layer": one, "two layers": two} {
		t.Run(name, func(t *testing.T) {
			spec.Args = []string{"sh", "-c", try(
				"echo x >/etc/new", "echo x >>/etc/hosts", "rm /etc/hosts", "chmod 777 /etc", "mkdir /x",
				"echo x >/tmp/x", "echo x >/run/x", "echo x >/dev/shm/x")}
			out, err := output(t.Context(), spec)
			assert.NilError(t, err)
			assert.Equal(t, out, `refused: echo x >/etc/new
refused: echo x >>/etc/hosts
refused: rm /etc/hosts
refused: chmod 777 /etc
refused: mkdir /x
done: echo x >/tmp/x
done: echo x >/run/x
done: echo x >/dev/shm/x
`)
			assert.DeepEqual(t, contents(t, b.base()), before)
			assert.DeepEqual(t, contents(t, b.upper()), map[string]string{})
		})
	}
}

func TestHostIsReadOnly(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	victim := t.TempDir() // hidden where it lies in /tmp, read-only elsewhere
	out, err := output(t.Context(), b.host(try(
		"echo x >/etc/dkms2bin-test", "echo x >/var/tmp/dkms2bin-test", "echo x >"+victim+"/x", "touch /usr/bin",
		"echo x >/tmp/x", "echo x >/run/x")))
	assert.NilError(t, err)
	assert.Equal(t, out, strings.ReplaceAll(`refused: echo x >/etc/dkms2bin-test
refused: echo x >/var/tmp/dkms2bin-test
refused: echo x >VICTIM/x
refused: touch /usr/bin
done: echo x >/tmp/x
done: echo x >/run/x
`, "VICTIM", victim))
	assert.DeepEqual(t, contents(t, victim), map[string]string{})
}

func TestHostIsNotVisible(t *testing.T) {
	t.Parallel()
	everyRoot(t, func(t *testing.T, sh func(string) Spec) {
		out, err := output(t.Context(), sh(`
			echo dev: $(ls /dev); echo sys: $(ls /sys); echo run: $(ls -A /run); echo tmp: $(ls -A /tmp)
			echo shm: $(ls /dev/shm); echo pts: $(ls /dev/pts)
			stat -c '%a %n' /dev /run /run/lock /dev/shm /dev/null /dev/urandom /dev/pts/ptmx
			echo x >/dev/null && head -c 3 /dev/zero | cat -A; echo
			[ "$(cat /proc/1/cmdline)" = dkms2bin-sandbox-init ] && echo its own init
			for p in /proc/[0-9]*; do [ ${p#/proc/} -lt 100 ] || echo a process of the host: $p; done`))
		assert.NilError(t, err)
		assert.Equal(t, out, `dev: fd full null ptmx pts random shm stderr stdin stdout tty urandom zero
sys:
run: lock
tmp:
shm:
pts: ptmx
755 /dev
755 /run
1777 /run/lock
1777 /dev/shm
666 /dev/null
666 /dev/urandom
666 /dev/pts/ptmx
^@^@^@
its own init
`)
	})
}

// What else the host has mounted is not hidden, but gone.
func TestMounts(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	spec := b.sh("while read -r _ _ _ _ point _; do echo $point; done </proc/self/mountinfo | grep -v /proc/")
	spec.Binds = []Bind{{Source: t.TempDir(), Target: "/run/bound"}}
	out, err := output(t.Context(), spec)
	assert.NilError(t, err)
	assert.DeepEqual(t, strings.Fields(out), []string{
		"/", "/proc", "/dev", "/sys", "/run", "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom",
		"/dev/tty", "/dev/pts", "/dev/shm", "/run/bound",
	})
}

// The file is opened as for writing, and left as it is should that succeed.
func TestKernelSettingsAreReadOnly(t *testing.T) {
	t.Parallel()
	everyRoot(t, func(t *testing.T, sh func(string) Spec) {
		out, err := output(t.Context(), sh(`
			for f in sys/kernel/core_pattern sys/kernel/hostname sys/kernel/modprobe sys/vm/overcommit_memory \
				sys/net/ipv4/ip_forward sys/kernel/printk sysrq-trigger irq/default_smp_affinity; do
				[ -e /proc/$f ] || continue
				if ( : >>/proc/$f ) 2>/dev/null; then echo writable: $f; fi
			done
			cat /proc/sys/kernel/ostype`))
		assert.NilError(t, err)
		assert.Equal(t, out, "Linux\n")
	})
}

// What the kernel shows to nobody but the host's root is empty.
func TestKernelFilesAreCovered(t *testing.T) {
	t.Parallel()
	everyRoot(t, func(t *testing.T, sh func(string) Spec) {
		out, err := output(t.Context(), sh(`cd /proc; cat kpagecount kpageflags kcore vmallocinfo slabinfo timer_list keys key-users kmsg 2>/dev/null | head -c 100; cat uptime | grep -c .`))
		assert.NilError(t, err)
		assert.Equal(t, out, "1\n")
	})
}

func TestRefused(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	commands := []string{
		"mknod /tmp/null c 1 3", "mknod /tmp/disk b 8 0", "mount -t tmpfs none /var", "mount -o bind /etc /var",
		"mount -o remount,rw,bind /proc/sys", "mount -t proc proc /tmp", "umount /proc/sys", "umount /dev/null", "hostname other",
		"ip link set lo down", "kill -9 1", "chroot / true", "chmod 600 /dev/full", "chown 1 /dev/full", "touch /dev/full",
		"rm /dev/full", "ulimit -c unlimited",
	}
	want := strings.Builder{}
	for _, c := range commands {
		outcome := "refused"
		if c == "kill -9 1" || c == "chroot / true" { // the first has no effect, maintainer scripts do the second
			outcome = "done"
		}
		fmt.Fprintf(&want, "%s: %s\n", outcome, c)
	}
	for name, spec := range map[string]Spec{"writable": b.sh(try(commands...)), "read-only": readOnly(b.sh(try(commands...)))} {
		t.Run(name, func(t *testing.T) {
			out, err := output(t.Context(), spec)
			assert.NilError(t, err)
			assert.Equal(t, out, want.String())
		})
	}
	info, err := os.Stat("/dev/full")
	assert.NilError(t, err)
	assert.Equal(t, info.Mode().Perm(), fs.FileMode(0o666))
}

// TestKeys: keys of the session that called the program stay there.
func TestKeys(t *testing.T) {
	t.Parallel()
	runtime.LockOSThread() // which ends with the test, and its keys with it
	session, err := unix.KeyctlJoinSessionKeyring("dkms2bin-test")
	assert.NilError(t, err)
	_, err = unix.AddKey("user", "dkms2bin-secret", []byte("secret"), session)
	assert.NilError(t, err)
	own, err := os.ReadFile("/proc/keys")
	assert.NilError(t, err)
	assert.Assert(t, is.Contains(string(own), "dkms2bin-secret"))
	b := newBox(t)
	for name, spec := range map[string]Spec{"tree": b.sh("cat /proc/keys"), "host": b.host("cat /proc/keys")} {
		out, err := output(t.Context(), spec)
		assert.NilError(t, err)
		assert.Assert(t, !strings.Contains(out, "dkms2bin"), "%s: %s", name, out)
	}
}

func TestCapabilities(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	var kept uint64
	for _, c := range []int{
		unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL,
		unix.CAP_SETGID, unix.CAP_SETUID, unix.CAP_SETPCAP, unix.CAP_SETFCAP, unix.CAP_NET_BIND_SERVICE, unix.CAP_SYS_CHROOT,
		unix.CAP_AUDIT_WRITE,
	} {
		kept |= 1 << c
	}
	status := `grep -E '^(Uid|Gid|Groups|Cap(Prm|Eff|Bnd|Amb)|NoNewPrivs)' /proc/self/status`
	out, err := output(t.Context(), b.sh(status))
	assert.NilError(t, err)
	assert.Equal(t, out, fmt.Sprintf("Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t \n"+
		"CapPrm:\t%016[1]x\nCapEff:\t%016[1]x\nCapBnd:\t%016[1]x\nCapAmb:\t%016[2]x\nNoNewPrivs:\t1\n", kept, 0))

	// The programs that make the first tree mount and chroot in it.
	out, err = output(t.Context(), b.host(try("mount -t tmpfs none /tmp && umount /tmp", "mknod /tmp/disk b 8 0")))
	assert.NilError(t, err)
	assert.Equal(t, out, "done: mount -t tmpfs none /tmp && umount /tmp\nrefused: mknod /tmp/disk b 8 0\n")
}

// debootstrap insists on mknod, and gets a namespace without a user namespace.
func TestRealRoot(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	spec := b.host(try("mknod /dev/shm/null c 1 3", ": >>/proc/sysrq-trigger", "echo x >/etc/dkms2bin-test"))
	spec.RealRoot = true
	out, err := output(t.Context(), spec)
	assert.NilError(t, err)
	assert.Equal(t, out, "done: mknod /dev/shm/null c 1 3\nrefused: : >>/proc/sysrq-trigger\nrefused: echo x >/etc/dkms2bin-test\n")
}

func TestNetwork(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	assert.NilError(t, err)
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(conn, "the host")
			conn.Close()
		}
	}()
	b := newBox(t)
	resolver := "nameserver 192.0.2.1\n"
	write(t, b.base()+"/etc/resolv.conf", resolver, 0o644)
	_, port, err := net.SplitHostPort(listener.Addr().String())
	assert.NilError(t, err)
	spec := b.sh(`
		for i in $(ip -o link | grep -o '^[0-9]*: [^:]*'); do echo $i; done | grep -v :
		ip -o link | grep -o '<.*UP.*>' >/dev/null && echo up
		nc -w 5 127.0.0.1 ` + port + ` </dev/null 2>/dev/null || echo nobody there
		cat /etc/resolv.conf`)
	out, err := output(t.Context(), spec)
	assert.NilError(t, err)
	assert.Equal(t, out, "lo\nup\nnobody there\n"+resolver)

	spec.Network = true
	out, err = output(t.Context(), spec)
	assert.NilError(t, err)
	host, err := os.ReadFile("/etc/resolv.conf")
	assert.NilError(t, err)
	assert.Assert(t, strings.HasSuffix(out, "up\nthe host\n"+string(host)), out)
	left, err := os.ReadFile(b.base() + "/etc/resolv.conf")
	assert.NilError(t, err)
	assert.Equal(t, string(left), resolver)
	assert.DeepEqual(t, contents(t, b.upper()), map[string]string{})
}

func TestHostname(t *testing.T) {
	t.Parallel()
	before, err := os.Hostname()
	assert.NilError(t, err)
	b := newBox(t)
	out, err := output(t.Context(), b.sh("hostname"))
	assert.NilError(t, err)
	assert.Equal(t, out, "dkms2bin\n")
	after, err := os.Hostname()
	assert.NilError(t, err)
	assert.Equal(t, after, before)
}

func TestEnvironment(t *testing.T) {
	t.Setenv("DKMS2BIN_LEAK", "leaked")
	b := newBox(t)
	for name, spec := range map[string]Spec{"tree": b.spec(), "host": b.host("")} {
		t.Run(name, func(t *testing.T) {
			spec.Args = []string{"env"}
			spec.Env = []string{"PATH=/bin:/usr/bin", "ODD=a b\n'c'=\"d\" $e", "EMPTY="}
			out, err := output(t.Context(), spec)
			assert.NilError(t, err)
			assert.Equal(t, out, strings.Join(spec.Env, "\n")+"\n")
		})
	}
	spec := b.spec("/bin/env")
	spec.Env = nil
	out, err := output(t.Context(), spec)
	assert.NilError(t, err)
	assert.Equal(t, out, "")
	// Nor is it that of any other process there.
	out, err = output(t.Context(), b.sh("cat /proc/[0-9]*/environ 2>/dev/null | grep -c LEAK; cat /proc/1/environ; true"))
	assert.NilError(t, err)
	assert.Equal(t, out, "0\ncat: can't open '/proc/1/environ': Permission denied\n")
	assert.Check(t, is.Contains(DefaultEnv(), "DEBIAN_FRONTEND=noninteractive"))
}

func TestWorkingDirectoryAndUmask(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	spec := b.sh("pwd; touch file; mkdir dir; stat -c %a file dir")
	spec.Dir = "/var"
	out, err := output(t.Context(), spec)
	assert.NilError(t, err)
	assert.Equal(t, out, "/var\n644\n755\n")
	spec.Dir = ""
	spec.Args = []string{"readlink", "/proc/self/cwd"}
	out, err = output(t.Context(), spec)
	assert.NilError(t, err)
	assert.Equal(t, out, "/\n")
}

// TestInheritedDescriptors: what the caller's shell left open does not reach the
// command.
func TestInheritedDescriptors(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	cmd := child(b, "run", "sh", "-c", "ls /proc/self/fd; if [ -e /proc/self/fd/9 ]; then exit 9; fi")
	dir, err := os.Open("/")
	assert.NilError(t, err)
	defer dir.Close()
	cmd.ExtraFiles = []*os.File{dir, dir, dir, dir, dir, dir, dir} // 3 to 9
	out, err := cmd.CombinedOutput()
	assert.NilError(t, err, "%s", out)
}
