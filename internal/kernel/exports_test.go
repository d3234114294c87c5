package kernel

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

// orderOf is the byte order of an architecture's modules.
func orderOf(t testing.TB, arch string) binary.AppendByteOrder {
	t.Helper()
	a, ok := ArchOfDebian(arch)
	assert.Assert(t, ok)
	if a.Data == elf.ELFDATA2MSB {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

// read is ReadModule of a made module.
func (m testModule) read(t testing.TB, file string) Module {
	t.Helper()
	got, err := ReadModule(writeFile(t, file, m.build(t)))
	assert.NilError(t, err)
	return got
}

// versionsOf makes the sections in which a module keeps CRCs, in one of the three forms.
func versionsOf(t testing.TB, arch, form string, crcs ...any) []testSection {
	t.Helper()
	order := orderOf(t, arch)
	a, _ := ArchOfDebian(arch)
	var numbers, names, fixed, chained []byte
	for i := 0; i < len(crcs); i += 2 {
		name, crc := crcs[i].(string), uint32(crcs[i+1].(int))
		numbers = order.AppendUint32(numbers, crc)
		names = append(append(names, name...), 0)
		start := len(fixed)
		if a.Class == elf.ELFCLASS64 {
			fixed = order.AppendUint64(fixed, uint64(crc))
		} else {
			fixed = order.AppendUint32(fixed, crc)
		}
		fixed = append(fixed, name...)
		fixed = append(fixed, make([]byte, max(0, start+versionRecord-len(fixed)))...)
		padded := append([]byte(name), make([]byte, 4-len(name)%4)...)
		chained = order.AppendUint32(chained, uint32(8+len(padded)))
		chained = append(order.AppendUint32(chained, crc), padded...)
	}
	switch form {
	case "fixed":
		return []testSection{{"__versions", fixed}}
	case "chained":
		return []testSection{{"__versions", append(chained, make([]byte, 8)...)}}
	case "extended":
		return []testSection{{"__versions", []byte("of no interest")}, {"__version_ext_crcs", numbers}, {"__version_ext_names", names}}
	}
	t.Fatal(form)
	return nil
}

func TestVersions(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("rust_", 60)
	for _, arch := range []string{"amd64", "i386", "armhf", "s390x", "ppc64"} {
		for _, form := range []string{"fixed", "chained", "extended"} {
			t.Run(arch+" "+form, func(t *testing.T) {
				t.Parallel()
				pairs := []any{"module_layout", 0x7fffffff, "_printk", 0x01020304, "a", 1, "zero", 0, "a", 2}
				want := map[string]uint32{"module_layout": 0x7fffffff, "_printk": 0x01020304, "a": 1, "zero": 0}
				if form != "fixed" {
					pairs = append(pairs, long, 5)
					want[long] = 5
				}
				m := testModule{arch: arch, more: versionsOf(t, arch, form, pairs...)}.read(t, "x.ko")
				assert.DeepEqual(t, m.Versions, want)
			})
		}
	}
	assert.Assert(t, testModule{}.read(t, "x.ko").Versions == nil)
	empty := testModule{more: []testSection{{"__versions", nil}}}.read(t, "x.ko").Versions
	assert.Assert(t, empty != nil && len(empty) == 0)
}

func TestVersionsRefused(t *testing.T) {
	t.Parallel()
	le := binary.LittleEndian
	tests := []struct {
		name string
		more []testSection
		err  string
	}{
		{"no names", []testSection{{"__version_ext_crcs", make([]byte, 8)}}, "without __version_ext_names"},
		{"too few names", []testSection{{"__version_ext_crcs", make([]byte, 8)}, {"__version_ext_names", []byte("a\x00b")}}, "fewer names"},
		{"a million CRCs and more", []testSection{{"__version_ext_crcs", make([]byte, 4<<20+4)}, {"__version_ext_names", nil}}, "1048577 numbers"},
		{"noise", []testSection{{"__versions", []byte(strings.Repeat("noise", 40))}}, "no known form"},
		{"records without names", []testSection{{"__versions", make([]byte, 128)}}, ""}, // an end at once
		{"a chain that leads outside", []testSection{{"__versions", le.AppendUint32(nil, 1<<30)}}, ""},
		{"a chain that leads outside, longer", []testSection{{"__versions", append(le.AppendUint32(nil, 1<<30), "crc-name\x00"...)}}, "no known form"},
		{"a chain that leads nowhere", []testSection{{"__versions", append(le.AppendUint32(nil, 4), "crc-name\x00"...)}}, "no known form"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := ReadModule(writeFile(t, "x.ko", testModule{more: tt.more}.build(t)))
			if tt.err == "" {
				assert.NilError(t, err)
				return
			}
			assert.ErrorContains(t, err, tt.err)
		})
	}
}

// exporting makes the traces of exports as a layout has them: that of Linux 5.10 with CRCs as absolute
// symbols, that of 6.1, and that of 7.2 with flags.
func exporting(t testing.TB, arch, layout string) testModule {
	t.Helper()
	order := orderOf(t, arch)
	m := testModule{arch: arch, info: []string{magic61, "license=GPL", "name=mine"}, exports: []string{"free", "bound", "spaced"}}
	strings := "free\x00\x00bound\x00\x00spaced\x00MY_NS\x00"
	crcs := order.AppendUint32(order.AppendUint32(order.AppendUint32(nil, 11), 12), 13)
	m.more = []testSection{{"__ksymtab", make([]byte, 36)}, {"__ksymtab_gpl", make([]byte, 36)}, {"__ksymtab_strings", []byte(strings)}, {"__kcrctab", crcs}, {"__kflagstab", []byte{0, 1, 1}}}
	for i, s := range []struct {
		name, table string
		at, space   uint64
	}{{"free", "__ksymtab", 0, 5}, {"bound", "__ksymtab_gpl", 6, 12}, {"spaced", "__ksymtab_gpl", 13, 20}} {
		if layout == "7.2" {
			s.table = "__ksymtab"
			m.marks = append(m.marks, testMark{"__flags_" + s.name, "__kflagstab", uint64(i)})
		}
		m.marks = append(m.marks,
			testMark{"__kstrtab_" + s.name, "__ksymtab_strings", s.at},
			testMark{"__kstrtabns_" + s.name, "__ksymtab_strings", s.space})
		if layout == "stripped" {
			continue
		}
		m.marks = append(m.marks, testMark{"__ksymtab_" + s.name, s.table, uint64(12 * i)})
		if layout == "5.10" {
			m.marks = append(m.marks, testMark{"__crc_" + s.name, "ABS", uint64(11 + i)})
		} else {
			m.marks = append(m.marks, testMark{"__crc_" + s.name, "__kcrctab", uint64(4 * i)})
		}
	}
	return m
}

func TestExports(t *testing.T) {
	t.Parallel()
	for _, arch := range []string{"amd64", "armhf", "s390x"} {
		for _, layout := range []string{"5.10", "6.1", "7.2"} {
			m := exporting(t, arch, layout).read(t, "mine.ko")
			assert.Equal(t, fmt.Sprint(m.Exports), fmt.Sprint([]Export{
				{Symbol: "free", Module: "mine", CRC: 11},
				{Symbol: "bound", Module: "mine", CRC: 12, GPL: true},
				{Symbol: "spaced", Module: "mine", CRC: 13, GPL: true, Namespace: "MY_NS"},
			}), "%s %s", arch, layout)
		}
	}
	m := exporting(t, "amd64", "stripped").read(t, "mine.ko")
	assert.Equal(t, fmt.Sprint(m.Exports), fmt.Sprint([]Export{
		{Symbol: "free", Module: "mine"}, {Symbol: "bound", Module: "mine"}, {Symbol: "spaced", Module: "mine", Namespace: "MY_NS"},
	}))
}

func TestExportsRefused(t *testing.T) {
	t.Parallel()
	tests := []struct {
		mark testMark
		err  string
	}{
		{testMark{"__crc_free", "__kcrctab", 10}, "less than 4 bytes"},
		{testMark{"__crc_free", "__kcrctab", 1 << 40}, "lies at 1099511627776 of 12 bytes"},
		{testMark{"__kstrtabns_free", "__ksymtab_strings", 26}, "lies at 26 of 26 bytes"},
		{testMark{"__flags_free", "__kflagstab", 3}, "lies at 3 of 3 bytes"},
		{testMark{"__flags_free", "no such section", 0}, ""}, // section 4: the names of sections
	}
	for _, tt := range tests {
		m := exporting(t, "amd64", "6.1")
		m.marks = append(m.marks, tt.mark)
		_, err := ReadModule(writeFile(t, "x.ko", m.build(t)))
		if tt.err == "" {
			assert.NilError(t, err)
			continue
		}
		assert.ErrorContains(t, err, tt.err)
	}
}

func TestParseSymvers(t *testing.T) {
	t.Parallel()
	s, err := ParseSymvers(strings.Join([]string{
		"0x4c9d28b0\tphys_base\tvmlinux\tEXPORT_SYMBOL\t",
		"0xdeadbeef\tusb_put_dev\tdrivers/usb/core/usbcore\tEXPORT_SYMBOL_GPL\t",
		"0x00000001\tphys_base\tother\tEXPORT_SYMBOL_GPL\t", // the first counts
		"0x00000002\tspaced\tdrivers/x\tEXPORT_SYMBOL_GPL\tMY_NS",
		"0x00000003\tfour\tvmlinux\tEXPORT_SYMBOL",                  // before Linux 5.4
		"0x00000004\told\tMY_NS\tdrivers/y\tEXPORT_SYMBOL_GPL",      // Linux 5.4 to 5.6
		"0x00000000\tsoon\t\tdrivers/z-a\tEXPORT_SYMBOL_GPL_FUTURE", // the same
		"",
	}, "\n"))
	assert.NilError(t, err)
	assert.Equal(t, fmt.Sprint(map[string]Export(s)), fmt.Sprint(map[string]Export{
		"phys_base":   {Symbol: "phys_base", Module: "vmlinux", CRC: 0x4c9d28b0},
		"usb_put_dev": {Symbol: "usb_put_dev", Module: "drivers/usb/core/usbcore", CRC: 0xdeadbeef, GPL: true},
		"spaced":      {Symbol: "spaced", Module: "drivers/x", CRC: 2, GPL: true, Namespace: "MY_NS"},
		"four":        {Symbol: "four", Module: "vmlinux", CRC: 3},
		"old":         {Symbol: "old", Module: "drivers/y", CRC: 4, GPL: true, Namespace: "MY_NS"},
		"soon":        {Symbol: "soon", Module: "drivers/z-a"},
	}))
	assert.DeepEqual(t, s.Modules(), map[string]string{"usbcore": "drivers/usb/core/usbcore", "x": "drivers/x", "y": "drivers/y", "z_a": "drivers/z-a"})
	for _, bad := range []string{"x", "0x1\ta\tvmlinux\tsomething\t", "0xg\ta\tvmlinux\tEXPORT_SYMBOL\t", "0x1\t\tvmlinux\tEXPORT_SYMBOL\t", "0x123456789\ta\tvmlinux\tEXPORT_SYMBOL\t", "0x1\ta\tvmlinux\tEXPORT_SYMBOL\t\t"} {
		_, err := ParseSymvers("0x1\ta\tvmlinux\tEXPORT_SYMBOL\t\n" + bad + "\n")
		assert.ErrorContains(t, err, "line 2 is no export")
	}
}

func FuzzParseSymvers(f *testing.F) {
	f.Add("0x4c9d28b0\tphys_base\tvmlinux\tEXPORT_SYMBOL\t\n")
	f.Add("0x00000004\told\tMY_NS\tdrivers/y\tEXPORT_SYMBOL_GPL\n\n")
	f.Fuzz(func(t *testing.T, content string) {
		s, err := ParseSymvers(content)
		if err == nil {
			assert.Assert(t, len(s.Modules()) <= len(s))
		}
	})
}
