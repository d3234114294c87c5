package deb

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

func textOf(path, text string) File {
	return File{Path: path, Mode: 0o644, Size: int64(len(text)), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(text)), nil
	}}
}

// module is a file of pseudo-random content that is never in memory.
func module(path string, size int64) File {
	return File{Path: path, Mode: 0o644, Size: size, Open: func() (io.ReadCloser, error) {
		return io.NopCloser(io.LimitReader(&noise{s: 1}, size)), nil
	}}
}

type noise struct{ s uint64 }

func (n *noise) Read(p []byte) (int, error) {
	for i := range p {
		n.s ^= n.s << 13
		n.s ^= n.s >> 7
		n.s ^= n.s << 17
		p[i] = byte(n.s) & 0x1f
	}
	return len(p), nil
}

var longPath = "/lib/modules/6.1.0-9-amd64/updates/dkms/" + strings.Repeat("long-name-", 15) + "é.ko"

func testPackage() Package {
	control, err := ParseStanza([]byte("Package: foo-modules-6.1.0-9-amd64\nSource: foo\nVersion: 1:1.0-1+6.1.9.1\n" +
		"Architecture: amd64\nMaintainer: A B <ab@example.org>\nSection: kernel\nDescription: short\n long\n .\n more\n"))
	if err != nil {
		panic(err)
	}
	return Package{
		Control: control,
		Scripts: map[string]string{"postinst": "#!/bin/sh\nset -e\n", "postrm": "#!/bin/sh\nset -e\nexit 0\n"},
		Files: []File{
			textOf("/usr/share/doc/foo/copyright", "free\n"),
			module("/lib/modules/6.1.0-9-amd64/updates/dkms/foo.ko", 2_500_001),
			textOf(longPath, "long"),
			textOf("/lib/modules/6.1.0-9-amd64/updates/dkms/empty.ko", ""),
			{Path: "/lib/modules/6.1.0-9-amd64/updates-x", Mode: 0o755, Size: 1025, Open: module("", 1025).Open},
		},
		Time: time.Date(2026, 11, 22, 12, 0, 0, 999, time.UTC),
	}
}

// writeTo writes p to a file and returns its path.
func writeTo(t *testing.T, p Package) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "foo.deb"))
	assert.NilError(t, err)
	assert.NilError(t, Write(f, p))
	assert.NilError(t, f.Close())
	return f.Name()
}

func TestWriteReadByDpkgDeb(t *testing.T) {
	t.Parallel()
	p := testPackage()
	path := writeTo(t, p)

	// 9 directories (the root among them), 2442 + 1 + 1 + 0 + 2 KiB of files.
	assert.Equal(t, run(t, "dpkg-deb", "--field", path), `Package: foo-modules-6.1.0-9-amd64
Source: foo
Version: 1:1.0-1+6.1.9.1
Architecture: amd64
Maintainer: A B <ab@example.org>
Installed-Size: 2456
Section: kernel
Description: short
 long
 .
 more
`)
	info := run(t, "dpkg-deb", "--info", path)
	assert.Assert(t, strings.Contains(info, "new Debian package, version 2.0."), info)
	assert.Equal(t, run(t, "dpkg-deb", "--info", path, "postinst"), p.Scripts["postinst"])

	var names []string
	for _, line := range strings.Split(strings.TrimSpace(run(t, "dpkg-deb", "--contents", path)), "\n") {
		fields := strings.Fields(line)
		names = append(names, fields[0]+" "+fields[1]+" "+fields[3]+" "+fields[5])
	}
	assert.DeepEqual(t, names, []string{
		"drwxr-xr-x root/root 2026-11-22 ./",
		"drwxr-xr-x root/root 2026-11-22 ./lib/",
		"drwxr-xr-x root/root 2026-11-22 ./lib/modules/",
		"drwxr-xr-x root/root 2026-11-22 ./lib/modules/6.1.0-9-amd64/",
		"-rwxr-xr-x root/root 2026-11-22 ./lib/modules/6.1.0-9-amd64/updates-x",
		"drwxr-xr-x root/root 2026-11-22 ./lib/modules/6.1.0-9-amd64/updates/",
		"drwxr-xr-x root/root 2026-11-22 ./lib/modules/6.1.0-9-amd64/updates/dkms/",
		"-rw-r--r-- root/root 2026-11-22 ./lib/modules/6.1.0-9-amd64/updates/dkms/empty.ko",
		"-rw-r--r-- root/root 2026-11-22 ./lib/modules/6.1.0-9-amd64/updates/dkms/foo.ko",
		"-rw-r--r-- root/root 2026-11-22 ." + longPath,
		"drwxr-xr-x root/root 2026-11-22 ./usr/",
		"drwxr-xr-x root/root 2026-11-22 ./usr/share/",
		"drwxr-xr-x root/root 2026-11-22 ./usr/share/doc/",
		"drwxr-xr-x root/root 2026-11-22 ./usr/share/doc/foo/",
		"-rw-r--r-- root/root 2026-11-22 ./usr/share/doc/foo/copyright",
	})

	out := t.TempDir()
	run(t, "dpkg-deb", "--raw-extract", path, out)
	for _, f := range p.Files {
		r, err := f.Open()
		assert.NilError(t, err)
		want := sha256.New()
		_, err = io.Copy(want, r)
		assert.NilError(t, err)
		got, err := os.ReadFile(filepath.Join(out, f.Path))
		assert.NilError(t, err)
		assert.Equal(t, fmt.Sprintf("%x", sha256.Sum256(got)), fmt.Sprintf("%x", want.Sum(nil)), f.Path)
		fi, err := os.Stat(filepath.Join(out, f.Path))
		assert.NilError(t, err)
		assert.Equal(t, fi.Mode().Perm(), f.Mode)
	}
	fi, err := os.Stat(filepath.Join(out, "DEBIAN/postinst"))
	assert.NilError(t, err)
	assert.Equal(t, fi.Mode().Perm(), fs.FileMode(0o755))
	// md5sums are relative to the root.
	run(t, "sh", "-c", `cd "$1" && md5sum --strict --quiet -c DEBIAN/md5sums`, "sh", out)
	sums, err := os.ReadFile(filepath.Join(out, "DEBIAN/md5sums"))
	assert.NilError(t, err)
	assert.Equal(t, strings.Count(string(sums), "\n"), len(p.Files))

	assertGNU(t, run(t, "dpkg-deb", "--fsys-tarfile", path))
	assertGNU(t, run(t, "dpkg-deb", "--ctrl-tarfile", path))
}

