//go:build e2e

package e2e

import (
	"bytes"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/sandbox"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"gotest.tools/v3/assert"
)

// systemdInit makes a machine of the directory $1 and has its systemd boot it, in the
// control group $2. Network and kernel are the host's. $3 and $4 are the machine's
// /var/cache/dkms2bin and the cache in it: no overlay, since trees are.
const systemdInit = `echo $$ >"$2/cgroup.procs"
exec unshare --cgroup --uts --ipc sh -ec '
mount --bind "$3" "$1/var/cache/dkms2bin"
mount --bind "$4" "$1/var/cache/dkms2bin/cache"
mount -t proc proc "$1/proc"
mount -t sysfs -o ro sysfs "$1/sys"
mount -t cgroup2 cgroup2 "$1/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$1/dev"
mkdir "$1/dev/pts" "$1/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$1/dev/pts"
ln -s pts/ptmx "$1/dev/ptmx"
for device in null zero full random urandom tty; do
	touch "$1/dev/$device"
	mount --bind "/dev/$device" "$1/dev/$device"
done
mount -t tmpfs -o mode=755 tmpfs "$1/run"
mount -t tmpfs tmpfs "$1/tmp"
hostname build1
cd "$1"
pivot_root . .
umount -l .
exec env -i container=dkms2bin PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd
' sh "$@"`

// bootSystemd boots the system in a directory, and gives what runs the shell's commands
// on it.
func bootSystemd(t *testing.T, root string) func(script string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	groups, own, cache := filepath.Join(dir, "cgroup"), filepath.Join(dir, "own"), cacheTo
	for _, d := range []string{groups, filepath.Join(own, "cache"), cache} {
		assert.NilError(t, os.MkdirAll(d, 0o755))
	}
	// Below the test's own group of the unified hierarchy, whether or not the host uses that.
	assert.NilError(t, unix.Mount("cgroup2", groups, "cgroup2", 0, ""))
	t.Cleanup(func() { assert.NilError(t, unix.Unmount(groups, 0)) })
	text, err := os.ReadFile("/proc/self/cgroup")
	assert.NilError(t, err)
	group := ""
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			group = filepath.Join(groups, strings.TrimSpace(path), fmt.Sprintf("dkms2bin-e%d", os.Getpid()))
		}
	}
	assert.NilError(t, os.Mkdir(group, 0o755))
	t.Cleanup(func() { mustRun(t, "find", group, "-depth", "-type", "d", "-delete") })

	m := boot(t, "systemd", filepath.Join(dir, "log"), systemdInit, root, group, own, cache)
	unshare := m.cmd.Process.Pid
	init := ""
	sh := func(script string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "nsenter", "--target", init, "--all", "--root",
			"env", "--chdir=/", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "sh", "-c", script)
		out, err := cmd.CombinedOutput()
		t.Logf("# %s\n%s", script, out)
		return string(out), err
	}
	waitFor(t, func() bool {
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", unshare))
		init = strings.TrimSpace(string(children))
		exe, _ := os.Readlink("/proc/" + init + "/exe")
		return init != "" && strings.HasSuffix(exe, "/systemd")
	})
	waitFor(t, func() bool {
		_, err := os.Stat("/proc/" + init + "/root/run/systemd/private")
		return err == nil
	})
	state, err := sh("systemctl is-system-running --wait")
	assert.NilError(t, err, "%s", state)
	return sh
}

// testTimer installs a package of the project itself in a clean tree, one of
// testInstall's layers, and boots that: systemd starts the timer, this the service, and
// that builds.
func testTimer(t *testing.T, tree *rootfs.Tree, path string) {
	ctx := t.Context()
	var log bytes.Buffer
	assert.NilError(t, tree.MakeLayer(ctx, rootfs.LayerSpec{
		Name: "timer", On: []string{"clean"},
		Make: func(root sandbox.Root) error {
			a := apt.Inside{Log: &log, Spec: sandbox.Spec{
				Root: root, Mountpoint: tree.Mountpoint(), Env: sandbox.DefaultEnv(),
				Binds: []sandbox.Bind{{Source: path, Target: "/run/own.deb"}},
			}}
			if err := a.Install(ctx, "systemd-sysv", "/run/own.deb"); err != nil {
				return err
			}
			// As those who make images leave it, for a first boot.
			_, err := a.Output(ctx, "sh", "-ec", "rm /usr/sbin/policy-rc.d; echo uninitialized >/etc/machine-id")
			return err
		},
	}), "%s", &log)
	scratch, remove, err := tree.Scratch("timer", "clean")
	assert.NilError(t, err)
	t.Cleanup(func() { assert.NilError(t, remove()) })
	root := t.TempDir()
	assert.NilError(t, unix.Mount("overlay", root, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s",
		strings.Join(scratch.Layers, ":"), scratch.Upper, scratch.Work)))
	t.Cleanup(func() { assert.NilError(t, unix.Unmount(root, 0)) })
	timerOn(t, root, path)
}

