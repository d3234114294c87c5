package dkms

import (
	"strings"
)

// Missing returns the package that would bring what a failed build did not find: a
// command, a header or library of user space, a Python module. Where suites call
// it differently there are several names, the newer one first; nil where nothing
// gives it away. The reason is that of Reason, the texts are those it was found
// in.
//
// Only what packages are known to bring counts: a header that the kernel does not
// have means another kernel, not another package.
func Missing(reason, makeLog, output string) []string {
	for _, find := range []func(string) []string{missingHeader, missingLibrary, missingPython, namedPackage, missingTool} {
		if found := find(reason); found != nil {
			return found
		}
	}
	// The consequence of a missing command often comes first.
	for _, text := range []string{makeLog, output} {
		for lines := newLines(text); lines.next(); {
			if !tells(lines.line) && !strings.Contains(lines.line, "install") && !strings.Contains(lines.line, "available") {
				continue
			}
			for _, find := range []func(string) []string{namedPackage, missingTool} {
				if found := find(lines.line); found != nil {
					return found
				}
			}
		}
	}
	return nil
}

var (
	headerMissing  = expression(`fatal error: '?([^\s':]+)'?(?:: No such file or directory| file not found)`)
	libraryMissing = expression(`cannot find -l([A-Za-z0-9_+.-]+)`)
	pythonMissing  = expression(`ModuleNotFoundError: No module named '([A-Za-z0-9_]+)`)
	packageNamed   = expression(`(?i:please install) (?:the )?["'‘]?([a-z0-9][a-z0-9.+-]+)`)
	toolMissing    = expression(`^command not found: (\S+)|^BTF: \S+: (pahole) \(pahole\) is not available`)
	compilerNamed  = expression(`^(?:gcc|g\+\+|cpp|clang|lld|llvm|rustc)-[0-9.]+$`)
)

func missingHeader(text string) []string {
	m := headerMissing().FindStringSubmatch(text)
	if m == nil {
		return nil
	}
	dir, _, _ := strings.Cut(m[1], "/")
	for _, name := range []string{m[1], dir + "/"} {
		if p, ok := headerPackages[name]; ok {
			return []string{p}
		}
	}
	return nil
}

func missingLibrary(text string) []string {
	if m := libraryMissing().FindStringSubmatch(text); m != nil {
		if p, ok := libraryPackages[m[1]]; ok {
			return []string{p}
		}
	}
	return nil
}

func missingPython(text string) []string {
	if m := pythonMissing().FindStringSubmatch(text); m != nil {
		return []string{"python3-" + strings.ToLower(strings.ReplaceAll(m[1], "_", "-"))}
	}
	return nil
}

// namedPackage is what a Makefile itself asks for.
func namedPackage(text string) []string {
	m := packageNamed().FindStringSubmatch(text)
	if m == nil {
		return nil
	}
	name := strings.TrimRight(m[1], ".")
	if tool, ok := toolPackages[name]; ok {
		return tool
	}
	if strings.HasPrefix(name, "lib") && strings.HasSuffix(name, "-dev") {
		return []string{name}
	}
	return nil
}

func missingTool(text string) []string {
	name := ""
	if m := toolMissing().FindStringSubmatch(text); m != nil {
		name = m[1] + m[2]
	} else if m := commandMissing().FindStringSubmatch(text); m != nil {
		name = m[1]
	}
	name = name[strings.LastIndexByte(name, '/')+1:]
	if compilerNamed().MatchString(name) {
		return []string{name}
	}
	return toolPackages[name]
}

// headerPackages are the packages of user space's headers, by a header or, with a
// slash at its end, by their directory.
var headerPackages = map[string]string{
	"Python.h": "python3-dev", "blkid/": "libblkid-dev", "bpf/": "libbpf-dev", "curses.h": "libncurses-dev", "dwarf.h": "libdw-dev",
	"elfutils/": "libdw-dev", "gelf.h": "libelf-dev", "gmp.h": "libgmp-dev", "libelf.h": "libelf-dev",
	"libkmod.h": "libkmod-dev", "libudev.h": "libudev-dev", "lzma.h": "liblzma-dev", "mpc.h": "libmpc-dev", "ncurses.h": "libncurses-dev",
	"numa.h": "libnuma-dev", "openssl/": "libssl-dev", "pci/": "libpci-dev", "sys/capability.h": "libcap-dev", "uuid/": "uuid-dev",
	"yaml.h": "libyaml-dev", "zlib.h": "zlib1g-dev", "zstd.h": "libzstd-dev",
}

// libraryPackages are the packages of libraries, by what follows -l.
var libraryPackages = map[string]string{
	"bpf": "libbpf-dev", "cap": "libcap-dev", "crypto": "libssl-dev", "dw": "libdw-dev", "elf": "libelf-dev", "kmod": "libkmod-dev",
	"lzma": "liblzma-dev", "ncurses": "libncurses-dev", "numa": "libnuma-dev", "pci": "libpci-dev", "ssl": "libssl-dev",
	"udev": "libudev-dev", "uuid": "uuid-dev", "yaml": "libyaml-dev", "z": "zlib1g-dev", "zstd": "libzstd-dev",
}

// toolPackages are the packages of commands that builds of modules and of the
// kernel's own tools call, and that build-essential does not bring.
var toolPackages = map[string][]string{
	"aclocal": {"automake"}, "autoconf": {"autoconf"}, "automake": {"automake"}, "autoreconf": {"autoconf"}, "awk": {"gawk"},
	"bc": {"bc"}, "bindgen": {"bindgen"}, "bison": {"bison"}, "clang": {"clang"}, "cmake": {"cmake"}, "cpio": {"cpio"}, "curl": {"curl"},
	"depmod": {"kmod"}, "dos2unix": {"dos2unix"}, "dtc": {"device-tree-compiler"}, "file": {"file"}, "flex": {"flex"},
	"gawk": {"gawk"}, "git": {"git"}, "hexdump": {"bsdextrautils", "bsdmainutils"}, "ip": {"iproute2"}, "ld.lld": {"lld"},
	"libelf": {"libelf-dev"}, "libtoolize": {"libtool"}, "llvm-ar": {"llvm"}, "llvm-nm": {"llvm"}, "llvm-objcopy": {"llvm"}, "llvm-strip": {"llvm"},
	"lsb_release": {"lsb-release"}, "lspci": {"pciutils"}, "lz4": {"lz4"}, "lz4c": {"lz4"}, "lzop": {"lzop"}, "m4": {"m4"}, "nasm": {"nasm"},
	"openssl": {"openssl"}, "pahole": {"pahole", "dwarves"}, "perl": {"perl"}, "pkg-config": {"pkgconf", "pkg-config"}, "ps": {"procps"},
	"python": {"python-is-python3"}, "python2": {"python2"}, "python3": {"python3"}, "quilt": {"quilt"}, "rsync": {"rsync"}, "rustc": {"rustc"},
	"swig": {"swig"}, "unzip": {"unzip"}, "wget": {"wget"}, "xxd": {"xxd", "vim-common"}, "xz": {"xz-utils"}, "yacc": {"bison"}, "zstd": {"zstd"},
}
