package deb

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"gotest.tools/v3/assert"
)

const testControl = "Package: foo\nVersion: 1:1.0-1\nArchitecture: amd64\n" +
	"Maintainer: A B <ab@example.org>\nDescription: short\n long\n .\n more\n"

// run runs a tool of the system and returns what it prints.
func run(t *testing.T, argv ...string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	assert.NilError(t, err, "%s: %s", strings.Join(argv, " "), &stderr)
	return string(out)
}

// openBytes opens a .deb in memory.
func openBytes(b []byte) (*Archive, error) { return Open(bytes.NewReader(b), int64(len(b))) }

// contents lists what a tar holds: "file 0644 digest", "dir 0755".
func contents(tr *tar.Reader) (map[string]string, error) {
	got := make(map[string]string)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return got, nil
		}
		if err != nil {
			return nil, err
		}
		switch h.Typeflag {
		case tar.TypeDir:
			got[h.Name] = fmt.Sprintf("dir %04o", h.Mode)
		case tar.TypeReg:
			sum := sha256.New()
			if _, err := io.Copy(sum, tr); err != nil {
				return nil, err
			}
			got[h.Name] = fmt.Sprintf("file %04o %x", h.Mode, sum.Sum(nil)[:4])
		default:
			got[h.Name] = fmt.Sprintf("type %c", h.Typeflag)
		}
	}
}

func TestOpenFromDpkgDeb(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	assert.NilError(t, os.Chmod(root, 0o755))
	long := strings.Repeat("long-name-", 15)
	big := bytes.Repeat([]byte("some text that compresses well "), 200_000)
	for name, content := range map[string][]byte{
		"DEBIAN/control":               []byte(testControl),
		"usr/share/foo/a":              []byte("a\n"),
		"usr/share/foo/" + long:        []byte("long\n"),
		"usr/share/foo/big":            big,
		"usr/share/foo/not ascii é":    nil,
		"usr/share/foo/odd":            []byte("odd"),
		"usr/share/foo/sub/executable": []byte("#!/bin/sh\n"),
	} {
		p := filepath.Join(root, name)
		assert.NilError(t, os.MkdirAll(filepath.Dir(p), 0o755))
		assert.NilError(t, os.WriteFile(p, content, 0o644))
	}
	var want map[string]string
	for _, args := range []string{"-Znone", "-Zgzip", "-Zxz", "-Zxz -z9", "-Zzstd", "-Zzstd -z19"} {
		out := filepath.Join(t.TempDir(), "foo.deb")
		argv := append([]string{"dpkg-deb", "--root-owner-group"}, strings.Fields(args)...)
		run(t, append(argv, "--build", root, out)...)
		f, err := os.Open(out)
		assert.NilError(t, err)
		defer f.Close()
		fi, err := f.Stat()
		assert.NilError(t, err)
		a, err := Open(f, fi.Size())
		assert.NilError(t, err, args)
		control, err := a.Control()
		assert.NilError(t, err, args)
		var b bytes.Buffer
		_, err = control.WriteTo(&b)
		assert.NilError(t, err)
		assert.Equal(t, b.String(), testControl)
		tr, c, err := a.Data(1 << 30)
		assert.NilError(t, err, args)
		got, err := contents(tr)
		assert.NilError(t, err, args)
		assert.NilError(t, c.Close())
		if want == nil {
			want = got
			assert.Equal(t, got["./usr/share/foo/a"][:9], "file 0644")
			assert.Equal(t, got["./usr/share/foo/"], "dir 0755")
		}
		assert.DeepEqual(t, got, want)
	}
}

// The parts of a .deb built by hand.

type rawMember struct {
	name    string
	content []byte
	size    string // overrides the true size
}

func rawAr(members ...rawMember) []byte {
	var b bytes.Buffer
	b.WriteString(arMagic)
	for _, m := range members {
		size := m.size
		if size == "" {
			size = fmt.Sprint(len(m.content))
		}
		fmt.Fprintf(&b, "%-16s%-12d%-6d%-6d%-8o%-10s%s", m.name, 0, 0, 0, 0o100644, size, arHeaderEnd)
		b.Write(m.content)
		if len(m.content)%2 != 0 {
			b.WriteByte('\n')
		}
	}
	return b.Bytes()
}

