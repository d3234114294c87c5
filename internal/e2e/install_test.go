//go:build e2e

package e2e

import (
	"bytes"
	"cmp"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/sandbox"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"gotest.tools/v3/assert"
)

// testInstall installs from the produced repository, with real apt, in a clean
// tree that has the kernel's image but neither compiler nor headers.
func testInstall(t *testing.T, repository, kver string) {
	ctx := t.Context()
	tree := cleanTree(t, "", kver)
	binds := []sandbox.Bind{{Source: repository, Target: inRepository}}
	assert.NilError(t, tree.MakeLayer(ctx, rootfs.LayerSpec{
		Name: "test", On: []string{"image", "clean"},
		Make: func(root sandbox.Root) error {
			run := func(args ...string) string {
				t.Helper()
				var out bytes.Buffer
				err := sandbox.Run(ctx, sandbox.Spec{
					Root: root, Mountpoint: tree.Mountpoint(), Args: args, Env: sandbox.DefaultEnv(),
					Binds: binds, Stdout: &out, Stderr: &out,
				})
				assert.NilError(t, err, "%v\n%s", args, &out)
				return out.String()
			}
			has := func(file string) bool {
				t.Helper()
				return strings.TrimSpace(run("sh", "-c", `[ -e "$1" ] && echo yes || echo no`, "sh", file)) == "yes"
			}
			assert.Assert(t, !has("/usr/bin/gcc") && !has("/usr/src/linux-headers-"+kver) && !has("/usr/sbin/dkms"))
			// What is not of the kernel's index or apt's and dpkg's own books.
			list := func() string {
				return run("sh", "-c", `find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /srv -o -path /var/lib/apt -o -path /var/lib/dpkg -o -path /var/cache -o -path /var/log -o -path /tmp \) -prune -o \( -type f -printf '%p %m %U %s\n' -o -printf '%p %m %U\n' \) | LC_ALL=C sort`)
			}
			index := func() string {
				return run("sh", "-c", "cd /lib/modules/"+kver+" && sha256sum modules.*")
			}
			run("cp", "/etc/apt/modules.list", "/etc/apt/sources.list.d/modules.list")
			run("depmod", "-a", kver)
			before, indexBefore := list(), index()
			selections := run("dpkg", "--get-selections")

			// The distribution's lists are there; only ours are fetched.
			run(updateOurs...)
			names := []string{"v4l2loopback-modules-" + kver, "ddcci-modules-" + kver, "bbswitch-modules-" + kver}
			run(append([]string{"apt-get", "install", "-y"}, names...)...)
			for _, module := range []string{"v4l2loopback", "ddcci", "ddcci_backlight", "bbswitch"} {
				file := strings.TrimSpace(run("modinfo", "-k", kver, "-F", "filename", module))
				assert.Assert(t, strings.HasPrefix(file, "/lib/modules/"+kver+"/updates/dkms/"), file)
				vermagic := run("modinfo", "-k", kver, "-F", "vermagic", module)
				assert.Assert(t, strings.HasPrefix(vermagic, kver+" "), vermagic)
				run("modprobe", "--set-version", kver, "--show-depends", module)
			}
			assert.Assert(t, strings.Contains(run("apt-cache", "policy", "v4l2loopback-modules-"+kver), inRepository))
			assert.Equal(t, unverified(run(append([]string{"dpkg", "--verify"}, names...)...)), "")

			// Upgrade: a package of a later version with the same content.
			upgrades := t.TempDir()
			repackage(t, filepath.Join(repository, debName(t, repository, "bbswitch-modules-"+kver)), upgrades)
			binds = append(binds, sandbox.Bind{Source: upgrades, Target: "/run/upgrades"})
			run("sh", "-c", "apt-get install -y /run/upgrades/*.deb")
			assert.Assert(t, strings.HasSuffix(strings.TrimSpace(run("dpkg-query", "-W", "-f", "${Version}", "bbswitch-modules-"+kver)), "+upgrade"))
			run("modinfo", "-k", kver, "bbswitch")

			run(append([]string{"apt-get", "remove", "-y"}, names[:2]...)...)
			assert.Assert(t, strings.Contains(run("sh", "-c", "modinfo -k "+kver+" v4l2loopback 2>&1 || true"), "not found"))
			run(append([]string{"apt-get", "purge", "-y"}, names...)...)
			assert.Equal(t, diff(before, list()), "")
			assert.Equal(t, index(), indexBefore)
			assert.Equal(t, run("dpkg", "--get-selections"), selections)

			// The kernel may go first.
			run("apt-get", "install", "-y", "bbswitch-modules-"+kver)
			run("sh", "-c", "rm -r /lib/modules/"+kver+"/kernel /lib/modules/"+kver+"/modules.*; dpkg --purge --force-depends bbswitch-modules-"+kver)
			return nil
		},
	}))
	if os.Getenv("DKMS2BIN_NIGHTLY") != "" { // linked, packed and linted it takes half a minute
		top, err := filepath.Abs("../..")
		assert.NilError(t, err)
		own := runMkdeb(t, top, t.TempDir())
		t.Run("own package", func(t *testing.T) { testOwnPackage(t, tree, own) })
		t.Run("own timer", func(t *testing.T) { testTimer(t, tree, own) })
	}
	t.Run("companions", func(t *testing.T) { testCompanions(t, tree, kver) })
}

// inRepository is where the trees of cleanTree see our repository.
const inRepository = "/srv/repository"

// updateOurs has apt fetch the lists of our repository alone.
var updateOurs = []string{"apt-get", "update", "-o", "Dir::Etc::sourcelist=/etc/apt/modules.list", "-o", "Dir::Etc::sourceparts=-", "-o", "APT::Get::List-Cleanup=0"}

