//go:build e2e

package e2e

import (
	"context"
	"dkms2bin/internal/state"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gotest.tools/v3/assert"
)

// TestFuelCommand is the command line of the specification, with a .deb from the
// archive beside a name, and --do-not-remove.
func TestFuelCommand(t *testing.T) {
	t.Parallel()
	work, out, debs := t.TempDir(), t.TempDir(), t.TempDir()
	mustRun(t, "sh", "-c", "cd '"+debs+"' && apt-get download bbswitch-dkms")
	downloaded := debFiles(t, debs)[0]
	r := command{name: "fuel-bootstrap", args: []string{
		"dkms2bin", "--dkms", "v4l2loopback-dkms-0.12~", downloaded, "--out-dir", out,
		"--do-not-remove", "--index", "--work-dir", work,
	}}.run(t).mustExit(t, 0)
	kver := currentKernel(t, "amd64")
	r.mustSay(t, "... creating chroot environment\n",
		"... installing v4l2loopback-dkms package, building for "+kver+" .. OK\n",
		"... installing bbswitch-dkms package, building for "+kver+" .. OK\n",
		"... exporting kernel binary module packages into "+out+"\n")
	assert.Equal(t, len(debFiles(t, out)), 2)
	_, err := os.Stat(filepath.Join(out, "Release"))
	assert.NilError(t, err)

	kept := regexp.MustCompile(`the chroot environment is kept in (\S+)`).FindStringSubmatch(r.stderr)
	assert.Assert(t, kept != nil)
	document := regexp.MustCompile(`its document is (\S+)`).FindStringSubmatch(r.stderr)
	assert.Assert(t, document != nil)
	shell := regexp.MustCompile(`a shell in the build of v4l2loopback \(built\): (.*)`).FindStringSubmatch(r.stderr)
	assert.Assert(t, shell != nil)

	// The printed command opens a shell where the build ran, on the terminal.
	session := exec.Command("script", "-qec", shell[1], "/dev/null")
	session.Stdin = strings.NewReader("pwd; ls; id -u; exit\n")
	text, err := session.CombinedOutput()
	assert.NilError(t, err, "%s", text)
	assert.Assert(t, strings.Contains(string(text), "/var/lib/dkms/v4l2loopback/"), "%s", text)

	raw, err := os.ReadFile(document[1])
	assert.NilError(t, err)
	command{name: "rmchroot", stdin: raw}.run(t).mustExit(t, 0)
	noTrees(t, work)
}

// TestFrontEndUsage: what is wrong shows before anything is made.
func TestFrontEndUsage(t *testing.T) {
	out := t.TempDir()
	for _, row := range []struct {
		args []string
		says string
	}{
		{[]string{"--out-dir", out}, "--dkms is required"},
		{[]string{"--dkms", "x-dkms"}, "--out-dir is required"},
		{[]string{"--dkms", "x-dkms", "--out-dir", out, "--frobnicate"}, "unknown option --frobnicate"},
		{[]string{"--dkms", "x-dkms", "--out-dir"}, "--out-dir needs a value"},
		{[]string{"x-dkms"}, "unexpected operand x-dkms"},
		{[]string{"--dkms", "x-dkms", "--out-dir", out, "--index=no"}, "--index takes no value"},
		{[]string{"--dkms", "x-dkms", "--out-dir", out, "--do-not-remove=false"}, "--do-not-remove takes no value"},
		{[]string{"--dkms", "x-dkms", "--out-dir", out, "--no-cache=yes"}, "--no-cache takes no value"},
		{[]string{"--dkms", "x-dkms", "--out-dir", out, "--cache-size", "10X"}, `--cache-size "10X": not a size`},
		{[]string{"--dkms", "x-dkms", "--out-dir", out, "--cache-size", "999999999T"}, "value out of range"},
		{[]string{"--dkms", "x-dkms", "--out-dir", out, "--initramfs=yes"}, "--initramfs takes no value"},
		{[]string{"--dkms", "x-dkms", "--out-dir", out, "--provide-dkms=yes"}, "--provide-dkms takes no value"},
		{[]string{"--dkms", "x-dkms", "--out-dir", out, "--initramfs", "--set", "My Set"}, `--set: "My Set" is no package name`},
		{[]string{"--dkms", "x-dkms", "--out-dir", out, "--check=yes"}, "--check takes no value"},
		{[]string{"--dkms", "x-dkms", "--out-dir", out, "--document", "/nonexistent/1.json"}, "--document: cannot write in /nonexistent"},
		{[]string{"--help=yes"}, "--help takes no value"},
		{[]string{"--version="}, "--version takes no value"},
		{[]string{"--dkms", "x-dkms", "--out-dir", out, "--timeout", "soon"}, "--timeout"},
		{[]string{"--dkms", "x-dkms", "--out-dir", out, "--build-package", "libelf-dev", "./libssl-dev.deb"}, `--build-package "./libssl-dev.deb": not the name of a package`},
		{[]string{"--dkms", "x-dkms", "--out-dir", out, "--kver", "new", "--keep-kernels", "-1"}, "--keep-kernels"},
		{[]string{"--dkms", "x-dkms", "--out-dir", out, "--load-cert", "/dev/null"}, "--load-cert /dev/null: there is no certificate in it"},
		{[]string{"--dkms", "/nonexistent/x.deb", "--out-dir", out}, "no such file"},
		{[]string{"--dkms", "x-dkms", "--out-dir", out, "--config", "/nonexistent"}, "/nonexistent"},
	} {
		t.Run(strings.Join(row.args, " "), func(t *testing.T) {
			work := t.TempDir()
			r := command{name: "dkms2bin", args: append(row.args, "--work-dir", work)}.run(t)
			if r.code == 0 || r.code != state.ExitUsage {
				t.Fatalf("exit %d", r.code)
			}
			r.mustSay(t, row.says)
			assert.Assert(t, !strings.Contains(r.stderr, "creating"), r.stderr)
			noTrees(t, work)
		})
	}
}

