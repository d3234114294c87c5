package kernel

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// commonWords are the words of vermagic that every architecture has, or has not, by configuration
// (Linux: include/linux/vermagic.h). What follows them is the architecture's own.
var commonWords = []string{"SMP", "preempt", "preempt_rt", "mod_unload", "modversions"}

// Check tells whether the kernel would take the module for one of its own: machine and vermagic. The
// release in vermagic must be the kernel's, though a kernel with CRCs would not insist. Words of the
// architecture (aarch64, ARMv7, 686, RANDSTRUCT_…) are passed over, because the configuration does not
// tell them. Symbols are not looked at.
func (f Facts) Check(m Module) error {
	file := filepath.Base(m.Path)
	if f.Arch != "" && (m.Machine != f.Machine || m.Class != f.Class || m.Data != f.Data) {
		return fmt.Errorf("module %s is for %s, not for %s", file, archName(m.Machine, m.Class, m.Data), f.Arch)
	}
	words := strings.Fields(m.Vermagic)
	if len(words) == 0 {
		return fmt.Errorf("module %s has no vermagic: it is not built for any kernel", file)
	}
	if words[0] != f.Release {
		return fmt.Errorf("module %s is built for %.128s (vermagic %.256q), not for %s", file, words[0], m.Vermagic, f.Release)
	}
	if has, wants := f.common(m.Vermagic), f.common(f.Vermagic); !slices.Equal(has, wants) {
		return fmt.Errorf("module %s has vermagic %.256q, but the kernel wants %q: it is built with another configuration",
			file, m.Vermagic, f.Vermagic)
	}
	return nil
}

// common returns the words of a vermagic that can be compared.
func (f Facts) common(vermagic string) []string {
	var common []string
	for i, word := range strings.Fields(vermagic) {
		if i == 0 || !slices.Contains(commonWords, word) {
			continue
		}
		if f.eitherPreempt && word == "preempt_rt" {
			word = "preempt"
		}
		common = append(common, word)
	}
	return common
}
