// Package state is the document that the stages hand to each other: one JSON
// object on standard input, one on standard output. dkms2bin-document(5) describes it
// field by field, and document.schema.json for programs.
//
// All paths are absolute, all times are UTC, and credentials are never in it.
package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// Version and Minor are the version of documents that this package writes: 1.1.
//
// It reads those of the same version with the same or an older minor one, where a
// document without a minor version is one of 1.0. Within a version, fields are only
// added, and never required; they keep name, type and meaning. Whoever adds a field,
// or another value of a field that has only certain ones, raises Minor, once for each
// release. What cannot be done so raises Version.
const (
	Version = 1
	Minor   = 1
)

// A Document says what was asked for, what was made of it and where it is.
type Document struct {
	Version  int       `json:"version"`
	Minor    int       `json:"minor,omitempty"` // missing in documents of 1.0
	Tree     *Tree     `json:"tree,omitempty"`
	Kernels  []Kernel  `json:"kernels,omitempty"`
	Packages []Package `json:"packages,omitempty"`
	Builds   []Build   `json:"builds,omitempty"`
	Tools    []string  `json:"build_packages,omitempty"` // packages that builds need beside what is declared, as asked for
	OutDir   string    `json:"out_dir,omitempty"`        // where the packages go
	Debs     []Deb     `json:"debs,omitempty"`
	Index    *Index    `json:"index,omitempty"`
	Audit    *Audit    `json:"audit,omitempty"` // since 1.1
	Error    *Error    `json:"error,omitempty"`
}

// A Tree is the throw-away root in which everything is built.
type Tree struct {
	Path         string       `json:"path"`
	Distribution string       `json:"distribution"` // "debian", "ubuntu"
	Suite        string       `json:"suite"`
	Architecture string       `json:"architecture"` // as dpkg names it
	Repositories []Repository `json:"repositories"`
	Base         string       `json:"base,omitempty"`     // name of its base layer
	Lists        string       `json:"lists,omitempty"`    // name of its layer with newer package lists than the base has
	DKMS         string       `json:"dkms,omitempty"`     // version of its dkms package
	Compiler     string       `json:"compiler,omitempty"` // version of its gcc package
	Log          string       `json:"log,omitempty"`      // of making it
	Copies       string       `json:"copies,omitempty"`   // why overlayfs could not be used, and roots are put together by copying
	InPlace      bool         `json:"in_place,omitempty"` // all is done in the root of the system that mkchroot ran in, without isolation
	Created      time.Time    `json:"created"`
	Removed      bool         `json:"removed,omitempty"`
}

// A Repository is a package source, without its credentials.
type Repository struct {
	URI        string   `json:"uri"`
	Suite      string   `json:"suite"`
	Components []string `json:"components,omitempty"`
	Trusted    bool     `json:"trusted,omitempty"`
	Priority   int      `json:"priority,omitempty"`  // of its packages, 0 for apt's own
	Directory  string   `json:"directory,omitempty"` // where a local one lies
}

// Directories are those of the repositories, in their order; "" for one that is
// not local.
func (t *Tree) Directories() []string {
	var dirs []string
	for _, r := range t.Repositories {
		dirs = append(dirs, r.Directory)
	}
	return dirs
}

// A Kernel is a kernel to build for.
type Kernel struct {
	Release       string  `json:"release"`                  // as uname -r prints it
	Flavour       string  `json:"flavour,omitempty"`        // of the header metapackage that led to it
	Requested     bool    `json:"requested"`                // named by --kver
	Headers       string  `json:"headers_package"`          // e.g. linux-headers-6.1.0-56-amd64
	Version       string  `json:"package_version"`          // of the headers package
	Source        string  `json:"source,omitempty"`         // its source package, as "linux (= 6.1.192-2)"
	Images        []Image `json:"images,omitempty"`         // packages that ship the kernel, the usual one first
	Layer         string  `json:"layer,omitempty"`          // name of its layer in the tree
	Modversions   bool    `json:"modversions"`              // CONFIG_MODVERSIONS
	ModulesPrefix string  `json:"modules_prefix,omitempty"` // "/lib/modules" or "/usr/lib/modules"
	Facts         string  `json:"facts,omitempty"`          // directory with its configuration and Module.symvers
}

// An Image is a package that ships a kernel itself, in the version that apt would
// install.
type Image struct {
	Package string `json:"package"`
	Version string `json:"version"`
}

