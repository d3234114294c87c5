//go:build e2e

package e2e

import (
	"bytes"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/deb"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/sandbox"
	"dkms2bin/internal/state"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

// lint wants neither errors nor warnings of lintian's default profile, pedantic
// tags included.
func lint(t *testing.T, files ...string) {
	t.Helper()
	out, err := exec.Command("lintian", append([]string{"--allow-root", "--pedantic", "--display-info", "--fail-on", "error,warning"}, files...)...).CombinedOutput()
	assert.NilError(t, err, "%s", out)
	t.Logf("lintian: %s", out)
}

// packDeb makes a package out of a control file and texts by path.
func packDeb(t *testing.T, dir, control string, files map[string]string) string {
	t.Helper()
	stanza, err := deb.ParseStanza([]byte(control))
	assert.NilError(t, err)
	p := deb.Package{Control: stanza, Time: time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)}
	for path, text := range files {
		p.Files = append(p.Files, deb.File{
			Path: path, Size: int64(len(text)), Conffile: strings.HasPrefix(path, "/etc/"),
			Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil },
		})
	}
	f, err := os.Create(filepath.Join(dir, deb.Filename(stanza)))
	assert.NilError(t, err)
	assert.NilError(t, deb.Write(f, p))
	assert.NilError(t, f.Close())
	return f.Name()
}

// companion is a -dkms package that ships more than its source.
func companion(t *testing.T) string {
	t.Helper()
	files := map[string]string{
		"/lib/udev/rules.d/99-companion.rules":        "SUBSYSTEM==\"companion\", MODE=\"0660\"\n",
		"/etc/modprobe.d/companion.conf":              "softdep companion pre: loop\n",
		"/usr/share/doc/companion-dkms/copyright":     "Copyright (C) 2024 A B\nOn Debian systems, the license is in /usr/share/common-licenses/GPL-2.\n",
		"/usr/share/doc/companion-dkms/changelog":     "companion (1:1.0-1) unstable; urgency=medium\n\n  * Begun.\n\n -- A B <a@example.org>  Tue, 02 Jan 2024 03:04:05 +0000\n",
		"/usr/share/lintian/overrides/companion-dkms": "companion-dkms: appstream-metadata-missing-modalias-provide\n",
	}
	for name, text := range goodModule("companion") {
		if !strings.HasPrefix(name, "debian/") {
			files["/usr/src/companion-1.0/"+name] = text
		}
	}
	return packDeb(t, t.TempDir(), "Package: companion-dkms\nVersion: 1:1.0-1\nArchitecture: all\nMaintainer: A B <a@example.org>\n"+
		"Depends: dkms, gcc, udev\nDescription: modules with company\n", files)
}

