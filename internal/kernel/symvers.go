package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
)

// Symvers is what a kernel exports, by symbol.
type Symvers map[string]Export

// symversFile is the list of exports in a build directory.
const symversFile = "Module.symvers"

// ReadSymvers reads Module.symvers of a kernel's build directory (Linux: Documentation/kbuild/modules.rst):
// what the kernel exports, and its own modules. An error wraps fs.ErrNotExist when there is none.
func ReadSymvers(dir string) (Symvers, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot read kernel build directory %s: %w", dir, bare(err))
	}
	defer root.Close()
	raw, err := readFile(root, symversFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no %s in the kernel's build directory: nobody can tell whether the kernel has the symbols that modules need: %w", symversFile, bare(err))
	}
	if err == nil {
		var s Symvers
		if s, err = ParseSymvers(string(raw)); err == nil {
			return s, nil
		}
	}
	return nil, fmt.Errorf("cannot read %s in %s: %w", symversFile, dir, bare(err))
}

// ParseSymvers reads the lines of a Module.symvers: CRC, symbol, module, type of export and namespace,
// with tabs between. Linux 5.4 to 5.6 had the namespace before the module, older ones had none. Of
// a symbol that stands there twice the first line counts.
func ParseSymvers(content string) (Symvers, error) {
	s := make(Symvers, strings.Count(content, "\n"))
	number := 0
	for line := range strings.Lines(content) {
		number++
		if line = strings.TrimRight(line, "\n"); line == "" {
			continue
		}
		x, ok := parseSymversLine(line)
		if !ok {
			return nil, fmt.Errorf("line %d is no export: %.80q", number, line)
		}
		if _, seen := s[x.Symbol]; !seen {
			s[x.Symbol] = x
		}
	}
	return s, nil
}

func parseSymversLine(line string) (Export, bool) {
	var fields [5]string
	n := 0
	for field := range strings.SplitSeq(line, "\t") {
		if n == len(fields) {
			return Export{}, false
		}
		fields[n] = field
		n++
	}
	if n < 4 {
		return Export{}, false
	}
	crc, err := strconv.ParseUint(strings.TrimPrefix(fields[0], "0x"), 16, 32)
	if err != nil || fields[1] == "" {
		return Export{}, false
	}
	x := Export{Symbol: fields[1], CRC: uint32(crc), Module: fields[2], Namespace: fields[4]}
	export := fields[3]
	if strings.HasPrefix(fields[4], "EXPORT_") {
		x.Namespace, x.Module, export = fields[2], fields[3], fields[4]
	}
	x.GPL = strings.HasSuffix(export, "_GPL")
	return x, strings.HasPrefix(export, "EXPORT_")
}

// Modules returns the kernel's own modules that export symbols: where they are in its tree, by name.
func (s Symvers) Modules() map[string]string {
	modules := map[string]string{}
	for _, x := range s {
		if x.Module != "vmlinux" {
			modules[x.moduleName()] = x.Module
		}
	}
	return modules
}

// moduleName is the name of the module that has the export.
func (x Export) moduleName() string {
	return strings.ReplaceAll(strings.TrimSuffix(path.Base(x.Module), ".ko"), "-", "_")
}
