//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

// TestBoot loads modules of packages into the kernels that they were built for, in
// a machine, and some that those kernels must refuse.
func TestBoot(t *testing.T) {
	t.Parallel()
	// Where symbols have versions, these count, and the release in the vermagic does not.
	testBoot(t, sharedTree(t), currentKernel(t, "amd64"), "stranger: disagrees about version of symbol module_layout")
}

// TestBootTrixie: its modules are compressed, and lie below /usr.
func TestBootTrixie(t *testing.T) {
	t.Parallel()
	r := suiteTree(t, "trixie")
	// It looks at the size of its own structures first.
	testBoot(t, r.raw, r.doc.Kernels[0].Release, "module stranger: .gnu.linkonce.this_module section size must match", "--release", "trixie")
}

// suiteTree makes a tree of another suite than the host's, for one test.
func suiteTree(t *testing.T, suite string) result {
	t.Helper()
	args := []string{"--work-dir", workDir, "--release", suite}
	if os.Getenv("DKMS2BIN_NIGHTLY") == "" { // by night, a base system from the beginning
		args = append(args, "--base", plainSystem(t, suite))
	}
	r := command{name: "mkchroot", args: args}.run(t)
	if r.doc.Tree != nil {
		t.Cleanup(func() { assert.NilError(t, exec.Command(filepath.Join(bin, "rmchroot"), r.doc.Tree.Path).Run()) })
	}
	return r.mustExit(t, 0)
}

func testBoot(t *testing.T, tree []byte, kver, stranger string, args ...string) {
	out := t.TempDir()
	assert.NilError(t, os.Chmod(out, 0o755))
	r := command{name: "dkmsbuild", stdin: tree, args: []string{
		"--kver", kver, "--dkms", "v4l2loopback-dkms", "bbswitch-dkms", "ddcci-dkms", source(t, "couple", coupleModules()),
	}}.run(t).mustExit(t, 0)
	r = command{name: "debextract", stdin: r.raw, args: []string{"--out-dir", out}}.run(t).mustExit(t, 0)

	// A module without the one that it needs, and one of another kernel.
	couple := debOf(t, r.doc, "couple")
	byHand(t, out, "lonely", kver, moduleOf(t, couple, "couple_second"))
	assert.NilError(t, os.Remove(couple))
	cloud := currentKernel(t, "cloud-amd64")
	r = command{name: "dkmsbuild", stdin: sharedTree(t), args: []string{"--kver", cloud, "--dkms", source(t, "stranger", goodModule("stranger"))}}.run(t).mustExit(t, 0)
	r = command{name: "debextract", stdin: r.raw, args: []string{"--out-dir", t.TempDir()}}.run(t).mustExit(t, 0)
	byHand(t, out, "stranger", kver, moduleOf(t, debOf(t, r.doc, "stranger"), "stranger"))
	command{name: "repoindex", args: []string{out}}.run(t).mustExit(t, 0)

	args = append(args, out, kver, "v4l2loopback", "bbswitch-modules-"+kver, "ddcci", "lonely", "stranger")
	results := bootResults(t, 3, args...)
	assert.Equal(t, len(results), 6)
	for _, row := range []struct{ module, result, message string }{
		{"v4l2loopback", "loaded", " driver version "}, // needs videodev of the kernel's package
		{"ddcci", "loaded", ""},
		{"ddcci-backlight", "loaded", ""},
		{"bbswitch", "no-device", "bbswitch: No discrete VGA device found"},
		{"couple_second", "refused", "couple_second: Unknown symbol couple_greet (err -2)"},
		{"stranger", "refused", stranger},
	} {
		got := results[row.module]
		assert.Equal(t, got.Result, row.result, row.module)
		assert.Assert(t, strings.Contains(got.Message, row.message), "%s: %s", row.module, got.Message)
	}
	assert.Equal(t, results["ddcci-backlight"].Package, "ddcci-modules-"+kver)
}

// bootResults runs boot-test and gives a line of its answer for each module.
func bootResults(t *testing.T, code int, args ...string) map[string]bootResult {
	t.Helper()
	r := command{name: "boot-test", args: args}
	cmd := r.command(t.Context())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	_ = cmd.Run() // the exit code says it
	t.Logf("boot-test %s\n%s%s", strings.Join(args, " "), &stderr, &stdout)
	assert.Equal(t, cmd.ProcessState.ExitCode(), code)
	found := map[string]bootResult{}
	for line := range strings.Lines(stdout.String()) {
		var b bootResult
		assert.NilError(t, json.Unmarshal([]byte(line), &b))
		found[b.Module] = b
	}
	return found
}

type bootResult struct{ Module, Package, Result, Message string }

// coupleModules are two modules, of which the second needs the first.
func coupleModules() map[string]string {
	const license = "MODULE_LICENSE(\"GPL\");\n"
	return map[string]string{
		"dkms.conf": "PACKAGE_NAME=couple\nPACKAGE_VERSION=1.0\nAUTOINSTALL=yes\n" +
			"BUILT_MODULE_NAME[0]=couple_first\nDEST_MODULE_LOCATION[0]=/updates\nBUILT_MODULE_NAME[1]=couple_second\nDEST_MODULE_LOCATION[1]=/updates\n",
		"Makefile":        "obj-m := couple_first.o couple_second.o\n",
		"couple_first.c":  "#include <linux/module.h>\nvoid couple_greet(void);\nvoid couple_greet(void) { }\nEXPORT_SYMBOL_GPL(couple_greet);\n" + license,
		"couple_second.c": "#include <linux/module.h>\nvoid couple_greet(void);\nstatic int __init second_init(void) { couple_greet(); return 0; }\nmodule_init(second_init);\n" + license,
	}
}

// moduleOf unpacks a package and gives the path of one of its modules.
func moduleOf(t *testing.T, deb, module string) string {
	t.Helper()
	dir := t.TempDir()
	mustRun(t, "dpkg-deb", "-x", deb, dir)
	var found string
	assert.NilError(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if strings.HasPrefix(filepath.Base(path), module+".ko") {
			found = path
		}
		return err
	}))
	assert.Assert(t, found != "", "%s has no module %s", deb, module)
	return found
}

// byHand makes a package of a module by hand: ours refuse what cannot load.
func byHand(t *testing.T, out, name, kver, module string) {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, "lib/modules", kver, "updates/dkms")
	assert.NilError(t, os.MkdirAll(dir, 0o755))
	mustRun(t, "cp", module, dir)
	makeDeb(t, out, root, name+"-modules-"+kver, "1.0", "", nil)
}
