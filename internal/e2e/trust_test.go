//go:build e2e

package e2e

import (
	"context"
	"dkms2bin/internal/dkms"
	"dkms2bin/internal/kernel"
	"dkms2bin/internal/state"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

// exportModule is a module by the name of file that exports a function, in C.
func exportModule(name, file, function string) map[string]string {
	return map[string]string{
		"dkms.conf": fmt.Sprintf("PACKAGE_NAME=%q\nPACKAGE_VERSION=1.0\nBUILT_MODULE_NAME=%q\nDEST_MODULE_LOCATION=/updates\nAUTOINSTALL=yes\n", name, file),
		"Makefile":  fmt.Sprintf("obj-m := %s.o\n", file),
		file + ".c": "#include <linux/module.h>\n" + function + "\nMODULE_LICENSE(\"GPL\");\n",
	}
}

// callModule is a module that calls a function; symvers tells modpost what else
// exports it, as a Module.symvers would.
func callModule(name, code, symvers string) map[string]string {
	files := exportModule(name, name, code)
	files["Makefile"] += "KBUILD_EXTRA_SYMBOLS := $(src)/extra.symvers\n"
	files["extra.symvers"] = symvers
	return files
}

const (
	getBase   = "int base_get(int x); int base_get(int x) { return x; } EXPORT_SYMBOL_GPL(base_get);"
	callBase  = "int base_get(int x); static int __init call_init(void) { return base_get(0); } module_init(call_init);"
	otherCRC  = "unsigned int crc_itu_t(unsigned int a, unsigned int b); unsigned int crc_itu_t(unsigned int a, unsigned int b) { return a + b; } EXPORT_SYMBOL(crc_itu_t);"
	callKernl = "#include <linux/crc-itu-t.h>\nstatic int __init call_init(void) { return crc_itu_t(0, \"x\", 1) == 99; } module_init(call_init);"
)

// exported finds a symbol that a build's archive exports.
func exported(t *testing.T, b state.Build, symbol string) kernel.Export {
	t.Helper()
	archives, err := dkms.Extract(t.Context(), b.Archive, t.TempDir(), dkms.Limits{})
	assert.NilError(t, err)
	m, err := kernel.ReadModule(archives[0].Files[0])
	assert.NilError(t, err)
	i := slices.IndexFunc(m.Exports, func(x kernel.Export) bool { return x.Symbol == symbol })
	assert.Assert(t, i >= 0, "%s does not export %s", m.Path, symbol)
	return m.Exports[i]
}

// TestSymbols makes packages of modules that need each other, of one that needs
// what is not there, and of one that takes the place of a module of the kernel's.
func TestSymbols(t *testing.T) {
	t.Parallel()
	tree := sharedTree(t)
	kver := shared.doc.Kernels[0].Release
	build := func(on []byte, sources ...string) result {
		t.Helper()
		args := []string{"--kver", kver}
		for _, s := range sources {
			args = append(args, "--dkms", s)
		}
		return command{name: "dkmsbuild", stdin: on, args: args}.run(t).mustExit(t, 0)
	}
	base := build(tree, source(t, "base", exportModule("base", "base", getBase)))
	crc := exported(t, findBuild(t, base.doc, "base", kver), "base_get").CRC
	assert.Assert(t, crc != 0)
	symvers := func(crc uint32) string { return fmt.Sprintf("0x%08x\tbase_get\tbase\tEXPORT_SYMBOL_GPL\t\n", crc) }
	built := build(base.raw,
		source(t, "fits", callModule("fits", callBase, symvers(crc))),
		source(t, "stale", callModule("stale", callBase, symvers(crc+1))),
		source(t, "itu", exportModule("itu", "crc-itu-t", otherCRC)),
		source(t, "cdma", callModule("cdma", callKernl, "")),
	)
	// What dkmsbuild records of BUILD_DEPENDS.
	depends := func(doc *state.Document, names ...string) {
		for i, b := range doc.Builds {
			if slices.Contains(names, b.Module) {
				doc.Builds[i].Depends = []string{"base/1.0"}
			}
		}
	}
	extract := func(doc []byte, code int) result {
		t.Helper()
		return command{name: "debextract", stdin: doc, args: []string{"--out-dir", t.TempDir()}}.run(t).mustExit(t, code)
	}
	reason := func(r result, name string) string {
		t.Helper()
		b := findBuild(t, r.doc, name, kver)
		assert.Equal(t, b.Status, state.Failed)
		assert.Equal(t, b.Stage, "debextract")
		return b.Reason
	}

	t.Run("what is not there", func(t *testing.T) {
		r := extract(built.raw, state.ExitIncomplete)
		assert.Equal(t, reason(r, "fits"), "module fits.ko needs the symbol base_get, which neither "+kver+" nor a module that it depends on exports")
		assert.Equal(t, findBuild(t, r.doc, "fits", kver).Hint, "base.ko of base exports it: name base in BUILD_DEPENDS of the dkms.conf of fits")
		r.mustSay(t, "hint: base.ko of base exports it")
		assert.Equal(t, len(r.doc.Debs), 2, "base and itu")
	})
	t.Run("other modules", func(t *testing.T) {
		r := extract(encode(t, built.doc, func(d *state.Document) { depends(d, "fits", "stale") }), state.ExitIncomplete)
		fits := findBuild(t, r.doc, "fits", kver)
		assert.Equal(t, fits.Status, state.Built)
		assert.DeepEqual(t, fits.Modules[0], state.Module{
			File: "fits.ko", Vermagic: fits.Modules[0].Vermagic, License: "GPL",
			Symbols: fits.Modules[0].Symbols, GPLSymbols: 1, CRCs: fits.Modules[0].Symbols, CRCCheck: "compared",
		})
		i := slices.IndexFunc(r.doc.Debs, func(d state.Deb) bool { return d.Module == "fits" })
		j := slices.IndexFunc(r.doc.Debs, func(d state.Deb) bool { return d.Module == "base" })
		on := r.doc.Debs[j].Name + " (= " + r.doc.Debs[j].Version + ")"
		assert.Assert(t, strings.HasSuffix(mustRun(t, "dpkg-deb", "-f", r.doc.Debs[i].Path, "Depends"), ", "+on+"\n"), on)
		assert.Equal(t, reason(r, "stale"), fmt.Sprintf("module stale.ko was built against another version of the symbol base_get (CRC 0x%08x) than the module base exports (0x%08x)", crc+1, crc))
	})
	t.Run("a module of the kernel's own is replaced", func(t *testing.T) {
		r := extract(encode(t, built.doc, func(d *state.Document) { depends(d, "fits") }), state.ExitIncomplete)
		assert.Equal(t, reason(r, "cdma"), "module cdma.ko was built against the symbol crc_itu_t of the kernel's own module crc_itu_t, which crc-itu-t.ko of itu replaces, and nothing that it depends on exports that symbol")
		assert.Equal(t, findBuild(t, r.doc, "itu", kver).Modules[0].Replaces, "lib/crc-itu-t")
		alone := extract(encode(t, built.doc, func(d *state.Document) {
			d.Builds = slices.DeleteFunc(d.Builds, func(b state.Build) bool { return b.Module == "itu" || b.Module == "stale" || b.Module == "fits" })
		}), 0)
		assert.Equal(t, findBuild(t, alone.doc, "cdma", kver).Status, state.Built)

		// Even if it says that it depends on the other one: it was built against the kernel's.
		r = extract(encode(t, built.doc, func(d *state.Document) {
			for i := range d.Builds {
				if d.Builds[i].Module == "cdma" {
					d.Builds[i].Depends = []string{"itu/1.0"}
				}
			}
		}), state.ExitIncomplete)
		assert.Assert(t, strings.HasSuffix(reason(r, "cdma"), ": against that of the kernel's own module crc_itu_t, which crc-itu-t.ko of itu replaces"), reason(r, "cdma"))
	})
	t.Run("a package that is there does not save a build", func(t *testing.T) {
		out := t.TempDir()
		without := encode(t, built.doc, func(d *state.Document) {
			d.Builds = slices.DeleteFunc(d.Builds, func(b state.Build) bool { return b.Module != "cdma" })
		})
		first := command{name: "debextract", stdin: without, args: []string{"--out-dir", out}}.run(t).mustExit(t, 0)
		with := encode(t, built.doc, func(d *state.Document) { d.Debs = first.doc.Debs })
		second := command{name: "debextract", stdin: with, args: []string{"--out-dir", out}}.run(t).mustExit(t, state.ExitIncomplete)
		assert.Assert(t, strings.Contains(reason(second, "cdma"), "crc-itu-t.ko of itu replaces"))
		assert.Assert(t, !slices.ContainsFunc(second.doc.Debs, func(d state.Deb) bool { return d.Module == "cdma" }))
	})
	t.Run("archives as operands", func(t *testing.T) {
		out := t.TempDir()
		archive := func(name string) string { return findBuild(t, built.doc, name, kver).Archive }
		args := []string{"--out-dir", out, "--headers", shared.doc.Kernels[0].Facts}
		r := command{name: "debextract", args: append(args, archive("fits"))}.run(t).mustExit(t, state.ExitIncomplete)
		assert.Assert(t, strings.Contains(r.doc.Builds[0].Reason, "needs the symbol base_get"))
		// The module itself says which one it needs.
		r = command{name: "debextract", args: append(args, archive("fits"), archive("base"))}.run(t).mustExit(t, 0)
		assert.DeepEqual(t, r.doc.Builds[0].Depends, []string{"base/1.0"})
		assert.Assert(t, strings.Contains(mustRun(t, "dpkg-deb", "-f", r.doc.Debs[0].Path, "Depends"), "base-modules-"+kver+" (= "))
		// Nobody can tell without the list of the kernel's exports.
		facts := t.TempDir()
		mustRun(t, "sh", "-c", `cp -r "$1/." "$2"; rm "$2/Module.symvers"`, "sh", shared.doc.Kernels[0].Facts, facts)
		command{name: "debextract", args: []string{"--out-dir", out, "--headers", facts, archive("base")}}.run(t).mustExit(t, state.ExitError).mustSay(t, "there is no Module.symvers")
	})
}

// TestLeftOut builds four modules, of which one needs a symbol that nobody exports, and
// another one needs that one; the makefile has modpost pass over it.
func TestLeftOut(t *testing.T) {
	t.Parallel()
	kver := currentKernel(t, "amd64")
	tree := sharedTree(t)
	files := map[string]string{
		"dkms.conf": "PACKAGE_NAME=many\nPACKAGE_VERSION=1.0\nAUTOINSTALL=yes\n" +
			"MAKE=\"make -C $kernel_source_dir M=$dkms_tree/many/1.0/build KBUILD_MODPOST_WARN=1\"\n",
		"Makefile": "obj-m := whole.o part.o near.o user.o\n",
	}
	for i, m := range []struct{ name, license, code string }{
		{"whole", "GPL", getBase},
		{"part", "GPL", "int nowhere(void); int part_get(void); int part_get(void) { return nowhere(); } EXPORT_SYMBOL(part_get);"},
		{"near", "Dual MIT/GPL", "int part_get(void); static int __init near_init(void) { return part_get(); } module_init(near_init);"},
		{"user", "GPL", callBase},
	} {
		files["dkms.conf"] += fmt.Sprintf("BUILT_MODULE_NAME[%d]=%s\nDEST_MODULE_LOCATION[%[1]d]=/updates\n", i, m.name)
		files[m.name+".c"] = fmt.Sprintf("#include <linux/module.h>\n%s\nMODULE_LICENSE(%q);\n", m.code, m.license)
	}
	built := command{name: "dkmsbuild", stdin: tree, args: []string{"--kver", kver, "--dkms", source(t, "many", files)}}.run(t).mustExit(t, 0)

	out := t.TempDir()
	part := state.LeftOut{File: "part.ko", Reason: "module part.ko needs the symbol nowhere, which neither " + kver + " nor a module that it depends on exports"}
	near := state.LeftOut{File: "near.ko", Reason: "module near.ko needs the symbol part_get of the module part, which is left out"}
	extract := func(doc []byte) result {
		t.Helper()
		r := command{name: "debextract", stdin: doc, args: []string{"--out-dir", out}}.run(t).mustExit(t, 0)
		for _, left := range []state.LeftOut{part, near} {
			r.mustSay(t, "debextract: warning: many: left out of the package of many 1.0 for "+kver+": "+left.Reason+"\n")
		}
		b := findBuild(t, r.doc, "many", kver)
		assert.Equal(t, b.Status, state.Built)
		assert.DeepEqual(t, b.Left, []state.LeftOut{part, near})
		var names []string
		for _, m := range b.Modules {
			names = append(names, m.File)
		}
		slices.Sort(names)
		assert.DeepEqual(t, names, []string{"user.ko", "whole.ko"})
		assert.Equal(t, len(r.doc.Debs), 1)
		return r
	}
	first := extract(built.raw)
	deb := first.doc.Debs[0].Path
	contents := mustRun(t, "dpkg-deb", "-c", deb)
	assert.Equal(t, strings.Count(contents, ".ko"), 2, contents)
	assert.Assert(t, strings.HasSuffix(mustRun(t, "dpkg-deb", "-f", deb, "Description"), " Modules: user, whole.\n"))
	assert.Assert(t, !strings.Contains(mustRun(t, "sh", "-c", `dpkg-deb --fsys-tarfile "$1" | tar -xO --wildcards "./usr/share/doc/*/copyright"`, "sh", deb), "MIT"), "the license of a module that is not there")

	// The package is kept, or made again, and stays the same.
	assert.DeepEqual(t, extract(first.raw).raw, first.raw)
	again := extract(built.raw)
	assert.DeepEqual(t, again.doc.Debs, first.doc.Debs)
	assert.NilError(t, os.Remove(deb))
	assert.Equal(t, extract(first.raw).doc.Debs[0].Digest, first.doc.Debs[0].Digest)

	// Archives as operands are judged alike.
	archive := command{name: "debextract", args: []string{"--out-dir", t.TempDir(), "--headers", shared.doc.Kernels[0].Facts, findBuild(t, built.doc, "many", kver).Archive}}.run(t).mustExit(t, 0)
	assert.DeepEqual(t, archive.doc.Builds[0].Left, []state.LeftOut{part, near})

	// The repository tells of it.
	for range 2 {
		command{name: "repoindex", stdin: first.raw}.run(t).mustExit(t, 0)
	}
	command{name: "repoindex", args: []string{"--verify", out}}.run(t).mustExit(t, 0)
	assert.Equal(t, mustRun(t, "jq", "-r", ".records[].left_out[]", filepath.Join(out, "status.json")), part.Reason+"\n"+near.Reason+"\n")
	page, err := os.ReadFile(filepath.Join(out, "index.html"))
	assert.NilError(t, err)
	assert.Assert(t, strings.Contains(string(page), "<p>Left out: "+part.Reason+"</p>"))
}

// inTree unpacks a kernel's packages of a suite and returns the directory of its
// headers and its modules.
func inTree(t *testing.T, suite string) (headers string, modules []string) {
	t.Helper()
	dir := t.TempDir()
	sources := fmt.Sprintf("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n", debianMirror(t), suite)
	assert.NilError(t, os.MkdirAll(filepath.Join(dir, "lists/partial"), 0o755))
	assert.NilError(t, os.WriteFile(filepath.Join(dir, "sources"), []byte(sources), 0o644))
	assert.NilError(t, os.WriteFile(filepath.Join(dir, "apt.conf"), fmt.Appendf(nil, `Dir::Etc::sourcelist "%[1]s/sources"; Dir::Etc::sourceparts "-"; Dir::State::lists "%[1]s/lists"; Dir::Cache "%[1]s"; APT::Sandbox::User "root";`, dir), 0o644))
	// The headers name the kernel. Its modules are in the image's package, or, in newer kernels, in one of their own.
	mustRun(t, "sh", "-ec", `cd "$1"; export APT_CONFIG=$1/apt.conf
		apt-get -q update -o Acquire::Check-Valid-Until=false >&2
		k=$(apt-cache depends linux-headers-amd64 | sed -n 's/.*Depends: linux-headers-\([0-9]\)/\1/p')
		modules=linux-modules-$k
		apt-cache show "$modules" >/dev/null 2>&1 || modules=linux-image-$k
		apt-get -q download "linux-headers-$k" "$modules" >&2
		mkdir tree; for deb in *.deb; do dpkg-deb -x "$deb" tree; rm "$deb"; done`, "sh", dir)
	found, err := filepath.Glob(filepath.Join(dir, "tree/usr/src/*/Module.symvers"))
	assert.NilError(t, err)
	assert.Equal(t, len(found), 1)
	files := mustRun(t, "find", filepath.Join(dir, "tree"), "-name", "*.ko*", "-type", "f")
	return filepath.Dir(found[0]), strings.Fields(files)
}

// debianMirror is where the host gets Debian from.
func debianMirror(t *testing.T) string {
	t.Helper()
	fields := strings.Fields(hostRepositories(t)[0])
	return fields[2]
}

// TestInTreeModules checks the kernel's own modules, which all can be loaded, and by
// no other kernel. What they export is what the kernel's headers say.
func TestInTreeModules(t *testing.T) {
	t.Parallel()
	sharedTree(t)
	suites := []string{shared.doc.Tree.Suite}
	if os.Getenv("DKMS2BIN_NIGHTLY") != "" {
		suites = []string{"bullseye", "bookworm", "trixie", "sid"}
	}
	cloud, err := kernel.ReadSymvers(shared.doc.Kernels[1].Facts)
	assert.NilError(t, err)
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			headers, modules := inTree(t, suite)
			facts, err := kernel.ReadFacts(headers)
			assert.NilError(t, err)
			symvers, err := kernel.ReadSymvers(headers)
			assert.NilError(t, err)
			target := kernel.Target{Facts: facts, Symvers: symvers}
			// Another kernel is told apart by the release, and by the CRCs alone.
			other, alike := target, target
			other.Facts.Release, other.Facts.Vermagic = "0-other", strings.Replace(facts.Vermagic, facts.Release, "0-other", 1)
			alike.Symvers = cloud
			var symbols, crcs, exports int
			var own []kernel.Module
			for _, path := range modules {
				m, err := kernel.ReadModule(path)
				assert.NilError(t, err)
				own = append(own, m)
				c, err := target.Check(m)
				assert.Check(t, err)
				_, err = other.Check(m)
				assert.Check(t, err != nil && strings.Contains(err.Error(), "is built for "+facts.Release), "%s: %v", path, err)
				_, err = alike.Check(m)
				assert.Check(t, !facts.Modversions || err != nil, "%s passes for the cloud flavour", path)
				symbols, crcs, exports = symbols+c.Symbols, crcs+c.CRCs, exports+len(m.Exports)
				for _, x := range m.Exports {
					y := symvers[x.Symbol]
					assert.Check(t, x.CRC == y.CRC && x.GPL == y.GPL && x.Namespace == y.Namespace, "%s: %+v %+v", path, x, y)
				}
			}
			passObserved(t, own)
			listed := 0
			for _, x := range symvers {
				if x.Module != "vmlinux" {
					listed++
				}
			}
			t.Logf("%s: %d modules, %d symbols, %d CRCs, %d exports", facts.Release, len(modules), symbols, crcs, exports)
			assert.Assert(t, len(modules) > 3000 && exports == listed, "%d modules, %d exports, of which %d are listed", len(modules), exports, listed)
			assert.Equal(t, crcs > 0, facts.Modversions)
		})
	}
}

