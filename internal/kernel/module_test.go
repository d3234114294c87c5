package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"gotest.tools/v3/assert"
)

const magic61 = "vermagic=6.1.0-56-amd64 SMP preempt mod_unload modversions "

func signed(ko []byte, signature string) []byte {
	out := append(bytes.Clone(ko), signature...)
	out = append(out, 0, 0, 2, 0, 0, 0, 0, 0)
	out = binary.BigEndian.AppendUint32(out, uint32(len(signature)))
	return append(out, "~Module signature appended~\n"...)
}

func compressed(t testing.TB, format string, plain []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var err error
	switch format {
	case "gz":
		w := gzip.NewWriter(&b)
		_, err = w.Write(plain)
		assert.NilError(t, err)
		err = w.Close()
	case "xz":
		cmd := exec.Command("xz", "-c")
		cmd.Stdin, cmd.Stdout = bytes.NewReader(plain), &b
		err = cmd.Run()
	case "zst":
		w, e := zstd.NewWriter(&b)
		assert.NilError(t, e)
		_, err = w.Write(plain)
		assert.NilError(t, err)
		err = w.Close()
	default:
		return plain
	}
	assert.NilError(t, err)
	return b.Bytes()
}

func writeFile(t testing.TB, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	assert.NilError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	assert.NilError(t, os.WriteFile(path, content, 0o644))
	return path
}

func TestReadModule(t *testing.T) {
	t.Parallel()
	source := testModule{
		info: []string{
			"version=0.12.7", "license=GPL", "depends=videodev,mc", "name=v4l2loopback", "", magic61,
			"vermagic=of the second one", "nothing",
		},
		imports: []string{"printk", "kmalloc"},
		weak:    []string{"maybe"},
		exports: []string{"mine"},
	}
	tests := []struct {
		arch, file string
		sign       bool
	}{
		{"amd64", "v4l2loopback.ko", false},
		{"amd64", "v4l2loopback.ko", true},
		{"amd64", "v4l2loopback.ko.gz", false},
		{"amd64", "v4l2loopback.ko.xz", true},
		{"amd64", "v4l2loopback.ko.zst", true},
		{"i386", "v4l2loopback.ko", false},
		{"armhf", "v4l2loopback.ko.xz", false},
		{"s390x", "v4l2loopback.ko", true},
		{"riscv64", "v4l2loopback.ko", false},
	}
	for _, tt := range tests {
		t.Run(tt.arch+" "+tt.file, func(t *testing.T) {
			t.Parallel()
			m := source
			m.arch = tt.arch
			ko := m.build(t)
			if tt.sign {
				ko = signed(ko, "a signature")
			}
			path := writeFile(t, tt.file, compressed(t, strings.TrimPrefix(filepath.Ext(tt.file), "."), ko))
			got, err := ReadModule(path)
			assert.NilError(t, err)
			arch, _ := ArchOfDebian(tt.arch)
			assert.DeepEqual(t, got, Module{
				Path: path, Name: "v4l2loopback", License: "GPL", Version: "0.12.7",
				Vermagic: strings.TrimPrefix(magic61, "vermagic="),
				Depends:  []string{"videodev", "mc"},
				Machine:  arch.Machine, Class: arch.Class, Data: arch.Data,
				Imports: []Import{{"printk", false}, {"kmalloc", false}, {"maybe", true}},
				Signed:  tt.sign,
			})
		})
	}
}

func TestReadModuleNamesItselfByFile(t *testing.T) {
	t.Parallel()
	m, err := ReadModule(writeFile(t, "snd-x.ko.gz", compressed(t, "gz", module("license=GPL").build(t))))
	assert.NilError(t, err)
	assert.Equal(t, m.Name, "snd_x")
	assert.Equal(t, m.Vermagic, "")
}

// patch changes a good module.
func patch(t testing.TB, change func(ko []byte)) []byte {
	ko := testModule{info: []string{magic61}, imports: []string{"printk"}}.build(t)
	change(ko)
	return ko
}

