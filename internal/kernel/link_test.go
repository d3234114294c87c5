package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

const testSymvers = "" +
	"0x00000001\tmodule_layout\tvmlinux\tEXPORT_SYMBOL\t\n" +
	"0x00000002\t_printk\tvmlinux\tEXPORT_SYMBOL\t\n" +
	"0x00000003\tkallsyms\tvmlinux\tEXPORT_SYMBOL_GPL\t\n" +
	"0x00000004\tspaced\tvmlinux\tEXPORT_SYMBOL_GPL\tMY_NS\n" +
	"0x00000005\tfor_kvm\tvmlinux\tEXPORT_SYMBOL_GPL\tmodule:kvm-amd,snd-*\n" +
	"0x00000006\tib_reg\tdrivers/infiniband/core/ib_core\tEXPORT_SYMBOL\t\n" +
	"0x00000007\tib_gone\tdrivers/infiniband/core/ib_core\tEXPORT_SYMBOL\t\n" +
	"0x00000000\tno_crc\tvmlinux\tEXPORT_SYMBOL\t\n"

func testTarget(t testing.TB) Target {
	t.Helper()
	s, err := ParseSymvers(testSymvers)
	assert.NilError(t, err)
	a, _ := ArchOfDebian("amd64")
	release := strings.Fields(strings.TrimPrefix(magic61, "vermagic="))[0]
	return Target{
		Facts: Facts{
			Release: release, Vermagic: strings.TrimPrefix(magic61, "vermagic="), Modversions: true,
			Arch: a.Debian, Machine: a.Machine, Class: a.Class, Data: a.Data,
		},
		Symvers: s,
	}
}

