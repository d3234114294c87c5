package kernel

import (
	"debug/elf"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A Target is a kernel, and what else is there when a module is loaded: that is what symbols are
// resolved by (Linux: kernel/module/main.c, resolve_symbol).
type Target struct {
	Facts   Facts
	Symvers Symvers

	// Beside has the exports of modules that are loaded before, by symbol: those that the module to be
	// checked depends on.
	Beside map[string]Export
	// Replaced has the kernel's own modules that others replace, by name, with what replaces each, for
	// messages. What such a module exports does not count: it is not loaded.
	Replaced map[string]string
	// LeftOut has the exports of modules that the module to be checked was built with, and that will not be
	// there, by symbol. What Beside has not of them is missing, even if the kernel has a symbol of that name:
	// the module was not built against that one.
	LeftOut map[string]Export
}

// Checked counts what was found right in a module.
type Checked struct {
	Symbols    int      // that it needs, and that are there
	GPL        int      // those of them that only modules under the GPL may use
	CRCs       int      // that are the same; 0 for a kernel without
	Namespaces []string // of the symbols, which it imports
}

// A MissingError says that nobody exports a symbol that a module needs.
type MissingError struct {
	Symbol string
	// Replaced says that the kernel's own modules export it, and that theirs does not count.
	Replaced bool
	text     string
}

func (e *MissingError) Error() string { return e.text }

// Offer makes Target.Beside, or Target.LeftOut, of modules; of a symbol that several export the first counts.
func Offer(modules ...Module) map[string]Export {
	exports := map[string]Export{}
	for _, m := range modules {
		for _, x := range m.Exports {
			if _, seen := exports[x.Symbol]; !seen {
				exports[x.Symbol] = x
			}
		}
	}
	return exports
}

// Check tells whether the module can be loaded: whether it is for this kernel, as Facts.Check says, and
// whether each symbol that it needs is exported, with the CRC that it was built against, to modules of
// its license and of the namespaces that it imports.
func (t *Target) Check(m Module) (Checked, error) {
	var c Checked
	if err := t.Facts.Check(m); err != nil {
		return c, err
	}
	file := filepath.Base(m.Path)
	if err := t.checkLayout(m); err != nil {
		return c, fmt.Errorf("module %s %w", file, err)
	}
	gpl := GPLCompatible(m.License)
	imported := map[string]bool{}
	for _, namespace := range m.Namespaces {
		imported[namespace] = true
	}
	var gplOnly, tainted string // a symbol of either kind
	for _, i := range m.Imports {
		name := symbolName(m.Machine, i.Symbol)
		x, found := t.find(name)
		switch {
		case !found && (i.Weak || linkerSymbol(m.Machine, name)):
			continue
		case !found:
			return c, t.missing(m, name)
		}
		if err := t.fits(m, x, gpl, imported[x.Namespace]); err != nil {
			return c, fmt.Errorf("module %s %w", file, err)
		}
		c.add(m, x, t.Facts.Modversions)
		if x.GPL {
			gplOnly = name
		}
		if x.proprietary {
			tainted = name
		}
	}
	// Since Linux 5.9 a module cannot hand GPL-only symbols on to a proprietary one.
	if gplOnly != "" && tainted != "" && CompareReleases(t.Facts.Release, "5.9") >= 0 {
		return c, fmt.Errorf("module %s uses the symbol %s, which is for GPL modules only, together with %s of the proprietary module %s: the kernel refuses that",
			file, printable(gplOnly), printable(tainted), t.Beside[tainted].moduleName())
	}
	for _, x := range m.Exports {
		if own, ok := t.Symvers[x.Symbol]; ok && own.Module == "vmlinux" {
			return c, fmt.Errorf("module %s exports the symbol %s, which the kernel itself exports: it refuses that", file, printable(x.Symbol))
		}
	}
	slices.Sort(c.Namespaces)
	c.Namespaces = slices.Compact(c.Namespaces)
	return c, nil
}

func (c *Checked) add(m Module, x Export, modversions bool) {
	c.Symbols++
	if x.GPL {
		c.GPL++
	}
	if _, ok := m.Versions[x.Symbol]; ok && modversions && x.CRC != 0 {
		c.CRCs++
	}
	if x.Namespace != "" {
		c.Namespaces = append(c.Namespaces, x.Namespace)
	}
}

// find returns the export that the kernel would take for a symbol.
func (t *Target) find(name string) (Export, bool) {
	if x, ok := t.Beside[name]; ok {
		return x, true
	}
	if x, ok := t.LeftOut[name]; ok {
		return x, false
	}
	x, ok := t.Symvers[name]
	if ok && t.Replaced[x.moduleName()] != "" {
		return x, false
	}
	return x, ok
}

// missing says what is wrong with a symbol that find does not find.
func (t *Target) missing(m Module, name string) error {
	file := filepath.Base(m.Path)
	if x, ok := t.LeftOut[name]; ok {
		return &MissingError{name, false, fmt.Sprintf("module %s needs the symbol %s of the module %s, which is left out",
			file, printable(name), printable(x.moduleName()))}
	}
	if x, ok := t.Symvers[name]; ok {
		return &MissingError{name, true, fmt.Sprintf("module %s was built against the symbol %s of the kernel's own module %s, which %s replaces, and nothing that it depends on exports that symbol",
			file, printable(name), x.moduleName(), t.Replaced[x.moduleName()])}
	}
	return &MissingError{name, false, fmt.Sprintf("module %s needs the symbol %s, which neither %s nor a module that it depends on exports",
		file, printable(name), t.Facts.Release)}
}

// checkLayout looks at the CRC that stands for the kernel's own idea of a module. It is among a module's
// CRCs, though no module uses it.
func (t *Target) checkLayout(m Module) error {
	if !t.Facts.Modversions {
		return nil
	}
	if m.Versions == nil {
		return fmt.Errorf("has no CRCs of the symbols that it needs, and %s wants them: it was built without CONFIG_MODVERSIONS", t.Facts.Release)
	}
	const layout = "module_layout"
	if x, ok := t.Symvers[layout]; ok {
		return t.sameCRC(m, x)
	}
	return nil
}

// fits says why a module cannot use an export.
func (t *Target) fits(m Module, x Export, gpl, imported bool) error {
	if x.GPL && !gpl {
		return fmt.Errorf("has the license %.80q, and needs the symbol %s, which %s exports to modules under the GPL only",
			m.License, printable(x.Symbol), t.owner(x))
	}
	if err := t.sameCRC(m, x); err != nil {
		return err
	}
	if x.Namespace == "" || t.Facts.LaxNamespaces || imported || namedFor(x.Namespace, m.Name) {
		return nil
	}
	if only, ok := strings.CutPrefix(x.Namespace, moduleNamespace); ok {
		return fmt.Errorf("needs the symbol %s, which %s exports to the modules %s only", printable(x.Symbol), t.owner(x), printable(only))
	}
	return fmt.Errorf("needs the symbol %s of the namespace %s, which it does not import (MODULE_IMPORT_NS)", printable(x.Symbol), printable(x.Namespace))
}

// sameCRC compares CRCs as the kernel does: one that either side has not is no obstacle.
func (t *Target) sameCRC(m Module, x Export) error {
	crc, ok := m.Versions[x.Symbol]
	if !ok || !t.Facts.Modversions || x.CRC == 0 || crc == x.CRC {
		return nil
	}
	what := fmt.Sprintf("was built against another version of the symbol %s (CRC 0x%08x) than %s exports (0x%08x)", printable(x.Symbol), crc, t.owner(x), x.CRC)
	if own, ok := t.Symvers[x.Symbol]; ok && own.CRC == crc {
		if by := t.Replaced[own.moduleName()]; by != "" {
			what += fmt.Sprintf(": against that of the kernel's own module %s, which %s replaces", own.moduleName(), by)
		}
	}
	return fmt.Errorf("%s", what)
}

// owner names who has an export.
func (t *Target) owner(x Export) string {
	if x.Module == "vmlinux" {
		return t.Facts.Release
	}
	return "the module " + printable(x.moduleName())
}

// printable is for names out of foreign files.
func printable(name string) string {
	if q := strconv.Quote(name); q != `"`+name+`"` {
		return q
	}
	return name
}

// GPLCompatible says whether a module's license lets it use symbols that are for the GPL only (Linux:
// include/linux/license.h).
func GPLCompatible(license string) bool {
	switch license {
	case "GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL":
		return true
	}
	return false
}

// moduleNamespace begins the namespaces that need no import, but name the modules that they are for
// (Linux 6.16; EXPORT_SYMBOL_FOR_MODULES).
const moduleNamespace = "module:"

// namedFor says whether such a namespace is for a module. It is a list with commas, where an asterisk at the end of an
// entry stands for any end.
func namedFor(namespace, module string) bool {
	list, ok := strings.CutPrefix(namespace, moduleNamespace)
	if !ok {
		return false
	}
	name := strings.ReplaceAll(module, "-", "_")
	for entry := range strings.SplitSeq(strings.ReplaceAll(list, "-", "_"), ",") {
		if start, open := strings.CutSuffix(entry, "*"); entry == name || open && strings.HasPrefix(name, start) {
			return true
		}
	}
	return false
}

// linkerSymbol says whether a symbol may be undefined because the kernel fills it in itself, or needs it
// not (Linux: ignore_undef_symbol).
func linkerSymbol(machine elf.Machine, name string) bool {
	switch machine {
	case elf.EM_386, elf.EM_X86_64:
		return name == "_GLOBAL_OFFSET_TABLE_"
	case elf.EM_PPC64:
		return name == "TOC."
	}
	return false
}

// symbolName is a symbol as it is exported: ppc64 puts a dot before those of functions.
func symbolName(machine elf.Machine, name string) string {
	if machine == elf.EM_PPC64 {
		return strings.TrimPrefix(name, ".")
	}
	return name
}
