package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Bounds on what is read from an ELF file, far above anything real: the largest module of a
// distribution has some 10,000 sections and 100,000 symbols.
const (
	maxSections = 1 << 18
	maxTable    = 64 << 20 // bytes of a symbol or string table
	maxInfo     = 1 << 20  // bytes of .modinfo
	maxName     = 1024     // bytes of a symbol or section name
	maxSymbols  = 1 << 20
)

// An object is a relocatable ELF file. It is read here and not through debug/elf, which would inflate
// a compressed string table to whatever size its header claims.
type object struct {
	r       io.ReaderAt
	size    uint64
	machine elf.Machine
	class   elf.Class
	data    elf.Data
	order   binary.ByteOrder

	sections []section
}

type section struct {
	name    string
	typ     elf.SectionType
	flags   elf.SectionFlag
	offset  uint64
	size    uint64
	link    uint32
	entsize uint64
}

// readObject reads the headers of the first size bytes of r.
func readObject(r io.ReaderAt, size int64) (*object, error) {
	o := &object{r: r, size: uint64(size)}
	ident, err := o.bytes(0, elf.EI_NIDENT, elf.EI_NIDENT)
	if err != nil || !bytes.HasPrefix(ident, []byte(elf.ELFMAG)) {
		return nil, errors.New("not an ELF file")
	}
	o.class, o.data = elf.Class(ident[elf.EI_CLASS]), elf.Data(ident[elf.EI_DATA])
	switch o.data {
	case elf.ELFDATA2LSB:
		o.order = binary.LittleEndian
	case elf.ELFDATA2MSB:
		o.order = binary.BigEndian
	default:
		return nil, fmt.Errorf("ELF header has an unknown byte order %d", ident[elf.EI_DATA])
	}

	var typ elf.Type
	var tableAt uint64
	var entSize, count, nameIndex uint64
	switch o.class {
	case elf.ELFCLASS64:
		var h elf.Header64
		if err := o.read(0, &h); err != nil {
			return nil, fmt.Errorf("ELF header: %w", err)
		}
		typ, o.machine, tableAt = elf.Type(h.Type), elf.Machine(h.Machine), h.Shoff
		entSize, count, nameIndex = uint64(h.Shentsize), uint64(h.Shnum), uint64(h.Shstrndx)
	case elf.ELFCLASS32:
		var h elf.Header32
		if err := o.read(0, &h); err != nil {
			return nil, fmt.Errorf("ELF header: %w", err)
		}
		typ, o.machine, tableAt = elf.Type(h.Type), elf.Machine(h.Machine), uint64(h.Shoff)
		entSize, count, nameIndex = uint64(h.Shentsize), uint64(h.Shnum), uint64(h.Shstrndx)
	default:
		return nil, fmt.Errorf("ELF header has an unknown class %d", ident[elf.EI_CLASS])
	}
	if typ != elf.ET_REL {
		return nil, fmt.Errorf("not a kernel module: ELF type %v where a relocatable file is wanted", typ)
	}
	if err := o.readSections(tableAt, entSize, count, nameIndex); err != nil {
		return nil, err
	}
	return o, nil
}

func (o *object) readSections(tableAt, entSize, count, nameIndex uint64) error {
	if tableAt == 0 {
		return errors.New("no section headers")
	}
	if want := uint64(o.sectionSize()); entSize != want {
		return fmt.Errorf("section headers of %d bytes where %d are wanted", entSize, want)
	}
	// More sections than fit 16 bits: the first, otherwise empty one holds the numbers.
	if count == 0 || nameIndex == uint64(elf.SHN_XINDEX) {
		raw, err := o.bytes(tableAt, entSize, entSize)
		if err != nil {
			return fmt.Errorf("section headers: %w", err)
		}
		first, _ := o.decodeSection(raw)
		if count == 0 {
			count = first.size
		}
		if nameIndex == uint64(elf.SHN_XINDEX) {
			nameIndex = uint64(first.link)
		}
	}
	if count == 0 || count > maxSections {
		return fmt.Errorf("%d sections, where 1 to %d are allowed", count, maxSections)
	}
	if nameIndex >= count {
		return fmt.Errorf("section names in section %d of %d", nameIndex, count)
	}
	raw, err := o.bytes(tableAt, count*entSize, maxSections*entSize)
	if err != nil {
		return fmt.Errorf("section headers: %w", err)
	}
	o.sections = make([]section, count)
	names := make([]uint32, count)
	for i := range o.sections {
		o.sections[i], names[i] = o.decodeSection(raw[uint64(i)*entSize:])
	}
	table, err := o.contents(&o.sections[nameIndex], maxTable)
	if err != nil {
		return fmt.Errorf("section names: %w", err)
	}
	all := string(table)
	for i := range o.sections {
		if o.sections[i].name, err = text(all, names[i]); err != nil {
			return fmt.Errorf("name of section %d: %w", i, err)
		}
	}
	return nil
}

func (o *object) sectionSize() int {
	if o.class == elf.ELFCLASS32 {
		return binary.Size(elf.Section32{})
	}
	return binary.Size(elf.Section64{})
}

