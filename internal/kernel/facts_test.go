package kernel

import (
	"debug/elf"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"gotest.tools/v3/assert"
)

// buildDir makes a kernel build directory of files, given as name and content.
func buildDir(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		assert.NilError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		assert.NilError(t, os.WriteFile(path, []byte(content), 0o644))
	}
	return dir
}

const (
	uts  = "include/generated/utsrelease.h"
	auto = "include/config/auto.conf"
)

func define(release string) string { return "#define UTS_RELEASE \"" + release + "\"\n" }

func TestReadFacts(t *testing.T) {
	t.Parallel()
	x86 := "CONFIG_X86=y\nCONFIG_X86_64=y\nCONFIG_64BIT=y\nCONFIG_SMP=y\nCONFIG_MODULE_UNLOAD=y\n"
	amd64 := Facts{Arch: "amd64", Machine: elf.EM_X86_64, Class: elf.ELFCLASS64, Data: elf.ELFDATA2LSB}
	with := func(f Facts, change func(*Facts)) Facts { change(&f); return f }
	tests := []struct {
		name  string
		files map[string]string
		want  Facts
	}{
		{
			"bookworm, where kernel.release is not the release",
			map[string]string{
				uts: define("6.1.0-56-amd64"), "include/config/kernel.release": "6.1.192\n",
				auto: "#\n# Automatically generated file; DO NOT EDIT.\n#\n" + x86 +
					"CONFIG_PREEMPT_BUILD=y\nCONFIG_PREEMPT_VOLUNTARY=y\nCONFIG_MODVERSIONS=y\nCONFIG_MODULE_SIG=y\n" +
					"CONFIG_MODULE_SIG_HASH=sha256\nCONFIG_MODULE_COMPRESS_NONE=y\n" +
					"CONFIG_CC_VERSION_TEXT=gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0\n",
			},
			with(amd64, func(f *Facts) {
				f.Release, f.Vermagic = "6.1.0-56-amd64", "6.1.0-56-amd64 SMP preempt mod_unload modversions "
				f.Modversions, f.SigHash, f.Compiler = true, "sha256", "gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0"
			}),
		},
		{
			"trixie's RT kernel, with both kinds of preemption, and .xz",
			map[string]string{
				uts: define("6.12.117+deb13-rt-amd64"),
				auto: x86 + "CONFIG_PREEMPT_BUILD=y\nCONFIG_PREEMPT_RT=y\nCONFIG_MODVERSIONS=y\nCONFIG_MODULE_COMPRESS=y\n" +
					"CONFIG_MODULE_COMPRESS_XZ=y\nCONFIG_MODULE_COMPRESS_ALL=y\nCONFIG_MODULE_DECOMPRESS=y\n",
			},
			with(amd64, func(f *Facts) {
				f.Release, f.Vermagic = "6.12.117+deb13-rt-amd64", "6.12.117+deb13-rt-amd64 SMP preempt_rt mod_unload modversions "
				f.Modversions, f.Compression, f.eitherPreempt = true, "xz", true
			}),
		},
		{
			"compression that may be, but is not made",
			map[string]string{
				uts:  define("6.14.0"),
				auto: x86 + "CONFIG_MODULE_COMPRESS=y\nCONFIG_MODULE_COMPRESS_ZSTD=y\nCONFIG_MODULE_DECOMPRESS=y\n",
			},
			with(amd64, func(f *Facts) { f.Release, f.Vermagic = "6.14.0", "6.14.0 SMP mod_unload " }),
		},
		{
			"zst, quoted strings, .config and kernel.release only",
			map[string]string{
				"include/config/kernel.release": "5.15.0-94-generic\n",
				".config": "CONFIG_CC_VERSION_TEXT=\"gcc (Ubuntu 11.4.0) \\\"x\\\"\"\n" + x86 + "# CONFIG_PREEMPT is not set\n" +
					"CONFIG_MODULE_COMPRESS_ZSTD=y\n",
			},
			with(amd64, func(f *Facts) {
				f.Release, f.Vermagic = "5.15.0-94-generic", "5.15.0-94-generic SMP mod_unload "
				f.Compression, f.Compiler = "zst", `gcc (Ubuntu 11.4.0) "x"`
			}),
		},
		{
			"old preempt, i386",
			map[string]string{
				uts: define("4.9.0-19-686"), auto: "CONFIG_X86=y\nCONFIG_X86_32=y\nCONFIG_M686=y\nCONFIG_PREEMPT=y\n",
			},
			Facts{
				Release: "4.9.0-19-686", Vermagic: "4.9.0-19-686 preempt ",
				Arch: "i386", Machine: elf.EM_386, Class: elf.ELFCLASS32, Data: elf.ELFDATA2LSB,
			},
		},
		{
			"an architecture not known here",
			map[string]string{uts: define("6.1.0"), auto: "CONFIG_XTENSA=y\n"},
			Facts{Release: "6.1.0", Vermagic: "6.1.0 "},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := ReadFacts(buildDir(t, tt.files))
			assert.NilError(t, err)
			assert.Equal(t, got, tt.want)
		})
	}
}

