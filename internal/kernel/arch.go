// Package kernel knows the facts of a target kernel and checks module files against them.
//
// A kernel is known here by its build directory, as a headers package ships it. A module file is
// foreign input: everything read from it is bounded and checked before it is used.
package kernel

import "debug/elf"

// An Arch is one architecture under all the names it goes by.
type Arch struct {
	Debian  string      // dpkg's name: amd64
	Kernel  string      // the name that uname -m prints, and dkms uses: x86_64
	Machine elf.Machine // the ELF header of its modules
	Class   elf.Class
	Data    elf.Data

	aliases []string // further names that uname -m prints for the same modules
	config  []string // what the kernel's configuration has set; a leading ! means not set
	flavour string   // the flavour of Debian's default kernel, where there is one
}

// arches is in order of preference: the first row that fits a question answers it.
var arches = []Arch{
	{"amd64", "x86_64", elf.EM_X86_64, elf.ELFCLASS64, elf.ELFDATA2LSB, nil, []string{"X86_64"}, "amd64"},
	{"arm64", "aarch64", elf.EM_AARCH64, elf.ELFCLASS64, elf.ELFDATA2LSB, []string{"arm64"}, []string{"ARM64", "!CPU_BIG_ENDIAN"}, "arm64"},
	{"i386", "i686", elf.EM_386, elf.ELFCLASS32, elf.ELFDATA2LSB, []string{"i386", "i486", "i586"}, []string{"X86", "!X86_64"}, "686-pae"},
	{"armhf", "armv7l", elf.EM_ARM, elf.ELFCLASS32, elf.ELFDATA2LSB, []string{"armv8l", "armhf"}, []string{"ARM", "CPU_V7", "!CPU_BIG_ENDIAN"}, "armmp"},
	{"armel", "armv6l", elf.EM_ARM, elf.ELFCLASS32, elf.ELFDATA2LSB, []string{"armv5tel", "armv5tejl", "armv4tl", "armel"}, []string{"ARM", "!CPU_V7", "!CPU_BIG_ENDIAN"}, "rpi"},
	{"ppc64el", "ppc64le", elf.EM_PPC64, elf.ELFCLASS64, elf.ELFDATA2LSB, nil, []string{"PPC64", "CPU_LITTLE_ENDIAN"}, "powerpc64le"},
	{"ppc64", "ppc64", elf.EM_PPC64, elf.ELFCLASS64, elf.ELFDATA2MSB, nil, []string{"PPC64", "!CPU_LITTLE_ENDIAN"}, "powerpc64"},
	{"powerpc", "ppc", elf.EM_PPC, elf.ELFCLASS32, elf.ELFDATA2MSB, nil, []string{"PPC32"}, "powerpc"},
	{"s390x", "s390x", elf.EM_S390, elf.ELFCLASS64, elf.ELFDATA2MSB, nil, []string{"S390"}, "s390x"},
	{"riscv64", "riscv64", elf.EM_RISCV, elf.ELFCLASS64, elf.ELFDATA2LSB, nil, []string{"RISCV", "64BIT"}, "riscv64"},
	{"loong64", "loongarch64", elf.EM_LOONGARCH, elf.ELFCLASS64, elf.ELFDATA2LSB, nil, []string{"LOONGARCH", "64BIT"}, "loong64"},
	{"mips64el", "mips64", elf.EM_MIPS, elf.ELFCLASS64, elf.ELFDATA2LSB, nil, []string{"MIPS", "64BIT", "CPU_LITTLE_ENDIAN"}, "5kc-malta"},
	{"mipsel", "mips", elf.EM_MIPS, elf.ELFCLASS32, elf.ELFDATA2LSB, nil, []string{"MIPS", "!64BIT", "CPU_LITTLE_ENDIAN"}, "4kc-malta"},
	{"sparc64", "sparc64", elf.EM_SPARCV9, elf.ELFCLASS64, elf.ELFDATA2MSB, nil, []string{"SPARC64"}, "sparc64-smp"},
}

// ArchOfDebian returns the architecture that dpkg calls name.
func ArchOfDebian(name string) (Arch, bool) {
	return findArch(func(a Arch) bool { return a.Debian == name })
}

// ArchOfKernel returns the architecture that uname -m, and so dkms, calls name.
func ArchOfKernel(name string) (Arch, bool) {
	return findArch(func(a Arch) bool {
		if a.Kernel == name {
			return true
		}
		for _, alias := range a.aliases {
			if alias == name {
				return true
			}
		}
		return false
	})
}

// archOfConfig returns the architecture that a kernel's configuration is for.
func archOfConfig(c config) (Arch, bool) {
	return findArch(func(a Arch) bool {
		for _, option := range a.config {
			if option[0] == '!' {
				if c.set(option[1:]) {
					return false
				}
			} else if !c.set(option) {
				return false
			}
		}
		return true
	})
}

func findArch(fits func(Arch) bool) (Arch, bool) {
	for _, a := range arches {
		if fits(a) {
			return a, true
		}
	}
	return Arch{}, false
}

// archName names what an ELF header says, for a message: Debian's name, or the ELF one.
func archName(machine elf.Machine, class elf.Class, data elf.Data) string {
	a, ok := findArch(func(a Arch) bool {
		return a.Machine == machine && a.Class == class && a.Data == data
	})
	if !ok {
		return machine.String()
	}
	return a.Debian
}

// DefaultFlavour returns the flavour of the kernel that a distribution installs by default: the end of
// the names linux-headers-FLAVOUR and linux-image-FLAVOUR of its metapackages. The distribution is
// named as ID in os-release(5); arch is dpkg's name. It returns "" where the answer is not known.
func DefaultFlavour(distribution, arch string) string {
	a, ok := ArchOfDebian(arch)
	switch {
	case !ok:
		return ""
	case distribution == "ubuntu":
		return "generic"
	case distribution == "debian":
		return a.flavour
	}
	return ""
}
