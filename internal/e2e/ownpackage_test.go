//go:build e2e

package e2e

import (
	"bytes"
	"debug/elf"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/sandbox"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

// runMkdeb runs the mkdeb of a checkout.
func runMkdeb(t *testing.T, checkout string, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), filepath.Join(checkout, "scripts/mkdeb"), args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	assert.NilError(t, err, "%s", &stderr)
	return strings.TrimSpace(string(out))
}

// testOwnPackage installs, removes and purges a package of the project itself in a clean
// tree, one of testInstall's layers.
func testOwnPackage(t *testing.T, tree *rootfs.Tree, path string) {
	ctx := t.Context()
	lint(t, path)

	x := t.TempDir()
	mustRun(t, "dpkg-deb", "-x", path, x)
	dry := mustRun(t, "make", "--dry-run", "-f", filepath.Join(x, "usr/share/dkms2bin/dkms2bin.mk"), "DKMS=x-dkms", "OUT_DIR="+t.TempDir())
	assert.Assert(t, strings.Contains(dry, "; "+filepath.Join(x, "usr/lib/dkms2bin/mkchroot")+" "), dry)

	var log bytes.Buffer
	assert.NilError(t, tree.MakeLayer(ctx, rootfs.LayerSpec{
		Name: "own", On: []string{"clean"},
		Make: func(root sandbox.Root) error {
			a := apt.Inside{Log: &log, Spec: sandbox.Spec{
				Root: root, Mountpoint: tree.Mountpoint(), Env: sandbox.DefaultEnv(),
				Binds: []sandbox.Bind{{Source: path, Target: "/run/own.deb"}},
			}}
			run := func(args ...string) string {
				t.Helper()
				text, err := a.Output(ctx, args...)
				assert.NilError(t, err, "%v\n%s%s", args, text, &log)
				return string(text)
			}
			list := func() string {
				return run("sh", "-c", `find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /var/lib/dpkg -o -path /var/log -o -path /var/cache/apt -o -path /var/lib/apt -o -path /tmp \) -prune -o \( -type f -printf '%p %m %U %s\n' -o -printf '%p %m %U\n' \) | LC_ALL=C sort`)
			}
			// What it depends on is all that it needs: apt brings that, and no more.
			assert.NilError(t, a.Install(ctx, "/run/own.deb"), "%s", &log)
			run("dpkg", "--purge", "dkms2bin")
			before := list()
			run("dpkg", "--install", "/run/own.deb")
			assert.Equal(t, run("dpkg", "--audit"), "")
			for _, program := range []string{"dkms2bin", "dkms2bin-slurm", "mkchroot", "dkmsbuild", "debextract", "repoindex", "rmchroot"} {
				assert.Assert(t, strings.Contains(run("sh", "-c", `PATH=$PATH:/usr/lib/dkms2bin; exec "$1" --help`, "sh", program), "usage: "+program+" "))
			}
			said := run("sh", "-c", `dkms2bin --config /etc/dkms2bin.conf --index --kver new 2>&1; echo "status $?"`)
			assert.Assert(t, strings.Contains(said, "dkmsbuild: error: --dkms is required") && strings.HasSuffix(said, "status 2\n"), said)
			assert.Equal(t, run("sh", "-c", "find /etc/systemd -name 'dkms2bin*'"), "", "nothing is enabled before it is configured")

			// Settings stay until they are purged, and so does the cache.
			run("sh", "-ec", "echo dkms x-dkms >>/etc/dkms2bin.conf; mkdir -p /var/cache/dkms2bin/cache/entries; dpkg --install /run/own.deb; grep -x 'dkms x-dkms' /etc/dkms2bin.conf")
			run("dpkg", "--remove", "dkms2bin")
			run("sh", "-ec", "! test -e /usr/bin/dkms2bin; ! test -e /usr/lib/dkms2bin; test -e /etc/dkms2bin.conf; test -e /var/cache/dkms2bin")
			run("dpkg", "--purge", "dkms2bin")
			assert.Equal(t, diff(before, list()), "")
			return nil
		},
	}), "%s", &log)
}

// TestUnits has systemd look at the units of the package, and the programs at its
// configuration, with all that is only an example there, but for the key.
func TestUnits(t *testing.T) {
	dir := t.TempDir()
	args := []string{"verify", "--man=no"}
	for _, name := range []string{"dkms2bin.service", "dkms2bin.timer"} {
		unit, err := os.ReadFile(filepath.Join(scripts, "debian", name))
		assert.NilError(t, err)
		path := filepath.Join(dir, name)
		assert.NilError(t, os.WriteFile(path, []byte(strings.ReplaceAll(string(unit), "=/usr/bin/", "="+scripts+"/")), 0o644))
		args = append(args, path)
	}
	assert.Equal(t, mustRun(t, "systemd-analyze", args...), "")

	text, err := os.ReadFile(filepath.Join(scripts, "debian/dkms2bin.conf"))
	assert.NilError(t, err)
	var conf strings.Builder
	for line := range strings.Lines(string(text)) {
		if option := strings.TrimPrefix(line, "#"); option[0] >= 'a' && option[0] <= 'z' && !strings.HasPrefix(option, "sign-with ") {
			conf.WriteString(option)
		}
	}
	assert.Assert(t, strings.Contains(conf.String(), "\ndkms bbswitch-dkms\nout-dir "), conf.String())
	config := filepath.Join(dir, "conf")
	assert.NilError(t, os.WriteFile(config, []byte(conf.String()), 0o644))
	for _, program := range []string{"mkchroot", "dkmsbuild", "debextract", "repoindex", "rmchroot"} {
		mustRun(t, filepath.Join(bin, program), "--check", "--config", config)
	}
}

// TestOwnPackages: the same commit gives the same package, wherever it lies, and one for
// another architecture.
func TestOwnPackages(t *testing.T) {
	if os.Getenv("DKMS2BIN_NIGHTLY") == "" {
		t.Skip("nightly only: everything is compiled for another architecture")
	}
	t.Parallel()
	top, err := filepath.Abs("../..")
	assert.NilError(t, err)
	here := runMkdeb(t, top, t.TempDir())
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	mustRun(t, "cp", "-a", top, elsewhere)
	mustRun(t, "cmp", here, runMkdeb(t, elsewhere, t.TempDir()))

	foreign := runMkdeb(t, top, "--arch", "arm64", t.TempDir())
	assert.Equal(t, mustRun(t, "dpkg-deb", "-f", foreign, "Architecture"), "arm64\n")
	lint(t, foreign)
	x := t.TempDir()
	mustRun(t, "dpkg-deb", "-x", foreign, x)
	programs, err := filepath.Glob(filepath.Join(x, "usr/lib/dkms2bin/*"))
	assert.NilError(t, err)
	assert.Equal(t, len(programs), 5)
	for _, program := range programs {
		f, err := elf.Open(program)
		assert.NilError(t, err)
		assert.Equal(t, f.Machine, elf.EM_AARCH64)
		assert.NilError(t, f.Close())
	}
}
