package dkms

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"gotest.tools/v3/assert"
)

// A member is one of a test archive: a regular file, or what change makes of it.
type member struct {
	name, content string
	change        func(*tar.Header)
}

func dirMember(name string) member {
	return member{name: name, change: func(h *tar.Header) { h.Typeflag, h.Mode = tar.TypeDir, 0o755 }}
}

func link(name, to string, kind byte) member {
	return member{name: name, change: func(h *tar.Header) { h.Typeflag, h.Linkname = kind, to }}
}

func tarOf(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: m.name, Size: int64(len(m.content)), Mode: 0o644, Format: tar.FormatGNU}
		if m.change != nil {
			m.change(h)
		}
		assert.NilError(t, w.WriteHeader(h))
		_, err := io.WriteString(w, m.content)
		assert.NilError(t, err)
	}
	assert.NilError(t, w.Close())
	return b.Bytes()
}

func pack(t testing.TB, format string, plain []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch format {
	case "gz":
		w = gzip.NewWriter(&b)
	case "xz":
		cmd := exec.Command("xz", "-c")
		cmd.Stdin, cmd.Stdout = bytes.NewReader(plain), &b
		assert.NilError(t, cmd.Run())
		return b.Bytes()
	case "zst":
		w, err = zstd.NewWriter(&b)
	default:
		return plain
	}
	assert.NilError(t, err)
	_, err = w.Write(plain)
	assert.NilError(t, err)
	assert.NilError(t, w.Close())
	return b.Bytes()
}

// arOf makes an ar archive (deb(5)) of names and contents in turn.
func arOf(parts ...string) string {
	s := "!<arch>\n"
	for i := 0; i < len(parts); i += 2 {
		s += fmt.Sprintf("%-16s%-12d%-6d%-6d%-8s%-10d`\n", parts[i], 0, 0, 0, "100644", len(parts[i+1])) + parts[i+1]
		if len(s)%2 == 1 {
			s += "\n"
		}
	}
	return s
}

// debOf makes a package of a control file and members of data.tar.
func debOf(t testing.TB, control string, members ...member) string {
	t.Helper()
	return arOf("debian-binary", "2.0\n",
		"control.tar.gz", string(pack(t, "gz", tarOf(t, member{name: "./control", content: control}))),
		"data.tar.xz", string(pack(t, "xz", tarOf(t, members...))))
}

const (
	mkbmdebControl = `Package: tp-smapi-modules-5.10.0-46-amd64
Source: tp-smapi-dkms-bin
Version: 0.43
Architecture: amd64
Maintainer: Dynamic Kernel Modules Support Team <pkg-dkms-maint@lists.alioth.debian.org>
Depends: linux-image-5.10.0-46-amd64
Provides: tp-smapi-modules
Description: tp-smapi binary drivers for linux-image-5.10.0-46-amd64
`
	diskControl = `Package: tp_smapi-modules-3.13.0-24-generic
Version: 0.41-1
Section: misc
Priority: optional
Architecture: x86_64
Depends:
Maintainer: DKMS <dkms-devel@dell.com>
Description: DKMS packaged binary driver update
`
	main61   = "./dkms_main_tree/6.1.0-56-amd64/x86_64/"
	binaries = "./dkms_binaries_only/"
)

func named(name, version string) []member {
	return []member{{name: binaries + "PACKAGE_NAME", content: name + "\n"}, {name: binaries + "PACKAGE_VERSION", content: version + "\n"}}
}

// mktarball joins what a tarball of mktarball --binaries-only has anyway with more members.
func mktarball(more ...member) []member {
	return append(named("v4l2loopback", "0.12.7"), more...)
}

// tree lists what lies below dir: path, and content of files.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	assert.NilError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		got[rel] = string(content)
		assert.Equal(t, info.Mode(), fs.FileMode(0o644), rel)
		return err
	}))
	return got
}

