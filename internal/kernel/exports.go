package kernel

import (
	"debug/elf"
	"fmt"
	"strings"
)

// An Export is a symbol that a kernel or a module offers to modules.
type Export struct {
	Symbol    string
	Module    string // that has it: vmlinux, drivers/usb/core/usbcore, or just a name
	CRC       uint32 // 0 where there is none
	GPL       bool   // only for modules of a license that is compatible with the GPL
	Namespace string // that a module must import; "" for none

	proprietary bool // the license of the module that has it is not compatible with the GPL
}

// exportMarks collects what the symbol table tells of exports. For each exported symbol S the build leaves
// others beside it (Linux: include/linux/export.h and export-internal.h): __ksymtab_S, in a section that
// says by its name who may use S; __kstrtabns_S, where its namespace stands; __crc_S, whose value is the
// CRC (5.10) or the place of it (6.1); and in the newest kernels (7.2) __flags_S, a byte of which bit 0 says "GPL
// only" in place of the section's name. Of a module that was stripped of all symbols that nothing refers
// to, only __kstrtab_S and __kstrtabns_S are left: then neither CRC nor license is known.
type exportMarks struct {
	order                    []string
	seen                     map[string]bool
	table, crc, flags, space map[string]symbol
}

func newExportMarks() *exportMarks {
	return &exportMarks{
		seen: map[string]bool{}, table: map[string]symbol{}, crc: map[string]symbol{},
		flags: map[string]symbol{}, space: map[string]symbol{},
	}
}

func (e *exportMarks) see(s symbol) {
	if !strings.HasPrefix(s.name, "__") {
		return
	}
	name, isTable := strings.CutPrefix(s.name, "__ksymtab_")
	isString := false
	if !isTable {
		name, isString = strings.CutPrefix(s.name, "__kstrtab_")
	}
	if isTable || isString {
		if isTable {
			e.table[name] = s
		}
		if !e.seen[name] {
			e.seen[name] = true
			e.order = append(e.order, name)
		}
		return
	}
	if name, ok := strings.CutPrefix(s.name, "__crc_"); ok {
		e.crc[name] = s
	} else if name, ok := strings.CutPrefix(s.name, "__flags_"); ok {
		e.flags[name] = s
	} else if name, ok := strings.CutPrefix(s.name, "__kstrtabns_"); ok {
		e.space[name] = s
	}
}

// exports puts together what the marks tell.
func (o *object) exports(e *exportMarks) ([]Export, error) {
	sections := map[elf.SectionIndex]string{} // the namespaces share their memory
	left := uint64(maxTable)                  // for all sections: they may be the same bytes
	at := func(s symbol) (string, error) {
		if int(s.section) >= len(o.sections) {
			return "", fmt.Errorf("symbol %s: lies in section %d of %d", s.name, s.section, len(o.sections))
		}
		content, ok := sections[s.section]
		if !ok {
			raw, err := o.contents(&o.sections[s.section], left)
			if err != nil {
				return "", fmt.Errorf("section %s: %w", o.sections[s.section].name, err)
			}
			left -= uint64(len(raw))
			content = string(raw)
			sections[s.section] = content
		}
		if s.value >= uint64(len(content)) {
			return "", fmt.Errorf("symbol %s: lies at %d of %d bytes", s.name, s.value, len(content))
		}
		return content[s.value:], nil
	}
	var list []Export
	for _, name := range e.order {
		x := Export{Symbol: name}
		if s, ok := e.table[name]; ok && int(s.section) < len(o.sections) {
			x.GPL = gplTable(o.sections[s.section].name)
		}
		if s, ok := e.flags[name]; ok && s.section != elf.SHN_UNDEF {
			raw, err := at(s)
			if err != nil {
				return nil, err
			}
			x.GPL = raw[0]&1 != 0
		}
		if s, ok := e.crc[name]; ok && s.section == elf.SHN_ABS {
			x.CRC = uint32(s.value)
		} else if ok && s.section != elf.SHN_UNDEF {
			raw, err := at(s)
			if err != nil {
				return nil, err
			}
			if len(raw) < 4 {
				return nil, fmt.Errorf("symbol %s: less than 4 bytes", s.name)
			}
			x.CRC = o.order.Uint32([]byte(raw[:4]))
		}
		if s, ok := e.space[name]; ok && s.section != elf.SHN_UNDEF {
			raw, err := at(s)
			if err != nil {
				return nil, err
			}
			if x.Namespace, err = text(raw, 0); err != nil {
				return nil, fmt.Errorf("namespace of symbol %s: %w", name, err)
			}
		}
		list = append(list, x)
	}
	return list, nil
}

// gplTable says that the symbols of a table are for modules under the GPL only. The tables of symbols
// that would become so "in the future" (until Linux 5.11) are not meant.
func gplTable(section string) bool {
	return strings.HasPrefix(section, "__ksymtab") && strings.HasSuffix(section, "_gpl")
}