// decodeSection reads one section header, and returns the offset of its name beside it.
func (o *object) decodeSection(raw []byte) (section, uint32) {
	n := o.order
	if o.class == elf.ELFCLASS32 {
		return section{
			typ:     elf.SectionType(n.Uint32(raw[4:])),
			flags:   elf.SectionFlag(n.Uint32(raw[8:])),
			offset:  uint64(n.Uint32(raw[16:])),
			size:    uint64(n.Uint32(raw[20:])),
			link:    n.Uint32(raw[24:]),
			entsize: uint64(n.Uint32(raw[36:])),
		}, n.Uint32(raw)
	}
	return section{
		typ:     elf.SectionType(n.Uint32(raw[4:])),
		flags:   elf.SectionFlag(n.Uint64(raw[8:])),
		offset:  n.Uint64(raw[24:]),
		size:    n.Uint64(raw[32:]),
		link:    n.Uint32(raw[40:]),
		entsize: n.Uint64(raw[56:]),
	}, n.Uint32(raw)
}

// section returns the first section of that name, nil if there is none.
func (o *object) section(name string) *section {
	for i := range o.sections {
		if o.sections[i].name == name {
			return &o.sections[i]
		}
	}
	return nil
}

// debug says whether there is what strip --strip-debug takes away.
func (o *object) debug() bool {
	return slices.ContainsFunc(o.sections, func(s section) bool {
		return strings.HasPrefix(s.name, ".debug") || strings.HasPrefix(s.name, ".zdebug") || strings.HasPrefix(s.name, ".stab")
	})
}

// contents reads a section of at most limit bytes.
func (o *object) contents(s *section, limit uint64) ([]byte, error) {
	switch {
	case s.typ == elf.SHT_NOBITS:
		return nil, errors.New("has no bytes in the file")
	case s.flags&elf.SHF_COMPRESSED != 0:
		return nil, errors.New("is compressed")
	}
	return o.bytes(s.offset, s.size, limit)
}

// bytes reads size bytes at offset.
func (o *object) bytes(offset, size, limit uint64) ([]byte, error) {
	if size > limit {
		return nil, fmt.Errorf("%d bytes, where at most %d are allowed", size, limit)
	}
	if offset > o.size || size > o.size-offset {
		return nil, fmt.Errorf("truncated: %d bytes at %d, in a file of %d", size, offset, o.size)
	}
	b := make([]byte, size)
	if _, err := o.r.ReadAt(b, int64(offset)); err != nil {
		return nil, err
	}
	return b, nil
}

func (o *object) read(offset uint64, header any) error {
	size := uint64(binary.Size(header))
	raw, err := o.bytes(offset, size, size)
	if err != nil {
		return err
	}
	return binary.Read(bytes.NewReader(raw), o.order, header)
}

// A symbol is one named entry of the symbol table.
type symbol struct {
	name    string
	bind    elf.SymBind
	section elf.SectionIndex
	value   uint64
}

// symbols calls use for each named symbol, in the order of the table. The names share the memory of
// the string table, so that a table of many overlapping names costs no more than a file of its size.
func (o *object) symbols(use func(symbol)) error {
	var table *section
	for i := range o.sections {
		if o.sections[i].typ == elf.SHT_SYMTAB {
			table = &o.sections[i]
			break
		}
	}
	if table == nil {
		return errors.New("no symbol table")
	}
	if uint64(table.link) >= uint64(len(o.sections)) {
		return fmt.Errorf("symbol table: names in section %d of %d", table.link, len(o.sections))
	}
	raw, err := o.contents(table, maxTable)
	if err != nil {
		return fmt.Errorf("symbol table: %w", err)
	}
	names, err := o.contents(&o.sections[table.link], maxTable)
	if err != nil {
		return fmt.Errorf("symbol names: %w", err)
	}
	entry, infoAt, sectionAt, valueAt := elf.Sym64Size, 4, 6, 8
	if o.class == elf.ELFCLASS32 {
		entry, infoAt, sectionAt, valueAt = elf.Sym32Size, 12, 14, 4
	}
	if len(raw)%entry != 0 {
		return fmt.Errorf("symbol table: %d bytes, not a multiple of %d", len(raw), entry)
	}
	if count := len(raw) / entry; count > maxSymbols {
		return fmt.Errorf("symbol table: %d symbols, where at most %d are allowed", count, maxSymbols)
	}
	all := string(names)
	for at := entry; at < len(raw); at += entry { // the first entry is empty
		name, err := text(all, o.order.Uint32(raw[at:]))
		if err != nil {
			return fmt.Errorf("name of symbol %d: %w", at/entry, err)
		}
		if name == "" {
			continue
		}
		use(symbol{
			name:    name,
			bind:    elf.ST_BIND(raw[at+infoAt]),
			section: elf.SectionIndex(o.order.Uint16(raw[at+sectionAt:])),
			value:   o.word(raw[at+valueAt:]),
		})
	}
	return nil
}

// word reads an address of the file's class.
func (o *object) word(raw []byte) uint64 {
	if o.class == elf.ELFCLASS32 {
		return uint64(o.order.Uint32(raw))
	}
	return o.order.Uint64(raw)
}

// text returns the string at an offset of a string table.
func text(table string, at uint32) (string, error) {
	if uint64(at) >= uint64(len(table)) {
		if at == 0 {
			return "", nil
		}
		return "", fmt.Errorf("lies at %d of %d bytes", at, len(table))
	}
	rest := table[at:]
	end := strings.IndexByte(rest[:min(len(rest), maxName+1)], 0)
	if end < 0 {
		return "", errors.New("does not end, or is too long")
	}
	return rest[:end], nil
}
