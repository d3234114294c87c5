package deb

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/pgzip"
)

// Package is what a .deb is made of.
type Package struct {
	// Control is the control file. Package, Version, Architecture, Maintainer
	// and Description must be there; Installed-Size is added when absent.
	Control Stanza
	// Scripts are the maintainer scripts by name: preinst, postinst, prerm,
	// postrm, config.
	Scripts map[string]string
	// Triggers is the file of that name, deb-triggers(5); empty for none.
	Triggers string
	// Files are the files to install, in any order. The directories above them
	// need not be listed; those that are not have mode 0755.
	Files []File
	// Time is the time of last change of all that is in the .deb, cut to
	// seconds.
	Time time.Time
}

// File is a regular file to install, with fs.ModeDir in its mode a directory,
// or with a Link a symbolic link.
type File struct {
	Path string      // absolute in the target, clean: "/lib/modules/…"
	Mode fs.FileMode // permission bits, setuid, setgid, sticky; 0 stands for 0644
	Size int64       // in bytes
	// Open is called twice, for the md5sum and for the content. Both must give
	// the same Size bytes.
	Open func() (io.ReadCloser, error)

	Link     string // target of a symbolic link
	Conffile bool   // dpkg keeps what the administrator changes
	Owner    Owner
}

// Owner is whom a file belongs to. The zero value is root.
type Owner struct {
	UID, GID    int
	User, Group string // "" for root
}

// scripts are the maintainer scripts of deb(5); config is debconf's.
var scripts = []string{"config", "postinst", "postrm", "preinst", "prerm"}

// gzipLevel is that of the archives in packages. The one above takes ten times as long
// for a module, and what comes out is larger.
const gzipLevel = 8

// gzipBlock is fixed as the compressed bytes depend on it (and on nothing but
// it and the level: not on the number of cores).
const gzipBlock = 1 << 20

// Write writes p as a .deb to w, which is usually an empty file: from its
// current offset on, with a seek back for each member's size. The same p gives
// the same bytes. Memory is bounded whatever the size of the files. After an
// error what is in w is of no use.
//
// Both tars are in GNU format, as dpkg does not install PAX, and compressed by
// gzip, as older dpkgs do not know zstd.
func Write(w io.WriteSeeker, p Package) error {
	if err := write(w, p); err != nil {
		return fmt.Errorf("cannot write package %s: %w", p.Control.Get("Package"), err)
	}
	return nil
}

func write(w io.WriteSeeker, p Package) error {
	if err := validateControl(p.Control); err != nil {
		return err
	}
	if t := p.Time.Unix(); t < 0 || t >= 1<<33 {
		// The bound is the tar header's; that of ar is wider.
		return fmt.Errorf("time %v does not fit the format", p.Time)
	}
	data, err := dataEntries(p.Files)
	if err != nil {
		return err
	}
	md5sums, err := sumFiles(data)
	if err != nil {
		return err
	}
	control, err := controlEntries(p, data, md5sums)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(w, arMagic); err != nil {
		return err
	}
	p.Time = time.Unix(p.Time.Unix(), 0)
	aw := arWriter{w, p.Time}
	if err := aw.member("debian-binary", func(w io.Writer) error {
		_, err := io.WriteString(w, "2.0\n")
		return err
	}); err != nil {
		return err
	}
	if err := aw.member("control.tar.gz", func(w io.Writer) error {
		return writeTarGz(w, control, p.Time)
	}); err != nil {
		return err
	}
	return aw.member("data.tar.gz", func(w io.Writer) error {
		return writeTarGz(w, data, p.Time)
	})
}

// entry is one entry of a tar: without open a symbolic link or a directory.
type entry struct {
	name     string // "./lib/", "./lib/file"
	mode     fs.FileMode
	size     int64
	open     func() (io.ReadCloser, error)
	link     string
	owner    Owner
	conffile bool
	implied  bool   // a directory that nobody listed
	md5      []byte // checked while it is written, if not nil
}