func rawTar(headers ...tar.Header) []byte {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range headers {
		content := h.Linkname
		if h.Typeflag == 0 {
			h.Typeflag, h.Linkname, h.Size = tar.TypeReg, "", int64(len(content))
		}
		if err := tw.WriteHeader(&h); err != nil {
			panic(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(tw, content); err != nil {
				panic(err)
			}
		}
	}
	if err := tw.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// textFile is a regular file for rawTar, which takes its content from Linkname.
func textFile(name, content string) tar.Header {
	return tar.Header{Name: name, Linkname: content, Mode: 0o644}
}

func pack(w io.WriteCloser, err error, b *bytes.Buffer, content []byte) []byte {
	if err == nil {
		_, err = w.Write(content)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err)
	}
	return b.Bytes()
}

func gz(content []byte) []byte {
	var b bytes.Buffer
	return pack(gzip.NewWriter(&b), nil, &b, content)
}

func xzs(content []byte, args ...string) []byte {
	cmd := exec.Command("xz", append([]string{"-c"}, args...)...)
	cmd.Stdin = bytes.NewReader(content)
	packed, err := cmd.Output()
	if err != nil {
		panic(err)
	}
	return packed
}

func zst(content []byte) []byte {
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1))
	return pack(w, err, &b, content)
}

var (
	rawBinary  = rawMember{name: "debian-binary", content: []byte("2.0\n")}
	rawControl = rawMember{name: "control.tar", content: rawTar(textFile("./control", testControl))}
	rawData    = rawMember{name: "data.tar", content: rawTar(textFile("./a", "a\n"))}
)