// extract runs Extract in a folder of its own, and gives paths relative to it.
func extract(t testing.TB, name string, content []byte, lim Limits) ([]Archive, map[string]string, error) {
	t.Helper()
	base := t.TempDir()
	path, dir := filepath.Join(base, name), filepath.Join(base, "out")
	assert.NilError(t, os.WriteFile(path, content, 0o644))
	assert.NilError(t, os.Mkdir(dir, 0o755))
	list, err := Extract(t.Context(), path, dir, lim)
	for i := range list {
		for j, file := range list[i].Files {
			list[i].Files[j] = strings.TrimPrefix(file, dir+"/")
		}
		list[i].Symvers = strings.TrimPrefix(list[i].Symvers, dir+"/")
		list[i].Log = strings.TrimPrefix(list[i].Log, dir+"/")
	}
	left, e := os.ReadDir(base)
	assert.NilError(t, e)
	assert.Equal(t, len(left), 2, "written outside of the folder")
	return list, tree(t, dir), err
}

func TestExtract(t *testing.T) {
	t.Parallel()
	v4l2 := Archive{
		Module: "v4l2loopback", Version: "0.12.7", Kernel: "6.1.0-56-amd64", Arch: "x86_64",
		Files: []string{"1/v4l2loopback.ko"},
	}
	logged := v4l2
	logged.Log = "1/make.log"
	full := logged
	full.Symvers = "1/Module.symvers"
	plain := func(a Archive, module, version string) Archive { a.Module, a.Version = module, version; return a }
	ko := member{name: main61 + "module/v4l2loopback.ko", content: "ELF"}
	log := member{name: main61 + "log/make.log", content: "log"}
	kernels := func(content string) []byte {
		return tarOf(t, mktarball(
			member{name: main61 + "module/v4l2loopback.ko", content: "1"},
			member{name: "./dkms_main_tree/6.1.0-53-amd64/x86_64/log/make.log", content: "nothing built here"},
			member{name: "./dkms_main_tree/6.1.0-55-amd64/x86_64/module/v4l2loopback.ko.xz", content: "2"},
			member{name: "./dkms_main_tree/6.1.0-55-amd64/x86_64/module/Module.symvers", content: content},
		)...)
	}
	tests := []struct {
		name  string
		file  string
		ar    []byte
		want  []Archive
		files map[string]string
	}{
		{
			"dkms 3.2",
			"x.dkms.tar.gz",
			pack(t, "gz", tarOf(t, append([]member{
				dirMember("./"), dirMember("./dkms_main_tree/"), dirMember(main61), dirMember(main61 + "module/"), ko,
				{name: main61 + "module/Module.symvers", content: "0x0\tf\tm\tEXPORT_SYMBOL\t\n"},
				log,
				{name: main61 + "log/.config", content: "CONFIG_SMP=y"},
				dirMember(binaries),
			}, named("v4l2loopback", "0.12.7")...)...)),
			[]Archive{full},
			map[string]string{"1/v4l2loopback.ko": "ELF", "1/Module.symvers": "0x0\tf\tm\tEXPORT_SYMBOL\t\n", "1/make.log": "log"},
		},
		{
			"dkms 2.2, names without ./",
			"x.tar",
			tarOf(t,
				member{name: "dkms_binaries_only/PACKAGE_NAME", content: "v4l2loopback\n"},
				member{name: "dkms_binaries_only/PACKAGE_VERSION", content: "0.12.7\n"},
				member{name: "dkms_main_tree/dkms_dbversion", content: "2.0.0"},
				member{name: "dkms_main_tree/6.1.0-56-amd64/x86_64/module/v4l2loopback.ko", content: "ELF"}),
			[]Archive{v4l2},
			map[string]string{"1/v4l2loopback.ko": "ELF"},
		},
		{"xz", "x", pack(t, "xz", tarOf(t, mktarball(ko, log)...)), []Archive{logged}, map[string]string{"1/v4l2loopback.ko": "ELF", "1/make.log": "log"}},
		{"zst", "x.tar.gz", pack(t, "zst", tarOf(t, mktarball(ko)...)), []Archive{v4l2}, map[string]string{"1/v4l2loopback.ko": "ELF"}},
		{
			"several kernels, one without a module", "x", kernels("s"),
			[]Archive{v4l2, {
				Module: "v4l2loopback", Version: "0.12.7", Kernel: "6.1.0-55-amd64", Arch: "x86_64",
				Files: []string{"2/v4l2loopback.ko.xz"}, Symvers: "2/Module.symvers",
			}},
			map[string]string{"1/v4l2loopback.ko": "1", "2/v4l2loopback.ko.xz": "2", "2/Module.symvers": "s"},
		},
		{
			"with source, a link in it, and a plain dkms.conf",
			"whatever.dkms.tar.gz",
			pack(t, "gz", tarOf(t, ko,
				member{name: "./dkms_source_tree/dkms.conf", content: "# x\nPACKAGE_NAME=\"v4l2loopback\" # name\n PACKAGE_VERSION='0.12.7'\n"},
				link("./dkms_source_tree/Kbuild", "/etc/passwd", tar.TypeSymlink),
				member{name: "./dkms_source_tree/blobs/x.deb", content: "not one"})),
			[]Archive{v4l2},
			map[string]string{"1/v4l2loopback.ko": "ELF"},
		},
		{
			"with source, named by the file",
			"tp-smapi-0.43-rc1-kernel6.1.0-56-amd64-x86_64.dkms.tar.gz",
			tarOf(t, ko, member{name: "./dkms_source_tree/dkms.conf", content: "PACKAGE_NAME=v4l2loopback\nPACKAGE_VERSION=$(cat VERSION)\n"}),
			[]Archive{plain(v4l2, "tp-smapi", "0.43-rc1")},
			map[string]string{"1/v4l2loopback.ko": "ELF"},
		},
		{
			"many kernels, version without a digit in front",
			"foo-bar-git-manykernels.dkms.tar.gz", tarOf(t, ko),
			[]Archive{plain(v4l2, "foo-bar", "git")},
			map[string]string{"1/v4l2loopback.ko": "ELF"},
		},
		{
			"mkbmdeb",
			"tp-smapi-modules.deb",
			[]byte(debOf(t, mkbmdebControl, dirMember("./"), dirMember("./lib/"),
				member{name: "./lib/modules/5.10.0-46-amd64/updates/dkms/tp_smapi.ko", content: "1"},
				member{name: "./lib/modules/5.10.0-46-amd64/updates/dkms/thinkpad_ec.ko", content: "2"},
				member{name: "./usr/share/doc/tp-smapi-modules-5.10.0-46-amd64/README.Debian", content: "x"})),
			[]Archive{{
				Module: "tp-smapi", Version: "0.43", Kernel: "5.10.0-46-amd64", Arch: "x86_64",
				Files: []string{"1/tp_smapi.ko", "1/thinkpad_ec.ko"},
			}},
			map[string]string{"1/tp_smapi.ko": "1", "1/thinkpad_ec.ko": "2"},
		},
		{
			"mkdriverdisk",
			"tp_smapi-0.41-ubuntu-dd.tar",
			tarOf(t, dirMember("./"), dirMember("./ubuntu-drivers/"),
				member{name: "./ubuntu-drivers/3.13.0/tp_smapi_0.41-3.13.0-24-generic_x86_64.deb", content: debOf(t, diskControl,
					member{name: "./lib/modules/3.13.0-24-generic/updates/dkms/tp_smapi.ko", content: "1"})},
				member{name: "./ubuntu-drivers/3.13.0/tp_smapi_0.41-3.13.0-25-generic_x86_64.deb", content: debOf(t,
					strings.Replace(diskControl, "-24-", "-25-", 1),
					member{name: "./lib/modules/3.13.0-25-generic/updates/dkms/tp_smapi.ko", content: "2"})},
				member{name: "./ubuntu-drivers/other.deb", content: debOf(t, mkbmdebControl, member{name: "./usr/share/doc/x", content: "x"})},
				dirMember("./ubuntu/tp_smapi-0.41/"), link("./ubuntu/tp_smapi-0.41/link", "..", tar.TypeSymlink)),
			[]Archive{
				{Module: "tp_smapi", Version: "0.41", Kernel: "3.13.0-24-generic", Arch: "x86_64", Files: []string{"1/tp_smapi.ko"}},
				{Module: "tp_smapi", Version: "0.41", Kernel: "3.13.0-25-generic", Arch: "x86_64", Files: []string{"2/tp_smapi.ko"}},
			},
			map[string]string{"1/tp_smapi.ko": "1", "2/tp_smapi.ko": "2"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			list, files, err := extract(t, tt.file, tt.ar, Limits{})
			assert.NilError(t, err)
			assert.DeepEqual(t, list, tt.want)
			assert.DeepEqual(t, files, tt.files)
		})
	}
}