// What a package may have beside plain files.
func TestWriteOtherFiles(t *testing.T) {
	t.Parallel()
	p := testPackage()
	conffile := textOf("/etc/foo.conf", "x=1\n")
	conffile.Conffile = true
	p.Triggers = "activate-noawait update-initramfs\n"
	p.Files = []File{
		conffile,
		{Path: "/etc/foo.d", Mode: fs.ModeDir | 0o700},
		{Path: "/usr/bin/foo", Link: "../sbin/foo"},
		{Path: "/usr/sbin/foo", Mode: fs.ModeSetuid | 0o755, Size: 3, Open: textOf("", "foo").Open, Owner: Owner{GID: 4, Group: "adm"}},
		{Path: "/var/foo", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
		textOf("/var/foo/x", ""),
	}
	path := writeTo(t, p)
	var names []string
	for line := range strings.Lines(run(t, "dpkg-deb", "--contents", path)) {
		fields := strings.Fields(line)
		names = append(names, fields[0]+" "+fields[1]+" "+strings.Join(fields[5:], " "))
	}
	assert.DeepEqual(t, names, []string{
		"drwxr-xr-x root/root ./",
		"drwxr-xr-x root/root ./etc/",
		"-rw-r--r-- root/root ./etc/foo.conf",
		"drwx------ root/root ./etc/foo.d/",
		"drwxr-xr-x root/root ./usr/",
		"drwxr-xr-x root/root ./usr/bin/",
		"lrwxrwxrwx root/root ./usr/bin/foo -> ../sbin/foo",
		"drwxr-xr-x root/root ./usr/sbin/",
		"-rwsr-xr-x root/adm ./usr/sbin/foo",
		"drwxr-xr-x root/root ./var/",
		"drwxrwxrwt root/root ./var/foo/",
		"-rw-r--r-- root/root ./var/foo/x",
	})
	assert.Equal(t, run(t, "dpkg-deb", "-I", path, "conffiles"), "/etc/foo.conf\n")
	assert.Equal(t, run(t, "dpkg-deb", "-I", path, "triggers"), p.Triggers)
	assert.Assert(t, !strings.Contains(run(t, "dpkg-deb", "-I", path, "md5sums"), "foo.conf"))

	f, err := os.Open(path)
	assert.NilError(t, err)
	defer f.Close()
	info, err := f.Stat()
	assert.NilError(t, err)
	a, err := Open(f, info.Size())
	assert.NilError(t, err)
	files, err := a.ControlFiles("conffiles", "triggers", "shlibs")
	assert.NilError(t, err)
	assert.DeepEqual(t, files, map[string][]byte{"conffiles": []byte("/etc/foo.conf\n"), "triggers": []byte(p.Triggers)})
}

// assertGNU: dpkg installs ustar and GNU only, so there may be no PAX header.
func assertGNU(t *testing.T, text string) {
	t.Helper()
	tr := tar.NewReader(strings.NewReader(text))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		assert.NilError(t, err)
		assert.Equal(t, h.Format, tar.FormatGNU, h.Name)
		assert.Equal(t, fmt.Sprint(h.Uid, h.Gid, h.Uname, h.Gname, h.ModTime.Unix()), "0 0rootroot1795348800", h.Name)
	}
}

