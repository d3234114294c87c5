package modpkg

import (
	"archive/tar"
	"dkms2bin/internal/deb"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// notShipped are the directories of a -dkms package that its modules do not need:
// sources, documentation, what is for its own maintenance, and dkms's own.
var notShipped = []string{
	"/usr/src", "/usr/share/doc", "/usr/share/lintian", "/usr/share/bug", "/usr/share/doc-base",
	"/etc/dkms", "/usr/lib/dkms", "/usr/share/dkms", "/var/lib/dkms", "/usr/share/debhelper",
}

// notWorthIt go along with other files, and are no reason for a package: they
// describe.
var notWorthIt = []string{"/usr/share/man", "/usr/share/metainfo", "/usr/share/appdata", "/usr/share/locale"}

func within(dirs []string, name string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool { return name == dir || strings.HasPrefix(name, dir+"/") })
}

// Bounds on what is read of a -dkms package, far above anything real.
const (
	maxShipped   = 4 << 30  // bytes of data.tar, unpacked
	maxMembers   = 200_000  // of data.tar
	maxFiles     = 10_000   // beside the sources
	maxName      = 4096     // bytes of a path or of a link's target: PATH_MAX
	maxOverrides = 64 << 10 // bytes of lintian's overrides
)

// A Shipment is what a -dkms package brings beside its sources.
type Shipment struct {
	Control deb.Stanza
	Newest  time.Time // of all files

	triggers  string
	overrides string // of lintian
	files     []deb.File
}

// Empty says that there is nothing to be put into a package.
func (s Shipment) Empty() bool {
	return !slices.ContainsFunc(s.files, func(f deb.File) bool {
		return f.Mode&fs.ModeDir == 0 && !within(notWorthIt, f.Path)
	})
}

// programs says whether it has programs, or libraries for them.
func (s Shipment) programs() bool {
	return slices.ContainsFunc(s.files, func(f deb.File) bool {
		return f.Mode&fs.ModeDir == 0 && (f.Mode&0o111 != 0 || strings.Contains(path.Base(f.Path), ".so"))
	})
}

// ReadShipment takes a -dkms package apart. Its files go to dir, a directory of
// the caller's, under other names; the shipment reads them from there. The package
// is foreign input: what leads outside, devices, more than 4 GiB, 200,000 members or
// 10,000 files beside the sources are errors.
func ReadShipment(file, dir string) (s Shipment, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot read %s: %w", file, err)
		}
	}()
	f, err := os.Open(file)
	if err != nil {
		return s, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return s, err
	}
	archive, err := deb.Open(f, info.Size())
	if err != nil {
		return s, err
	}
	if s.Control, err = archive.Control(); err != nil {
		return s, err
	}
	control, err := archive.ControlFiles("conffiles", "triggers")
	if err != nil {
		return s, err
	}
	s.triggers = activations(control["triggers"])
	if err := s.readData(archive, dir); err != nil {
		return s, err
	}
	conffiles := make(map[string]bool)
	for name := range strings.FieldsSeq(string(control["conffiles"])) {
		conffiles[name] = true
	}
	for i, file := range s.files {
		// Vendors forget conffiles; nothing else belongs there (Policy 10.7).
		s.files[i].Conffile = file.Open != nil && (strings.HasPrefix(file.Path, "/etc/") || conffiles[file.Path])
	}
	return s, nil
}

// activations are the triggers that a package sets off. Those that it waits for
// need its postinst.
func activations(triggers []byte) string {
	var b strings.Builder
	for line := range strings.Lines(string(triggers)) {
		if f := strings.Fields(line); len(f) == 2 && strings.HasPrefix(f[0], "activate") {
			b.WriteString(f[0] + " " + f[1] + "\n")
		}
	}
	return b.String()
}