func TestExtractRefuses(t *testing.T) {
	t.Parallel()
	ko := member{name: main61 + "module/x.ko", content: strings.Repeat("ELF", 1000)}
	good := tarOf(t, mktarball(ko)...)
	with := func(more ...member) []byte { return tarOf(t, append(mktarball(ko), more...)...) }
	device := member{name: "./dev", change: func(h *tar.Header) { h.Typeflag = tar.TypeBlock }}
	fifo := member{name: "./fifo", change: func(h *tar.Header) { h.Typeflag = tar.TypeFifo }}
	bmdeb := func(members ...member) []byte { return []byte(debOf(t, mkbmdebControl, members...)) }
	inDeb := "./lib/modules/5.10.0-46-amd64/updates/dkms/x.ko"
	zeros := strings.Repeat("\x00", 4<<20)
	tests := []struct {
		name string
		ar   []byte
		lim  Limits
		err  string
	}{
		{"empty", nil, Limits{}, "the file is empty"},
		{"text", []byte(strings.Repeat("this is a text\n", 100)), Limits{}, "neither a tar archive nor a .deb"},
		{"short text", []byte("text"), Limits{}, "the archive ends early"},
		{"gzip of text", pack(t, "gz", []byte(strings.Repeat("this is a text\n", 100))), Limits{}, "neither a tar archive nor a .deb"},
		{"tar of nothing", tarOf(t), Limits{}, "it holds no kernel module"},
		{"no module", tarOf(t, mktarball(member{name: main61 + "log/make.log", content: "log"})...), Limits{}, "it holds no kernel module"},
		{"no name", tarOf(t, ko), Limits{}, "it does not say of which module it is"},
		{"version that is a path", tarOf(t, append(named("x", "../1"), ko)...), Limits{}, `names its module "x", version "../1"`},
		{"name that is a path", tarOf(t, append(named("/etc", "1"), ko)...), Limits{}, `names its module "/etc"`},
		{"name that is huge", tarOf(t, append(named(strings.Repeat("n", maxText+1), "1"), ko)...), Limits{}, "bytes, where at most 1048576"},
		{"absolute", with(member{name: "/etc/passwd"}), Limits{}, `member "/etc/passwd" has an absolute or unusable name`},
		{"absolute directory", with(dirMember("/etc/")), Limits{}, `member "/etc/" has an absolute`},
		{"dots", with(member{name: "../x"}), Limits{}, `member "../x" has a name that leads out`},
		{"dots for a module", with(member{name: "dkms_main_tree/../../module/x/y.ko"}), Limits{}, "leads out of the archive"},
		{"dots for a kernel", with(member{name: "dkms_main_tree/../x86_64/module/y.ko"}), Limits{}, "leads out of the archive"},
		{"dots in the source", with(member{name: "./dkms_source_tree/../../x"}), Limits{}, "leads out of the archive"},
		{"symbolic link", with(link(main61+"module/y.ko", "/etc/passwd", tar.TypeSymlink)), Limits{}, `y.ko" is a symbolic link to "/etc/passwd", not a regular file`},
		{"hard link", with(link(main61+"module/y.ko", "/etc/passwd", tar.TypeLink)), Limits{}, `is a hard link to "/etc/passwd"`},
		{"linked folder", tarOf(t, append(mktarball(link("./dkms_main_tree", "/tmp", tar.TypeSymlink)), ko)...), Limits{}, `member "./dkms_main_tree" is a symbolic link`},
		{"device", with(device), Limits{}, `member "./dev" is a device`},
		{"fifo", with(fifo), Limits{}, `member "./fifo" is a fifo`},
		{"twice", with(ko), Limits{}, "x.ko\" comes twice"},
		{"twice under two names", with(member{name: "dkms_main_tree//6.1.0-56-amd64/./x86_64/module/x.ko"}), Limits{}, "comes twice"},
		{"twice, compressed", with(member{name: main61 + "module/x.ko.xz"}), Limits{}, "comes twice"},
		{"two names", tarOf(t, append(mktarball(ko), named("x", "1")...)...), Limits{}, "PACKAGE_NAME\" comes twice"},
		{"module with a blank", with(member{name: main61 + "module/a b.ko"}), Limits{}, "no usable name for a module"},
		{"hidden module", with(member{name: main61 + "module/.ko"}), Limits{}, "no usable name for a module"},
		{"kernel with a blank", with(member{name: "dkms_main_tree/6.1 0/x86_64/module/y.ko"}), Limits{}, "not lie in a folder of a kernel"},
		{"architecture", with(member{name: "dkms_main_tree/6.1.0/X:Y/module/y.ko"}), Limits{}, "not lie in a folder of a kernel"},
		{"cut in a member", good[:3000], Limits{}, "the archive ends early"},
		{"cut behind a member", good[:len(good)-1024], Limits{}, "the tar archive has no end"},
		{"gzip cut", pack(t, "gz", good)[:100], Limits{}, "ends early"},
		{"gzip without checksum", pack(t, "gz", good)[:len(pack(t, "gz", good))-6], Limits{}, "ends early"},
		{"xz cut", pack(t, "xz", good)[:len(pack(t, "xz", good))-6], Limits{}, "ends early"},
		{"zstd cut", pack(t, "zst", good)[:len(pack(t, "zst", good))-2], Limits{}, "ends early"},
		{"too many members", with(), Limits{Members: 2}, "more than 2 members"},
		{"too large", pack(t, "gz", with(member{name: "x", content: zeros})), Limits{Bytes: 1 << 20}, "it unpacks to more than 1048576 bytes"},
		{"zeros after the end", pack(t, "xz", append(with(), zeros...)), Limits{Bytes: 1 << 20}, "it unpacks to more than 1048576 bytes"},
		{"large file", with(), Limits{File: 1000}, "x.ko\": it has 3000 bytes, where at most 1000"},
		{"deb without modules", bmdeb(member{name: "./usr/share/doc/x"}), Limits{}, "it holds no kernel module"},
		{"deb cut", bmdeb(member{name: inDeb})[:300], Limits{}, "not a usable .deb"},
		{"deb, dots", bmdeb(member{name: "./lib/modules/../../x.ko"}), Limits{}, "leads out of the archive"},
		{"deb, absolute", bmdeb(member{name: "/lib/modules/5/x.ko"}), Limits{}, "absolute"},
		{"deb, link", bmdeb(link(inDeb, "/etc/passwd", tar.TypeSymlink)), Limits{}, "is a symbolic link"},
		{"deb, linked folder", bmdeb(link("./lib", "/tmp", tar.TypeSymlink)), Limits{}, `member "./lib" is a symbolic link`},
		{"deb, twice", bmdeb(member{name: inDeb}, member{name: "./lib/modules/5.10.0-46-amd64/extra/x.ko"}), Limits{}, "comes twice"},
		{"deb, too large", bmdeb(member{name: inDeb}, member{name: "./x", content: zeros}), Limits{Bytes: 1 << 20}, "it unpacks to more than"},
		{"deb, too large in sum", bmdeb(member{name: inDeb}, member{name: "./x", content: zeros[:600_000]}, member{name: "./y", content: zeros[:600_000]}), Limits{Bytes: 1 << 20}, "it unpacks to more than"},
		{"deb of another kind", []byte(debOf(t, strings.Replace(strings.Replace(mkbmdebControl, "-modules-5", "-x-5", 1), "-dkms-bin", "", 1), member{name: inDeb})), Limits{}, "not of dkms mkbmdeb"},
		{"deb, any architecture", []byte(debOf(t, strings.Replace(mkbmdebControl, "amd64\nMain", "all\nMain", 1), member{name: inDeb})), Limits{}, "no architecture that modules could have"},
		{"deb, version", []byte(debOf(t, strings.Replace(mkbmdebControl, "0.43", "../..", 1), member{name: inDeb})), Limits{}, "no usable Version"},
		{"text called .deb in a tar", tarOf(t, member{name: "a/b.deb", content: "text"}), Limits{}, `member "a/b.deb": not a usable .deb`},
		{"deb in a tar, link", tarOf(t, member{name: "a/b.deb", content: string(bmdeb(link(inDeb, "x", tar.TypeLink)))}), Limits{}, "is a hard link"},
		{"deb in a tar, large", tarOf(t, member{name: "a/b.deb", content: zeros}), Limits{File: 1000}, `member "a/b.deb"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			list, files, err := extract(t, "archive", tt.ar, tt.lim)
			assert.ErrorContains(t, err, tt.err)
			assert.ErrorContains(t, err, "cannot extract modules from /")
			assert.Equal(t, len(list), 0)
			assert.Equal(t, len(files), 0, "something is left: %v", files)
		})
	}
}

func TestExtractRefusesItsSurroundings(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "x.tar")
	assert.NilError(t, os.WriteFile(path, tarOf(t, mktarball(member{name: main61 + "module/x.ko"})...), 0o644))
	_, err := Extract(t.Context(), filepath.Join(dir, "none"), dir, Limits{})
	assert.ErrorIs(t, err, fs.ErrNotExist)
	_, err = Extract(t.Context(), path, filepath.Join(dir, "none"), Limits{})
	assert.ErrorIs(t, err, fs.ErrNotExist)
	_, err = Extract(t.Context(), dir, dir, Limits{})
	assert.ErrorContains(t, err, "not a regular file")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Extract(ctx, path, dir, Limits{})
	assert.ErrorIs(t, err, context.Canceled)

	// What is there already is neither used nor removed; a link in its place leads nowhere.
	outside := t.TempDir()
	assert.NilError(t, os.Symlink(outside, filepath.Join(dir, "1")))
	_, err = Extract(t.Context(), path, dir, Limits{})
	assert.ErrorIs(t, err, fs.ErrExist)
	left, err := os.ReadDir(outside)
	assert.NilError(t, err)
	assert.Equal(t, len(left), 0)
	_, err = os.Lstat(filepath.Join(dir, "1"))
	assert.NilError(t, err)
}

func TestLiteral(t *testing.T) {
	t.Parallel()
	tests := []struct{ script, want string }{
		{"X=a", "a"},
		{"\tX=\"a b\"  # c", "a b"},
		{"X='$a'", "$a"},
		{"X=\"$a\"", ""},
		{"X=`a`", ""},
		{"X=a;b", ""},
		{"X=a\nX=b", ""},
		{"X=a\nX+=b", ""},
		{"X=a\n[ 1 ] && X=b", ""},
		{"X=a\nif true; then X=b; fi", ""},
		{"#X=a\nX=b", ""},
		{"Y=a", ""},
		{"", ""},
	}
	for _, tt := range tests {
		assert.Equal(t, literal(tt.script, "X"), tt.want, tt.script)
	}
}

// dialect is a tarball as tar(1) writes it, with a file that has holes and, where the
// dialect can, a long name.
func dialect(t testing.TB, args ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	module := filepath.Join(dir, main61, "module")
	assert.NilError(t, os.MkdirAll(module, 0o755))
	assert.NilError(t, os.WriteFile(filepath.Join(module, "x.ko"), []byte("ELF"), 0o644))
	assert.NilError(t, os.Truncate(filepath.Join(module, "x.ko"), 1<<16))
	assert.NilError(t, os.MkdirAll(filepath.Join(dir, "dkms_binaries_only"), 0o755))
	for name, text := range map[string]string{"PACKAGE_NAME": "x\n", "PACKAGE_VERSION": "1\n"} {
		assert.NilError(t, os.WriteFile(filepath.Join(dir, "dkms_binaries_only", name), []byte(text), 0o644))
	}
	if args[0] != "--format=v7" && args[0] != "--format=ustar" {
		assert.NilError(t, os.WriteFile(filepath.Join(dir, "dkms_binaries_only", strings.Repeat("long", 50)), nil, 0o644))
	}
	out, err := exec.Command("tar", append(args, "-C", dir, "-cf", "-", "dkms_main_tree", "dkms_binaries_only")...).Output()
	assert.NilError(t, err)
	return out
}

// dialects are those that tar(1) writes. Of a file with holes, as GNU has them in the
// header, we take nothing: dkms makes none.
var dialects = []struct {
	args []string
	err  string
}{
	{[]string{"--format=v7"}, ""},
	{[]string{"--format=oldgnu"}, ""},
	{[]string{"--format=oldgnu", "--sparse"}, "not a regular file"},
	{[]string{"--format=gnu"}, ""},
	{[]string{"--format=gnu", "--sparse"}, "not a regular file"},
	{[]string{"--format=ustar"}, ""},
	{[]string{"--format=posix"}, ""},
	{[]string{"--format=posix", "--sparse"}, ""},
	{[]string{"--format=posix", "--sparse", "--sparse-version=0.1"}, ""},
}

func TestExtractDialects(t *testing.T) {
	t.Parallel()
	for _, tt := range dialects {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			t.Parallel()
			list, files, err := extract(t, "archive", dialect(t, tt.args...), Limits{})
			if tt.err != "" {
				assert.ErrorContains(t, err, tt.err)
				return
			}
			assert.NilError(t, err)
			assert.Equal(t, len(list), 1)
			assert.Equal(t, list[0].Module, "x")
			assert.Equal(t, len(files["1/x.ko"]), 1<<16)
		})
	}
}

func FuzzExtract(f *testing.F) {
	ko := member{name: main61 + "module/x.ko", content: "ELF"}
	ar := tarOf(f, mktarball(ko, member{name: main61 + "module/Module.symvers"}, member{name: main61 + "log/make.log"})...)
	for _, format := range []string{"", "gz", "xz", "zst"} {
		f.Add(pack(f, format, ar))
	}
	f.Add(ar[:len(ar)-1024])
	f.Add(tarOf(f, mktarball(ko, link(main61+"module/y.ko", "/etc/passwd", tar.TypeSymlink))...))
	f.Add(tarOf(f, mktarball(ko, member{name: "../x"})...))
	deb := debOf(f, mkbmdebControl, member{name: "./lib/modules/5.10.0-46-amd64/updates/dkms/x.ko", content: "1"})
	f.Add([]byte(deb))
	f.Add(tarOf(f, member{name: "d/x.deb", content: deb}))
	for _, d := range dialects {
		f.Add(dialect(f, d.args...))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		list, files, err := extract(t, "M-1-kernel6.1.0-56-amd64-x86_64.dkms.tar.gz", content, Limits{Bytes: 1 << 20, Members: 100})
		if err != nil {
			assert.Equal(t, len(files), 0)
			return
		}
		assert.Assert(t, len(list) > 0)
		for i, a := range list {
			assert.Assert(t, a.Module != "" && a.Version != "" && a.Kernel != "" && a.Arch != "" && len(a.Files) > 0)
			for _, file := range a.Files {
				_, ok := files[file]
				assert.Assert(t, ok && strings.HasPrefix(file, fmt.Sprintf("%d/", i+1)))
			}
		}
	})
}
