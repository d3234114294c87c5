//go:build e2e

package e2e

import (
	"dkms2bin/internal/kernel"
	"dkms2bin/internal/state"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

// newRoot makes an empty root tree as Debian has them now, with the books of dpkg in it.
func newRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"usr/lib", "boot", "etc", "var/lib/dpkg/info", "var/lib/dpkg/updates"} {
		assert.NilError(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	assert.NilError(t, os.Symlink("usr/lib", filepath.Join(root, "lib")))
	assert.NilError(t, os.WriteFile(filepath.Join(root, "var/lib/dpkg/status"), nil, 0o644))
	return root
}

// installInto has dpkg install packages into a root tree, without their scripts: there is
// nothing in it that could run them.
func installInto(t *testing.T, root string, debs ...string) {
	t.Helper()
	dir := t.TempDir()
	mustRun(t, "sh", append([]string{"-ec", `root=$1 dir=$2; shift 2
		for deb; do
			rm -rf "$dir/x"
			dpkg-deb -R "$deb" "$dir/x"
			cd "$dir/x/DEBIAN"; rm -f preinst postinst prerm postrm triggers; cd "$dir"
			dpkg-deb -b -Znone "$dir/x" "$dir/plain.deb" >/dev/null
			dpkg --root="$root" --log=/dev/null --force-depends --force-architecture --install "$dir/plain.deb" >&2
		done`, "sh", root, dir}, debs...)...)
}

// modulesOf maps the paths of an audit's modules to what is said of them.
func modulesOf(doc *state.Document) map[string]state.InstalledModule {
	of := map[string]state.InstalledModule{}
	for _, m := range doc.Audit.Modules {
		of[m.Path] = m
	}
	return of
}

// TestAudit looks at a tree with a kernel of the archive and packages of ours.
func TestAudit(t *testing.T) {
	t.Parallel()
	tree := sharedTree(t)
	cloud, other := shared.doc.Kernels[1].Release, shared.doc.Kernels[0].Release
	base := command{name: "dkmsbuild", stdin: tree, args: []string{"--dkms", source(t, "base", exportModule("base", "base", getBase))}}.run(t).mustExit(t, 0)
	crc := exported(t, findBuild(t, base.doc, "base", cloud), "base_get").CRC
	fits := source(t, "fits", callModule("fits", callBase, fmt.Sprintf("0x%08x\tbase_get\tbase\tEXPORT_SYMBOL_GPL\t\n", crc)))
	built := command{name: "dkmsbuild", stdin: base.raw, args: []string{"--kver", cloud, "--dkms", fits}}.run(t).mustExit(t, 0)
	out := t.TempDir()
	raw := encode(t, built.doc, func(d *state.Document) {
		for i := range d.Builds {
			if d.Builds[i].Module == "fits" {
				d.Builds[i].Depends = []string{"base/1.0"}
			}
		}
	})
	extracted := command{name: "debextract", stdin: raw, env: []string{"DKMS2BIN_SIGN_PASSPHRASE=" + passphrase}, args: []string{
		"--out-dir", out, "--sign-key", firmwareKey, "--sign-cert", firmwareCert,
	}}.run(t).mustExit(t, 0)

	downloads := t.TempDir()
	mustRun(t, "sh", "-ec", `cd "$1"; apt-get -q download "linux-image-$2" "linux-headers-$2" >&2`, "sh", downloads, cloud)
	root := newRoot(t)
	installInto(t, root, append(debFiles(t, downloads), filepath.Join(out, debName(t, out, "base-modules-"+cloud)), filepath.Join(out, debName(t, out, "fits-modules-"+cloud)))...)

	audit := func(code int) result {
		t.Helper()
		r := command{name: "repoindex", args: []string{"--audit", root}}.run(t).mustExit(t, code)
		assert.Assert(t, r.doc.Audit != nil)
		assert.Equal(t, r.doc.Audit.Root, root)
		assert.Equal(t, len(r.doc.Audit.Kernels), 1)
		assert.Equal(t, r.doc.Audit.Kernels[0].Release, cloud)
		return r
	}
	updates := "/lib/modules/" + cloud + "/updates/dkms/"
	version := strings.TrimSpace(mustRun(t, "dpkg-deb", "-f", filepath.Join(out, debName(t, out, "fits-modules-"+cloud)), "Version"))
	modinfo := func(field string) string {
		return strings.TrimSpace(mustRun(t, "modinfo", "-F", field, filepath.Join(root, updates, "fits.ko")))
	}
	good := state.InstalledModule{
		Path: updates + "fits.ko", Kernel: cloud, Name: "fits", License: "GPL",
		Package: "fits-modules-" + cloud, PackageVersion: version,
		SigKey: modinfo("sig_key"), SigHash: modinfo("sig_hashalgo"), Loads: state.LoadsYes,
	}
	good.Signer = findBuild(t, extracted.doc, "fits", cloud).Modules[0].Signer
	assert.Assert(t, good.Signer != "" && good.SigKey != "" && good.SigHash != "")

	r := audit(0).mustSay(t, "repoindex: KERNEL ", "fits-modules-"+cloud+" "+version, "modules that are not the kernels' own: 2, kernels: 1, something wrong: 0")
	assert.Assert(t, r.doc.Audit.Kernels[0].Modules > 500, "%d", r.doc.Audit.Kernels[0].Modules)
	assert.Equal(t, r.doc.Audit.Kernels[0].Against, state.AgainstHeaders)
	assert.Equal(t, len(r.doc.Audit.Modules), 2)
	assert.DeepEqual(t, modulesOf(r.doc)[good.Path], good)

	// As in an image: the headers are gone, and the kernel's own modules tell.
	assert.NilError(t, os.Rename(filepath.Join(root, "usr/src"), filepath.Join(root, "usr/away")))
	r = audit(0)
	assert.Equal(t, r.doc.Audit.Kernels[0].Against, state.AgainstModules)
	assert.DeepEqual(t, modulesOf(r.doc)[good.Path], good)

	// What goes wrong with images, all at once.
	in := func(path string) string { return filepath.Join(root, path) }
	extra := "/lib/modules/" + cloud + "/extra/"
	assert.NilError(t, os.MkdirAll(in(extra), 0o755))
	mustRun(t, "sh", "-ec", `cd "$1$2"
		for f in a b c d; do cp "$1$3base.ko" $f.ko; done
		xz b.ko; zstd -q --rm c.ko; gzip -n d.ko
		printf '' >empty.ko; mkfifo fifo.ko; ln -s /etc/passwd outside.ko
		cp "$(find "$1/lib/modules/$4/kernel" -name '*.ko' | head -1)" own.ko
		objcopy --strip-debug a.ko "$1$3base.ko"`, "sh", root, extra, updates, cloud)
	foreign := t.TempDir()
	mustRun(t, "dpkg-deb", "-x", filepath.Join(out, debName(t, out, "base-modules-"+other)), foreign)
	assert.NilError(t, os.Rename(filepath.Join(foreign, "lib/modules", other, "updates/dkms/base.ko"), in(extra+"foreign.ko")))
	mustRun(t, "dpkg", "--root="+root, "--log=/dev/null", "--force-depends", "--force-remove-protected", "--purge", "linux-headers-"+cloud)

	r = audit(state.ExitIncomplete)
	of := modulesOf(r.doc)
	assert.Equal(t, len(of), 11, "%v", of)
	assert.DeepEqual(t, of[good.Path], good)
	altered := of[updates+"base.ko"]
	assert.Assert(t, altered.Altered && altered.Loads == state.LoadsYes && altered.Package == "base-modules-"+cloud && altered.Signer == "", "%+v", altered)
	for _, name := range []string{"a.ko", "b.ko.xz", "c.ko.zst", "d.ko.gz"} {
		m := of[extra+name]
		assert.Assert(t, m.Name == "base" && m.Loads == state.LoadsYes && m.Package == "" && m.Signer == good.Signer, "%+v", m)
	}
	own := of[extra+"own.ko"] // says that it is one of the kernel's
	assert.Assert(t, own.Loads == state.LoadsYes && own.Package == "" && own.Replaces == "", "%+v", own)
	for name, reason := range map[string]string{
		"empty.ko":   "it cannot be read: empty file",
		"fifo.ko":    "it cannot be read: not a regular file",
		"outside.ko": "it cannot be read: no such file or directory",
		"foreign.ko": "module foreign.ko is built for " + other + " (vermagic \"" + other,
	} {
		m := of[extra+name]
		assert.Assert(t, m.Loads == state.LoadsNo && strings.HasPrefix(m.Reason, reason), "%+v", m)
	}
	r.mustSay(t,
		"warning: "+extra+"a.ko: no package owns it",
		"warning: "+updates+"base.ko: it is not the file that base-modules-"+cloud+" ",
		"warning: "+extra+"foreign.ko: "+cloud+" cannot load it: ",
		"something wrong: 10")

	// What a module needs is not there.
	mustRun(t, "sh", "-ec", `rm -r "$1"; dpkg --root="$2" --log=/dev/null --force-depends --purge "$3"`, "sh", in(extra), root, "base-modules-"+cloud)
	r = audit(state.ExitIncomplete)
	assert.Equal(t, modulesOf(r.doc)[good.Path].Reason, "it needs the module base, which is not there")

	// Nobody can tell without the kernel's own modules.
	mustRun(t, "sh", "-ec", `cd "$1"; rm -r kernel`, "sh", in("/lib/modules/"+cloud))
	r = audit(0)
	assert.Equal(t, r.doc.Audit.Kernels[0].Against, state.AgainstNothing)
	assert.Equal(t, modulesOf(r.doc)[good.Path].Loads, state.LoadsUnknown)

	// And without dpkg's books nobody owns anything.
	assert.NilError(t, os.Rename(in("/var/lib/dpkg"), in("/var/lib/away")))
	audit(state.ExitIncomplete).mustSay(t, "has no /var/lib/dpkg", "no package owns it")

	for _, args := range [][]string{{"--audit", t.TempDir()}, {"--audit", "/nonexistent"}, {"--audit", root, out}, {"--audit", root, "--verify"}} {
		command{name: "repoindex", args: args}.run(t).mustExit(t, state.ExitUsage)
	}
}

// TestAuditSuites finds nothing wrong with kernels of other suites, whose modules are
// compressed or lie in /usr.
func TestAuditSuites(t *testing.T) {
	if os.Getenv("DKMS2BIN_NIGHTLY") == "" {
		t.Skip("nightly")
	}
	for _, suite := range []string{"bullseye", "trixie", "sid"} {
		t.Run(suite, func(t *testing.T) {
			headers, modules := inTree(t, suite)
			root := filepath.Join(strings.SplitAfter(headers, "/tree/")[0])
			r := command{name: "repoindex", args: []string{"--audit", root}}.run(t).mustExit(t, 0).mustSay(t, "has no /var/lib/dpkg")
			assert.Equal(t, len(r.doc.Audit.Modules), 0)
			assert.Equal(t, len(r.doc.Audit.Kernels), 1)
			assert.Equal(t, r.doc.Audit.Kernels[0].Modules, len(modules))
		})
	}
}

// passObserved says of each of a kernel's own modules that what all of them tell of the
// kernel lets it pass.
func passObserved(t *testing.T, modules []kernel.Module) {
	t.Helper()
	var o kernel.Observed
	for _, m := range modules {
		o.Add(strings.TrimSuffix(filepath.Base(m.Path), ".ko"), m)
	}
	target := o.Target()
	for _, m := range modules {
		_, err := target.Check(m)
		assert.Check(t, err)
		assert.Check(t, m.InTree, m.Path)
	}
}