// dataEntries returns the entries of data.tar, sorted: the files and all
// directories above them.
func dataEntries(files []File) ([]entry, error) {
	entries := map[string]entry{"./": {name: "./", mode: 0o755}}
	for _, f := range files {
		if err := f.validate(); err != nil {
			return nil, err
		}
		e := f.entry()
		if old, ok := entries[e.name]; ok && !old.implied {
			return nil, fmt.Errorf("file %s given twice", f.Path)
		}
		entries[e.name] = e
		for dir := path.Dir(f.Path); dir != "/"; dir = path.Dir(dir) {
			name := "." + dir + "/"
			if _, ok := entries[name]; !ok {
				entries[name] = entry{name: name, mode: 0o755, implied: true}
			}
		}
	}
	for _, f := range files {
		if _, ok := entries["."+f.Path+"/"]; ok && f.Mode&fs.ModeDir == 0 {
			return nil, fmt.Errorf("%s is a file and a directory", f.Path)
		}
	}
	// A directory's name, with its slash, is a prefix of all that is in it:
	// sorted, it comes first.
	return slices.SortedFunc(maps.Values(entries), func(a, b entry) int {
		return strings.Compare(a.name, b.name)
	}), nil
}

func (f File) validate() error {
	switch {
	case !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "/":
		return fmt.Errorf("file path %q is not clean and absolute", f.Path)
	case strings.ContainsFunc(f.Path, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fmt.Errorf("control character in file path %q", f.Path)
	case f.Mode&^(fs.ModePerm|fs.ModeDir|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0:
		return fmt.Errorf("file %s: mode %v is not that of a plain file", f.Path, f.Mode)
	case f.Size < 0:
		return fmt.Errorf("file %s: size %d", f.Path, f.Size)
	case f.plain() && f.Open == nil:
		return fmt.Errorf("file %s: no content", f.Path)
	case !f.plain() && (f.Open != nil || f.Size != 0 || f.Conffile || f.Link != "" && f.Mode&fs.ModeDir != 0):
		return fmt.Errorf("file %s: a link or directory has no content", f.Path)
	case strings.ContainsRune(f.Link, 0):
		return fmt.Errorf("file %s: NUL byte in its target", f.Path)
	}
	return nil
}

func (f File) plain() bool { return f.Link == "" && f.Mode&fs.ModeDir == 0 }

func (f File) entry() entry {
	e := entry{name: "." + f.Path, mode: f.Mode, size: f.Size, open: f.Open, link: f.Link, owner: f.Owner, conffile: f.Conffile}
	switch {
	case f.Mode&fs.ModeDir != 0:
		e.name += "/"
	case f.Link != "":
		e.mode = 0o777
	case f.Mode == 0:
		e.mode = 0o644
	}
	return e
}

// sumFiles returns the text of md5sums (deb-md5sums(5)), and leaves the sums
// in the entries. Of conffiles dpkg itself keeps the sums.
func sumFiles(entries []entry) ([]byte, error) {
	var b bytes.Buffer
	for i, e := range entries {
		if e.open == nil {
			continue
		}
		h := md5.New()
		if err := e.copyTo(h); err != nil {
			return nil, err
		}
		entries[i].md5 = h.Sum(nil)
		if e.conffile {
			continue
		}
		fmt.Fprintf(&b, "%x  %s\n", entries[i].md5, strings.TrimPrefix(e.name, "./"))
	}
	return b.Bytes(), nil
}

// copyTo writes the content of e, which must have its announced size.
func (e entry) copyTo(w io.Writer) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("file %s: %w", strings.TrimPrefix(e.name, "."), err)
		}
	}()
	r, err := e.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	n, err := io.Copy(w, io.LimitReader(r, e.size))
	if err != nil {
		return err
	}
	if n == e.size {
		var one [1]byte
		switch _, err := io.ReadFull(r, one[:]); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		return fmt.Errorf("it has more than the announced %d bytes", e.size)
	}
	return fmt.Errorf("it has %d bytes, not the announced %d", n, e.size)
}