func TestOpen(t *testing.T) {
	t.Parallel()
	good := rawAr(rawBinary, rawControl, rawData)
	xzControl := xzs(rawControl.content)
	for _, tc := range []struct {
		name string
		deb  []byte
		err  string // of Open or Control; "" for none
	}{
		{name: "plain", deb: good},
		{name: "names with slash", deb: rawAr(
			rawMember{name: "debian-binary/", content: []byte("2.0\n")},
			rawMember{name: "control.tar/", content: rawControl.content},
			rawMember{name: "data.tar/", content: rawData.content},
		)},
		{name: "later minor version", deb: rawAr(rawMember{name: "debian-binary", content: []byte("2.17\nmore\n")}, rawControl, rawData)},
		{name: "ignored members", deb: rawAr(
			rawBinary, rawMember{name: "_x", content: []byte("odd")},
			rawControl, rawMember{name: "_y"}, rawData, rawMember{name: "zzz"},
		)},
		{name: "garbage after data", deb: append(bytes.Clone(good), "garbage"...)},
		{name: "control without ./", deb: rawAr(rawBinary, rawMember{name: "control.tar", content: rawTar(textFile("control", testControl))}, rawData)},
		{name: "empty", deb: nil, err: "ends within its first 8 bytes"},
		{name: "foreign", deb: []byte("PK\x03\x04 this is a zip file"), err: "it is no ar archive"},
		{name: "old format", deb: []byte("0.939000\n"), err: "format is that of before 1995"},
		{name: "only the magic", deb: []byte(arMagic), err: "ends before debian-binary"},
		{name: "ends in a header", deb: good[:40], err: "truncated ar header"},
		{name: "ends in debian-binary", deb: good[:70], err: `"debian-binary" is truncated`},
		{name: "ends in control", deb: good[:200], err: `"control.tar" is truncated`},
		{name: "ends in data", deb: good[:len(good)-1], err: `"data.tar" is truncated`},
		{name: "no data", deb: rawAr(rawBinary, rawControl), err: "ends before data.tar"},
		{name: "no control", deb: rawAr(rawBinary, rawData), err: `member "data.tar" where control.tar should be`},
		{name: "no debian-binary", deb: rawAr(rawControl, rawData), err: `the first member is "control.tar"`},
		{name: "control twice", deb: rawAr(rawBinary, rawControl, rawControl, rawData), err: `member "control.tar" where data.tar should be`},
		{name: "unknown member", deb: rawAr(rawBinary, rawMember{name: "evil"}, rawControl, rawData), err: `member "evil"`},
		{name: "BSD long name", deb: rawAr(rawBinary, rawMember{name: "#1/12", content: []byte("control.tar\x00x")}, rawData), err: `member "#1/12"`},
		{name: "like control.tar", deb: rawAr(rawBinary, rawMember{name: "control.tarx"}, rawData), err: `member "control.tarx"`},
		{name: "format 3", deb: rawAr(rawMember{name: "debian-binary", content: []byte("3.0\n")}, rawControl, rawData), err: `holds "3.0", not 2.0`},
		{name: "format 2", deb: rawAr(rawMember{name: "debian-binary", content: []byte("2\n")}, rawControl, rawData), err: "not 2.0"},
		{name: "format without end", deb: rawAr(rawMember{name: "debian-binary", content: []byte("2.0")}, rawControl, rawData), err: "not 2.0"},
		{name: "size overflow", deb: rawAr(rawBinary, rawMember{name: "control.tar", size: "9999999999"}), err: `"control.tar" is truncated`},
		{name: "negative size", deb: rawAr(rawBinary, rawMember{name: "control.tar", size: "-60"}), err: "invalid size"},
		{name: "hex size", deb: rawAr(rawBinary, rawMember{name: "control.tar", size: "0x10"}), err: "invalid size"},
		{name: "no size", deb: rawAr(rawBinary, rawMember{name: "control.tar", size: " "}), err: "invalid size"},
		{name: "damaged header", deb: bytes.Replace(good, []byte("`\n"), []byte("`x"), 1), err: "damaged ar header"},
		{name: "too many members", deb: rawAr(append([]rawMember{rawBinary}, manyMembers(1000)...)...), err: "more than 64 members"},

		{name: "unknown compression", deb: rawAr(rawBinary, rawMember{name: "control.tar.lzma"}, rawData), err: `compression ".lzma" is not supported`},
		{name: "no gzip", deb: rawAr(rawBinary, rawMember{name: "control.tar.gz", content: []byte("plain text, no gzip")}, rawData), err: "cannot read control.tar.gz"},
		{name: "truncated gzip", deb: rawAr(rawBinary, rawMember{name: "control.tar.gz", content: chop(gz(rawControl.content), 9)}, rawData), err: "unexpected EOF"},
		{name: "gzip checksum", deb: rawAr(rawBinary, rawMember{name: "control.tar.gz", content: flip(gz(rawControl.content), -8)}, rawData), err: "checksum"},
		{name: "truncated xz", deb: rawAr(rawBinary, rawMember{name: "control.tar.xz", content: chop(xzControl, 13)}, rawData), err: "truncated"},
		{name: "no xz", deb: rawAr(rawBinary, rawMember{name: "control.tar.xz", content: []byte("plain text, no xz")}, rawData), err: "format not recognized"},
		{name: "xz index", deb: rawAr(rawBinary, rawMember{name: "control.tar.xz", content: flip(xzControl, -20)}, rawData), err: "corrupt"},
		{name: "xz footer", deb: rawAr(rawBinary, rawMember{name: "control.tar.xz", content: flip(xzControl, -1)}, rawData), err: "corrupt"},
		{name: "after xz", deb: rawAr(rawBinary, rawMember{name: "control.tar.xz", content: append(bytes.Clone(xzControl), "more"...)}, rawData), err: "cannot read control.tar.xz"},
		{name: "truncated zstd", deb: rawAr(rawBinary, rawMember{name: "control.tar.zst", content: chop(zst(rawControl.content), 9)}, rawData), err: "cannot read control.tar.zst"},
		{name: "no zstd", deb: rawAr(rawBinary, rawMember{name: "control.tar.zst", content: []byte("plain text, no zstd")}, rawData), err: "cannot read control.tar.zst"},

		{name: "no control file", deb: rawAr(rawBinary, rawMember{name: "control.tar", content: rawTar(textFile("./md5sums", ""))}, rawData), err: "no control file"},
		{name: "empty control.tar", deb: rawAr(rawBinary, rawMember{name: "control.tar"}, rawData), err: "no control file"},
		{name: "two control files", deb: rawAr(rawBinary, rawMember{name: "control.tar", content: rawTar(textFile("./control", testControl), textFile("control", testControl))}, rawData), err: "control is there twice"},
		{name: "control is a link", deb: rawAr(rawBinary, rawMember{name: "control.tar", content: rawTar(tar.Header{Name: "./control", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"})}, rawData), err: "control is not a regular file"},
		{name: "control is huge", deb: rawAr(rawBinary, rawMember{name: "control.tar.gz", content: gz(rawTar(textFile("./control", strings.Repeat("A", maxControl+1))))}, rawData), err: "more than 1048576"},
		{name: "control of two stanzas", deb: rawAr(rawBinary, rawMember{name: "control.tar", content: rawTar(textFile("./control", testControl+"\nPackage: bar\n"))}, rawData), err: "more than one stanza"},
		{name: "gzip bomb", deb: rawAr(rawBinary, rawMember{name: "control.tar.gz", content: gz(bomb())}, rawData), err: "it unpacks to more than 33554432 bytes"},
		{name: "gzip bomb after the tar", deb: rawAr(rawBinary, rawMember{name: "control.tar.gz", content: gz(append(bytes.Clone(rawControl.content), make([]byte, maxControlTar)...))}, rawData), err: "it unpacks to more than 33554432 bytes"},
		{name: "zstd bomb", deb: rawAr(rawBinary, rawMember{name: "control.tar.zst", content: zst(bomb())}, rawData), err: "it unpacks to more than 33554432 bytes"},
		{name: "xz dictionary", deb: rawAr(rawBinary, rawMember{name: "control.tar.xz", content: xzDict(xzControl, 40)}, rawData), err: "dictionary size exceeds"},
		{name: "xz bomb", deb: rawAr(rawBinary, rawMember{name: "control.tar.xz", content: xzs(bomb())}, rawData), err: "it unpacks to more than 33554432 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			a, err := openBytes(tc.deb)
			if err == nil {
				_, err = a.Control()
			}
			if tc.err == "" {
				assert.NilError(t, err)
				return
			}
			assert.ErrorContains(t, err, tc.err)
		})
	}
}

func manyMembers(n int) []rawMember {
	m := make([]rawMember, n)
	for i := range m {
		m[i].name = "_x"
	}
	return m
}

func chop(b []byte, n int) []byte { return b[:len(b)-n] }

// flip changes a byte, counted from the end if i is negative.
func flip(b []byte, i int) []byte {
	b = bytes.Clone(b)
	b[(i+len(b))%len(b)] ^= 0x55
	return b
}

// xzDict gives the first block of an xz stream another dictionary size: there
// stand the ID of the filter, the length of its properties, and those.
func xzDict(b []byte, bits byte) []byte {
	const lzma2 = 0x21
	b = bytes.Clone(b)
	head := b[12 : 12+(int(b[12])+1)*4]
	i := bytes.Index(head, []byte{lzma2, 1})
	head[i+2] = bits
	binary.LittleEndian.PutUint32(head[len(head)-4:], crc32.ChecksumIEEE(head[:len(head)-4]))
	return b
}

// bomb is a tar of zeros, of small size once packed.
func bomb() []byte {
	return rawTar(textFile("./bomb", strings.Repeat("\x00", maxControlTar)), textFile("./control", testControl))
}

func TestDataOfUnknownCompression(t *testing.T) {
	t.Parallel()
	a, err := openBytes(rawAr(rawBinary, rawControl, rawMember{name: "data.tar.bz2"}))
	assert.NilError(t, err)
	_, _, err = a.Data(1 << 30)
	assert.Error(t, err, `cannot read data.tar.bz2: compression ".bz2" is not supported`)
}

// Streams of the real xz: all presets and checks, filters, several blocks.
func TestXZ(t *testing.T) {
	t.Parallel()
	content := make([]byte, 3<<20)
	for i := range content {
		content[i] = byte(i * i >> 7)
	}
	tarball := rawTar(textFile("md5sums", string(content)), textFile("control", testControl))
	control := func(packed []byte) error {
		a, err := openBytes(rawAr(rawBinary, rawMember{name: "control.tar.xz", content: packed}, rawData))
		if err == nil {
			_, err = a.Control()
		}
		return err
	}
	for _, args := range []string{"-0", "-6", "-9", "-T2 --block-size=1MiB", "-C none", "-C crc32", "-C sha256", "--block-size=100000 -C crc64", "--x86 --lzma2"} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			packed := xzs(tarball, strings.Fields(args)...)
			assert.NilError(t, control(packed))
			for _, cut := range []int{1, 5, 20, len(packed) / 2, len(packed) - 3} {
				assert.Assert(t, control(chop(packed, cut)) != nil, "cut by %d", cut)
			}
		})
	}
}

func FuzzOpen(f *testing.F) {
	for _, suffix := range []string{"", ".gz", ".xz", ".zst"} {
		content := rawControl.content
		switch suffix {
		case ".gz":
			content = gz(content)
		case ".xz":
			content = xzs(content, "-C", "none") // what is changed in it passes for data
		case ".zst":
			content = zst(content)
		}
		f.Add(rawAr(rawBinary, rawMember{name: "control.tar" + suffix, content: content}, rawData))
		f.Add(rawAr(rawBinary, rawControl, rawMember{name: "data.tar" + suffix, content: content}))
	}
	f.Add([]byte(arMagic))
	f.Fuzz(func(t *testing.T, deb []byte) {
		a, err := openBytes(deb)
		if err != nil {
			return
		}
		if s, err := a.Control(); err == nil {
			if _, err := s.WriteTo(io.Discard); err != nil {
				t.Fatalf("%q cannot be written: %v", s, err)
			}
		}
		tr, c, err := a.Data(1 << 30)
		if err != nil {
			return
		}
		defer c.Close()
		for range 100 {
			if _, err := tr.Next(); err != nil {
				return
			}
			if _, err := io.CopyN(io.Discard, tr, 1<<20); err != nil && !errors.Is(err, io.EOF) {
				return
			}
		}
	})
}

// A hostile dictionary must not be allocated.
func TestXZMemory(t *testing.T) {
	deb := rawAr(rawBinary, rawMember{name: "control.tar.xz", content: xzDict(xzs(rawControl.content), 39)}, rawData)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	a, err := openBytes(deb)
	assert.NilError(t, err)
	_, err = a.Control()
	assert.ErrorContains(t, err, "dictionary size exceeds")
	runtime.ReadMemStats(&after)
	assert.Assert(t, after.TotalAlloc-before.TotalAlloc < 16<<20)
}

func BenchmarkControl(b *testing.B) {
	for _, compression := range []string{"none", "gzip", "xz", "zstd"} {
		b.Run(compression, func(b *testing.B) {
			root := b.TempDir()
			assert.NilError(b, os.Chmod(root, 0o755))
			assert.NilError(b, os.Mkdir(filepath.Join(root, "DEBIAN"), 0o755))
			text := "Package: foo\nVersion: 1\nArchitecture: amd64\nMaintainer: A B <ab@example.org>\nDescription: short\n" + strings.Repeat(" of some length\n", 50)
			assert.NilError(b, os.WriteFile(filepath.Join(root, "DEBIAN", "control"), []byte(text), 0o644))
			path := filepath.Join(b.TempDir(), "foo.deb")
			out, err := exec.Command("dpkg-deb", "-Z"+compression, "--root-owner-group", "--build", root, path).CombinedOutput()
			assert.NilError(b, err, string(out))
			content, err := os.ReadFile(path)
			assert.NilError(b, err)
			b.ReportAllocs()
			for b.Loop() {
				a, err := Open(bytes.NewReader(content), int64(len(content)))
				assert.NilError(b, err)
				_, err = a.Control()
				assert.NilError(b, err)
			}
		})
	}
}