func TestTargetCheck(t *testing.T) {
	t.Parallel()
	type change = func(*Target)
	beside := func(exports ...Export) change {
		return func(t *Target) { t.Beside = Offer(Module{Exports: exports}) }
	}
	replaced := func(exports ...Export) change {
		return func(t *Target) {
			beside(exports...)(t)
			t.Replaced = map[string]string{"ib_core": "ib_core.ko of ofed-dkms"}
		}
	}
	ours := Export{Symbol: "ib_reg", Module: "ib_core", CRC: 66}
	tests := []struct {
		name    string
		license string
		imports []string
		crcs    []any // after those that fit
		info    []string
		change  change
		want    Checked
		err     string
	}{
		{name: "all of the kernel", imports: []string{"_printk", "kallsyms"}, want: Checked{Symbols: 2, GPL: 1, CRCs: 2}},
		{name: "nothing", want: Checked{}},
		{name: "no CRC of the symbol", imports: []string{"no_crc"}, crcs: []any{"no_crc", 77}, want: Checked{Symbols: 1}},
		{name: "a CRC that the module lacks", imports: []string{"ib_gone"}, want: Checked{Symbols: 1}}, // the kernel lets it pass
		{name: "of the linker", imports: []string{"_GLOBAL_OFFSET_TABLE_"}},
		{
			name: "unknown", imports: []string{"_printk", "nowhere"},
			err: "module m.ko needs the symbol nowhere, which neither 6.1.0-56-amd64 nor a module that it depends on exports",
		},
		{name: "unknown and odd", imports: []string{"no\x1b[2Jwhere"}, err: `needs the symbol "no\x1b[2Jwhere", which`},
		{
			name: "other CRC", imports: []string{"ib_reg"}, crcs: []any{"ib_reg", 0x99},
			err: "module m.ko was built against another version of the symbol ib_reg (CRC 0x00000099) than the module ib_core exports (0x00000006)",
		},
		{
			name: "other layout", crcs: []any{"module_layout", 0x99},
			err: "another version of the symbol module_layout (CRC 0x00000099) than 6.1.0-56-amd64 exports (0x00000001)",
		},
		{name: "kernel without CRCs", imports: []string{"ib_reg"}, crcs: []any{"ib_reg", 0x99}, change: func(t *Target) { t.Facts.Modversions = false }, want: Checked{Symbols: 1}},
		{
			name: "GPL only", license: "Proprietary", imports: []string{"_printk", "kallsyms"},
			err: `module m.ko has the license "Proprietary", and needs the symbol kallsyms, which 6.1.0-56-amd64 exports to modules under the GPL only`,
		},
		{name: "proprietary, and content", license: "MIT", imports: []string{"_printk"}, want: Checked{Symbols: 1, CRCs: 1}},
		{name: "dual", license: "Dual MIT/GPL", imports: []string{"kallsyms"}, want: Checked{Symbols: 1, GPL: 1, CRCs: 1}},
		{name: "namespace", imports: []string{"spaced"}, info: []string{"import_ns=OTHER", "import_ns=MY_NS"}, want: Checked{Symbols: 1, GPL: 1, CRCs: 1, Namespaces: []string{"MY_NS"}}},
		{
			name: "namespace not imported", imports: []string{"spaced"}, info: []string{"import_ns=OTHER"},
			err: "module m.ko needs the symbol spaced of the namespace MY_NS, which it does not import (MODULE_IMPORT_NS)",
		},
		{name: "namespace of no matter", imports: []string{"spaced"}, change: func(t *Target) { t.Facts.LaxNamespaces = true }, want: Checked{Symbols: 1, GPL: 1, CRCs: 1, Namespaces: []string{"MY_NS"}}},
		{name: "for others", imports: []string{"for_kvm"}, err: "needs the symbol for_kvm, which 6.1.0-56-amd64 exports to the modules kvm-amd,snd-* only"},
		{name: "for this one", imports: []string{"for_kvm"}, info: []string{"name=kvm_amd"}, want: Checked{Symbols: 1, GPL: 1, CRCs: 1, Namespaces: []string{"module:kvm-amd,snd-*"}}},
		{name: "for one like this", imports: []string{"for_kvm"}, info: []string{"name=snd-x"}, want: Checked{Symbols: 1, GPL: 1, CRCs: 1, Namespaces: []string{"module:kvm-amd,snd-*"}}},
		{name: "beside", imports: []string{"extra"}, crcs: []any{"extra", 8}, change: beside(Export{Symbol: "extra", Module: "o", CRC: 8}), want: Checked{Symbols: 1, CRCs: 1}},
		{
			name: "beside, other CRC", imports: []string{"extra"}, crcs: []any{"extra", 9}, change: beside(Export{Symbol: "extra", Module: "o", CRC: 8}),
			err: "another version of the symbol extra (CRC 0x00000009) than the module o exports (0x00000008)",
		},
		{
			name: "replaced, and does not depend", imports: []string{"ib_reg"}, change: replaced(),
			err: "module m.ko was built against the symbol ib_reg of the kernel's own module ib_core, which ib_core.ko of ofed-dkms replaces, and nothing that it depends on exports that symbol",
		},
		{name: "replaced, and built against it", imports: []string{"ib_reg"}, crcs: []any{"ib_reg", 66}, change: replaced(ours), want: Checked{Symbols: 1, CRCs: 1}},
		{
			name: "replaced, and built against the old one", imports: []string{"ib_reg"}, crcs: []any{"ib_reg", 6}, change: replaced(ours),
			err: "against that of the kernel's own module ib_core, which ib_core.ko of ofed-dkms replaces",
		},
		{name: "replaced, without that symbol", imports: []string{"ib_gone"}, change: replaced(ours), err: "was built against the symbol ib_gone of the kernel's own module ib_core"},
		{
			name: "of what is left out", imports: []string{"extra"}, change: func(t *Target) { t.LeftOut = Offer(Module{Exports: []Export{{Symbol: "extra", Module: "o"}}}) },
			err: "module m.ko needs the symbol extra of the module o, which is left out",
		},
		{ // it was built against the other one, and its CRC is perhaps not recorded
			name: "of what is left out, and of the kernel", imports: []string{"ib_reg"}, change: func(t *Target) { t.LeftOut = Offer(Module{Exports: []Export{ours}}) },
			err: "module m.ko needs the symbol ib_reg of the module ib_core, which is left out",
		},
		{
			name: "of what is left out, and of another one", imports: []string{"ib_reg"}, crcs: []any{"ib_reg", 66},
			change: func(t *Target) {
				beside(ours)(t)
				t.LeftOut = Offer(Module{Exports: []Export{{Symbol: "ib_reg", Module: "o"}}})
			}, want: Checked{Symbols: 1, CRCs: 1},
		},
		{
			name: "GPL-only symbols beside a proprietary module", imports: []string{"kallsyms", "nv"}, change: beside(Export{Symbol: "nv", Module: "nvidia", proprietary: true}),
			err: "module m.ko uses the symbol kallsyms, which is for GPL modules only, together with nv of the proprietary module nvidia",
		},
		{
			name: "the same before 5.9", imports: []string{"kallsyms", "nv"}, info: []string{"vermagic=5.4.0-26-generic SMP preempt mod_unload modversions "},
			change: func(t *Target) {
				beside(Export{Symbol: "nv", Module: "nvidia", proprietary: true})(t)
				t.Facts.Release, t.Facts.Vermagic = "5.4.0-26-generic", "5.4.0-26-generic SMP preempt mod_unload modversions "
			}, want: Checked{Symbols: 2, GPL: 1, CRCs: 1},
		},
		{name: "of another kernel", info: []string{"vermagic=6.1.0-50-amd64 SMP"}, err: "is built for 6.1.0-50-amd64"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			target := testTarget(t)
			if tt.change != nil {
				tt.change(&target)
			}
			license := tt.license
			if license == "" {
				license = "GPL"
			}
			crcs := append(tt.crcs, "module_layout", 1, "_printk", 2, "kallsyms", 3, "spaced", 4, "for_kvm", 5)
			m := testModule{info: append(tt.info, magic61, "license="+license), imports: tt.imports, more: versionsOf(t, "amd64", "fixed", crcs...)}.read(t, "m.ko")
			got, err := target.Check(m)
			if tt.err != "" {
				assert.ErrorContains(t, err, tt.err)
				return
			}
			assert.NilError(t, err)
			assert.DeepEqual(t, got, tt.want)
		})
	}
}