func TestReadFactsRefuses(t *testing.T) {
	t.Parallel()
	conf := "CONFIG_X86_64=y\n"
	tests := []struct {
		name  string
		files map[string]string
		err   string
	}{
		{"empty", nil, "neither include/generated/utsrelease.h nor include/config/kernel.release is there"},
		{"no config", map[string]string{uts: define("6.1.0")}, "neither include/config/auto.conf nor .config is there"},
		{"no define", map[string]string{uts: "#define X\n", auto: conf}, "does not define UTS_RELEASE"},
		{"path as release", map[string]string{uts: define("../../etc"), auto: conf}, "no usable kernel release"},
		{"two words", map[string]string{uts: define("6.1.0 SMP"), auto: conf}, "no usable kernel release"},
		{"too long", map[string]string{uts: define(strings.Repeat("6", maxRelease+1)), auto: conf}, "no usable kernel release"},
		{"nothing", map[string]string{"include/config/kernel.release": "\n", auto: conf}, `no usable kernel release: ""`},
		{"long line", map[string]string{uts: define("6.1.0"), auto: "CONFIG_A=" + strings.Repeat("y", maxConfigLine)}, "a line is longer"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := buildDir(t, tt.files)
			_, err := ReadFacts(dir)
			assert.ErrorContains(t, err, "cannot read kernel build directory "+dir+": ")
			assert.ErrorContains(t, err, tt.err)
		})
	}
}

func TestReadFactsStaysInside(t *testing.T) {
	t.Parallel()
	outside := writeFile(t, "utsrelease.h", []byte(define("6.1.0")))
	dir := buildDir(t, map[string]string{auto: "CONFIG_X86_64=y\n"})
	assert.NilError(t, os.MkdirAll(filepath.Join(dir, "include/generated"), 0o755))
	assert.NilError(t, os.Symlink(outside, filepath.Join(dir, uts)))
	_, err := ReadFacts(dir)
	assert.ErrorContains(t, err, "escapes")

	assert.NilError(t, os.Remove(filepath.Join(dir, uts)))
	assert.NilError(t, syscall.Mkfifo(filepath.Join(dir, uts), 0o600))
	_, err = ReadFacts(dir)
	assert.ErrorContains(t, err, "not a regular file")

	_, err = ReadFacts(filepath.Join(dir, "none"))
	assert.ErrorIs(t, err, fs.ErrNotExist)
}

func TestArchOfConfig(t *testing.T) {
	t.Parallel()
	tests := []struct{ options, want string }{
		{"X86 X86_64 64BIT", "amd64"},
		{"X86 X86_32", "i386"},
		{"ARM64 64BIT", "arm64"},
		{"ARM CPU_V7 MMU", "armhf"},
		{"ARM CPU_V6", "armel"},
		{"PPC PPC64 64BIT CPU_LITTLE_ENDIAN", "ppc64el"},
		{"PPC PPC64 64BIT CPU_BIG_ENDIAN", "ppc64"},
		{"PPC PPC32", "powerpc"},
		{"S390 64BIT", "s390x"},
		{"RISCV 64BIT", "riscv64"},
		{"LOONGARCH 64BIT", "loong64"},
		{"MIPS 64BIT CPU_LITTLE_ENDIAN", "mips64el"},
		{"ARM64 CPU_BIG_ENDIAN", ""},
		{"", ""},
	}
	for _, tt := range tests {
		c := config{}
		for option := range strings.FieldsSeq(tt.options) {
			c[option] = "y"
		}
		a, _ := archOfConfig(c)
		assert.Equal(t, a.Debian, tt.want, tt.options)
	}
}

func TestArchNames(t *testing.T) {
	t.Parallel()
	tests := []struct{ kernel, debian, flavour string }{
		{"x86_64", "amd64", "amd64"},
		{"aarch64", "arm64", "arm64"},
		{"i686", "i386", "686-pae"},
		{"armv7l", "armhf", "armmp"},
		{"ppc64le", "ppc64el", "powerpc64le"},
		{"s390x", "s390x", "s390x"},
		{"riscv64", "riscv64", "riscv64"},
	}
	for _, tt := range tests {
		a, ok := ArchOfDebian(tt.debian)
		assert.Assert(t, ok)
		assert.Equal(t, a.Kernel, tt.kernel)
		a, ok = ArchOfKernel(tt.kernel)
		assert.Assert(t, ok)
		assert.Equal(t, a.Debian, tt.debian)
		assert.Equal(t, DefaultFlavour("debian", tt.debian), tt.flavour)
		assert.Equal(t, DefaultFlavour("ubuntu", tt.debian), "generic")
	}
	a, ok := ArchOfKernel("i586")
	assert.Assert(t, ok)
	assert.Equal(t, a.Debian, "i386")
	_, ok = ArchOfKernel("vax")
	assert.Assert(t, !ok)
	_, ok = ArchOfDebian("")
	assert.Assert(t, !ok)
	assert.Equal(t, DefaultFlavour("debian", "vax"), "")
	assert.Equal(t, DefaultFlavour("arch", "amd64"), "")
}

func FuzzConfig(f *testing.F) {
	f.Add("CONFIG_SMP=y\nCONFIG_CC_VERSION_TEXT=\"gcc \\\"x\\\"\"\n# CONFIG_PREEMPT is not set\n")
	f.Add("CONFIG_MODULE_SIG_HASH=sha256\r\n=\nCONFIG_=y\nCONFIG_X")
	f.Fuzz(func(t *testing.T, text string) {
		conf, err := parseConfig(strings.NewReader(text))
		if err != nil {
			return
		}
		facts := factsOf("6.1.0-56-amd64", conf)
		assert.Assert(t, strings.HasPrefix(facts.Vermagic, "6.1.0-56-amd64 "))
		assert.NilError(t, facts.Check(Module{
			Path: "x.ko", Vermagic: facts.Vermagic, Machine: facts.Machine, Class: facts.Class, Data: facts.Data,
		}))
	})
}