// TestSameTwice builds everything twice, the second time later, in another directory,
// on one processor and with a umask that gives others nothing, and names what differs:
// only what its own source makes so. Nightly it does so with half of what the suite has,
// the second time on another day; what takes minutes to build, such as jool and
// xtables-addons, is left out.
func TestSameTwice(t *testing.T) {
	t.Parallel()
	trees := [][]byte{sharedTree(t), sharedTree(t)}
	kver := shared.doc.Kernels[0].Release
	clocked := goodModule("clocked")
	clocked["Makefile"] += "ccflags-y := -Wno-date-time\n"
	clocked["clocked.c"] += "MODULE_VERSION(__DATE__ __TIME__);\n"
	names := []string{"v4l2loopback-dkms", "bbswitch-dkms", "ddcci-dkms", source(t, "clocked", clocked)}
	differ := []string{"clocked"} // __DATE__ and __TIME__
	var later *otherDay
	if os.Getenv("DKMS2BIN_NIGHTLY") != "" {
		names = append(names, "acpi-call-dkms", "dm-writeboost-dkms", "iptables-netflow-dkms", "langford-dkms", "lime-forensics-dkms", "nat-rtsp-dkms",
			"openvpn-dco-dkms", "rapiddisk-dkms", "rtpengine-kernel-dkms", "tp-smapi-dkms", "vpoll-dkms", "xtrx-dkms")
		later = newOtherDay(t)
		trees[1] = later.tree(t, kver)
	}
	var made [2][]string
	var docs [2]*state.Document
	for i, tree := range trees {
		run := func(c command) result {
			if i == 1 {
				c.args = append([]string{"-c", `umask 077; exec taskset -c 0 "$@"`, "sh", filepath.Join(bin, c.name)}, c.args...)
				c.name = "/bin/sh"
			}
			return c.run(t)
		}
		built := run(command{name: "dkmsbuild", stdin: tree, args: append([]string{"--no-cache", "--kver", kver, "--dkms"}, names...)})
		for _, b := range built.doc.Builds {
			assert.Check(t, b.Status == state.Built, "%s: %s", b.Package, b.Reason)
		}
		out := filepath.Join(t.TempDir(), strings.Repeat("x", 1+40*i))
		extract := command{name: "debextract", stdin: built.raw, dir: t.TempDir(), args: []string{"--out-dir", out}}
		if i == 1 && later != nil {
			extract.env = later.env()
		}
		extracted := run(extract).mustExit(t, built.code)
		made[i], docs[i] = digests(t, out), extracted.doc
		assert.Assert(t, len(extracted.doc.Debs) >= len(names) && len(made[i]) == len(extracted.doc.Debs))
		if i == 1 && later != nil {
			assert.DeepEqual(t, later.extract(t, built.raw), made[i])
		}
	}
	var got []string
	for _, deb := range made[0] {
		if !slices.Contains(made[1], deb) {
			name, _, _ := strings.Cut(deb, "-modules-")
			got = append(got, name)
		}
	}
	assert.DeepEqual(t, got, differ)
	assert.Equal(t, len(made[0]), len(made[1]))
	t.Logf("%d packages", len(made[0]))
	if later != nil {
		// What differs tells the days on which they were built.
		var days [2]time.Time
		for i, doc := range docs {
			text := strings.TrimSpace(mustRun(t, "modinfo", "-F", "version", moduleOf(t, debOf(t, doc, "clocked"), "clocked")))
			var err error
			days[i], err = time.Parse("Jan _2 2006", text[:len("Jan _2 2006")])
			assert.NilError(t, err)
		}
		apart := days[1].Sub(days[0])
		assert.Assert(t, later.off-24*time.Hour <= apart && apart <= later.off+24*time.Hour, "%v", days)
	}
}