func TestTargetCheckMore(t *testing.T) {
	t.Parallel()
	target := testTarget(t)
	// Weak symbols may be missing, but not be others.
	weak := testModule{info: []string{magic61, "license=GPL"}, weak: []string{"nowhere", "ib_reg"}}
	weak.more = versionsOf(t, "amd64", "fixed", "module_layout", 1, "ib_reg", 6)
	got, err := target.Check(weak.read(t, "m.ko"))
	assert.NilError(t, err)
	assert.DeepEqual(t, got, Checked{Symbols: 1, CRCs: 1})
	weak.more = versionsOf(t, "amd64", "fixed", "module_layout", 1, "ib_reg", 7)
	_, err = target.Check(weak.read(t, "m.ko"))
	assert.ErrorContains(t, err, "another version of the symbol ib_reg")

	_, err = target.Check(testModule{info: []string{magic61, "license=GPL"}}.read(t, "m.ko"))
	assert.ErrorContains(t, err, "module m.ko has no CRCs of the symbols that it needs, and 6.1.0-56-amd64 wants them")

	twice := exporting(t, "amd64", "6.1")
	twice.more = append(twice.more, versionsOf(t, "amd64", "fixed", "module_layout", 1)...)
	_, err = target.Check(twice.read(t, "m.ko"))
	assert.ErrorContains(t, err, "module m.ko exports the symbol spaced, which the kernel itself exports")

	_, err = target.Check(testModule{info: []string{magic61}, imports: []string{"gone"}, more: weak.more}.read(t, "m.ko"))
	var missing *MissingError
	assert.Assert(t, errors.As(err, &missing) && missing.Symbol == "gone" && !missing.Replaced)

	target.Replaced = map[string]string{"ib_core": "ib_core.ko of ofed-dkms"}
	_, err = target.Check(testModule{info: []string{magic61}, imports: []string{"ib_reg"}, more: weak.more}.read(t, "m.ko"))
	assert.Assert(t, errors.As(err, &missing) && missing.Symbol == "ib_reg" && missing.Replaced)
}