func TestReadModuleRefuses(t *testing.T) {
	t.Parallel()
	le := binary.LittleEndian
	good := patch(t, func([]byte) {})
	longName := bytes.Repeat([]byte("n"), maxName+1)
	// An xz stream whose first block asks for a dictionary of 4 GiB - 1: flags, LZMA2, one byte, 40.
	block := []byte{2, 0, 0x21, 1, 40, 0, 0, 0}
	hugeWindow := le.AppendUint32(append([]byte("\xfd7zXZ\x00\x00\x01\x69\x22\xde\x36"), block...), crc32.ChecksumIEEE(block))
	tests := []struct {
		name    string
		content []byte
		err     string
	}{
		{"empty", nil, "empty file"},
		{"text", []byte("not a module at all"), "not an ELF file"},
		{"short", []byte("\x7fELF"), "not an ELF file"},
		{"header cut", good[:40], "truncated"},
		{"sections cut", good[:len(good)-10], "truncated"},
		{"gzip cut", compressed(t, "gz", good)[:60], "cannot decompress (gzip): unexpected EOF"},
		{"xz cut", compressed(t, "xz", good)[:60], "cannot decompress (xz): unexpected EOF"},
		{"zstd cut", compressed(t, "zst", good)[:60], "cannot decompress (zstd): unexpected EOF"},
		{"gzip of text", compressed(t, "gz", []byte("text")), "not an ELF file"},
		{"gzip of nothing", compressed(t, "gz", nil), "not an ELF file"},
		{"gzip magic only", []byte{0x1f, 0x8b}, "cannot decompress (gzip): unexpected EOF"},
		{"gzip twice", compressed(t, "gz", compressed(t, "gz", good)), "not an ELF file"},
		{"xz window", hugeWindow, "cannot decompress (xz): xz: LZMA2 dictionary size exceeds max"},
		{"class", patch(t, func(ko []byte) { ko[elf.EI_CLASS] = 9 }), "unknown class 9"},
		{"byte order", patch(t, func(ko []byte) { ko[elf.EI_DATA] = 0 }), "unknown byte order 0"},
		{"executable", patch(t, func(ko []byte) { le.PutUint16(ko[16:], uint16(elf.ET_EXEC)) }), "not a kernel module: ELF type ET_EXEC"},
		{"no section headers", patch(t, func(ko []byte) { le.PutUint64(ko[40:], 0) }), "no section headers"},
		{"section headers at the end of time", patch(t, func(ko []byte) { le.PutUint64(ko[40:], math.MaxUint64-8) }), "truncated"},
		{"section headers of 0 bytes", patch(t, func(ko []byte) { le.PutUint16(ko[58:], 0) }), "section headers of 0 bytes"},
		{"65,535 sections", patch(t, func(ko []byte) { le.PutUint16(ko[60:], 0xffff) }), "truncated"},
		{"many sections", patch(t, func(ko []byte) {
			le.PutUint16(ko[60:], 0)
			le.PutUint64(sectionField(ko, 0, 32), math.MaxUint64)
		}), "18446744073709551615 sections"},
		{"no sections", patch(t, func(ko []byte) { le.PutUint16(ko[60:], 0) }), "0 sections"},
		{"names outside", patch(t, func(ko []byte) { le.PutUint16(ko[62:], 77) }), "section names in section 77 of 5"},
		{"name outside", patch(t, func(ko []byte) { le.PutUint32(sectionField(ko, 1, 0), 1<<31) }), "name of section 1: lies at"},
		{"names compressed", patch(t, func(ko []byte) { le.PutUint64(sectionField(ko, 4, 8), uint64(elf.SHF_COMPRESSED)) }), "section names: is compressed"},
		{"modinfo compressed", patch(t, func(ko []byte) { le.PutUint64(sectionField(ko, 1, 8), uint64(elf.SHF_COMPRESSED)) }), "section .modinfo: is compressed"},
		{"modinfo huge", patch(t, func(ko []byte) { le.PutUint64(sectionField(ko, 1, 32), 1<<62) }), "section .modinfo: 4611686018427387904 bytes, where at most"},
		{"modinfo outside", patch(t, func(ko []byte) { le.PutUint64(sectionField(ko, 1, 24), 1<<62) }), "section .modinfo: truncated"},
		{"modinfo empty of bytes", patch(t, func(ko []byte) { le.PutUint32(sectionField(ko, 1, 4), uint32(elf.SHT_NOBITS)) }), "section .modinfo: has no bytes"},
		{"no modinfo", patch(t, func(ko []byte) { le.PutUint32(sectionField(ko, 1, 0), 0) }), "no section .modinfo"},
		{"no symbols", patch(t, func(ko []byte) { le.PutUint32(sectionField(ko, 2, 4), uint32(elf.SHT_PROGBITS)) }), "no symbol table"},
		{"symbols of odd size", patch(t, func(ko []byte) { le.PutUint64(sectionField(ko, 2, 32), 25) }), "not a multiple of 24"},
		{"symbol names nowhere", patch(t, func(ko []byte) { le.PutUint32(sectionField(ko, 2, 40), 99) }), "names in section 99 of 5"},
		{"symbol name outside", patch(t, func(ko []byte) { le.PutUint64(sectionField(ko, 3, 32), 1) }), "name of symbol 1"},
		{"symbol name too long", testModule{info: []string{magic61}, imports: []string{string(longName)}}.build(t), "too long"},
		{"signature longer than the file", append(good, "\x00\x00\x02\x00\x00\x00\x00\x00\xff\xff\xff\xff~Module signature appended~\n"...), "module signature of 4294967295 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := writeFile(t, "x.ko", tt.content)
			_, err := ReadModule(path)
			assert.ErrorContains(t, err, tt.err)
			assert.ErrorContains(t, err, "cannot read module "+path+": ")
		})
	}
}

func TestReadModuleRefusesOtherFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, err := ReadModule(dir)
	assert.ErrorContains(t, err, "not a regular file")
	fifo := filepath.Join(dir, "x.ko")
	assert.NilError(t, syscall.Mkfifo(fifo, 0o600))
	_, err = ReadModule(fifo)
	assert.ErrorContains(t, err, "not a regular file")
	_, err = ReadModule(filepath.Join(dir, "none.ko"))
	assert.Error(t, err, "cannot read module "+dir+"/none.ko: no such file or directory")
	assert.ErrorIs(t, err, os.ErrNotExist)
}

func TestTrimSignature(t *testing.T) {
	t.Parallel()
	ko := module(magic61).build(t)
	for range 3 {
		rest, was, err := TrimSignature(ko)
		assert.NilError(t, err)
		assert.Assert(t, bytes.Equal(rest, module(magic61).build(t)))
		assert.Equal(t, was, len(ko) != len(rest))
		ko = signed(ko, "one more")
	}
	_, _, err := TrimSignature([]byte("short"))
	assert.NilError(t, err)
}

func FuzzReadModule(f *testing.F) {
	for _, arch := range []string{"amd64", "i386", "s390x"} {
		ko := testModule{arch: arch, info: []string{magic61, "depends=a,b"}, imports: []string{"printk"}, weak: []string{"w"}}.build(f)
		f.Add(ko)
		f.Add(ko[:len(ko)-30])
		f.Add(signed(ko, "signature"))
		for _, format := range []string{"gz", "xz", "zst"} {
			f.Add(compressed(f, format, ko))
		}
	}
	for _, form := range []string{"fixed", "chained", "extended"} {
		f.Add(testModule{info: []string{magic61}, imports: []string{"_printk"}, more: versionsOf(f, "amd64", form, "module_layout", 1, "_printk", 2)}.build(f))
	}
	for _, layout := range []string{"5.10", "6.1", "7.2", "stripped"} {
		f.Add(exporting(f, "amd64", layout).build(f))
	}
	target := testTarget(f)
	f.Fuzz(func(t *testing.T, content []byte) {
		m, err := parseModule("x.ko", bytes.NewReader(content), int64(len(content)))
		if err != nil {
			return
		}
		_, _ = target.Check(m)
	})
}

// FuzzDecompress: whatever a file is packed with, what comes out is what the format's own end
// vouches for, or an error.
func FuzzDecompress(f *testing.F) {
	plain := []byte(strings.Repeat("some text, ", 100))
	for _, format := range []string{"gz", "xz", "zst", ""} {
		packed := compressed(f, format, plain)
		f.Add(packed)
		f.Add(append(bytes.Clone(packed), packed...)) // streams may follow each other
		f.Add(packed[:len(packed)/2])
	}
	f.Add([]byte("BZh91AY&SY\x17rE8P\x90\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, content []byte) {
		r, err := Decompress(bytes.NewReader(content))
		if err != nil {
			return
		}
		n, err := io.Copy(io.Discard, io.LimitReader(r, 16<<20))
		if formatOf(content) == "" {
			assert.NilError(t, err)
			assert.Equal(t, n, int64(len(content)))
		}
		if closed := r.Close(); err == nil {
			assert.NilError(t, closed)
		}
	})
}