var plainSystems sync.Mutex

// plainSystem is an archive of what mmdebstrap makes of a suite, from the host's own
// mirrors: apt, and what that needs.
func plainSystem(t *testing.T, suite string) string {
	t.Helper()
	plainSystems.Lock()
	defer plainSystems.Unlock()
	archive := filepath.Join(filepath.Dir(workDir), suite+".tar.zst")
	if _, err := os.Stat(archive); err == nil {
		return archive
	}
	half := filepath.Join(filepath.Dir(archive), "half-"+filepath.Base(archive))
	cmd := exec.CommandContext(t.Context(), "mmdebstrap", "--quiet", "--variant=apt", suite, half, "-")
	cmd.Stdin = bytes.NewReader(apt.Stanzas(apt.ForSuite(ownSources(t), suite)))
	out, err := cmd.CombinedOutput()
	assert.NilError(t, err, "%s", out)
	assert.NilError(t, os.Rename(half, archive))
	return archive
}

// cleanTree makes a tree of a suite, of the host's for "", with two layers: "clean", a
// plain system with the distribution's repositories, and ours in /etc/apt/modules.list,
// and "image", a kernel on it.
func cleanTree(t *testing.T, suite, kver string) *rootfs.Tree {
	t.Helper()
	ctx := t.Context()
	archive := plainSystem(t, cmp.Or(suite, ownSources(t)[0].Suite))
	tree, err := rootfs.Create(workDir)
	assert.NilError(t, err)
	t.Cleanup(func() {
		assert.NilError(t, tree.Close())
		assert.NilError(t, tree.Remove())
	})
	var log bytes.Buffer
	assert.NilError(t, tree.MakeLayer(ctx, rootfs.LayerSpec{
		Name: "clean",
		Make: func(root sandbox.Root) error {
			mustRun(t, "tar", "--numeric-owner", "-C", root.Upper, "-xf", archive)
			if err := rootfs.Configure(root.Upper, []rootfs.ConfigFile{
				{Path: "/etc/apt/apt.conf.d/clean", Content: []byte(apt.Config), Mode: 0o644},
				{Path: "/etc/apt/modules.list", Content: []byte("deb [trusted=yes] file:" + inRepository + " ./\n"), Mode: 0o644},
				{Path: inRepository + "/.there"},
				{Path: "/etc/resolv.conf", Mode: 0o644},
				{Path: "/etc/hosts", Mode: 0o644},
				// As wherever images are made, nothing is started.
				{Path: "/usr/sbin/policy-rc.d", Content: []byte("#!/bin/sh\nexit 101\n"), Mode: 0o755},
				// An initramfs would only take its time.
				{Path: "/etc/initramfs-tools/update-initramfs.conf", Content: []byte("update_initramfs=no\n"), Mode: 0o644},
				{Path: "/etc/dpkg/dpkg.cfg.d/confold", Content: []byte("force-confold\n"), Mode: 0o644},
			}); err != nil {
				return err
			}
			a := apt.Inside{Spec: sandbox.Spec{Root: root, Mountpoint: tree.Mountpoint(), Env: sandbox.DefaultEnv()}, Log: &log}
			return a.Update(ctx)
		},
	}), "%s", &log)
	assert.NilError(t, tree.MakeLayer(ctx, rootfs.LayerSpec{
		Name: "image", On: []string{"clean"},
		Make: func(root sandbox.Root) error {
			env := append(sandbox.DefaultEnv(), "INITRD=No")
			a := apt.Inside{Spec: sandbox.Spec{Root: root, Mountpoint: tree.Mountpoint(), Env: env}, Log: &log}
			if err := a.Install(ctx, "linux-image-"+kver); err != nil {
				return err
			}
			return a.Clean(ctx)
		},
	}), "%s", &log)
	return tree
}

// unverified is what dpkg --verify finds, but for buildinfo files: this tree is set
// up to leave out documentation other than copyright files and changelogs.
func unverified(found string) string {
	var b strings.Builder
	for line := range strings.Lines(found) {
		if strings.TrimSpace(line) != "" && !strings.HasSuffix(strings.TrimSpace(line), "/buildinfo") {
			b.WriteString(line)
		}
	}
	return b.String()
}

func debName(t *testing.T, dir, name string) string {
	t.Helper()
	for _, path := range debFiles(t, dir) {
		if strings.HasPrefix(filepath.Base(path), name+"_") {
			return filepath.Base(path)
		}
	}
	t.Fatalf("no package %s in %s", name, dir)
	return ""
}

// repackage makes a package with a later version out of one of ours.
func repackage(t *testing.T, from, to string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "x")
	mustRun(t, "dpkg-deb", "-R", from, dir)
	control := filepath.Join(dir, "DEBIAN", "control")
	text, err := os.ReadFile(control)
	assert.NilError(t, err)
	var lines []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "Version: ") {
			line = fmt.Sprintf("%s+upgrade\n", strings.TrimSpace(line))
		}
		lines = append(lines, line)
	}
	assert.NilError(t, os.WriteFile(control, []byte(strings.Join(lines, "")), 0o644))
	mustRun(t, "dpkg-deb", "-b", dir, to)
}

// diff lists the lines that only one of two sorted lists has.
func diff(before, after string) string {
	count := map[string]int{}
	for line := range strings.Lines(before) {
		count[line]--
	}
	for line := range strings.Lines(after) {
		count[line]++
	}
	var out strings.Builder
	for line, n := range count {
		if n != 0 {
			fmt.Fprintf(&out, "%+d %s", n, line)
		}
	}
	return out.String()
}