func TestWriteReadByOpen(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(writeTo(t, testPackage()))
	assert.NilError(t, err)
	a, err := openBytes(b)
	assert.NilError(t, err)
	control, err := a.Control()
	assert.NilError(t, err)
	assert.Equal(t, control.Get("Package"), "foo-modules-6.1.0-9-amd64")
	tr, c, err := a.Data(1 << 30)
	assert.NilError(t, err)
	got, err := contents(tr)
	assert.NilError(t, err)
	assert.NilError(t, c.Close())
	assert.Equal(t, len(got), 15)
	assert.Equal(t, got["./usr/share/doc/foo/copyright"][:9], "file 0644")

	// Nothing of the machine in the headers of ar and gzip.
	assert.Equal(t, string(b[8:68]), "debian-binary   1795348800  0     0     100644  4         `\n")
	for _, m := range []arMember{a.control, a.data} {
		assert.Equal(t, string(b[m.off:m.off+8]), "\x1f\x8b\x08\x00\x00\x00\x00\x00", m.name)
	}
}

// Not parallel: it sets GOMAXPROCS.
func TestWriteSameBytes(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	p := testPackage()
	want, err := os.ReadFile(writeTo(t, p))
	assert.NilError(t, err)
	for _, n := range []int{1, 2, 3} {
		runtime.GOMAXPROCS(n)
		slices.Reverse(p.Files)
		got, err := os.ReadFile(writeTo(t, p))
		assert.NilError(t, err)
		assert.Assert(t, bytes.Equal(got, want), "GOMAXPROCS %d", n)
	}
}

// Not parallel: it measures memory.
func TestWriteMemory(t *testing.T) {
	p := testPackage()
	p.Files = []File{module("/lib/big.ko", 128<<20)}
	var peak uint64
	p.Files[0].Open = func() (io.ReadCloser, error) {
		return io.NopCloser(&gauge{r: io.LimitReader(zeros{}, 128<<20), peak: &peak}), nil
	}
	writeTo(t, p)
	assert.Assert(t, peak > 0 && peak < 64<<20, "%d MiB in use", peak>>20)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// gauge looks at the heap now and then.
type gauge struct {
	r    io.Reader
	n    int
	peak *uint64
}

func (g *gauge) Read(p []byte) (int, error) {
	if g.n++; g.n%300 == 0 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		*g.peak = max(*g.peak, m.HeapAlloc)
	}
	return g.r.Read(p)
}

func TestWriteInstalledSize(t *testing.T) {
	t.Parallel()
	p := testPackage()
	p.Control.Set("Installed-Size", "7")
	assert.Equal(t, run(t, "dpkg-deb", "--field", writeTo(t, p), "Installed-Size"), "7\n")
	// As dpkg-gencontrol counts: a root directory, two more, and 0 + 1 + 2.
	p = testPackage()
	p.Files = []File{textOf("/a/b/0", ""), textOf("/a/b/1", "x"), module("/a/b/2", 1025)}
	before := len(p.Control)
	assert.Equal(t, run(t, "dpkg-deb", "--field", writeTo(t, p), "Installed-Size"), "6\n")
	assert.Equal(t, len(p.Control), before)
}

func TestWriteWithoutFiles(t *testing.T) {
	t.Parallel()
	p := testPackage()
	p.Files, p.Scripts = nil, nil
	path := writeTo(t, p)
	assert.Equal(t, strings.Count(run(t, "dpkg-deb", "--contents", path), "\n"), 1)
	out := t.TempDir()
	run(t, "dpkg-deb", "--control", path, out)
	_, err := os.Stat(filepath.Join(out, "md5sums"))
	assert.Assert(t, errors.Is(err, fs.ErrNotExist))
}

