package modpkg

import (
	"bytes"
	"dkms2bin/internal/deb"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

func text(path, content string) deb.File {
	return deb.File{Path: path, Size: int64(len(content)), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(content)), nil
	}}
}

// dkmsPackage is the .deb of a -dkms package, as debhelper makes them.
func dkmsPackage(t testing.TB, change func(*deb.Package)) string {
	t.Helper()
	control, err := deb.ParseStanza([]byte("Package: razer-dkms\nVersion: 1:3.5.1+dfsg-2\nArchitecture: all\nMaintainer: A B <a@example.org>\n" +
		"Depends: dkms (>= 3.0.11), udev\nConflicts: razer-kernel-modules-dkms\nReplaces: razer-kernel-modules-dkms\nDescription: modules\n"))
	assert.NilError(t, err)
	p := deb.Package{
		Control: control, Scripts: map[string]string{"postinst": "#!/bin/sh\nexit 1\n"},
		Files: []deb.File{
			text("/usr/src/razer-3.5.1/dkms.conf", "PACKAGE_NAME=razer\n"), text("/usr/share/doc/razer-dkms/copyright", "free\n"),
			text("/usr/share/lintian/overrides/razer-dkms", "# Reason.\nrazer-dkms: some-tag usr/x\nother-tag\nrazer-dkms binary: strange\n"),
		},
		Time: time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC),
	}
	if change != nil {
		change(&p)
	}
	return debFile(t, p)
}

func debFile(t testing.TB, p deb.Package) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), deb.Filename(p.Control)))
	assert.NilError(t, err)
	assert.NilError(t, deb.Write(f, p))
	assert.NilError(t, f.Close())
	return f.Name()
}

func ships(files ...deb.File) func(*deb.Package) {
	return func(p *deb.Package) { p.Files = append(p.Files, files...) }
}

func TestShipmentIsEmpty(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		files []deb.File
		empty bool
	}{
		{"sources and documentation", nil, true},
		{"what describes", []deb.File{text("/usr/share/metainfo/razer.xml", "<x/>"), text("/usr/share/man/man4/razer.4.gz", "x")}, true},
		{"for bug reports", []deb.File{text("/usr/share/bug/razer-dkms/presubj", "x")}, true},
		{"dkms's own", []deb.File{text("/etc/dkms/razer.conf", "x")}, true},
		{"an empty directory", []deb.File{{Path: "/usr/lib/razer", Mode: fs.ModeDir | 0o755}}, true},
		{"udev rules", []deb.File{text("/lib/udev/rules.d/99-razer.rules", "x")}, false},
		{"a link", []deb.File{{Path: "/usr/sbin/razer", Link: "../lib/razer"}}, false},
		{"a name that begins alike", []deb.File{text("/usr/srcs/x", "x")}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, err := ReadShipment(dkmsPackage(t, ships(tt.files...)), t.TempDir())
			assert.NilError(t, err)
			assert.Equal(t, s.Empty(), tt.empty)
			if tt.empty {
				assert.Equal(t, len(s.files), 0)
			}
		})
	}
}

// shipped is a -dkms package that has all there is, as deb.Write and dpkg-deb make
// it: only the latter makes hard links.
func shipped(t testing.TB) string {
	t.Helper()
	path := dkmsPackage(t, func(p *deb.Package) {
		p.Triggers = "interest-noawait /usr/lib/razer\nactivate-noawait update-initramfs\n"
		ships(text("/lib/udev/rules.d/99-razer.rules", "SUBSYSTEM==\"hid\"\n"), text("/etc/modprobe.d/razer.conf", "options razer x=1\n"),
			text("/usr/share/metainfo/razer.xml", "<x/>"), text("/lib/firmware/razer/a.bin", "firmware"),
			deb.File{Path: "/usr/sbin/razer", Mode: fs.ModeSetuid | 0o755, Size: 3, Open: text("", "run").Open},
			deb.File{Path: "/usr/bin/razer", Link: "../sbin/razer"},
			deb.File{Path: "/var/lib/razer", Mode: fs.ModeDir | 0o750},
			deb.File{Path: "/usr/lib/razer", Mode: fs.ModeDir | 0o755})(p)
	})
	dir := t.TempDir()
	command(t, "dpkg-deb", "-R", path, dir)
	for from, to := range map[string]string{"lib/firmware/razer/a.bin": "lib/firmware/razer/b.bin", "usr/src/razer-3.5.1/dkms.conf": "usr/sbin/example"} {
		assert.NilError(t, os.Link(filepath.Join(dir, from), filepath.Join(dir, to)))
	}
	linked := filepath.Join(t.TempDir(), "linked.deb")
	command(t, "dpkg-deb", "--root-owner-group", "-b", dir, linked)
	return linked
}