// A Package is a DKMS package that was asked for.
type Package struct {
	Request    string    `json:"request"`                  // as given to --dkms
	Name       string    `json:"name,omitempty"`           // Debian package, or the module of a source directory
	Version    string    `json:"version,omitempty"`        // its version
	Kind       string    `json:"kind,omitempty"`           // "archive", "deb" or "source"
	Digest     string    `json:"digest,omitempty"`         // SHA-256 of the .deb or of the source directory's content
	Source     string    `json:"source,omitempty"`         // its source package, as "v4l2loopback (= 0.12.7-2)"
	Layer      string    `json:"layer,omitempty"`          // name of its layer in the tree
	Tools      []string  `json:"build_packages,omitempty"` // packages that were there for its builds, as "libelf-dev (= 0.188-2.1)"
	ToolsLayer string    `json:"build_layer,omitempty"`    // name of the layer with these
	Doc        string    `json:"doc,omitempty"`            // directory with its copyright and changelog, and itself
	Date       time.Time `json:"date,omitzero"`            // of the newest file of a source directory
	Error      string    `json:"error,omitempty"`          // why it could not be installed
	Needed     bool      `json:"needed,omitempty"`         // not asked for: another one depends on it
	Depends    []string  `json:"depends,omitempty"`        // names of the others that it depends on, over however many steps
}

// PackageFile is the name of the package itself in its Doc; a source directory has
// none.
const PackageFile = "package.deb"

// Kinds of package.
const (
	KindArchive = "archive"
	KindDeb     = "deb"
	KindSource  = "source"
)

// A Build is one module built, or not, for one kernel.
type Build struct {
	Package        string    `json:"package"`                   // name of the package, or the request where there is none
	PackageVersion string    `json:"package_version,omitempty"` // that it was built from
	Module         string    `json:"module,omitempty"`          // as dkms names it; empty if the package could not be installed
	ModuleVersion  string    `json:"module_version,omitempty"`  //
	Kernel         string    `json:"kernel"`
	Status         string    `json:"status"`
	Reason         string    `json:"reason,omitempty"`         // why it was skipped or failed, in one line
	Hint           string    `json:"hint,omitempty"`           // what to do about a failure
	Stage          string    `json:"stage,omitempty"`          // that found the failure
	Log            string    `json:"log,omitempty"`            // the whole log
	Archive        string    `json:"archive,omitempty"`        // made by dkms mktarball
	ArchiveDigest  string    `json:"archive_digest,omitempty"` // SHA-256
	Source         string    `json:"source_digest,omitempty"`  // of everything it was built from
	Modules        []Module  `json:"modules,omitempty"`        // filled by debextract
	Left           []LeftOut `json:"left_out,omitempty"`       // module files that its package goes without (since 1.1)
	Layer          string    `json:"layer,omitempty"`          // name of the layer in which it ran
	Started        time.Time `json:"started,omitzero"`
	Seconds        float64   `json:"seconds,omitempty"`
	Depends        []string  `json:"depends,omitempty"` // MODULE/VERSION of those, built for the same kernel, that were there when it was built
}

// What can become of a build.
const (
	Built   = "built"
	Skipped = "skipped"
	Failed  = "failed"
)

// A Module is a file of a build, and what was checked of it. Of a build that failed
// in debextract those are here that were right.
type Module struct {
	File       string   `json:"file"` // name in the package
	Vermagic   string   `json:"vermagic"`
	License    string   `json:"license"`
	Symbols    int      `json:"symbols"`              // that it needs, each exported by the kernel or by a module it depends on
	GPLSymbols int      `json:"gpl_symbols"`          // of them those that are for modules under the GPL only
	CRCs       int      `json:"crcs"`                 // of symbols, which are those of the kernel; 0 for a kernel without
	CRCCheck   string   `json:"crc_check"`            // one of the texts below
	Namespaces []string `json:"namespaces,omitempty"` // of its symbols, which it imports
	Replaces   string   `json:"replaces,omitempty"`   // module of the kernel's own tree that it takes the place of
	Signer     string   `json:"signer,omitempty"`     // common name of its certificate's issuer, where it was signed
	SigKey     string   `json:"sig_key,omitempty"`    // serial number of the certificate, as modinfo prints it
	SigHash    string   `json:"sig_hash,omitempty"`   // "sha256"
}

// A LeftOut is a module file of a build that is not in its package: it cannot be loaded,
// and the others can be without it.
type LeftOut struct {
	File   string `json:"file"` // name in the archive
	Reason string `json:"reason"`
}