func TestWriteRefuses(t *testing.T) {
	t.Parallel()
	set := func(name, value string) func(*Package) {
		return func(p *Package) { p.Control.Set(name, value) }
	}
	file := func(f File) func(*Package) {
		return func(p *Package) { p.Files = append(p.Files, f) }
	}
	flaky := textOf("/flaky", "abc")
	n := 0
	flaky.Open = func() (io.ReadCloser, error) {
		n++
		return io.NopCloser(strings.NewReader(fmt.Sprintf("ab%d", n))), nil
	}
	for _, tc := range []struct {
		name   string
		change func(*Package)
		err    string
	}{
		{"no name", set("Package", ""), "field Package is missing"},
		{"name", set("Package", "Foo_bar"), "invalid package name"},
		{"no version", set("Version", ""), "field Version is missing"},
		{"version", set("Version", "1.0-"), "the revision is empty"},
		{"no architecture", set("Architecture", ""), "field Architecture is missing"},
		{"architecture", set("Architecture", "amd64 i386"), "invalid architecture"},
		{"no maintainer", set("Maintainer", ""), "field Maintainer is missing"},
		{"no description", set("Description", ""), "field Description is missing"},
		{"no synopsis", set("Description", "\n long"), "no synopsis"},
		{"injected field", set("Section", "kernel\nEssential: yes"), "continuation line"},
		{"twice", func(p *Package) { p.Control = append(p.Control, Field{"version", "2"}) }, "field version given twice"},
		{"script", func(p *Package) { p.Scripts["postist"] = "#!/bin/sh\n" }, `"postist" is no maintainer script`},
		{"script path", func(p *Package) { p.Scripts["../x"] = "#!/bin/sh\n" }, "is no maintainer script"},
		{"no interpreter", func(p *Package) { p.Scripts["preinst"] = "exit 0\n" }, "preinst does not begin with a #! line"},
		{"relative path", file(textOf("lib/x", "")), "not clean and absolute"},
		{"climbing path", file(textOf("/lib/../etc/x", "")), "not clean and absolute"},
		{"root", file(textOf("/", "")), "not clean and absolute"},
		{"directory path", file(textOf("/lib/", "")), "not clean and absolute"},
		{"newline", file(textOf("/lib/a\nb", "")), "control character"},
		{"same path", file(textOf(longPath, "")), "given twice"},
		{"file and directory", file(textOf("/lib/modules", "")), "is a file and a directory"},
		{"symlink", file(File{Path: "/x", Mode: fs.ModeSymlink | 0o777, Open: textOf("", "").Open}), "not that of a plain file"},
		{"device", file(File{Path: "/x", Mode: fs.ModeDevice | 0o755, Open: textOf("", "").Open}), "not that of a plain file"},
		{"directory with content", file(File{Path: "/x", Mode: fs.ModeDir | 0o755, Open: textOf("", "").Open}), "a link or directory has no content"},
		{"link with content", file(File{Path: "/x", Link: "y", Open: textOf("", "").Open}), "a link or directory has no content"},
		{"conffile that is a link", file(File{Path: "/x", Link: "y", Conffile: true}), "a link or directory has no content"},
		{"target", file(File{Path: "/x", Link: "a\x00b"}), "NUL byte in its target"},
		{"directory twice", func(p *Package) {
			d := File{Path: "/var/x", Mode: fs.ModeDir | 0o700}
			p.Files = append(p.Files, d, d)
		}, "/var/x given twice"},
		{"link and directory", func(p *Package) { p.Files = append(p.Files, File{Path: "/lib", Link: "usr/lib"}) }, "is a file and a directory"},
		{"no content", file(File{Path: "/x"}), "no content"},
		{"negative size", file(File{Path: "/x", Size: -1, Open: textOf("", "").Open}), "size -1"},
		{"shorter", file(File{Path: "/x", Size: 4, Open: textOf("", "abc").Open}), "file /x: it has 3 bytes, not the announced 4"},
		{"longer", file(File{Path: "/x", Size: 2, Open: textOf("", "abc").Open}), "file /x: it has more than the announced 2 bytes"},
		{"unreadable", file(File{Path: "/x", Open: func() (io.ReadCloser, error) { return nil, fs.ErrPermission }}), "file /x: permission denied"},
		{"changing", file(flaky), "file /flaky changed while it was packed"},
		{"no time", func(p *Package) { p.Time = time.Time{} }, "does not fit the format"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p := testPackage()
			tc.change(&p)
			f, err := os.Create(filepath.Join(t.TempDir(), "foo.deb"))
			assert.NilError(t, err)
			defer f.Close()
			err = Write(f, p)
			assert.ErrorContains(t, err, tc.err)
			assert.ErrorContains(t, err, "cannot write package "+p.Control.Get("Package"))
		})
	}
}

func TestWriteFullDisk(t *testing.T) {
	t.Parallel()
	f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	assert.NilError(t, err)
	defer f.Close()
	assert.ErrorContains(t, Write(f, testPackage()), "no space left")
}