func commonOf(t testing.TB, path string) Common {
	t.Helper()
	s, err := ReadShipment(path, t.TempDir())
	assert.NilError(t, err)
	return Common{
		Shipment: s, Modules: []string{"razer", "razer"}, VersionSuffix: "+site2",
		Copyright: []byte("free\n"), Changelog: loopback(t).Changelog, Time: loopback(t).Time,
		Origin: Origin{Package: "razer-dkms (= 1:3.5.1+dfsg-2)", Digest: "5eed", Program: "dkms2bin 1.0"},
	}
}

func TestCommon(t *testing.T) {
	t.Parallel()
	c := commonOf(t, shipped(t))
	assert.Equal(t, c.Relation(), "razer-modules-common (>= 1:3.5.1+dfsg-2+site2)")
	p, err := c.Compose()
	assert.NilError(t, err)
	path := debFile(t, p)
	assert.Equal(t, filepath.Base(path), "razer-modules-common_3.5.1+dfsg-2+site2_all.deb")
	var control bytes.Buffer
	_, err = p.Control.WriteTo(&control)
	assert.NilError(t, err)
	assert.Equal(t, control.String(), `Package: razer-modules-common
Source: razer-dkms (1:3.5.1+dfsg-2)
Version: 1:3.5.1+dfsg-2+site2
Architecture: all
Maintainer: dkms2bin <dkms2bin@packages.invalid>
Depends: udev
Replaces: razer-dkms, razer-kernel-modules-dkms
Section: kernel
Priority: optional
Description: files that the kernel modules of razer-dkms need
 This is what razer-dkms 1:3.5.1+dfsg-2 ships beside the sources of its
 modules. The packages of the modules, which are built ahead of time, depend on
 it.
`)
	var listed []string
	for line := range strings.Lines(command(t, "dpkg-deb", "-c", path)) {
		f := strings.Fields(line)
		if name := strings.Join(f[5:], " "); !strings.HasSuffix(name, "/") || strings.Contains(name, "lib/razer/") {
			listed = append(listed, f[0]+" "+f[1]+" "+f[2]+" "+name)
		}
	}
	listed = slices.DeleteFunc(listed, func(l string) bool { return strings.Contains(l, "/usr/share/doc/") || strings.Contains(l, "/lintian/") })
	assert.DeepEqual(t, listed, []string{
		"-rw-r--r-- root/root 18 ./etc/modprobe.d/razer.conf",
		"-rw-r--r-- root/root 8 ./lib/firmware/razer/a.bin",
		"-rw-r--r-- root/root 8 ./lib/firmware/razer/b.bin",
		"-rw-r--r-- root/root 17 ./lib/udev/rules.d/99-razer.rules",
		"lrwxrwxrwx root/root 0 ./usr/bin/razer -> ../sbin/razer",
		"drwxr-xr-x root/root 0 ./usr/lib/razer/",
		"-rw-r--r-- root/root 19 ./usr/sbin/example",
		"-rwsr-xr-x root/root 3 ./usr/sbin/razer",
		"-rw-r--r-- root/root 4 ./usr/share/metainfo/razer.xml",
		"drwxr-x--- root/root 0 ./var/lib/razer/",
	})
	assert.Equal(t, command(t, "dpkg-deb", "-I", path, "conffiles"), "/etc/modprobe.d/razer.conf\n")
	assert.Equal(t, command(t, "dpkg-deb", "-I", path, "triggers"), "activate-noawait update-initramfs\n")
	dir := t.TempDir()
	command(t, "dpkg-deb", "-R", path, dir)
	_, err = os.Stat(filepath.Join(dir, "DEBIAN/postinst"))
	assert.ErrorIs(t, err, os.ErrNotExist)
	buildinfo, err := os.ReadFile(filepath.Join(dir, "usr/share/doc/razer-modules-common/buildinfo"))
	assert.NilError(t, err)
	assert.Equal(t, string(buildinfo), "Dkms-Package: razer-dkms (= 1:3.5.1+dfsg-2)\nDkms-Package-SHA256: 5eed\nMade-By: dkms2bin 1.0\n")

	overrides, err := os.ReadFile(filepath.Join(dir, "usr/share/lintian/overrides/razer-modules-common"))
	assert.NilError(t, err)
	assert.Equal(t, string(overrides), `# As razer-dkms has it.
razer-modules-common: some-tag usr/x
# As razer-dkms has it.
razer-modules-common: other-tag
# razer-dkms ships no manual page of it.
razer-modules-common: no-manual-page *usr/bin/razer*
# razer-dkms ships no manual page of it.
razer-modules-common: no-manual-page *usr/sbin/example*
# razer-dkms ships no manual page of it.
razer-modules-common: no-manual-page *usr/sbin/razer*
`)

	again, err := commonOf(t, shipped(t)).Compose()
	assert.NilError(t, err)
	first, err := os.ReadFile(path)
	assert.NilError(t, err)
	second, err := os.ReadFile(debFile(t, again))
	assert.NilError(t, err)
	assert.Assert(t, bytes.Equal(first, second))
}