// controlEntries returns the entries of control.tar, sorted.
func controlEntries(p Package, data []entry, md5sums []byte) ([]entry, error) {
	control := slices.Clone(p.Control)
	if control.Get("Installed-Size") == "" {
		control = setInstalledSize(control, installedSize(data))
	}
	var text bytes.Buffer
	if _, err := control.WriteTo(&text); err != nil {
		return nil, err
	}
	entries := []entry{{name: "./", mode: 0o755}, textEntry("control", 0o644, text.Bytes())}
	if len(md5sums) > 0 {
		entries = append(entries, textEntry("md5sums", 0o644, md5sums))
	}
	var conffiles strings.Builder
	for _, e := range data {
		if e.conffile {
			conffiles.WriteString(strings.TrimPrefix(e.name, ".") + "\n")
		}
	}
	if conffiles.Len() > 0 {
		entries = append(entries, textEntry("conffiles", 0o644, []byte(conffiles.String())))
	}
	if p.Triggers != "" {
		entries = append(entries, textEntry("triggers", 0o644, []byte(p.Triggers)))
	}
	for _, name := range slices.Sorted(maps.Keys(p.Scripts)) {
		if !slices.Contains(scripts, name) {
			return nil, fmt.Errorf("%q is no maintainer script (known are %s)", name, strings.Join(scripts, ", "))
		}
		if !strings.HasPrefix(p.Scripts[name], "#!") {
			return nil, fmt.Errorf("maintainer script %s does not begin with a #! line", name)
		}
		entries = append(entries, textEntry(name, 0o755, []byte(p.Scripts[name])))
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return entries, nil
}

func textEntry(name string, mode fs.FileMode, text []byte) entry {
	return entry{name: "./" + name, mode: mode, size: int64(len(text)), open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(text)), nil
	}}
}

// installedSize is what dpkg-gencontrol(1) counts: each file in KiB, rounded
// up, and 1 for each directory, the root among them.
func installedSize(data []entry) int64 {
	var n int64
	for _, e := range data {
		if e.open == nil {
			n++
		} else {
			n += e.size/1024 + min(e.size%1024, 1)
		}
	}
	return n
}

// setInstalledSize puts the field where dpkg-gencontrol does, after
// Maintainer.
func setInstalledSize(s Stanza, kib int64) Stanza {
	f := Field{"Installed-Size", strconv.FormatInt(kib, 10)}
	if i := s.index(f.Name); i >= 0 {
		s = slices.Delete(s, i, i+1)
	}
	return slices.Insert(s, s.index("Maintainer")+1, f)
}

// tarMode is a mode as tar(5) has it.
func tarMode(mode fs.FileMode) int64 {
	m := int64(mode.Perm())
	for bit, in := range map[fs.FileMode]int64{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if mode&bit != 0 {
			m |= in
		}
	}
	return m
}

// writeTarGz writes the entries as a compressed tar.
func writeTarGz(w io.Writer, entries []entry, mtime time.Time) (err error) {
	zw, err := pgzip.NewWriterLevel(w, gzipLevel)
	if err != nil {
		return err
	}
	// None in the header; time's zero value would come out as some other time.
	zw.ModTime = time.Unix(0, 0)
	// Also ends the goroutines when writing failed.
	defer func() {
		if cerr := zw.Close(); err == nil {
			err = cerr
		}
	}()
	if err := zw.SetConcurrency(gzipBlock, 4); err != nil {
		return err
	}
	tw := tar.NewWriter(zw)
	for _, e := range entries {
		h := &tar.Header{
			Typeflag: tar.TypeReg,
			Name:     e.name,
			Mode:     tarMode(e.mode),
			Size:     e.size,
			ModTime:  mtime,
			Uid:      e.owner.UID,
			Gid:      e.owner.GID,
			Uname:    cmp.Or(e.owner.User, "root"),
			Gname:    cmp.Or(e.owner.Group, "root"),
			Linkname: e.link,
			Format:   tar.FormatGNU,
		}
		switch {
		case e.link != "":
			h.Typeflag = tar.TypeSymlink
		case e.open == nil:
			h.Typeflag = tar.TypeDir
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if e.open == nil {
			continue
		}
		sum := md5.New()
		if err := e.copyTo(io.MultiWriter(tw, sum)); err != nil {
			return err
		}
		if e.md5 != nil && !bytes.Equal(e.md5, sum.Sum(nil)) {
			return fmt.Errorf("file %s changed while it was packed", strings.TrimPrefix(e.name, "."))
		}
	}
	return tw.Close()
}