// readData lists the files of data.tar and unpacks those that are wanted. It reads
// twice, since a hard link may be to a file that is not wanted under its own name.
func (s *Shipment) readData(archive *deb.Archive, dir string) error {
	linked := make(map[string]bool)
	var directories []deb.File
	if err := entries(archive, func(h *tar.Header, name string, r io.Reader) error {
		f := deb.File{Path: name, Mode: h.FileInfo().Mode() &^ fs.ModeSymlink, Owner: ownerOf(h)}
		if h.Typeflag == tar.TypeReg && h.ModTime.After(s.Newest) {
			s.Newest = h.ModTime.UTC()
		}
		switch {
		case name == "/usr/share/lintian/overrides/"+s.Control.Get("Package") && h.Typeflag == tar.TypeReg:
			text, err := io.ReadAll(io.LimitReader(r, maxOverrides))
			s.overrides = string(text)
			return err
		case name == "/" || within(notShipped, name):
			return nil
		case h.Typeflag == tar.TypeDir:
			directories = append(directories, f)
		case h.Typeflag == tar.TypeSymlink:
			f.Link, f.Mode = h.Linkname, 0
		case h.Typeflag == tar.TypeLink:
			f.Link, f.Mode = clean(h.Linkname), 0 // until the second reading
			linked[f.Link] = true
		case h.Typeflag != tar.TypeReg:
			return fmt.Errorf("%s is neither file, directory nor link", name)
		}
		if f.Mode&fs.ModeDir == 0 {
			s.files = append(s.files, f)
		}
		if len(s.files)+len(directories) > maxFiles {
			return fmt.Errorf("it has more than %d files beside its sources", maxFiles)
		}
		return nil
	}); err != nil {
		return err
	}
	if s.Empty() {
		s.files = nil
		return nil
	}
	byPath := func(a, b deb.File) int { return strings.Compare(a.Path, b.Path) }
	slices.SortFunc(s.files, byPath)
	files := s.files
	for _, d := range directories {
		if d.Mode.Perm() != 0o755 || d.Mode&^(fs.ModeDir|fs.ModePerm) != 0 || d.Owner != (deb.Owner{}) || empty(d.Path, files) {
			s.files = append(s.files, d)
		}
	}
	slices.SortFunc(s.files, byPath)
	return s.unpack(archive, dir, linked)
}

// unpack gives the files of the list their contents.
func (s *Shipment) unpack(archive *deb.Archive, dir string, linked map[string]bool) error {
	left := int64(maxShipped)
	unpacked := make(map[string]deb.File)
	hard := make(map[string]string)
	wanted := make(map[string]bool)
	for _, f := range s.files {
		wanted[f.Path] = true
	}
	if err := entries(archive, func(h *tar.Header, name string, r io.Reader) error {
		if !wanted[name] && !linked[name] {
			return nil
		}
		if h.Typeflag == tar.TypeLink {
			hard[name] = clean(h.Linkname)
		}
		if h.Typeflag != tar.TypeReg {
			return nil
		}
		if left -= h.Size; left < 0 { // of a sparse file the tar has only a part
			return fmt.Errorf("it has more than %d GiB", maxShipped>>30)
		}
		copied := path.Join(dir, strconv.Itoa(len(unpacked)))
		if err := copyFile(copied, r); err != nil {
			return err
		}
		unpacked[name] = deb.File{
			Mode: h.FileInfo().Mode(), Size: h.Size, Owner: ownerOf(h),
			Open: func() (io.ReadCloser, error) { return os.Open(copied) },
		}
		return nil
	}); err != nil {
		return err
	}
	for i, f := range s.files {
		from := f.Path
		if target, ok := hard[f.Path]; ok {
			from = target
		}
		u, ok := unpacked[from]
		switch {
		case ok:
			u.Path = f.Path
			s.files[i] = u
		case from != f.Path:
			return fmt.Errorf("%s is a hard link to %s, which is not there", f.Path, from)
		}
	}
	return nil
}

// empty says that none of the files, which are sorted, is below the directory.
func empty(dir string, files []deb.File) bool {
	i, _ := slices.BinarySearchFunc(files, dir+"/", func(f deb.File, path string) int { return strings.Compare(f.Path, path) })
	return i == len(files) || !strings.HasPrefix(files[i].Path, dir+"/")
}

func copyFile(to string, r io.Reader) (err error) {
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = io.Copy(f, r)
	return err
}

func ownerOf(h *tar.Header) deb.Owner {
	o := deb.Owner{UID: h.Uid, GID: h.Gid, User: h.Uname, Group: h.Gname}
	if o.UID == 0 {
		o.User = ""
	}
	if o.GID == 0 {
		o.Group = ""
	}
	return o
}

// clean is a name of a tar as the path at which it is installed.
func clean(name string) string { return path.Clean("/" + name) }

// entries calls use for each entry of data.tar, with the path at which it is
// installed.
func entries(archive *deb.Archive, use func(h *tar.Header, name string, r io.Reader) error) (err error) {
	tr, c, err := archive.Data(maxShipped)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	for n := 1; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if n > maxMembers {
			return fmt.Errorf("it has more than %d members", maxMembers)
		}
		if len(h.Name) > maxName || len(h.Linkname) > maxName {
			return fmt.Errorf("a path in it has more than %d bytes: %.80q…", maxName, h.Name)
		}
		if slices.Contains(strings.Split(h.Name, "/"), "..") {
			return fmt.Errorf("%q leads outside", h.Name)
		}
		if err := use(h, clean(h.Name), tr); err != nil {
			return err
		}
	}
}

// A Common is the package of what a -dkms package ships beside its sources: one
// for all kernels.
type Common struct {
	Shipment      Shipment
	Modules       []string // that the -dkms package brings, as dkms names them
	VersionSuffix string
	Origin        Origin
	Copyright     []byte
	Changelog     []byte
	Time          time.Time
}

