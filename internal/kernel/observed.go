package kernel

import (
	"slices"
	"strings"
)

// An Observed kernel is known by its own modules alone, as in an image that has no
// headers. They tell what they export, what they need of the kernel itself, by which
// CRC, and what vermagic it wants. Of the kernel they do not tell what none of them
// needs, nor which of its symbols are for the GPL only or have a namespace: a module
// that passes Check may still be refused for that, and a *MissingError says that nobody
// can tell.
type Observed struct {
	facts  Facts
	needed map[string]uint32 // CRCs of symbols, those that the modules export among them
	own    Symvers           // what the modules export
}

// Add takes a module of the kernel, which lies at place in its tree (drivers/usb/core/usbcore).
func (o *Observed) Add(place string, m Module) {
	if o.needed == nil {
		o.needed, o.own = map[string]uint32{}, Symvers{}
		o.facts = Facts{Vermagic: m.Vermagic, Machine: m.Machine, Class: m.Class, Data: m.Data, Arch: archName(m.Machine, m.Class, m.Data)}
		words := strings.Fields(m.Vermagic)
		if len(words) > 0 {
			o.facts.Release = words[0]
		}
		o.facts.Modversions = slices.Contains(words, "modversions")
	}
	for symbol, crc := range m.Versions { // module_layout is here only
		o.needed[symbol] = crc
	}
	for _, i := range m.Imports {
		if name := symbolName(m.Machine, i.Symbol); !i.Weak && !linkerSymbol(m.Machine, name) {
			if _, ok := o.needed[name]; !ok {
				o.needed[name] = 0
			}
		}
	}
	for _, x := range m.Exports {
		x.Module = place
		o.own[x.Symbol] = x
	}
}

// Target is what the modules tell, taken together.
func (o *Observed) Target() Target {
	symvers := make(Symvers, len(o.needed)+len(o.own))
	for symbol, crc := range o.needed {
		symvers[symbol] = Export{Symbol: symbol, Module: "vmlinux", CRC: crc}
	}
	for symbol, x := range o.own {
		if x.CRC == 0 {
			x.CRC = o.needed[symbol] // it was stripped of it
		}
		symvers[symbol] = x
	}
	return Target{Facts: o.facts, Symvers: symvers}
}