// TestFrontEndSignals: whatever ends it, the tree goes.
func TestFrontEndSignals(t *testing.T) {
	for _, row := range []struct {
		name   string
		signal unix.Signal
		whom   string // "front end", "group" or "stage"
		code   int
	}{
		{"TERM to the front end", unix.SIGTERM, "front end", 130},
		{"INT to the group", unix.SIGINT, "group", 130},
		{"KILL to the stage", unix.SIGKILL, "stage", 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			work, out, cache := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "cache")
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			cmd := command{name: "dkms2bin", args: []string{"--dkms", "bbswitch-dkms", "--out-dir", out, "--work-dir", work, "--cache-dir", cache}}.command(ctx)
			cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
			stderr, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
			assert.NilError(t, err)
			defer stderr.Close()
			cmd.Stderr = stderr
			assert.NilError(t, cmd.Start())
			waitFor(t, func() bool {
				return strings.Contains(strings.Join(descendants(cmd.Process.Pid), "\n"), "mmdebstrap --mode")
			})
			switch row.whom {
			case "front end":
				assert.NilError(t, unix.Kill(cmd.Process.Pid, row.signal))
			case "group":
				assert.NilError(t, unix.Kill(-cmd.Process.Pid, row.signal))
			case "stage":
				mustRun(t, "pkill", "-KILL", "-P", strconv.Itoa(cmd.Process.Pid), "mkchroot")
			}
			_ = cmd.Wait()
			text, err := os.ReadFile(stderr.Name())
			assert.NilError(t, err)
			t.Logf("%s", text)
			assert.Equal(t, cmd.ProcessState.ExitCode(), row.code)
			assert.DeepEqual(t, leftBehind(work), []string(nil))
			command{name: "rmchroot", args: []string{"--cache", "--cache-dir", cache}}.run(t).mustExit(t, 0)
			assert.DeepEqual(t, leftInCache(cache), []string(nil))
			noTrees(t, work)
		})
	}
}

// TestFuelBootstrapPassesOn: other sub-commands go to the real one.
func TestFuelBootstrapPassesOn(t *testing.T) {
	real := t.TempDir()
	script := "#!/bin/sh\necho real \"$@\" >&2\nexit 7\n"
	assert.NilError(t, os.WriteFile(filepath.Join(real, "fuel-bootstrap"), []byte(script), 0o755))
	path := "PATH=" + scripts + ":" + real + ":/usr/bin:/bin"
	for _, sub := range []string{"list", "build", "activate"} {
		command{name: "fuel-bootstrap", args: []string{sub, "--verbose", "a b"}, env: []string{path}}.run(t).mustExit(t, 7).mustSay(t, "real "+sub+" --verbose a b\n")
	}
	command{name: "fuel-bootstrap", args: []string{"list"}, env: []string{"PATH=" + scripts + ":/usr/bin:/bin"}}.run(t).mustExit(t, 2).mustSay(t, "no other fuel-bootstrap")
}
