package kernel

import (
	"debug/elf"
	"errors"
	"fmt"
	"strings"
)

// versions returns the CRCs that a module was built against, by symbol; nil for a module without. They
// stand in one of three forms (Linux: kernel/module/version.c):
//
//   - __version_ext_crcs and __version_ext_names (Linux 6.14): numbers of 4 bytes, and as many names, each
//     ended by a zero byte. Where they are, they count alone.
//   - __versions: records of 64 bytes, the CRC as an unsigned long, the rest for the name.
//   - __versions in Ubuntu's kernels 5.19 to 6.11: records of any length: 4 bytes with the distance to the next
//     record, 4 with the CRC, the name. A distance of 0 ends the list.
func (o *object) versions() (map[string]uint32, error) {
	if crcs := o.section("__version_ext_crcs"); crcs != nil {
		return o.extendedVersions(crcs, o.section("__version_ext_names"))
	}
	s := o.section("__versions")
	if s == nil {
		return nil, nil
	}
	raw, err := o.contents(s, maxTable)
	if err != nil {
		return nil, fmt.Errorf("section __versions: %w", err)
	}
	versions, ok := o.fixedVersions(raw)
	if !ok {
		if versions, ok = o.chainedVersions(raw); !ok {
			return nil, errors.New("section __versions: has no known form")
		}
	}
	return versions, nil
}

func (o *object) extendedVersions(crcs, names *section) (map[string]uint32, error) {
	if names == nil {
		return nil, errors.New("a section __version_ext_crcs without __version_ext_names")
	}
	numbers, err := o.contents(crcs, maxTable)
	if err != nil {
		return nil, fmt.Errorf("section __version_ext_crcs: %w", err)
	}
	raw, err := o.contents(names, maxTable)
	if err != nil {
		return nil, fmt.Errorf("section __version_ext_names: %w", err)
	}
	if len(numbers)/4 > maxSymbols {
		return nil, fmt.Errorf("section __version_ext_crcs: %d numbers, where at most %d are allowed", len(numbers)/4, maxSymbols)
	}
	versions := make(map[string]uint32, len(numbers)/4)
	rest := string(raw)
	for ; len(numbers) >= 4; numbers = numbers[4:] {
		name, after, ok := strings.Cut(rest, "\x00")
		if !ok {
			return nil, errors.New("section __version_ext_names: has fewer names than there are CRCs")
		}
		add(versions, name, o.order.Uint32(numbers))
		rest = after
	}
	return versions, nil
}

// add keeps the first of two CRCs of a symbol, as the kernel does.
func add(versions map[string]uint32, name string, crc uint32) {
	if _, seen := versions[name]; !seen {
		versions[name] = crc
	}
}

// versionRecord is the size of struct modversion_info.
const versionRecord = 64

func (o *object) fixedVersions(raw []byte) (map[string]uint32, bool) {
	if len(raw)%versionRecord != 0 {
		return nil, false
	}
	long := 8
	if o.class == elf.ELFCLASS32 {
		long = 4
	}
	versions := make(map[string]uint32, len(raw)/versionRecord)
	for ; len(raw) > 0; raw = raw[versionRecord:] {
		crc := o.word(raw)
		name, rest, ok := strings.Cut(string(raw[long:versionRecord]), "\x00")
		if !ok || name == "" || crc>>32 != 0 || strings.Trim(rest, "\x00") != "" {
			return nil, false
		}
		add(versions, name, uint32(crc))
	}
	return versions, true
}

func (o *object) chainedVersions(raw []byte) (map[string]uint32, bool) {
	const head = 8
	versions := map[string]uint32{}
	for len(raw) >= head {
		next := uint64(o.order.Uint32(raw))
		if next == 0 {
			break
		}
		if next < head || next > uint64(len(raw)) || len(versions) > maxSymbols {
			return nil, false
		}
		name, _, ok := strings.Cut(string(raw[head:next]), "\x00")
		if !ok || name == "" {
			return nil, false
		}
		add(versions, name, o.order.Uint32(raw[4:]))
		raw = raw[next:]
	}
	return versions, true
}