// What was done with a module's CRCs.
const (
	CRCsCompared = "compared"
	CRCsNone     = "kernel has none" // its symbols have no CRCs: no CONFIG_MODVERSIONS
)

// A Deb is a binary package that was written, or found there with the same
// content: of modules, of what a -dkms package ships beside them (without a
// module and a kernel), or of a set (without a module).
type Deb struct {
	Path         string  `json:"path"`
	Digest       string  `json:"digest"` // SHA-256
	Size         int64   `json:"size"`
	Name         string  `json:"name"`
	Version      string  `json:"version"`
	Architecture string  `json:"architecture"`
	Module       string  `json:"module"`
	Kernel       string  `json:"kernel"`
	Archive      string  `json:"archive_digest"` // of what it was made from
	MadeOf       *Origin `json:"made_of,omitempty"`
	// Options are the flags that it was made with, as "image-dependency=recommends".
	Options []string `json:"options,omitempty"`
}

// An Origin says what a binary package was made of and by.
type Origin struct {
	Package       string   `json:"package,omitempty"`        // as "v4l2loopback-dkms (= 0.12.7-2)"
	Digest        string   `json:"digest,omitempty"`         // SHA-256 of its .deb or of the source directory's content
	Headers       string   `json:"headers,omitempty"`        // as "linux-headers-6.1.0-56-amd64 (= 6.1.192-2)"
	Compiler      string   `json:"compiler,omitempty"`       // what it calls itself in the modules
	DKMS          string   `json:"dkms,omitempty"`           // version of dkms's package
	BuildPackages []string `json:"build_packages,omitempty"` // that were there besides
	Program       string   `json:"program,omitempty"`        // our version
}

// An Index is the apt metadata of a directory.
type Index struct {
	Directory string    `json:"directory"`
	Packages  int       `json:"packages"`
	Digest    string    `json:"digest,omitempty"`    // SHA-256 of its Release; not of a dry run, which writes none
	SignedBy  string    `json:"signed_by,omitempty"` // fingerprint of the key
	Left      []Problem `json:"left_out,omitempty"`
	Outdated  []string  `json:"outdated,omitempty"` // packages left out because they are old
	Removed   []string  `json:"removed,omitempty"`  // files that nothing needed any more
}

// A Problem is a file that was left out of the index.
type Problem struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

// An Audit tells of the modules in a root tree that are not its kernels' own.
type Audit struct {
	Root    string            `json:"root"`
	Kernels []InstalledKernel `json:"kernels,omitempty"` // that have a directory of modules, the oldest first
	Modules []InstalledModule `json:"modules,omitempty"`
}

// An InstalledKernel is one that a root tree has modules for.
type InstalledKernel struct {
	Release string `json:"release"`
	Modules int    `json:"modules"`         // how many of its own are there
	Against string `json:"checked_against"` // what tells whether modules can load: one of the texts below
}

// What tells whether modules can load.
const (
	AgainstHeaders = "headers" // its build directory is in the tree
	AgainstModules = "modules" // what its own modules need and export
	AgainstNothing = "nothing" // neither is there
)

// An InstalledModule is a module that is not its kernel's own.
type InstalledModule struct {
	Path           string `json:"path"`   // seen from the root
	Kernel         string `json:"kernel"` // in whose directory it lies
	Name           string `json:"name"`
	Version        string `json:"version,omitempty"`
	License        string `json:"license,omitempty"`
	Package        string `json:"package,omitempty"` // that owns the file; missing where none does
	PackageVersion string `json:"package_version,omitempty"`
	Altered        bool   `json:"altered,omitempty"` // the file is not what the package had
	Signer         string `json:"signer,omitempty"`  // of its signature, which is not verified: common name of the certificate's issuer
	SigKey         string `json:"sig_key,omitempty"` // serial number of the certificate, as modinfo prints it
	SigHash        string `json:"sig_hash,omitempty"`
	Replaces       string `json:"replaces,omitempty"` // module of the kernel's own that it takes the place of
	Loads          string `json:"loads"`              // whether the kernel would load it
	Reason         string `json:"reason,omitempty"`   // why not, or why that cannot be told
}

// Whether a kernel would load a module.
const (
	LoadsYes     = "yes"
	LoadsNo      = "no"
	LoadsUnknown = "unknown"
)