// TestSymbolBombs reads files with a million symbols, all with long names out of the same few bytes.
func TestSymbolBombs(t *testing.T) {
	t.Parallel()
	bomb := func(count int) []byte {
		m := testModule{info: []string{magic61, "license=GPL"}, imports: []string{"__ksymtab_" + strings.Repeat("s", 900)}}
		ko := m.build(t)
		le := binary.LittleEndian
		table := make([]byte, count*24)
		for i := range count {
			le.PutUint32(table[i*24:], 6+uint32(i%900))
			table[i*24+4] = 0x10
		}
		le.PutUint64(sectionField(ko, 2, 24), uint64(len(ko)))
		le.PutUint64(sectionField(ko, 2, 32), uint64(len(table)))
		return append(ko, table...)
	}
	start := time.Now()
	m, err := ReadModule(writeFile(t, "x.ko", bomb(1<<20)))
	assert.NilError(t, err)
	assert.Equal(t, len(m.Imports), 1<<20-1)
	target := testTarget(t)
	_, err = target.Check(m)
	assert.ErrorContains(t, err, "has no CRCs")
	assert.Assert(t, time.Since(start) < 20*time.Second)
	_, err = ReadModule(writeFile(t, "x.ko", bomb(1<<20+1)))
	assert.ErrorContains(t, err, "1048577 symbols, where at most 1048576 are allowed")
}

// TestExportBombs reads a module that imports as many namespaces as fit, has half a million exports, all in
// the same few bytes, and names of CRCs that go on for ever.
func TestExportBombs(t *testing.T) {
	t.Parallel()
	m := exporting(t, "amd64", "6.1")
	for i := range 60_000 {
		m.info = append(m.info, fmt.Sprintf("import_ns=%d", i))
	}
	space := strings.Repeat("n", maxName-1) + "\x00"
	m.more = append(m.more, testSection{"__ksymtab_more", []byte(space)}, versionsOf(t, "amd64", "fixed", "module_layout", 1)[0])
	for i := range 250_000 {
		name := fmt.Sprint(i)
		m.marks = append(m.marks, testMark{"__kstrtab_" + name, "__ksymtab_more", 0}, testMark{"__kstrtabns_" + name, "__ksymtab_more", uint64(i % 900)})
		m.imports = append(m.imports, "spaced")
	}
	path := writeFile(t, "x.ko", m.build(t))
	start := time.Now()
	got, err := ReadModule(path)
	assert.NilError(t, err)
	assert.Equal(t, len(got.Exports), 250_003)
	target := testTarget(t)
	delete(target.Symvers, "free")
	_, err = target.Check(got)
	assert.ErrorContains(t, err, "needs the symbol spaced of the namespace MY_NS")
	assert.Assert(t, time.Since(start) < 20*time.Second)
}

// bigModule needs a thousand symbols of a kernel with 25,000 exports.
func bigModule(t testing.TB) (string, Target) {
	t.Helper()
	target := testTarget(t)
	m := testModule{info: []string{magic61, "license=GPL"}}
	crcs := []any{"module_layout", 1}
	for i := range 25_000 {
		name := fmt.Sprintf("some_symbol_of_the_kernel_%d", i)
		target.Symvers[name] = Export{Symbol: name, Module: "vmlinux", CRC: uint32(i + 1), GPL: true}
		if i%25 == 0 {
			m.imports = append(m.imports, name)
			crcs = append(crcs, name, i+1)
		}
	}
	for i := range 20_000 {
		m.exports = append(m.exports, fmt.Sprintf("function_of_the_module_%d", i))
	}
	m.more = append(versionsOf(t, "amd64", "fixed", crcs...), testSection{".text", make([]byte, 4<<20)})
	return writeFile(t, "big.ko", m.build(t)), target
}

// BenchmarkCheck reads and checks a module with a thousand imports, 20,000 symbols and 4 MB of code.
func BenchmarkCheck(b *testing.B) {
	path, target := bigModule(b)
	for b.Loop() {
		m, err := ReadModule(path)
		assert.NilError(b, err)
		c, err := target.Check(m)
		assert.NilError(b, err)
		assert.Equal(b, c.CRCs, 1000)
	}
}
