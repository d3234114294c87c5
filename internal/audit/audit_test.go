package audit

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

func TestParseOwners(t *testing.T) {
	t.Parallel()
	const k = "/lib/modules/6.1.0-56-amd64/"
	for _, row := range []struct {
		name, listed string
		want         map[string][]string
	}{
		{"nothing", "", map[string][]string{}},
		{"one package", "linux-image-6.1.0-56-amd64: " + k + "a.ko\n", map[string][]string{k + "a.ko": {"linux-image-6.1.0-56-amd64"}}},
		{"several packages", "a, b:arm64: " + k + "updates\n", map[string][]string{k + "updates": {"a", "b:arm64"}}},
		{"in /usr", "a: /usr" + k + "a.ko\nb: /usr/lib/other\n", map[string][]string{k + "a.ko": {"a"}, "/usr/lib/other": {"b"}}},
		{
			"led away by a package", "diversion by vendor from: " + k + "a.ko\ndiversion by vendor to: " + k + "a.ko.old\nimage, vendor: " + k + "a.ko\n",
			map[string][]string{k + "a.ko": {"vendor"}, k + "a.ko.old": {"image"}},
		},
		{
			"led away by hand", "local diversion from: " + k + "a.ko\nlocal diversion to: " + k + "a.ko.old\nimage: " + k + "a.ko\n",
			map[string][]string{k + "a.ko": {}, k + "a.ko.old": {"image"}},
		},
		{
			"told twice", strings.Repeat("diversion by vendor from: "+k+"a.ko\ndiversion by vendor to: "+k+"b.ko\nimage: "+k+"a.ko\n", 2),
			map[string][]string{k + "a.ko": {}, k + "b.ko": {"image"}},
		},
		{"no list", "dpkg-query: no path found\n\n: \ndiversion by: x\n", map[string][]string{"no path found": {"dpkg-query"}, "": {""}, "x": {"diversion by"}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			assert.DeepEqual(t, parseOwners(row.listed), row.want)
		})
	}
}

func FuzzParseOwners(f *testing.F) {
	f.Add("a, b: /usr/lib/modules/k/a.ko\ndiversion by a from: /x\ndiversion by a to: /y\nlocal diversion from: /z\n")
	f.Fuzz(func(t *testing.T, listed string) {
		for file := range parseOwners(listed) {
			assert.Assert(t, !strings.HasPrefix(file, "/usr/lib/modules/"))
		}
	})
}

func TestParseSums(t *testing.T) {
	t.Parallel()
	sums := parseSums("0123  usr/lib/modules/k/a.ko\n4567  lib/modules/k/b c.ko\nnothing\n")
	assert.DeepEqual(t, sums, map[string]string{"/lib/modules/k/a.ko": "0123", "/lib/modules/k/b c.ko": "4567"})
}

func write(t *testing.T, path, content string) {
	t.Helper()
	assert.NilError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	assert.NilError(t, os.WriteFile(path, []byte(content), 0o644))
}

// compile makes what has the sections of a module that count here.
func compile(t *testing.T, path, info, code string) {
	t.Helper()
	source := filepath.Join(t.TempDir(), "m.c")
	write(t, source, `const char info[] __attribute__((section(".modinfo"))) = "`+info+`";`+"\n"+code+"\n")
	assert.NilError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	out, err := exec.Command("gcc", "-c", "-o", path, source).CombinedOutput()
	assert.NilError(t, err, "%s", out)
}

const vermagic = `\0vermagic=6.1.0-56-amd64 SMP mod_unload `