// Wrong says that somebody has to look at the module: it cannot load, no package
// owns it, or it is another one than the package had.
func (m InstalledModule) Wrong() bool {
	return m.Loads == LoadsNo || m.Package == "" || m.Altered
}

// An Error is why a stage did not do its work. Later stages pass a document
// that has one on.
type Error struct {
	Stage   string `json:"stage"`
	Kind    string `json:"kind"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// Kinds of error.
const (
	KindFailed      = "failed"
	KindUsage       = "usage"
	KindInterrupted = "interrupted"
)

// Exit codes of all programs.
const (
	ExitDone        = 0
	ExitError       = 1
	ExitUsage       = 2
	ExitIncomplete  = 3 // done, but some modules failed
	ExitInterrupted = 130
)

// ExitCode is the exit code of the stage that wrote the document. It depends on
// the document alone, so that a pipe's last stage speaks for all of them.
func (d *Document) ExitCode() int {
	if d.Error != nil {
		switch d.Error.Kind {
		case KindUsage:
			return ExitUsage
		case KindInterrupted:
			return ExitInterrupted
		}
		return ExitError
	}
	for _, b := range d.Builds {
		if b.Status == Failed {
			return ExitIncomplete
		}
	}
	if d.Index != nil && len(d.Index.Left) > 0 {
		return ExitIncomplete
	}
	if d.Audit != nil && slices.ContainsFunc(d.Audit.Modules, InstalledModule.Wrong) {
		return ExitIncomplete
	}
	return ExitDone
}

// Kernel returns the kernel of that release, or nil.
func (d *Document) Kernel(release string) *Kernel {
	for i := range d.Kernels {
		if d.Kernels[i].Release == release {
			return &d.Kernels[i]
		}
	}
	return nil
}

// Package returns the package of that name, or nil.
func (d *Document) Package(name string) *Package {
	for i := range d.Packages {
		if d.Packages[i].Name == name {
			return &d.Packages[i]
		}
	}
	return nil
}

// ErrEmpty says that there was no document at all: the stage before wrote
// nothing.
var ErrEmpty = errors.New("standard input is empty: the stage before wrote no document")

// Bounds on a document: a thousand modules for a hundred kernels need less. Two bytes
// of JSON may ask for hundreds in memory, so there are bounds on what is counted, too.
const (
	maxSize    = 256 << 20
	maxObjects = 1 << 19
	maxValues  = 1 << 24
)

// Read reads exactly one document. Unknown fields, another version, a newer minor
// one, a second document and trailing garbage are errors: a document that is only half
// understood must not be handed on.
func Read(r io.Reader) (*Document, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read the document: %w", err)
	}
	return Parse(raw)
}

// Parse is Read for bytes in memory.
func Parse(raw []byte) (*Document, error) {
	if len(raw) > maxSize {
		return nil, fmt.Errorf("the document is larger than %d MiB", maxSize>>20)
	}
	if len(bytes.TrimSpace(raw)) == 0 {
		return nil, ErrEmpty
	}
	if bytes.Count(raw, []byte("{")) > maxObjects || bytes.Count(raw, []byte(",")) > maxValues {
		return nil, fmt.Errorf("the document has more than %d objects or %d values", maxObjects, maxValues)
	}
	// The version comes first: what else is wrong with a document of another
	// version is of no interest.
	var head struct {
		Version *int `json:"version"`
		Minor   int  `json:"minor"`
	}
	if err := json.NewDecoder(bytes.NewReader(raw)).Decode(&head); err != nil {
		return nil, fmt.Errorf("not a dkms2bin document: %w", err)
	}
	if head.Version == nil {
		return nil, errors.New("not a dkms2bin document: it has no version")
	}
	if *head.Version != Version || head.Minor < 0 || head.Minor > Minor {
		return nil, fmt.Errorf("the document has version %d.%d, this program knows version %d up to %[3]d.%d", *head.Version, head.Minor, Version, Minor)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	doc := &Document{}
	if err := dec.Decode(doc); err != nil {
		return nil, fmt.Errorf("not a dkms2bin document: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the document: was more than one handed in?")
	}
	return doc, nil
}

// Encode gives the document as it is written, with a line end.
func (d *Document) Encode() ([]byte, error) {
	d.Version, d.Minor = Version, Minor
	if d.Tree != nil && d.Tree.Repositories == nil {
		d.Tree.Repositories = []Repository{} // the field is always there, and a list
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(d); err != nil {
		return nil, fmt.Errorf("cannot encode the document: %w", err)
	}
	return buf.Bytes(), nil
}