func TestCommonName(t *testing.T) {
	t.Parallel()
	control := deb.Stanza{{Name: "Package", Value: "dahdi-linux-dkms"}}
	for _, tt := range []struct {
		modules []string
		want    string
	}{
		{[]string{"DAHDI_x"}, "dahdi-x-modules-common"},
		{[]string{"a", "b"}, "dahdi-linux-modules-common"},
		{nil, "dahdi-linux-modules-common"},
	} {
		assert.Equal(t, Common{Shipment: Shipment{Control: control}, Modules: tt.modules}.Name(), tt.want)
	}
}

// Beside the -dkms package itself nothing clashes, whichever comes first, and
// nothing is lost when that one goes.
func TestCommonBesideTheDKMSPackage(t *testing.T) {
	t.Parallel()
	original := dkmsPackage(t, func(p *deb.Package) {
		p.Scripts, p.Control = nil, slices.DeleteFunc(p.Control, func(f deb.Field) bool { return f.Name == "Depends" })
		rules := text("/etc/udev/rules.d/99-razer.rules", "x\n")
		rules.Conffile = true
		ships(text("/lib/udev/razer_mount", "#!/bin/sh\n"), rules)(p)
	})
	p, err := commonOf(t, original).Compose()
	assert.NilError(t, err)
	common := debFile(t, p)
	for _, order := range [][]string{{original, common}, {common, original}} {
		t.Run(filepath.Base(order[0])+" first", func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			for _, dir := range []string{"var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers"} {
				assert.NilError(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
			}
			assert.NilError(t, os.WriteFile(filepath.Join(root, "var/lib/dpkg/status"), nil, 0o644))
			dpkg := func(args ...string) string {
				return command(t, "dpkg", append([]string{"--root=" + root, "--log=/dev/null", "--force-not-root", "--force-bad-path", "--force-script-chrootless"}, args...)...)
			}
			dpkg("-i", order[0])
			dpkg("-i", order[1])
			assert.Equal(t, dpkg("-S", "/lib/udev/razer_mount"), "razer-modules-common: /lib/udev/razer_mount\n")
			dpkg("-i", order[0]) // once more
			assert.Equal(t, dpkg("-S", "/lib/udev/razer_mount"), "razer-modules-common: /lib/udev/razer_mount\n")
			dpkg("--purge", "razer-dkms")
			assert.Equal(t, dpkg("--verify", "razer-modules-common"), "")
			for _, file := range []string{"lib/udev/razer_mount", "etc/udev/rules.d/99-razer.rules"} {
				_, err := os.Stat(filepath.Join(root, file))
				assert.NilError(t, err)
			}
		})
	}
}