// TestRoot looks at a tree whose kernel is known by its own modules alone.
func TestRoot(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	dir := filepath.Join(root, "usr/lib/modules/6.1.0-56-amd64")
	assert.NilError(t, os.MkdirAll(filepath.Join(root, "usr/lib/modules/5.10.0-1-amd64"), 0o755))
	assert.NilError(t, os.Symlink("/usr/lib", filepath.Join(root, "lib"))) // as seen from the root
	own := `license=GPL\0intree=Y` + vermagic
	compile(t, filepath.Join(dir, "kernel/lib/own.ko"), own, "extern int printk(int); int own_call(int x) { return printk(x); }")
	compile(t, filepath.Join(dir, "updates/good.ko"), `license=GPL\0version=1.2`+vermagic, "extern int printk(int); int f(int x) { return printk(x); }")
	compile(t, filepath.Join(dir, "updates/closed.ko"), `license=Proprietary`+vermagic, "extern int printk(int); int f(int x) { return printk(x); }")
	compile(t, filepath.Join(dir, "updates/unsure.ko"), `license=GPL`+vermagic, "extern int strange(int); int f(int x) { return strange(x); }")
	compile(t, filepath.Join(dir, "updates/needs.ko"), `license=GPL\0depends=unsure,own`+vermagic, "int f(int x) { return x; }")
	compile(t, filepath.Join(dir, "updates/lonely.ko"), `license=GPL\0depends=good,gone`+vermagic, "int f(int x) { return x; }")
	compile(t, filepath.Join(dir, "updates/after.ko"), `license=GPL\0depends=lonely`+vermagic, "int f(int x) { return x; }")
	compile(t, filepath.Join(dir, "updates/round.ko"), `license=GPL\0depends=about`+vermagic, "int f(int x) { return x; }")
	compile(t, filepath.Join(dir, "updates/about.ko"), `license=GPL\0depends=round`+vermagic, "int f(int x) { return x; }")
	compile(t, filepath.Join(dir, "updates/own.ko"), `license=GPL`+vermagic, "int f(int x) { return x; }")
	compile(t, filepath.Join(dir, "extra/own.ko"), `license=GPL\0vermagic=5.10.0-1-amd64 SMP `, "int f(int x) { return x; }")
	write(t, filepath.Join(dir, "updates/bad.ko"), "no ELF file")
	// The host has this file, the tree has not.
	assert.NilError(t, os.Symlink(filepath.Join(dir, "updates/good.ko"), filepath.Join(dir, "updates/link.ko")))
	assert.NilError(t, os.Symlink("/lib/modules/6.1.0-56-amd64/updates/good.ko", filepath.Join(dir, "updates/linked.ko")))
	assert.NilError(t, os.Symlink("/", filepath.Join(dir, "build")))

	report, err := Root(t.Context(), root)
	assert.NilError(t, err)
	assert.Assert(t, !report.Owners)
	assert.DeepEqual(t, report.Kernels, []Kernel{{"5.10.0-1-amd64", 0, Nothing}, {"6.1.0-56-amd64", 1, Modules}})
	says := map[string]string{}
	for _, m := range report.Modules {
		assert.Equal(t, m.Kernel, "6.1.0-56-amd64")
		name := strings.TrimPrefix(m.Path, "/lib/modules/6.1.0-56-amd64/")
		says[name] = []string{"yes", "no", "unknown"}[m.Verdict] + " " + m.Reason
		if m.Replaces != "" {
			says[name] += "replaces " + m.Replaces
		}
	}
	const lonely = "it needs the module gone, which is not there"
	assert.DeepEqual(t, says, map[string]string{
		"updates/good.ko":   "yes ",
		"updates/linked.ko": "yes ",
		"updates/closed.ko": `unknown its license is "Proprietary", and without headers nobody can tell which symbols are for the GPL only`,
		"updates/unsure.ko": `unknown it needs the symbol "strange", which none of the kernel's own modules needs or exports: its headers would tell`,
		"updates/needs.ko":  "unknown it needs the module unsure, of which nobody can tell whether it can be loaded",
		"updates/lonely.ko": "no " + lonely,
		"updates/after.ko":  "no it needs the module lonely, which cannot be loaded: " + lonely,
		"updates/about.ko":  "no it needs the module round, which cannot be loaded: it needs the module about, which needs this one",
		"updates/round.ko":  "no it needs the module about, which needs this one",
		"updates/own.ko":    "yes replaces lib/own",
		"extra/own.ko":      `no module own.ko is built for 5.10.0-1-amd64 (vermagic "5.10.0-1-amd64 SMP "), not for 6.1.0-56-amd64`,
		"updates/bad.ko":    "no it cannot be read: not an ELF file",
		"updates/link.ko":   "no it cannot be read: no such file or directory",
	})
}

// TestUsrAlone: without /lib there may be modules in /usr.
func TestUsrAlone(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	compile(t, filepath.Join(root, "usr/lib/modules/6.1.0-56-amd64/updates/good.ko"), `license=GPL`+vermagic, "int f(int x) { return x; }")
	report, err := Root(t.Context(), root)
	assert.NilError(t, err)
	assert.Equal(t, len(report.Modules), 1)
	assert.Equal(t, report.Modules[0].Path, "/lib/modules/6.1.0-56-amd64/updates/good.ko")
	assert.Equal(t, report.Modules[0].Verdict, Unknown)
}

func TestNoRoot(t *testing.T) {
	t.Parallel()
	for _, dir := range []string{t.TempDir(), filepath.Join(t.TempDir(), "gone")} {
		_, err := Root(t.Context(), dir)
		assert.ErrorContains(t, err, "cannot audit "+dir)
		assert.Assert(t, errors.Is(err, fs.ErrNotExist))
	}
}
