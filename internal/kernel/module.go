package kernel

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// maxModule bounds a module file, decompressed. With debug information the largest have 200 MB.
const maxModule = 512 << 20

// A Module is what a kernel module file says of itself.
type Module struct {
	Path     string // the file
	Name     string // modinfo's name; before Linux 4.12 the file's, with - as _
	Vermagic string // as it stands there, with the space at its end
	License  string
	Version  string   // "" for most
	Depends  []string // names of the modules whose symbols it uses

	Machine elf.Machine
	Class   elf.Class
	Data    elf.Data

	Imports    []Import          // undefined symbols, in the order of the symbol table
	Exports    []Export          // symbols for other modules
	Versions   map[string]uint32 // CRCs of what it was built against; nil when it has none
	Namespaces []string          // that it imports
	Signed     bool              // a signature is appended; it is not verified here
	Debug      bool              // it has sections for debuggers
	InTree     bool              // built with the kernel, of its own source
}

// An Import is a symbol that a module leaves undefined.
type Import struct {
	Symbol string
	Weak   bool // may stay undefined when the module is loaded
}

// ReadModule reads a .ko, .ko.gz, .ko.xz or .ko.zst file; the contents tell which. The file is foreign
// input: it must be a regular one, of at most 512 MiB decompressed, and everything in it is checked before
// use. A compressed one is held in memory while it is read.
//
// The format: ELF, and Linux's Documentation/kbuild/modules.rst and Documentation/admin-guide/module-signing.rst.
func ReadModule(path string) (Module, error) {
	m, err := readModule(path)
	if err != nil {
		return Module{}, fmt.Errorf("cannot read module %s: %w", path, bare(err))
	}
	return m, nil
}

func readModule(path string) (Module, error) {
	// Without O_NONBLOCK a fifo in its place would make us wait for ever.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return Module{}, err
	}
	defer file.Close()
	return ReadOpenModule(path, file)
}

// ReadOpenModule is ReadModule of a file that is open; the path serves for names only.
func ReadOpenModule(path string, file *os.File) (Module, error) {
	info, err := file.Stat()
	if err != nil {
		return Module{}, err
	}
	if !info.Mode().IsRegular() {
		return Module{}, errors.New("not a regular file")
	}
	return parseModule(path, file, info.Size())
}

// parseModule reads the first size bytes of r; the path serves for names only.
func parseModule(path string, r io.ReaderAt, size int64) (Module, error) {
	if size == 0 {
		return Module{}, errors.New("empty file")
	}
	magic := make([]byte, min(size, magicSize))
	if _, err := r.ReadAt(magic, 0); err != nil {
		return Module{}, err
	}
	if formatOf(magic) != "" {
		plain, err := unpack(io.NewSectionReader(r, 0, size), maxModule)
		if err != nil {
			return Module{}, err
		}
		r, size = bytes.NewReader(plain), int64(len(plain))
	}
	if size > maxModule {
		return Module{}, fmt.Errorf("larger than %d bytes", maxModule)
	}
	body, err := unsignedSize(r, size)
	if err != nil {
		return Module{}, err
	}
	o, err := readObject(r, body)
	if err != nil {
		return Module{}, err
	}
	m := Module{
		Path:    path,
		Machine: o.machine,
		Class:   o.class,
		Data:    o.data,
		Signed:  body != size,
		Debug:   o.debug(),
	}
	if err := m.readInfo(o); err != nil {
		return Module{}, err
	}
	if err := m.readSymbols(o); err != nil {
		return Module{}, err
	}
	return m, nil
}

func (m *Module) readSymbols(o *object) (err error) {
	marks := newExportMarks()
	err = o.symbols(func(s symbol) {
		if s.section == elf.SHN_UNDEF && (s.bind == elf.STB_GLOBAL || s.bind == elf.STB_WEAK) {
			m.Imports = append(m.Imports, Import{Symbol: s.name, Weak: s.bind == elf.STB_WEAK})
			return
		}
		marks.see(s)
	})
	if err != nil {
		return err
	}
	if m.Exports, err = o.exports(marks); err != nil {
		return err
	}
	for i := range m.Exports {
		m.Exports[i].Module, m.Exports[i].proprietary = m.Name, !GPLCompatible(m.License)
	}
	m.Versions, err = o.versions()
	return err
}

// readInfo reads .modinfo: key=value strings, each ended by one or more zero bytes. Of a key that stands
// there twice the first value counts, as for the kernel.
func (m *Module) readInfo(o *object) error {
	s := o.section(".modinfo")
	if s == nil {
		return errors.New("not a kernel module: it has no section .modinfo")
	}
	raw, err := o.contents(s, maxInfo)
	if err != nil {
		return fmt.Errorf("section .modinfo: %w", err)
	}
	info, imported := map[string]string{}, map[string]bool{}
	for field := range strings.SplitSeq(string(raw), "\x00") {
		key, value, ok := strings.Cut(field, "=")
		if _, seen := info[key]; ok && !seen {
			info[key] = value
		}
		if ok && key == "import_ns" && !imported[value] {
			imported[value] = true
			m.Namespaces = append(m.Namespaces, value)
		}
	}
	m.Name, m.Vermagic, m.License, m.Version = info["name"], info["vermagic"], info["license"], info["version"]
	m.InTree = info["intree"] == "Y"
	if m.Name == "" {
		m.Name = nameOfFile(m.Path)
	}
	for name := range strings.SplitSeq(info["depends"], ",") {
		if name != "" {
			m.Depends = append(m.Depends, name)
		}
	}
	return nil
}

// nameOfFile derives a module's name from its file's.
func nameOfFile(path string) string {
	name := filepath.Base(path)
	if i := strings.LastIndex(name, ".ko"); i > 0 {
		name = name[:i]
	}
	return strings.ReplaceAll(name, "-", "_")
}

// ReadPlain returns the content of a module file, decompressed. It is bounded as by ReadModule.
func ReadPlain(path string) (_ []byte, err error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return Plain(file)
}

// Plain is ReadPlain of what r holds.
func Plain(r io.Reader) ([]byte, error) { return unpack(r, maxModule) }

// unpack returns the decompressed contents of r, of at most limit bytes.
func unpack(r io.Reader, limit int64) (_ []byte, err error) {
	plain, err := Decompress(r)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, plain.Close()) }()
	b, err := io.ReadAll(io.LimitReader(plain, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("larger than %d bytes when decompressed", limit)
	}
	return b, nil
}
