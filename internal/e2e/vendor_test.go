//go:build e2e

package e2e

import (
	"dkms2bin/internal/state"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

// TestBuildPackage: a failure names the package that brings what was missing, and
// with it the failed stage succeeds; what was good stays.
func TestBuildPackage(t *testing.T) {
	t.Parallel()
	kver := currentKernel(t, "amd64")
	files := goodModule("needy")
	files["tool.c"] = "#include <gelf.h>\nint main(void) { return elf_version(EV_CURRENT) == EV_NONE; }\n"
	files["Makefile"] += "all:\n\t$(CC) -o tool tool.c -lelf && ./tool\n\t$(MAKE) -C /lib/modules/$(KERNELRELEASE)/build M=$(CURDIR) modules\n"
	files["dkms.conf"] += "MAKE[0]=\"make all\"\n"
	needy, good := source(t, "needy", files), source(t, "content", goodModule("content"))
	r := command{name: "dkmsbuild", stdin: sharedTree(t), args: []string{"--kver", kver, "--dkms", needy, good}}.run(t).mustExit(t, state.ExitIncomplete)
	const hint = "it may miss libelf-dev: add --build-package libelf-dev"
	r.mustSay(t, "fatal error: gelf.h: No such file or directory (tool.c:1)\ndkmsbuild: hint: "+hint+"\n")
	assert.Equal(t, findBuild(t, r.doc, "needy", kver).Hint, hint)
	before := findBuild(t, r.doc, "content", kver)

	wrong := command{name: "dkmsbuild", stdin: r.raw, args: []string{"--kver", kver, "--build-package", "libelf-dew"}}.run(t).mustExit(t, state.ExitError)
	wrong.mustSay(t, "the repositories have no package libelf-dew\n", "did you mean libelf-dev")
	assert.Equal(t, len(wrong.doc.Tools), 0)

	r = command{name: "dkmsbuild", stdin: r.raw, args: []string{"--kver", kver, "--build-package", "libelf-dev"}}.run(t).mustExit(t, 0)
	assert.Equal(t, r.doc.ExitCode(), 0)
	b := findBuild(t, r.doc, "needy", kver)
	assert.Equal(t, b.Status+b.Hint, state.Built)
	assert.DeepEqual(t, findBuild(t, r.doc, "content", kver), before)
	assert.DeepEqual(t, r.doc.Tools, []string{"libelf-dev"})
	assert.Assert(t, strings.HasPrefix(r.doc.Package("needy").Tools[0], "libelf-dev (= "))

	// Without the flag it is remembered, and nothing is to be done.
	again := command{name: "dkmsbuild", stdin: r.raw, args: []string{"--kver", kver}}.run(t).mustExit(t, 0)
	assert.DeepEqual(t, again.doc.Builds, r.doc.Builds)
}

// TestVendorScripts: postinsts that call dkms as they like, and die of what it or
// the running kernel says, do not keep the package from being built.
func TestVendorScripts(t *testing.T) {
	t.Parallel()
	kver := currentKernel(t, "amd64")
	dir := t.TempDir()
	args := []string{"--kver", kver, "--dkms"}
	scripts := map[string]string{
		"calls":    "dkms add -m calls -v 1.0\ndkms build -m calls -v 1.0 -k `uname -r`\ndkms install -m calls -v 1.0 -k `uname -r` --force\n",
		"common":   "/usr/lib/dkms/common.postinst common 1.0 /usr/share/common amd64 ''\n",
		"auto":     "/usr/lib/dkms/dkms_autoinstaller start `uname -r`\ndkms autoinstall\n",
		"strict":   "dkms install strict/1.0 || exit 7\ndkms status strict/1.0 | grep -q installed\n",
		"running":  "[ -d /lib/modules/`uname -r`/build ] || { echo no headers for dkms >&2; exit 1; }\n",
		"loads":    "dkms install loads/1.0\nmodprobe loads\n",
		"versions": "dkms add -m versions -v 1.0\n", // its dkms.conf says another one
		"nonsense": "exit 3\n",
	}
	for name, script := range scripts {
		root := t.TempDir()
		files := goodModule(name)
		if name == "versions" {
			files["dkms.conf"] = strings.Replace(files["dkms.conf"], `PACKAGE_VERSION="1.0"`, `PACKAGE_VERSION="#VERSION#"`, 1)
		}
		for file, content := range files {
			path := filepath.Join(root, "usr/src", name+"-1.0", file)
			assert.NilError(t, os.MkdirAll(filepath.Dir(path), 0o755))
			assert.NilError(t, os.WriteFile(path, []byte(content), 0o644))
		}
		args = append(args, makeDeb(t, dir, root, name+"-dkms", "1.0", "Depends: dkms\n", map[string]string{"postinst": "#!/bin/sh\nset -e\n" + script}))
	}
	r := command{name: "dkmsbuild", stdin: sharedTree(t), args: args}.run(t).mustExit(t, state.ExitIncomplete)
	for name := range scripts {
		b := findBuild(t, r.doc, name+"-dkms", kver)
		if name == "nonsense" { // has nothing to do with dkms
			assert.Equal(t, b.Status, state.Failed)
			assert.Assert(t, strings.Contains(b.Reason, "post-installation script"), b.Reason)
			continue
		}
		assert.Equal(t, b.Status, state.Built, "%s: %s", name, b.Reason)
		assert.Equal(t, b.ModuleVersion, "1.0")
	}
	r.mustSay(t, "running-dkms: its postinst, which calls dkms itself, failed; going on without: no headers for dkms")
}
