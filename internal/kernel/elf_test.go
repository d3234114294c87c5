package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

// A testModule is written as a small .ko file.
type testModule struct {
	arch    string // Debian's name; amd64 if empty
	info    []string
	imports []string
	weak    []string
	exports []string

	more  []testSection // further sections
	marks []testMark    // local symbols in these
}

type testSection struct {
	name string
	data []byte
}

type testMark struct {
	name, section string // a section of testModule.more, or "ABS"
	value         uint64
}

// place is the index of a further section.
func (m testModule) place(name string) uint16 {
	if name == "ABS" {
		return uint16(elf.SHN_ABS)
	}
	return uint16(5 + slices.IndexFunc(m.more, func(s testSection) bool { return s.name == name }))
}

func module(info ...string) testModule {
	return testModule{info: info}
}

// build writes the ELF file: header, contents of the sections, section headers.
func (m testModule) build(t testing.TB) []byte {
	t.Helper()
	arch, ok := ArchOfDebian(m.arch)
	if !ok {
		arch, _ = ArchOfDebian("amd64")
	}
	var order binary.AppendByteOrder = binary.LittleEndian
	if arch.Data == elf.ELFDATA2MSB {
		order = binary.BigEndian
	}
	wide := arch.Class == elf.ELFCLASS64
	word := func(b []byte, v uint64) []byte {
		if wide {
			return order.AppendUint64(b, v)
		}
		return order.AppendUint32(b, uint32(v))
	}
	header, entry := 52, 40
	if wide {
		header, entry = 64, 64
	}

	info := strings.Join(append(slices.Clone(m.info), ""), "\x00")
	strtab := []byte{0}
	symtab := make([]byte, elf.Sym64Size)
	if !wide {
		symtab = make([]byte, elf.Sym32Size)
	}
	symbol := func(name string, bind elf.SymBind, section uint16, value uint64) {
		at := uint32(len(strtab))
		strtab = append(append(strtab, name...), 0)
		symtab = order.AppendUint32(symtab, at)
		if wide {
			symtab = append(symtab, elf.ST_INFO(bind, elf.STT_NOTYPE), 0)
			symtab = order.AppendUint16(symtab, section)
			symtab = word(word(symtab, value), 0)
			return
		}
		symtab = word(word(symtab, value), 0)
		symtab = append(symtab, elf.ST_INFO(bind, elf.STT_NOTYPE), 0)
		symtab = order.AppendUint16(symtab, section)
	}
	symbol("here", elf.STB_LOCAL, 1, 0)
	for _, name := range m.imports {
		symbol(name, elf.STB_GLOBAL, 0, 0)
	}
	for _, name := range m.weak {
		symbol(name, elf.STB_WEAK, 0, 0)
	}
	for _, name := range m.exports {
		symbol(name, elf.STB_GLOBAL, 1, 0)
	}
	for _, mark := range m.marks {
		symbol(mark.name, elf.STB_LOCAL, m.place(mark.section), mark.value)
	}

	type testHeader struct {
		name string
		typ  elf.SectionType
		link uint32
		data []byte
	}
	sections := []testHeader{
		{"", elf.SHT_NULL, 0, nil},
		{".modinfo", elf.SHT_PROGBITS, 0, []byte(info)},
		{".symtab", elf.SHT_SYMTAB, 3, symtab},
		{".strtab", elf.SHT_STRTAB, 0, strtab},
		{".shstrtab", elf.SHT_STRTAB, 0, nil},
	}
	for _, extra := range m.more {
		sections = append(sections, testHeader{extra.name, elf.SHT_PROGBITS, 0, extra.data})
	}
	names := []byte{}
	nameAt := make([]uint32, len(sections))
	for i, s := range sections {
		nameAt[i] = uint32(len(names))
		names = append(append(names, s.name...), 0)
	}
	sections[4].data = names

	var body []byte
	offset := make([]int, len(sections))
	for i, s := range sections {
		offset[i] = header + len(body)
		body = append(body, s.data...)
	}
	for len(body)%8 != 0 {
		body = append(body, 0)
	}

	out := append([]byte(elf.ELFMAG), byte(arch.Class), byte(arch.Data), 1)
	out = append(out, make([]byte, 9)...)
	out = order.AppendUint16(out, uint16(elf.ET_REL))
	out = order.AppendUint16(out, uint16(arch.Machine))
	out = order.AppendUint32(out, 1)
	out = word(out, 0)
	out = word(out, 0)
	out = word(out, uint64(header+len(body)))
	out = order.AppendUint32(out, 0)
	for _, v := range []int{header, 0, 0, entry, len(sections), 4} {
		out = order.AppendUint16(out, uint16(v))
	}
	assert.Equal(t, len(out), header)
	out = append(out, body...)
	for i, s := range sections {
		out = order.AppendUint32(out, nameAt[i])
		out = order.AppendUint32(out, uint32(s.typ))
		out = word(out, 0)
		out = word(out, 0)
		out = word(out, uint64(offset[i]))
		out = word(out, uint64(len(s.data)))
		out = order.AppendUint32(out, s.link)
		out = order.AppendUint32(out, 0)
		out = word(out, 1)
		out = word(out, 0)
	}
	return out
}

// sectionField returns the place of a field in the header of a section of a 64-bit little-endian module.
func sectionField(ko []byte, section, field int) []byte {
	at := int(binary.LittleEndian.Uint64(ko[40:]))
	return ko[at+section*64+field:]
}

func TestWriterMakesELF(t *testing.T) {
	t.Parallel()
	for _, arch := range []string{"amd64", "i386", "armhf", "s390x"} {
		f, err := elf.NewFile(bytes.NewReader(testModule{arch: arch, info: []string{"a=b"}, imports: []string{"printk"}}.build(t)))
		assert.NilError(t, err)
		data, err := f.Section(".modinfo").Data()
		assert.NilError(t, err)
		assert.Equal(t, string(data), "a=b\x00")
		symbols, err := f.Symbols()
		assert.NilError(t, err)
		assert.Equal(t, symbols[1].Name, "printk")
	}
}
