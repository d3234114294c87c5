//go:build e2e

package e2e

import (
	"bytes"
	"dkms2bin/internal/state"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

// TestSpoilsNoOther builds packages that do their worst beside a good one, which
// must come out as if it were alone.
func TestSpoilsNoOther(t *testing.T) {
	t.Parallel()
	tree := sharedTree(t)
	kver := shared.doc.Kernels[0].Release
	rows := []struct {
		name, conf string
		files      map[string]string
		reason     string
	}{
		{name: "killer", conf: `MAKE[0]="sh kill"`, files: map[string]string{"kill": "for s in TERM HUP INT QUIT SEGV ABRT KILL STOP; do kill -$s 1; done; exit 1\n"}},
		{name: "fifo", conf: `MAKE[0]="sh fifo"`, files: map[string]string{"fifo": "rm -f ../build/make.log; mkfifo ../build/make.log; kill -9 $PPID; kill -9 -1\n"}},
		{name: "links", conf: `POST_BUILD="links.sh"`, files: map[string]string{"links.sh": "#!/bin/sh\nln -s / ../tarball\n"}},
		{name: "sleeper", conf: "sleep 314161", reason: "timed out after 20s"},
		{name: "leaker", conf: `MAKE[0]="ls /proc/self/fd/9/etc"`, reason: "No such file or directory"},
		{name: "script", conf: `MAKE[0]="touch /host-was-here; insmod x.ko; mount -t tmpfs x /mnt; false"`},
	}
	args := []string{"--kver", kver, "--timeout", "20s", "--dkms"}
	for _, row := range rows {
		files := goodModule(row.name)
		files["dkms.conf"] += row.conf + "\n"
		for name, content := range row.files {
			files[name] = content
		}
		dir := source(t, row.name, files)
		for name := range row.files {
			assert.NilError(t, os.Chmod(filepath.Join(dir, name), 0o755))
		}
		args = append(args, dir)
	}
	args = append(args, "bbswitch-dkms")

	// A descriptor of the host's root is left open, as careless callers do.
	states := t.TempDir()
	in, out := filepath.Join(states, "in"), filepath.Join(states, "out")
	assert.NilError(t, os.WriteFile(in, tree, 0o644))
	cmd := exec.CommandContext(t.Context(), "sh", append([]string{
		"-c", `in=$1 out=$2; shift 2; exec "$@" <"$in" >"$out" 9</`, "sh", in, out, filepath.Join(bin, "dkmsbuild"),
	}, args...)...)
	text, _ := cmd.CombinedOutput()
	t.Logf("%s", text)
	assert.Equal(t, cmd.ProcessState.ExitCode(), state.ExitIncomplete)
	raw, err := os.ReadFile(out)
	assert.NilError(t, err)
	doc, err := state.Parse(raw)
	assert.NilError(t, err)
	keepDocument(t, raw)
	assert.Equal(t, findBuild(t, doc, "bbswitch-dkms", kver).Status, state.Built)
	assert.Equal(t, len(doc.Builds), len(rows)+1)
	for _, row := range rows {
		for _, b := range doc.Builds {
			if b.Module == row.name || filepath.Base(b.Package) == row.name {
				assert.Equal(t, b.Status, state.Failed, row.name)
				assert.Assert(t, strings.Contains(b.Reason, row.reason), "%s: %s", row.name, b.Reason)
			}
		}
	}
	_, err = os.Stat("/host-was-here")
	assert.Assert(t, os.IsNotExist(err))
	assert.Equal(t, len(processes("sleep\x00314161")), 0)
}

// hostileScript is what the hostile package runs before it is built, as root in
// the sandbox: it tries every way out and says what came of it. It succeeds, so
// that what is read afterwards is a package that was built.
const hostileScript = `#!/bin/sh
cd "$(dirname "$0")"
. ./host
export VICTIM HOST_PID PORT ABSTRACT MODULE
MODULE=$(find /var/lib/dkms -name 'hostile.ko' | head -n 1)
[ -n "$MODULE" ] || echo "attempt module: not built"
gcc -O1 -w -o /tmp/attempts attempts.c && /tmp/attempts | sed 's/^/attempt /'

try() { # NAME COMMAND...
	name=$1; shift
	if "$@" >/dev/null 2>&1; then echo "attempt $name: done"; else echo "attempt $name: refused"; fi
}
ko() { mkdir -p /lib/modules/$(uname -r)/updates && cp "$MODULE" /lib/modules/$(uname -r)/updates && depmod && modprobe hostile; }
try insmod insmod "$MODULE"
try modprobe ko
try rmmod rmmod -f virtio_net
try environment sh -c 'cat /proc/[0-9]*/environ | tr "\0" "\n" | grep HOST_SECRET'
try secrets grep -rs HOST_SECRET /root /home /run /etc /srv /mnt /media /opt /var/tmp /dev/shm
try processes grep -sa "$(cat needle)" /proc/[0-9]*/cmdline
try setuid sh -c 'cp /bin/sh /tmp/root && chmod 4755 /tmp/root && [ "$(setpriv --reuid 65534 --clear-groups /tmp/root -p -c "id -u")" = 0 ]'
(setsid sleep 314160 >/dev/null 2>&1 &)
(setsid sh -c 'trap "" TERM HUP INT; while :; do sleep 314160; done' >/dev/null 2>&1 &)

# What is read from outside afterwards leads there now, or does so every other moment.
log=$(find /var/lib/dkms/hostile -path '*/log/make.log' | head -n 1)
if [ -z "$log" ]; then echo "attempt log: later" # from dkms 3.1 on
else rm -f "$log" && ln -s "$VICTIM/file" "$log" && echo "attempt log: away"; fi
(setsid sh -c 'd=/var/lib/dkms/hostile/1.0/tarball; while :; do rm -rf $d; ln -s "$VICTIM" $d; rm -f $d; mkdir -p $d; done' >/dev/null 2>&1 &)
exit 0
`

// TestWalls: a package that tries each way out of the sandbox. Each row is what
// one attempt has to see; that nothing of the host has changed is looked at for
// all of them.
func TestWalls(t *testing.T) {
	t.Parallel()
	tree := sharedTree(t)
	kver := shared.doc.Kernels[0].Release
	const filtered, noCapability, readOnly, notThere = "EPERM", "EPERM", "EROFS", "ENOENT"
	const noModules, noSetting = "EPERM ENOSYS", "EROFS ENOENT" // the second where the kernel knows no such thing
	rows := map[string]string{
		// loads a module
		"init_module": noModules, "finit_module": noModules, "delete_module": noModules, "kexec": noModules,
		"insmod": "refused", "modprobe": "refused", "rmmod": "refused", "line_discipline": filtered, "family": "EAFNOSUPPORT",
		"protocol": "ESOCKTNOSUPPORT", "type": "ESOCKTNOSUPPORT", "crypto": "EAFNOSUPPORT", "netlink": "EPROTONOSUPPORT",
		// mounts
		"mount": noCapability, "mount_proc": noCapability, "mount_disk": noCapability, "bind": noCapability, "remount": noCapability,
		"propagation": noCapability, "umount": noCapability, "fsopen": noCapability, "open_tree": noCapability,
		"pivot_root": noCapability, "swapon": noCapability,
		// makes namespaces in which it could
		"unshare_user": "ENOSPC", "clone_user": "ENOSPC", "clone3_user": "ENOSPC", "unshare_mount": noCapability, "setns": "EACCES",
		// writes to host paths through links, `..` and /proc/1/root
		"path": notThere, "read": notThere, "dotdot": notThere, "link": notThere, "proc_root": "EACCES", "proc_cwd": "EACCES",
		"parent_root": notThere, "chroot": notThere, "handle": filtered, "descriptors": notThere, "init_descriptors": "EACCES", "init_memory": "EACCES",
		// opens device nodes
		"mknod_memory": noCapability, "mknod_disk": noCapability, "dev_memory": notThere, "dev_log": notThere, "dev_disk": notThere,
		"dev_kvm": notThere, "dev_fuse": notThere, "dev_loop": notThere, "dev_mode": readOnly, "dev_owner": readOnly, "dev_times": readOnly,
		"dev_remove": "EBUSY", "io_ports": noModules,
		// writes core_pattern and other sysctls
		"core_pattern": readOnly, "modprobe_path": noSetting, "printk": readOnly, "forwarding": readOnly, "namespaces": "EACCES", "sysrq": noSetting,
		"irq": noSetting, "sysfs": notThere, "hostname": noCapability, "core_limit": noCapability, "reboot": noCapability, "kernel_log": filtered,
		// changes the clock
		"clock": noCapability, "time_of_day": noCapability, "adjust": noCapability,
		// kills and ptraces host processes, and the sandbox's first one
		"kill": "ESRCH", "kill_group": "ESRCH", "ptrace": "ESRCH", "ptrace_init": noCapability, "read_init": noCapability,
		"priority": "EACCES", "processes": "refused",
		// talks to the network and to the host's sockets
		"loopback": "ECONNREFUSED", "internet": "ENETUNREACH", "abstract": "ECONNREFUSED", "bus": notThere, "vsock": "EAFNOSUPPORT",
		"raw_socket": noCapability, "packet_socket": "EAFNOSUPPORT", "link_down": noCapability,
		// reads the signing key and the environment
		"environment": "refused", "secrets": "refused", "setuid": "refused",
		// what namespaces know nothing of
		"keyctl": filtered, "add_key": filtered, "request_key": filtered, "bpf": filtered, "perf": filtered, "userfaultfd": filtered, "io_uring": filtered,
		// the same by the names that 32-bit programs have for it
		"i386_keyctl": filtered, "i386_bpf": filtered, "i386_syslog": filtered, "i386_vsock": "EAFNOSUPPORT", "i386_socketcall": "ENOSYS",
		"i386_unshare_user": "ENOSPC", "i386_module": noModules, "x32_getpid": "ENOSYS", "x32_keyctl": "ENOSYS", "x32_socket": "ENOSYS",
		// what it leads away, for those who read the tree
		"log": "away later",
		// what it needs for building goes on working
		"i386_getpid": "done", "i386_inet": "done", "works_inet": "done", "works_inet6": "done", "works_unix": "done", "works_pair": "done",
		"works_route": "done", "works_terminal": "done", "works_null": "done",
	}

	host := newHost(t)
	files := goodModule("hostile")
	attempts, err := os.ReadFile("../sandbox/testdata/attempts.c")
	assert.NilError(t, err)
	files["attempts.c"], files["needle"] = string(attempts), host.needle
	files["host"] = host.settings()
	files["hostile.sh"] = hostileScript
	files["dkms.conf"] += "POST_BUILD=\"hostile.sh\"\n"
	dir := source(t, "hostile", files)
	assert.NilError(t, os.Chmod(filepath.Join(dir, "hostile.sh"), 0o755))
	before := host.look(t)
	r := command{
		name: "dkmsbuild", stdin: tree, args: []string{"--kver", kver, "--dkms", dir},
		env: []string{"HOST_SECRET=of the environment"},
	}.run(t)
	assert.DeepEqual(t, host.look(t), before)
	assert.Equal(t, len(processes("sleep\x00314160")), 0)

	build := findBuild(t, r.doc, "hostile", kver)
	built := build.Status == state.Built
	// It goes by the last thing that was done before the build ended, and all with it.
	assert.Assert(t, built || strings.HasSuffix(build.Reason, "hostile/1.0/tarball: path escapes from parent"), build.Reason)
	log, err := os.ReadFile(build.Log)
	assert.NilError(t, err)
	assert.Assert(t, !strings.Contains(string(log), "HOST_SECRET="), "a secret is in the log")
	got := map[string]string{}
	for line := range strings.Lines(string(log)) {
		if _, text, ok := strings.Cut(strings.TrimSpace(line), "attempt "); ok {
			name, outcome, _ := strings.Cut(text, ": ")
			got[name] = outcome
			assert.Check(t, rows[name] != "", "%s has no row", name)
		}
	}
	for name, want := range rows {
		wanted := got[name] == want || got[name] != "" && slices.Contains(strings.Fields(want), got[name])
		assert.Check(t, wanted, "%s: %q, want %q", name, got[name], want)
	}

	// The archive is that of the build, and not of where it was led. An older dkms
	// puts the link into it, and what leads away is refused once more.
	out := t.TempDir()
	r = command{name: "debextract", stdin: r.raw, args: []string{"--out-dir", out}}.run(t)
	switch {
	case !built:
		r.mustExit(t, state.ExitIncomplete)
		assert.Equal(t, len(debFiles(t, out)), 0)
	case got["log"] == "away":
		r.mustExit(t, state.ExitIncomplete).mustSay(t, "is a symbolic link to")
		assert.Equal(t, len(debFiles(t, out)), 0)
	default:
		r.mustExit(t, state.ExitDone)
		assert.Equal(t, len(debFiles(t, out)), 1)
		assert.Assert(t, strings.Contains(mustRun(t, "dpkg-deb", "--contents", debFiles(t, out)[0]), "/hostile.ko"))
	}
	found, _ := exec.Command("grep", "-r", "HOST_SECRET= of", out).Output()
	assert.Equal(t, string(found), "")
	assert.DeepEqual(t, host.look(t), before)
}

// A host is what a hostile package would like to get at.
type host struct {
	victim   string // a directory with a signing key in it
	needle   string // in the command line of a process
	victims  *exec.Cmd
	port     int
	abstract string
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{victim: t.TempDir(), needle: fmt.Sprintf("314.%d", os.Getpid())}
	assert.NilError(t, os.WriteFile(filepath.Join(h.victim, "file"), []byte("HOST_SECRET= of the key\n"), 0o600))
	h.victims = exec.Command("sleep", h.needle)
	assert.NilError(t, h.victims.Start())
	t.Cleanup(func() {
		assert.NilError(t, errors.Join(h.victims.Process.Kill(), func() error { _ = h.victims.Wait(); return nil }()))
	})
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	assert.NilError(t, err)
	t.Cleanup(func() { tcp.Close() })
	h.port = tcp.Addr().(*net.TCPAddr).Port
	h.abstract = fmt.Sprintf("dkms2bin-test-%d", os.Getpid())
	local, err := net.Listen("unix", "@"+h.abstract)
	assert.NilError(t, err)
	t.Cleanup(func() { local.Close() })
	return h
}

func (h *host) settings() string {
	return fmt.Sprintf("VICTIM=%s\nHOST_PID=%d\nPORT=%d\nABSTRACT=%s\n", h.victim, h.victims.Process.Pid, h.port, h.abstract)
}

// look tells everything of the host that the attempts would have changed.
func (h *host) look(t *testing.T) map[string]string {
	t.Helper()
	seen := map[string]string{}
	add := func(path string) {
		if text, err := os.ReadFile(path); err == nil {
			seen[path] = string(text)
		}
	}
	for _, path := range []string{
		"kernel/core_pattern", "kernel/modprobe", "kernel/printk", "kernel/hostname", "kernel/domainname", "net/ipv4/ip_forward",
		"user/max_user_namespaces",
	} {
		add("/proc/sys/" + path)
	}
	add("/proc/modules")
	add("/proc/swaps")
	add("/proc/irq/default_smp_affinity")
	for _, path := range []string{"/dev/full", "/dev/null", "/etc/passwd"} {
		info, err := os.Stat(path)
		assert.NilError(t, err)
		seen[path] = fmt.Sprint(info.Mode(), info.Sys().(*syscall.Stat_t).Uid)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	assert.NilError(t, err)
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); !strings.HasPrefix(fields[4], "/var/tmp/") && !strings.HasPrefix(fields[4], os.TempDir()) { // where other tests mount
			seen["mount "+fields[4]] = fields[3] + " " + fields[5]
		}
	}
	entries, err := os.ReadDir(h.victim)
	assert.NilError(t, err)
	for _, e := range entries {
		add(filepath.Join(h.victim, e.Name()))
	}
	seen["victim"] = fmt.Sprint(len(entries))
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.victims.Process.Pid))
	assert.NilError(t, err)
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "TracerPid:") {
			seen["process "+line] = ""
		}
		if state, ok := strings.CutPrefix(line, "State:\t"); ok {
			seen["process is stopped or dead"] = fmt.Sprint(strings.ContainsAny(state[:1], "TtZX"))
		}
	}
	offset := time.Since(started).Round(time.Second) - time.Duration(time.Now().Unix()-started.Unix())*time.Second
	seen["clock is off by more than 2 s"] = fmt.Sprint(offset.Abs() > 2*time.Second)
	return seen
}