// An otherDay is one on which the clocks of programs stand that are linked to the C
// library, by libfaketime. Times of files are off by as much.
type otherDay struct {
	off     time.Duration
	library string // a directory with libfaketime, laid out as in its package
}

// fakeLibrary is libfaketime in its package.
const fakeLibrary = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"

func newOtherDay(t *testing.T) *otherDay {
	t.Helper()
	d := &otherDay{off: 100 * 24 * time.Hour, library: t.TempDir()}
	mustRun(t, "sh", "-ec", `cd "$1"; apt-get -q download libfaketime >&2; dpkg-deb -x libfaketime_*.deb .; rm libfaketime_*.deb`, "sh", d.library)
	return d
}

func (d *otherDay) offset() string { return fmt.Sprintf("+%ds", int(d.off.Seconds())) }

// tree makes one in which it is that day for all that runs in it, mkchroot's apt and
// dpkg among them.
func (d *otherDay) tree(t *testing.T, kver string) []byte {
	t.Helper()
	// Like all trees not below /tmp, which may be in memory.
	dir, err := os.MkdirTemp(filepath.Dir(bin), "later-")
	assert.NilError(t, err)
	t.Cleanup(func() { assert.NilError(t, os.RemoveAll(dir)) })
	base := filepath.Join(dir, "base")
	mustRun(t, "cp", "-a", sharedBase(t), base)
	mustRun(t, "cp", "-a", filepath.Join(d.library, filepath.Dir(fakeLibrary)), filepath.Join(base, filepath.Dir(filepath.Dir(fakeLibrary))))
	assert.NilError(t, os.WriteFile(filepath.Join(base, "etc/ld.so.preload"), []byte(fakeLibrary+"\n"), 0o644))
	assert.NilError(t, os.WriteFile(filepath.Join(base, "etc/faketimerc"), []byte(d.offset()+"\n"), 0o644))
	args := []string{"--work-dir", filepath.Join(dir, "elsewhere"), "--no-cache", "--base", base, "--kver", kver}
	for _, s := range ownSources(t) {
		args = append(args, "--repo", oneLine(s, s.URI, "check-valid-until=no", "check-date=no"))
	}
	made := command{name: "mkchroot", args: args}.run(t).mustExit(t, 0)
	t.Cleanup(func() { mustRun(t, filepath.Join(bin, "rmchroot"), made.doc.Tree.Path) })
	return made.raw
}

// env is that day for what debextract runs on the host: strip, xz, openssl.
func (d *otherDay) env() []string {
	return []string{"LD_PRELOAD=" + filepath.Join(d.library, fakeLibrary), "FAKETIME=" + d.offset()}
}

// extract gives the digests of what a debextract writes that has another clock itself.
// Our programs do not use the C library; with the build tag faketime Go's own clock begins
// in November 2009, and puts a header before what is written to stdout and stderr.
func (d *otherDay) extract(t *testing.T, doc []byte) []string {
	t.Helper()
	program, out := filepath.Join(t.TempDir(), "debextract"), t.TempDir()
	build := exec.Command("go", "build", "-tags", "faketime", "-o", program, "dkms2bin/cmd/debextract")
	text, err := build.CombinedOutput()
	assert.NilError(t, err, "%s", text)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := command{name: program, stdin: doc, args: []string{"--out-dir", out}, env: d.env()}.command(ctx)
	text, err = cmd.CombinedOutput()
	assert.NilError(t, err, "%s", text)
	return digests(t, out)
}