func TestReadShipmentRefuses(t *testing.T) {
	t.Parallel()
	build := func(t *testing.T, prepare func(dir string)) string {
		dir, path := t.TempDir(), filepath.Join(t.TempDir(), "x.deb")
		command(t, "dpkg-deb", "-R", dkmsPackage(t, ships(text("/etc/x", "x"))), dir)
		prepare(dir)
		command(t, "dpkg-deb", "-b", dir, path)
		return path
	}
	for _, tt := range []struct {
		name string
		path func(t *testing.T) string
		want string
	}{
		{"no package", func(t *testing.T) string { return "/nowhere/x.deb" }, "no such file"},
		{"a text", func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "x.deb")
			assert.NilError(t, os.WriteFile(path, []byte("text"), 0o644))
			return path
		}, "not a usable .deb"},
		{"a pipe", func(t *testing.T) string {
			return build(t, func(dir string) { command(t, "mkfifo", filepath.Join(dir, "etc/pipe")) })
		}, "/etc/pipe is neither file, directory nor link"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := ReadShipment(tt.path(t), t.TempDir())
			assert.ErrorContains(t, err, tt.want)
		})
	}
}

// hostile packages are written member by member, since no tool makes them.
func TestReadShipmentStaysInside(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, program, want string }{
		{"climbing", `t = tar(); add(t, "./etc/../../x", b"x")`, "leads outside"},
		{"hard link to nothing", `t = tar(); link(t, "./etc/x", "./etc/y")`, "/etc/x is a hard link to /etc/y, which is not there"},
		{"hard link to the outside", `t = tar(); link(t, "./etc/x", "../../../etc/passwd")`, "which is not there"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := dkmsPackage(t, nil)
			command(t, "python3", "-c", fmt.Sprintf(`
import io, subprocess, sys, tarfile
out = io.BytesIO()
def tar(): return tarfile.open(fileobj=out, mode="w:gz", format=tarfile.GNU_FORMAT)
def add(t, name, data):
    i = tarfile.TarInfo(name); i.size = len(data); t.addfile(i, io.BytesIO(data))
def link(t, name, target):
    i = tarfile.TarInfo(name); i.type = tarfile.LNKTYPE; i.linkname = target; t.addfile(i)
%s
t.close()
open(sys.argv[2] + "/data.tar.gz", "wb").write(out.getvalue())
subprocess.check_call(["ar", "r", sys.argv[1], "data.tar.gz"], cwd=sys.argv[2])
`, tt.program), path, t.TempDir())
			_, err := ReadShipment(path, t.TempDir())
			assert.ErrorContains(t, err, tt.want)
		})
	}
}

// FuzzReadShipment: whatever a package is, nothing is written outside.
func FuzzReadShipment(f *testing.F) {
	for _, path := range []string{dkmsPackage(f, nil), shipped(f)} {
		raw, err := os.ReadFile(path)
		assert.NilError(f, err)
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		dir := t.TempDir()
		path, to := filepath.Join(dir, "x.deb"), filepath.Join(dir, "to")
		assert.NilError(t, os.WriteFile(path, raw, 0o644))
		assert.NilError(t, os.Mkdir(to, 0o755))
		s, err := ReadShipment(path, to)
		entries, readErr := os.ReadDir(dir)
		assert.NilError(t, readErr)
		assert.Equal(t, len(entries), 2)
		for _, f := range s.files {
			assert.Assert(t, err != nil || filepath.IsAbs(f.Path) && filepath.Clean(f.Path) == f.Path, f.Path)
		}
	})
}