// started has a monotonic time beside that of the wall.
var started = time.Now()

// TestFillsTheDisk: a build that fills the disk fails, and gives it back to those
// that come after it.
func TestFillsTheDisk(t *testing.T) {
	t.Parallel()
	tree := sharedTree(t)
	kver := shared.doc.Kernels[0].Release
	var size int64
	_, err := fmt.Sscan(mustRun(t, "du", "-sm", shared.doc.Tree.Path), &size)
	assert.NilError(t, err)
	disk := smallDisk(t, fmt.Sprintf("%dm", size*11/10+100))
	copied := filepath.Join(disk, "trees", "copy")
	mustRun(t, "mkdir", filepath.Dir(copied))
	mustRun(t, "cp", "-a", shared.doc.Tree.Path, copied)
	tree = bytes.ReplaceAll(tree, []byte(shared.doc.Tree.Path), []byte(copied))

	args := []string{"--jobs", "1", "--kver", kver, "--dkms"} // side by side they would fill it together
	for _, row := range []struct{ name, conf, script string }{
		{"filler", `MAKE[0]="sh fill"`, "dd if=/dev/zero of=big bs=1M\n"},
		{"talker", `MAKE[0]="sh fill"`, "yes this fills the log 2>&1\n"},
		{"files", `PRE_BUILD="fill"`, "#!/bin/sh\nfor i in $(seq 1 40); do cp -r /usr/lib $i || exit; done\n"},
	} {
		files := goodModule(row.name)
		files["dkms.conf"] += row.conf + "\n"
		files["fill"] = row.script
		dir := source(t, row.name, files)
		assert.NilError(t, os.Chmod(filepath.Join(dir, "fill"), 0o755))
		args = append(args, dir)
	}
	args = append(args, source(t, "modest", goodModule("modest")))
	r := command{name: "dkmsbuild", stdin: tree, args: args}.run(t).mustExit(t, state.ExitIncomplete)
	for _, name := range []string{"filler", "talker", "files"} {
		build := findBuild(t, r.doc, name, kver)
		assert.Equal(t, build.Status, state.Failed, name)
		assert.Assert(t, strings.Contains(build.Reason, "no space left on device"), "%s: %s", name, build.Reason)
	}
	assert.Equal(t, findBuild(t, r.doc, "modest", kver).Status, state.Built)
	command{name: "rmchroot", stdin: r.raw}.run(t).mustExit(t, state.ExitIncomplete)
	noTrees(t, disk)
}

// TestSameNames: directories may be called alike, packages not.
func TestSameNames(t *testing.T) {
	t.Parallel()
	tree := sharedTree(t)
	kver := shared.doc.Kernels[0].Release
	one, two := source(t, "src", goodModule("first")), source(t, "src", goodModule("second"))
	again := source(t, "other", goodModule("first"))
	r := command{name: "dkmsbuild", stdin: tree, args: []string{"--kver", kver, "--dkms", one, two, again}}.run(t).mustExit(t, state.ExitIncomplete)
	assert.DeepEqual(t, outcomes(r.doc), map[string]string{
		"first first " + kver:   "built",
		"second second " + kver: "built",
		again + "  " + kver:     "failed",
	})
	assert.Assert(t, strings.Contains(findBuild(t, r.doc, again, kver).Reason, one))
}