// testCompanions: what a -dkms package ships comes along, userspace that depends on
// it is content, the initramfs has the module, and all of it goes again. The tree
// has the layers of testInstall: a kernel, and neither compiler nor headers.
func testCompanions(t *testing.T, tree *rootfs.Tree, kver string) {
	ctx := t.Context()
	out := t.TempDir()
	built := command{name: "dkmsbuild", stdin: sharedTree(t), args: []string{"--dkms", companion(t), "--kver", kver}}.run(t).mustExit(t, 0)
	flags := []string{"--out-dir", out, "--initramfs", "--provide-dkms", "--set", "site"}
	extracted := command{name: "debextract", stdin: built.raw, args: flags}.run(t).mustExit(t, 0)
	const common = "companion-modules-common"
	modules, set := "companion-modules-"+kver, "site-amd64"
	var names []string
	for _, d := range extracted.doc.Debs {
		names = append(names, d.Name)
		assert.Assert(t, d.MadeOf != nil && strings.HasPrefix(d.MadeOf.Program, "dkms2bin "))
	}
	assert.DeepEqual(t, names, []string{modules, common, set})
	origin := extracted.doc.Debs[0].MadeOf
	assert.Equal(t, origin.Package, "companion-dkms (= 1:1.0-1)")
	assert.Equal(t, origin.Digest, extracted.doc.Packages[0].Digest)
	assert.Equal(t, origin.Headers, fmt.Sprintf("linux-headers-%s (= %s)", kver, extracted.doc.Kernel(kver).Version))
	assert.Equal(t, origin.DKMS, extracted.doc.Tree.DKMS)
	assert.Assert(t, strings.HasPrefix(origin.Compiler, "GCC: (Debian "), origin.Compiler)
	lint(t, debFiles(t, out)...)
	buildinfo, err := exec.Command("sh", "-c", `dpkg-deb --fsys-tarfile "$1" | tar xO "./usr/share/doc/$2/buildinfo"`, "sh", extracted.doc.Debs[0].Path, modules).Output()
	assert.NilError(t, err)
	assert.Assert(t, strings.Contains(string(buildinfo), "Dkms-Package-SHA256: "+origin.Digest+"\n"), "%s", buildinfo)

	t.Run("made again", func(t *testing.T) {
		// The document keeps what it has, also when the tree is gone.
		gone := encode(t, extracted.doc, func(d *state.Document) { d.Tree.Path, d.Packages[0].Doc = "/nowhere", "/nowhere" })
		again := command{name: "debextract", stdin: gone, args: flags}.run(t).mustExit(t, 0)
		assert.DeepEqual(t, again.doc.Debs, extracted.doc.Debs)
		// Another run makes the same. With another date, as for another kernel later,
		// that holds for what there is one of for all kernels.
		before := digests(t, out)
		command{name: "debextract", stdin: built.raw, args: flags}.run(t).mustExit(t, 0)
		assert.DeepEqual(t, digests(t, out), before)
		later := t.TempDir()
		command{name: "debextract", stdin: built.raw, args: append(slices.Clone(flags), "--out-dir", later), env: []string{"SOURCE_DATE_EPOCH=1800000000"}}.
			run(t).mustExit(t, 0)
		forAll := func(list []string) []string {
			return slices.DeleteFunc(list, func(l string) bool { return strings.HasPrefix(l, modules+"_") })
		}
		assert.DeepEqual(t, forAll(digests(t, later)), forAll(before))
	})

	packDeb(t, out, "Package: companion-tools\nVersion: 1\nArchitecture: all\nMaintainer: A B <a@example.org>\n"+
		"Depends: companion-dkms (= 1:1.0-1)\nDescription: userspace\n", nil)
	command{name: "repoindex", args: []string{out}}.run(t).mustExit(t, 0)
	assert.NilError(t, tree.MakeLayer(ctx, rootfs.LayerSpec{
		Name: "companions", On: []string{"image", "clean"},
		Make: func(root sandbox.Root) error {
			run := func(args ...string) string {
				t.Helper()
				var log bytes.Buffer
				err := sandbox.Run(ctx, sandbox.Spec{
					Root: root, Mountpoint: tree.Mountpoint(), Args: args, Env: sandbox.DefaultEnv(),
					Binds: []sandbox.Bind{{Source: out, Target: inRepository}}, Stdout: &log, Stderr: &log,
				})
				assert.NilError(t, err, "%v\n%s", args, &log)
				return log.String()
			}
			run("cp", "/etc/apt/modules.list", "/etc/apt/sources.list.d/modules.list")
			run(updateOurs...)
			// A small initramfs, of what is named alone.
			run("sh", "-ec", `echo update_initramfs=yes >/etc/initramfs-tools/update-initramfs.conf
				sed -i 's/^MODULES=.*/MODULES=list/' /etc/initramfs-tools/initramfs.conf
				echo companion >>/etc/initramfs-tools/modules`)
			listed := func() bool { return strings.Contains(run("lsinitramfs", "/boot/initrd.img-"+kver), "/companion.ko") }

			// A kernel without an initramfs gets none.
			run("apt-get", "install", "-y", modules)
			assert.Equal(t, strings.TrimSpace(run("sh", "-c", "ls /boot/initrd.img-"+kver+" 2>/dev/null || true")), "")
			run("apt-get", "purge", "-y", "--autoremove", modules)
			run("update-initramfs", "-c", "-k", kver)
			assert.Assert(t, !listed())

			run("apt-get", "install", "-y", "companion-tools", set)
			assert.Assert(t, listed())
			status := func(name string) string {
				return run("sh", "-c", "dpkg-query -W -f '${db:Status-Status}' "+name+" 2>/dev/null || true")
			}
			for _, name := range []string{modules, common, set, "companion-tools", "udev"} {
				assert.Equal(t, status(name), "installed", name)
			}
			for _, name := range []string{"companion-dkms", "dkms", "gcc", "make", "linux-headers-" + kver} {
				assert.Assert(t, status(name) != "installed", name)
			}
			assert.Equal(t, run("cat", "/lib/udev/rules.d/99-companion.rules"), "SUBSYSTEM==\"companion\", MODE=\"0660\"\n")
			assert.Assert(t, strings.Contains(run("dpkg-query", "-W", "-f", "${Conffiles}", common), "/etc/modprobe.d/companion.conf "))
			assert.Equal(t, unverified(run("dpkg", "--verify", modules, common, set)), "")

			run("apt-get", "purge", "-y", "companion-tools", set, modules, common)
			assert.Assert(t, !listed())
			run("sh", "-c", "! ls /lib/udev/rules.d/99-companion.rules /etc/modprobe.d/companion.conf 2>/dev/null")
			if os.Getenv("DKMS2BIN_NIGHTLY") != "" {
				testDracut(t, tree, root, run, modules, kver)
			}
			return nil
		},
	}))
}

// testDracut is the same for dracut, which takes the place of initramfs-tools.
func testDracut(t *testing.T, tree *rootfs.Tree, root sandbox.Root, run func(...string) string, modules, kver string) {
	t.Helper()
	var log bytes.Buffer
	a := apt.Inside{Spec: sandbox.Spec{Root: root, Mountpoint: tree.Mountpoint(), Env: append(sandbox.DefaultEnv(), "INITRD=No")}, Log: &log}
	assert.NilError(t, a.Install(t.Context(), "dracut"), "%s", &log)
	run("sh", "-ec", `echo 'add_drivers+=" companion "' >/etc/dracut.conf.d/companion.conf; dracut --quiet --force /boot/initrd.img-`+kver+" "+kver)
	listed := func() bool { return strings.Contains(run("lsinitrd", "/boot/initrd.img-"+kver), "/companion.ko") }
	assert.Assert(t, !listed())
	run("apt-get", "install", "-y", modules)
	assert.Assert(t, listed())
	run("apt-get", "purge", "-y", modules)
	assert.Assert(t, !listed())
}

// digests are those of the packages in a directory, by name.
func digests(t *testing.T, dir string) []string {
	t.Helper()
	var list []string
	for _, file := range debFiles(t, dir) {
		digest, err := state.FileDigest(file)
		assert.NilError(t, err)
		list = append(list, filepath.Base(file)+" "+digest)
	}
	slices.Sort(list)
	return list
}