// timerOn is the rest of testTimer, in the directory of the system.
func timerOn(t *testing.T, root, path string) {
	bad := goodModule("bad")
	bad["bad.c"] += "#error it is bad\n"
	for name, files := range map[string]map[string]string{"good": goodModule("good"), "bad": bad, "endless": endlessModule("endless", "314157")} {
		mustRun(t, "cp", "-r", source(t, name, files), filepath.Join(root, "usr/src/"))
	}
	mustRun(t, "mkdir", "-p", filepath.Join(root, "var/cache/dkms2bin"))
	// Network and kernel are the host's: nothing is to be set. Nobody is there to answer questions.
	for _, unit := range []string{"systemd-networkd.socket", "systemd-networkd", "systemd-networkd-wait-online", "systemd-sysctl", "systemd-firstboot"} {
		mustRun(t, "systemctl", "--root="+root, "mask", unit)
	}
	resolv, err := os.ReadFile("/etc/resolv.conf")
	assert.NilError(t, err)
	assert.NilError(t, os.WriteFile(filepath.Join(root, "etc/resolv.conf"), resolv, 0o644))
	mustRun(t, "cp", path, filepath.Join(root, "usr/src/own.deb"))
	sh := bootSystemd(t, root)
	must := func(script string) string {
		t.Helper()
		out, err := sh(script)
		assert.NilError(t, err, "%s\n%s", script, out)
		return out
	}
	says := func(script string, texts ...string) {
		t.Helper()
		out, _ := sh(script)
		for _, text := range texts {
			assert.Assert(t, strings.Contains(out, text), "%s says no %q:\n%s", script, text, out)
		}
	}
	// configure writes the configuration and has no kernel left with packages.
	configure := func(lines string) {
		t.Helper()
		must("rm -f /srv/modules/*.deb; cp /usr/share/example /etc/dkms2bin.conf; sed -i 's/^keep-kernels .*/keep-kernels 1/' /etc/dkms2bin.conf; cat >>/etc/dkms2bin.conf <<'END'\n" + lines + "END\n")
	}

	// Neither a first boot nor an upgrade enables it.
	says("systemctl is-enabled dkms2bin.timer", "disabled\n")
	must("cp /etc/dkms2bin.conf /usr/share/example; dpkg --install /usr/src/own.deb")
	says("systemctl is-enabled dkms2bin.timer", "disabled\n")
	assert.Equal(t, must("systemd-analyze verify --man=no dkms2bin.service dkms2bin.timer"), "")

	configure("dkms /usr/src/good\n")
	must("systemctl enable --now dkms2bin.timer")
	says("systemctl list-timers", "dkms2bin.timer ")
	says("systemctl show --property NextElapseUSecRealtime dkms2bin.timer", ":")

	// Its time comes.
	must(`mkdir /etc/systemd/system/dkms2bin.timer.d /etc/systemd/system/dkms2bin.service.d
printf '[Timer]\nOnActiveSec=1s\nAccuracySec=1s\nRandomizedDelaySec=0\n' >/etc/systemd/system/dkms2bin.timer.d/soon.conf
systemctl daemon-reload; systemctl restart dkms2bin.timer
n=0; while [ -z "$(systemctl show --value --property ExecMainExitTimestamp dkms2bin)" ] && [ $n -lt 600 ]; do sleep 1; n=$((n + 1)); done`)
	says("journalctl --unit dkms2bin --output cat", "... installing good package, building for ", " .. OK\n", "... removing chroot environment ")
	says("systemctl show --property Result --property ExecMainStatus dkms2bin", "Result=success\n", "ExecMainStatus=0\n")
	out := filepath.Join(root, "srv/modules")
	assert.Equal(t, len(debFiles(t, out)), 1)
	command{name: "repoindex", args: []string{"--verify", out}}.run(t).mustExit(t, 0)
	must("systemctl start dkms2bin")
	says("journalctl --unit dkms2bin --output cat --lines 12", "mkchroot: no kernel is new: all have packages in /srv/modules\n")

	// What could be built is there; that something failed is told.
	must(`cat >/etc/systemd/system/tell@.service <<'END'
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'journalctl --unit=%i --lines=20 --output=cat >>/run/told'
END
printf '[Unit]\nOnFailure=tell@%%n.service\n' >/etc/systemd/system/dkms2bin.service.d/tell.conf
systemctl daemon-reload`)
	configure("dkms /usr/src/good\ndkms /usr/src/bad\n")
	_, err = sh("systemctl start dkms2bin")
	assert.Assert(t, err != nil)
	assert.Equal(t, must("systemctl is-failed dkms2bin"), "failed\n")
	says("systemctl --failed", "dkms2bin.service loaded failed failed ")
	says("systemctl status dkms2bin", "Active: failed (Result: exit-code)", "status=3")
	says("n=0; until [ -e /run/told ] || [ $n -gt 60 ]; do sleep 1; n=$((n + 1)); done; cat /run/told",
		"dkmsbuild: warning: bad: cannot build bad 1.0 for ", "#error it is bad")
	assert.Equal(t, len(debFiles(t, out)), 1)
	must("systemctl start dkms2bin") // this kernel is not new any more
	assert.Equal(t, must("systemctl --failed --quiet"), "")

	// One that is stopped leaves nothing, and is no failure.
	configure("dkms /usr/src/endless\n")
	must("systemctl start --no-block dkms2bin")
	must("n=0; until grep -qsz ^314157 /proc/[0-9]*/cmdline || [ $n -gt 600 ]; do sleep 0.1; n=$((n + 1)); done; systemctl stop dkms2bin")
	says("systemctl show --property Result --property ExecMainStatus dkms2bin", "Result=success\n", "ExecMainStatus=130\n")
	assert.Equal(t, must("ls /var/cache/dkms2bin/trees; grep -lsz ^314157 /proc/[0-9]*/cmdline || :"), "")

	configure("nonsense 3\n")
	_, err = sh("systemctl start dkms2bin")
	assert.Assert(t, err != nil)
	says("systemctl status dkms2bin", "status=2", "error: ", "nonsense")
}
