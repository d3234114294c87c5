//go:build e2e

package e2e

import (
	"dkms2bin/internal/state"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

// exporter is a module that exports NAME_value, and uses that of others.
func exporter(name string, needs []string, uses ...string) map[string]string {
	files := goodModule(name)
	for i, n := range needs {
		files["dkms.conf"] += fmt.Sprintf("BUILD_DEPENDS[%d]=%q\n", i, n)
	}
	code := "#include <linux/module.h>\n"
	sum := "1"
	for _, u := range uses {
		code += fmt.Sprintf("int %s_value(void);\n", u)
		sum += fmt.Sprintf(" + %s_value()", u)
	}
	code += fmt.Sprintf("int %s_value(void);\nint %[1]s_value(void) { return %s; }\nEXPORT_SYMBOL_GPL(%[1]s_value);\nMODULE_LICENSE(\"GPL\");\n", name, sum)
	files[name+".c"] = code
	return files
}

// TestBuildDepends: what a module needs is built first and can be found, in the ways
// in which makefiles look; what fails takes along what needs it, and nothing else.
func TestBuildDepends(t *testing.T) {
	t.Parallel()
	tree := sharedTree(t)
	kver := shared.doc.Kernels[0].Release
	first := exporter("first", nil)
	first["dkms.conf"] += "POST_BUILD=\"post.sh of build\"\n"
	first["post.sh"] = "#!/bin/sh\n[ \"$*\" = 'of build' ] && [ -f first.ko ] && echo first was here\n"
	firstDir := source(t, "first", first)
	assert.NilError(t, os.Chmod(filepath.Join(firstDir, "post.sh"), 0o755))
	// It looks for the symbols itself, and for the module where dkms installs it.
	looks := exporter("looks", nil, "first")
	looks["dkms.conf"] += "[ \"$kernelver\" != " + kver + " ] || BUILD_DEPENDS=\"fir\"st\n"
	looks["Makefile"] += "KBUILD_EXTRA_SYMBOLS += $(wildcard /var/lib/dkms/first/kernel-$(KERNELRELEASE)-*/module/Module.symvers)\n" +
		"ifeq ($(wildcard /lib/modules/$(KERNELRELEASE)/updates/dkms/first.ko*),)\n$(error first is not installed)\nendif\n"
	bad := exporter("bad", nil)
	bad["bad.c"] += "#error broken\n"
	excluded := exporter("excluded", []string{"bad"})
	excluded["dkms.conf"] += "BUILD_EXCLUSIVE_KERNEL=\"^2\\.4\"\n"

	args := []string{"--kver", kver, "--dkms"}
	for _, m := range []struct {
		name  string
		files map[string]string
	}{
		{"third", exporter("third", []string{"second"}, "second", "first")}, // looks nowhere
		{"second", exporter("second", []string{"looks", "first"}, "first", "looks")},
		{"looks", looks},
		{"ring1", exporter("ring1", []string{"ring2"})},
		{"ring2", exporter("ring2", []string{"ring1"})},
		{"self", exporter("self", []string{"self"})},
		{"onbad", exporter("onbad", []string{"bad"})},
		{"above", exporter("above", []string{"onbad"})},
		{"excluded", excluded},
		{"bad", bad},
		{"without", exporter("without", []string{"excluded"})},
		{"strange", exporter("strange", []string{"kernel-devel"})},
		{"free", goodModule("free")},
	} {
		args = append(args, source(t, m.name, m.files))
	}
	args = append(args, firstDir)
	r := command{name: "dkmsbuild", stdin: tree, args: append([]string{"--jobs", "4"}, args...)}.run(t).mustExit(t, state.ExitIncomplete)
	type outcome struct{ status, reason, depends string }
	got := map[string]outcome{}
	for _, b := range r.doc.Builds {
		got[b.Module] = outcome{b.Status, b.Reason, strings.Join(b.Depends, " ")}
	}
	assert.Equal(t, got["excluded"].status, state.Skipped)
	delete(got, "excluded")
	assert.Assert(t, strings.HasPrefix(got["bad"].reason, "error: #error broken"))
	delete(got, "bad")
	assert.DeepEqual(t, fmt.Sprintf("%q", got), fmt.Sprintf("%q", map[string]outcome{
		"first": {state.Built, "", ""}, "looks": {state.Built, "", "first/1.0"},
		"second": {state.Built, "", "looks/1.0 first/1.0"}, "third": {state.Built, "", "second/1.0"},
		"ring1": {state.Failed, "needs itself: ring1 1.0 needs ring2 1.0, which needs ring1 1.0", ""},
		"ring2": {state.Failed, "needs itself: ring2 1.0 needs ring1 1.0, which needs ring2 1.0", ""},
		"self":  {state.Failed, "needs itself: self 1.0 needs self 1.0", ""},
		"onbad": {state.Failed, "needs bad 1.0, whose build failed", ""}, "above": {state.Failed, "needs onbad 1.0, whose build failed", ""},
		// As with dkms before 3.1.4, which asks for nothing.
		"free": {state.Built, "", ""}, "strange": {state.Built, "", ""}, "without": {state.Built, "", ""},
	}))
	log, err := os.ReadFile(findBuild(t, r.doc, "first", kver).Log)
	assert.NilError(t, err)
	assert.Assert(t, strings.Contains(string(log), "first was here"), "its own POST_BUILD did not run:\n%s", log)

	t.Run("the packages", func(t *testing.T) {
		out := t.TempDir()
		extracted := command{name: "debextract", stdin: r.raw, args: []string{"--out-dir", out}}.run(t).mustExit(t, state.ExitIncomplete)
		assert.Equal(t, len(extracted.doc.Debs), 7)
		tree := t.TempDir()
		mustRun(t, "dpkg-deb", "--extract", debOf(t, extracted.doc, "third"), tree)
		modules, err := filepath.Glob(filepath.Join(tree, "lib/modules/*/updates/dkms/third.ko"))
		assert.NilError(t, err)
		depends := mustRun(t, "modinfo", "-F", "depends", modules[0])
		assert.Equal(t, strings.TrimSpace(depends), "second,first")
	})
	t.Run("one at a time", func(t *testing.T) {
		again := command{name: "dkmsbuild", stdin: tree, args: append([]string{"--jobs", "1", "--no-cache"}, args...)}.run(t).mustExit(t, state.ExitIncomplete)
		plain := func(r result) string {
			return regexp.MustCompile(`build-[0-9a-f]+`).ReplaceAllString(r.stderr, "build")
		}
		assert.Equal(t, plain(again), plain(r))
		assert.Equal(t, len(again.doc.Builds), len(r.doc.Builds))
		for i, b := range again.doc.Builds {
			o := r.doc.Builds[i]
			assert.DeepEqual(t, []any{b.Package, b.Module, b.Status, b.Source, b.Depends}, []any{o.Package, o.Module, o.Status, o.Source, o.Depends})
		}
	})
	t.Run("partial rerun", func(t *testing.T) {
		file, err := os.OpenFile(filepath.Join(firstDir, "first.c"), os.O_APPEND|os.O_WRONLY, 0)
		assert.NilError(t, err)
		_, err = file.WriteString("/* changed */\n")
		assert.NilError(t, err)
		assert.NilError(t, file.Close())
		again := command{name: "dkmsbuild", stdin: r.raw, args: []string{"--kver", kver}}.run(t).mustExit(t, state.ExitIncomplete)
		for name, anew := range map[string]bool{"first": true, "looks": true, "second": true, "third": true, "free": false, "strange": false} {
			before, now := findBuild(t, r.doc, name, kver), findBuild(t, again.doc, name, kver)
			assert.Equal(t, now.Layer != before.Layer, anew, name)
			assert.Equal(t, now.Source != before.Source, anew, name)
		}
	})
}

// TestPackageDepends: .debs that are given together may depend on each other.
func TestPackageDepends(t *testing.T) {
	t.Parallel()
	kver := currentKernel(t, "amd64")
	dir := t.TempDir()
	deb := func(name, fields string, files map[string]string) string {
		root := t.TempDir()
		for file, content := range files {
			path := filepath.Join(root, "usr/src", name+"-1.0", file)
			assert.NilError(t, os.MkdirAll(filepath.Dir(path), 0o755))
			assert.NilError(t, os.WriteFile(path, []byte(content), 0o644))
		}
		return makeDeb(t, dir, root, name+"-dkms", "1.0", fields, nil)
	}
	upper := deb("upper", "Depends: dkms, nosuch-dkms | lower-modules (>= 1)\n", exporter("upper", nil, "lower"))
	lower := deb("lower", "Depends: dkms\nProvides: lower-modules (= 1)\n", exporter("lower", nil))
	broken := exporter("broken", nil)
	broken["broken.c"] = "#error broken\n"
	lost := deb("lost", "Depends: broken-dkms\n", goodModule("lost"))
	r := command{name: "dkmsbuild", stdin: sharedTree(t), args: []string{"--kver", kver, "--dkms", upper, lower, lost, deb("broken", "", broken)}}.
		run(t).mustExit(t, state.ExitIncomplete)
	assert.DeepEqual(t, outcomes(r.doc), map[string]string{
		"upper-dkms upper " + kver: "built", "lower-dkms lower " + kver: "built", "lost-dkms lost " + kver: "failed", "broken-dkms broken " + kver: "failed",
	})
	assert.DeepEqual(t, findBuild(t, r.doc, "upper-dkms", kver).Depends, []string{"lower/1.0"})
	assert.Equal(t, findBuild(t, r.doc, "lost-dkms", kver).Reason, "needs broken 1.0, whose build failed")
	assert.DeepEqual(t, r.doc.Package("upper-dkms").Depends, []string{"lower-dkms"})
	// With everything good, nothing is done.
	good := command{name: "dkmsbuild", stdin: sharedTree(t), args: []string{"--kver", kver, "--dkms", upper, lower}}.run(t).mustExit(t, 0)
	again := command{name: "dkmsbuild", stdin: good.raw, args: []string{"--kver", kver}}.run(t).mustExit(t, 0)
	assert.DeepEqual(t, again.doc.Builds, good.doc.Builds)
	assert.Equal(t, again.stderr, "")
}

// TestBroughtAlong: a real package whose modules need those of another one, nightly.
func TestBroughtAlong(t *testing.T) {
	if os.Getenv("DKMS2BIN_NIGHTLY") == "" {
		t.Skip("xtables-addons takes a minute: DKMS2BIN_NIGHTLY is not set")
	}
	t.Parallel()
	kver := currentKernel(t, "amd64")
	r := command{name: "dkmsbuild", stdin: sharedTree(t), args: []string{"--kver", kver, "--dkms", "west-chamber-dkms"}}.run(t).mustExit(t, 0).
		mustSay(t, "dkmsbuild: west-chamber-dkms depends on xtables-addons-dkms, which has modules, too\n")
	assert.Assert(t, r.doc.Package("xtables-addons-dkms").Needed)
	assert.Equal(t, len(findBuild(t, r.doc, "west-chamber-dkms", kver).Depends), 1)
	extracted := command{name: "debextract", stdin: r.raw, args: []string{"--out-dir", t.TempDir()}}.run(t).mustExit(t, 0)
	assert.Equal(t, len(extracted.doc.Debs), 2)
}