// Name is the name of the package: that of the module, or where there are several
// that of the -dkms package, and "-modules-common".
func (c Common) Name() string {
	modules := slices.Compact(slices.Sorted(slices.Values(c.Modules)))
	if len(modules) == 1 {
		return Spec{Module: modules[0]}.base() + "-common"
	}
	return strings.TrimSuffix(c.Shipment.Control.Get("Package"), "-dkms") + "-modules-common"
}

// Version is that of the -dkms package, with the suffix.
func (c Common) Version() string { return c.Shipment.Control.Get("Version") + c.VersionSuffix }

// Relation is what module packages depend on. A newer one will do: packages for
// several kernels, built from several versions, stand side by side.
func (c Common) Relation() string { return c.Name() + " (>= " + c.Version() + ")" }

// Compose gives the package.
func (c Common) Compose() (p deb.Package, err error) {
	from := c.Shipment.Control
	dkms, name := from.Get("Package"), c.Name()
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot make a package of what %s ships beside its sources: %w", dkms, err)
		}
	}()
	if err := errors.Join(deb.ValidateName(name), deb.ValidateVersion(c.Version())); err != nil {
		return p, err
	}
	p.Control = deb.Stanza{{Name: "Package", Value: name}}
	add := func(field, value string) {
		if value != "" {
			p.Control = append(p.Control, deb.Field{Name: field, Value: value})
		}
	}
	add("Source", dkms+" ("+from.Get("Version")+")")
	add("Version", c.Version())
	add("Architecture", from.Get("Architecture"))
	if from.Get("Multi-Arch") == "foreign" {
		add("Multi-Arch", "foreign")
	}
	add("Maintainer", Maintainer)
	relations := inherit(from, c.Shipment.programs())
	for _, field := range inherited {
		add(field, strings.Join(relations[field], ", "))
	}
	add("Replaces", strings.Join(c.replaces(), ", "))
	add("Section", "kernel")
	add("Priority", "optional")
	add("Description", fmt.Sprintf("files that the kernel modules of %s need\n %s", dkms,
		wrapText(fmt.Sprintf("This is what %s %s ships beside the sources of its modules. The packages of the modules, which are built ahead of time, depend on it.",
			dkms, from.Get("Version")))))
	p.Triggers, p.Time = c.Shipment.triggers, c.Time
	p.Files = slices.Clone(c.Shipment.files)
	doc := docs{
		Package: name, Version: c.Version(), What: fmt.Sprintf("Taken from %s %s.", dkms, from.Get("Version")),
		Copyright: c.Copyright, Changelog: c.Changelog, Origin: c.Origin, Time: c.Time,
		Overrides: c.overrides(),
	}
	if len(doc.Copyright) == 0 {
		doc.Terms = fmt.Sprintf("These files were taken from %s %s, which came without a copyright file.", dkms, from.Get("Version"))
	}
	files, err := doc.files()
	p.Files = append(p.Files, files...)
	return p, err
}

// replaces are the packages whose files these are. With the -dkms package itself
// there is no conflict: whichever of the two is installed later, dpkg gives the
// files to the one that replaces the other (Policy 7.6.1 asks for Breaks besides,
// but then apt would remove kernels that provide its name).
func (c Common) replaces() []string {
	list := []string{c.Shipment.Control.Get("Package")}
	for group := range strings.SplitSeq(c.Shipment.Control.Get("Replaces"), ",") {
		if group = oneLine(group); group != "" && !slices.Contains(list, group) {
			list = append(list, group)
		}
	}
	return list
}

// overrides are those of the -dkms package, and one for each program that it ships
// without a manual page.
func (c Common) overrides() []override {
	dkms := c.Shipment.Control.Get("Package")
	var list []override
	for line := range strings.Lines(c.Shipment.overrides) {
		line = oneLine(line)
		if tag, ok := strings.CutPrefix(line, dkms+":"); ok {
			line = strings.TrimSpace(tag)
		}
		if line != "" && line[0] != '#' && !strings.Contains(line, ": ") {
			list = append(list, override{line, "As " + dkms + " has it."})
		}
	}
	for _, f := range c.Shipment.files {
		dir, name := path.Split(f.Path)
		if f.Mode&fs.ModeDir != 0 || !slices.Contains([]string{"/bin/", "/sbin/", "/usr/bin/", "/usr/sbin/", "/usr/games/"}, dir) {
			continue
		}
		if !slices.ContainsFunc(c.Shipment.files, func(m deb.File) bool {
			return within(notWorthIt[:1], m.Path) && strings.HasPrefix(path.Base(m.Path), name+".")
		}) {
			list = append(list, override{"no-manual-page *" + f.Path[1:] + "*", dkms + " ships no manual page of it."})
		}
	}
	return list
}
