package dkms

import (
	"archive/tar"
	"context"
	"dkms2bin/internal/deb"
	"dkms2bin/internal/kernel"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

// An Archive is the modules that one dkms module has for one kernel, taken out of an archive.
type Archive struct {
	Module, Version string
	Kernel          string   // release of the kernel
	Arch            string   // as the kernel names it, and dkms: x86_64
	Files           []string // the module files: .ko, .ko.gz, .ko.xz, .ko.zst
	Symvers         string   // Module.symvers, "" where there is none
	Log             string   // make.log, "" where there is none
}

// Limits bounds what Extract takes. A zero means the default.
type Limits struct {
	Bytes   int64 // everything, decompressed; 4 GiB
	Members int   // files and directories; 200,000
	File    int64 // each file that is extracted; 1 GiB
}

func (l Limits) withDefaults() Limits {
	if l.Bytes <= 0 {
		l.Bytes = 4 << 30
	}
	if l.Members <= 0 {
		l.Members = 200_000
	}
	if l.File <= 0 {
		l.File = 1 << 30
	}
	return l
}

// Extract takes the modules out of an archive that dkms made, with make.log and Module.symvers where it
// holds them, and puts them into dir, which exists; in it each Archive gets a folder of its own, named by
// its place in the result: 1, 2, … All paths in the result begin with dir, made absolute.
//
// The contents tell of which kind the archive is:
//
//   - a tarball of dkms mktarball, with --binaries-only or without, plain or compressed with gzip, bzip2,
//     xz or zstd. Several kernels in it give several Archives. Where the tarball brings the source and dkms.conf names
//     itself in something else than plain text, the name of the file at path decides: M-V-kernelK-ARCH.….
//   - a package of dkms mkbmdeb (up to 2.8.7). Its name is all that is left of the module's, with - for _.
//   - a tar of dkms mkdriverdisk --distro ubuntu --media tar (dkms 2.2), which holds such packages: with the
//     name of the module as it is, "-1" added to its version, and dkms's name of the architecture.
//
// The archive is foreign input. Only regular files are taken and nothing is written outside dir. Absolute
// names, "..", links and devices are errors, save below the trees of sources, of which nothing is extracted;
// so are files that come twice, archives that end early or go beyond the limits, and such that hold no
// module. Memory is bounded by what decompression needs. After an error none of the folders is left.
func Extract(ctx context.Context, path, dir string, lim Limits) (_ []Archive, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot extract modules from %s: %w", path, err)
		}
	}()
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	// Without O_NONBLOCK a fifo in its place would make us wait for ever.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, bare(err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return nil, bare(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	x := &extractor{ctx: ctx, root: root, dir: dir, lim: lim.withDefaults()}
	if err := x.file(file, info.Size(), filepath.Base(path)); err != nil {
		return nil, errors.Join(err, x.remove())
	}
	return x.results(), nil
}

// bare takes the operation and the path off an error whose caller names the path itself.
func bare(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

type extractor struct {
	ctx  context.Context
	root *os.Root
	dir  string
	lim  Limits

	bytes   int64 // taken from lim.Bytes
	members int
	kernels int // groups made so far
	debs    int
	groups  []*group
}

// Bounds on what costs more than a member.
const (
	maxKernels = 1000 // in one archive
	maxDebs    = 1000
)

// A group is what becomes an Archive.
type group struct {
	Archive
	folder string          // its name in dir
	seen   map[string]bool // files in it
}

func (x *extractor) results() []Archive {
	list := make([]Archive, 0, len(x.groups))
	for _, g := range x.groups {
		list = append(list, g.Archive)
	}
	return list
}

// remove takes away what was written.
func (x *extractor) remove() error {
	var errs []error
	for _, g := range x.groups {
		errs = append(errs, x.root.RemoveAll(g.folder))
	}
	return errors.Join(errs...)
}

var errNoModule = errors.New("it holds no kernel module")

// file extracts an archive of any kind.
func (x *extractor) file(f *os.File, size int64, name string) error {
	const ar = "!<arch>\n"
	magic := make([]byte, len(ar))
	n, err := f.ReadAt(magic, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	switch {
	case n == 0:
		return errors.New("the file is empty")
	case string(magic) == ar:
		err = x.deb(f, size)
	default:
		err = x.tarball(f, size, name)
	}
	if err == nil && len(x.groups) == 0 {
		err = errNoModule
	}
	return err
}

// What dkms makes of a module's parts goes into names of files and packages.
var (
	moduleName  = expression(`^[0-9A-Za-z][0-9A-Za-z.+_-]{0,127}$`)
	versionName = expression(`^[0-9A-Za-z][0-9A-Za-z.+_~:-]{0,127}$`)
	kernelName  = expression(`^[0-9A-Za-z][0-9A-Za-z.+_~-]{0,127}$`)
	archName    = regexp.MustCompile(`^[0-9a-z_]{1,32}$`)
	koName      = expression(`^([0-9A-Za-z_][0-9A-Za-z.+_-]{0,127}\.ko)(?:\.gz|\.xz|\.zst)?$`)
)

// tarball extracts a tarball of dkms mktarball, and packages that lie in a tar.
func (x *extractor) tarball(f *os.File, size int64, name string) (err error) {
	plain, err := kernel.Decompress(io.NewSectionReader(f, 0, size))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plain.Close()) }()
	r := &meter{x: x, r: plain}
	t := &tarball{extractor: x, texts: map[string]string{}}
	tr := tar.NewReader(r)
	for first := true; ; first = false {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if errors.Is(err, tar.ErrHeader) && first {
			return errors.New("neither a tar archive nor a .deb")
		}
		if err != nil {
			return cause(err)
		}
		if err := t.member(h, tr); err != nil {
			return err
		}
	}
	// What comes after the end of the tar, and the checksum of the compression.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return cause(err)
	}
	// A tar ends in two blocks of zeros (tar(5)); without them the rest may be missing.
	if r.zeros < 2*512 {
		return fmt.Errorf("the tar archive has no end: %w", io.ErrUnexpectedEOF)
	}
	return t.finish(name)
}

// cause says unexpected EOF where archive/tar has words of its own around it.
func cause(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the archive ends early: %w", err)
	}
	return err
}

// A tarball is the state of reading one tar.
type tarball struct {
	*extractor
	own   []*group          // of dkms_main_tree
	texts map[string]string // the small files that name the module
}

// textFiles name the module, the surest first.
var textFiles = []string{
	"dkms_binaries_only/PACKAGE_NAME",
	"dkms_binaries_only/PACKAGE_VERSION",
	"dkms_source_tree/dkms.conf",
	"dkms_binaries_only/dkms.conf",
}

const maxText = 1 << 20 // bytes of each of textFiles

// member takes one member of the tar.
func (t *tarball) member(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return t.count(h)
	}
	name, err := t.check(h, inSource(strings.TrimPrefix(h.Name, "./")))
	if err != nil || name == "" {
		return err
	}
	for _, text := range textFiles {
		if name == text {
			return t.text(h, name, r)
		}
	}
	part := strings.Split(name, "/")
	switch {
	case inSource(name):
		return nil
	case part[0] != "dkms_main_tree":
		if strings.HasSuffix(name, ".deb") {
			return t.packed(h, r)
		}
		return nil
	case len(part) != 5:
		return nil
	}
	file, found := "", part[3]+"/"+part[4]
	switch {
	case found == "module/Module.symvers", found == "log/make.log":
		file = part[4]
	case part[3] == "module" && isModule(part[4]):
		file = part[4]
	default:
		return nil
	}
	if !kernelName().MatchString(part[1]) || !archName.MatchString(part[2]) {
		return fmt.Errorf("member %q does not lie in a folder of a kernel and an architecture", h.Name)
	}
	g, err := t.group(&t.own, part[1], part[2])
	if err != nil {
		return err
	}
	return t.extract(g, h, file, r)
}

// inSource tells that a member belongs to the source of the module: of mktarball, or of mkdriverdisk.
func inSource(name string) bool {
	return strings.HasPrefix(name, "dkms_source_tree/") || strings.HasPrefix(name, "ubuntu/")
}

func isModule(name string) bool {
	for _, suffix := range []string{".ko", ".ko.gz", ".ko.xz", ".ko.zst"} {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}

// check counts a member, and returns its name in canonical form: "" if it is a directory, or one that may
// be passed over.
func (x *extractor) check(h *tar.Header, source bool) (string, error) {
	if err := x.count(h); err != nil {
		return "", err
	}
	if h.Name == "" || strings.HasPrefix(h.Name, "/") || strings.ContainsRune(h.Name, 0) {
		return "", fmt.Errorf("member %q has an absolute or unusable name", h.Name)
	}
	for part := range strings.SplitSeq(h.Name, "/") {
		if part == ".." {
			return "", fmt.Errorf("member %q has a name that leads out of the archive", h.Name)
		}
	}
	switch {
	case h.Typeflag == tar.TypeDir, source && h.Typeflag != tar.TypeReg:
		return "", nil
	case h.Typeflag != tar.TypeReg:
		return "", fmt.Errorf("member %q is %s, not a regular file", h.Name, kindOf(h))
	}
	return path.Clean(h.Name), nil
}

func kindOf(h *tar.Header) string {
	switch h.Typeflag {
	case tar.TypeLink:
		return fmt.Sprintf("a hard link to %q", h.Linkname)
	case tar.TypeSymlink:
		return fmt.Sprintf("a symbolic link to %q", h.Linkname)
	case tar.TypeChar, tar.TypeBlock:
		return "a device"
	case tar.TypeFifo:
		return "a fifo"
	}
	return fmt.Sprintf("of type %q", h.Typeflag)
}

func (x *extractor) count(h *tar.Header) error {
	if err := x.ctx.Err(); err != nil {
		return err
	}
	if x.members++; x.members > x.lim.Members {
		return fmt.Errorf("it has more than %d members", x.lim.Members)
	}
	if h.Size > x.lim.Bytes-x.bytes {
		return x.tooLarge()
	}
	return nil
}

func (x *extractor) tooLarge() error {
	return fmt.Errorf("it unpacks to more than %d bytes", x.lim.Bytes)
}

// text keeps one of textFiles.
func (t *tarball) text(h *tar.Header, name string, r io.Reader) error {
	if _, seen := t.texts[name]; seen {
		return fmt.Errorf("member %q comes twice", h.Name)
	}
	if h.Size > maxText {
		return fmt.Errorf("member %q has %d bytes, where at most %d are allowed", h.Name, h.Size, maxText)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("cannot read member %q: %w", h.Name, err)
	}
	t.texts[name] = string(b)
	return nil
}

// group returns the group of a kernel, made when it comes up first.
func (x *extractor) group(own *[]*group, kver, arch string) (*group, error) {
	for _, g := range *own {
		if g.Kernel == kver && g.Arch == arch {
			return g, nil
		}
	}
	if x.kernels++; x.kernels > maxKernels {
		return nil, fmt.Errorf("it has modules for more than %d kernels", maxKernels)
	}
	g := &group{
		Archive: Archive{Kernel: kver, Arch: arch},
		folder:  strconv.Itoa(len(x.groups) + 1),
		seen:    map[string]bool{},
	}
	if err := x.root.Mkdir(g.folder, 0o755); err != nil {
		return nil, err
	}
	x.groups = append(x.groups, g)
	*own = append(*own, g)
	return g, nil
}

// extract writes one file of a group.
func (x *extractor) extract(g *group, h *tar.Header, file string, r io.Reader) error {
	key := file
	if isModule(file) {
		m := koName().FindStringSubmatch(file)
		if m == nil {
			return fmt.Errorf("member %q has no usable name for a module", h.Name)
		}
		key = m[1] // one module, whatever its compression
	}
	if g.seen[key] {
		return fmt.Errorf("member %q comes twice", h.Name)
	}
	g.seen[key] = true
	if err := x.write(path.Join(g.folder, file), h, r); err != nil {
		return err
	}
	at := filepath.Join(x.dir, g.folder, file)
	switch file {
	case "Module.symvers":
		g.Symvers = at
	case "make.log":
		g.Log = at
	default:
		g.Files = append(g.Files, at)
	}
	return nil
}

func (x *extractor) write(name string, h *tar.Header, r io.Reader) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot extract member %q: %w", h.Name, err)
		}
	}()
	if h.Size > x.lim.File {
		return fmt.Errorf("it has %d bytes, where at most %d are allowed", h.Size, x.lim.File)
	}
	w, err := x.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	n, err := io.Copy(w, &interruptible{ctx: x.ctx, r: r})
	if err != nil {
		return cause(err)
	}
	if n != h.Size {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// finish names the groups of the main tree, and drops those that have a log only.
func (t *tarball) finish(file string) error {
	own, err := t.drop(t.own)
	if err != nil || len(own) == 0 {
		return err
	}
	name, version := t.name(file, own[0])
	if name == "" || version == "" {
		return errors.New("it does not say of which module it is, nor does the name of the file: M-V-kernelK-ARCH.dkms.tar.gz")
	}
	if !moduleName().MatchString(name) || !versionName().MatchString(version) {
		return fmt.Errorf("it names its module %.80q, version %.80q: not a usable name", name, version)
	}
	for _, g := range own {
		g.Module, g.Version = name, version
	}
	return nil
}

// drop removes the groups without a module, and returns the rest of own. Folders are named by the place in
// the result, so those after it move up.
func (x *extractor) drop(own []*group) ([]*group, error) {
	keep := own[:0]
	for _, g := range own {
		if len(g.Files) > 0 {
			keep = append(keep, g)
			continue
		}
		if err := x.root.RemoveAll(g.folder); err != nil {
			return nil, err
		}
		for i := range x.groups {
			if x.groups[i] == g {
				x.groups = append(x.groups[:i], x.groups[i+1:]...)
				break
			}
		}
	}
	for i, g := range x.groups {
		if err := x.rename(g, strconv.Itoa(i+1)); err != nil {
			return nil, err
		}
	}
	return keep, nil
}

func (x *extractor) rename(g *group, folder string) error {
	if g.folder == folder {
		return nil
	}
	if err := x.root.Rename(g.folder, folder); err != nil {
		return err
	}
	g.folder = folder
	move := func(file string) string {
		if file == "" {
			return ""
		}
		return filepath.Join(x.dir, folder, filepath.Base(file))
	}
	for i := range g.Files {
		g.Files[i] = move(g.Files[i])
	}
	g.Symvers, g.Log = move(g.Symvers), move(g.Log)
	return nil
}

// name returns name and version of the module, from the surest source that has both.
func (t *tarball) name(file string, g *group) (name, version string) {
	name = strings.TrimSpace(t.texts["dkms_binaries_only/PACKAGE_NAME"])
	version = strings.TrimSpace(t.texts["dkms_binaries_only/PACKAGE_VERSION"])
	for _, conf := range textFiles[2:] {
		if name != "" && version != "" {
			return name, version
		}
		name, version = literal(t.texts[conf], "PACKAGE_NAME"), literal(t.texts[conf], "PACKAGE_VERSION")
	}
	if name != "" && version != "" {
		return name, version
	}
	return nameOfTarball(file, g)
}

// literal returns what a shell script assigns to a variable, if it is plain text and assigned once; else "".
// dkms.conf is a script, and nothing but a shell knows what comes out of it otherwise.
func literal(script, variable string) string {
	value, found := "", false
	for line := range strings.SplitSeq(script, "\n") {
		name, text, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			continue
		}
		// "export X=", "[ … ] && X=" and "X+=" are assignments too, but not plain ones.
		if name != variable {
			if strings.HasSuffix(strings.TrimSuffix(name, "+"), variable) {
				return ""
			}
			continue
		}
		m := literalValue.FindStringSubmatch(text)
		if m == nil || found {
			return ""
		}
		value, found = m[1]+m[2]+m[3], true
	}
	return value
}

var literalValue = regexp.MustCompile(`^(?:"([^"$\\` + "`" + `]*)"|'([^']*)'|([0-9A-Za-z.+_~:-]+))\s*(?:#.*)?$`)

// nameOfTarball takes name and version from M-V-kernelK-ARCH.dkms.tar.gz. Both may hold hyphens: the version
// begins after the first one that a digit follows, or after the last.
func nameOfTarball(file string, g *group) (name, version string) {
	both, _, ok := strings.Cut(file, "-kernel"+g.Kernel+"-"+g.Arch)
	if !ok {
		if both, _, ok = strings.Cut(file, "-manykernels"); !ok {
			return "", ""
		}
	}
	if m := nameVersion.FindStringSubmatch(both); m != nil {
		return m[1], m[2]
	}
	i := strings.LastIndexByte(both, '-')
	if i < 0 {
		return "", ""
	}
	return both[:i], both[i+1:]
}

var nameVersion = regexp.MustCompile(`^(.+?)-(\d.*)$`)

// packed extracts a package that is a member of a tar.
func (t *tarball) packed(h *tar.Header, r io.Reader) (err error) {
	if t.debs++; t.debs > maxDebs {
		return fmt.Errorf("it has more than %d packages", maxDebs)
	}
	const name = ".member.deb"
	if err := t.write(name, h, r); err != nil {
		return errors.Join(err, t.removeFile(name))
	}
	defer func() { err = errors.Join(err, t.removeFile(name)) }()
	f, err := t.root.Open(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := t.deb(f, h.Size); err != nil {
		return fmt.Errorf("member %q: %w", h.Name, err)
	}
	return nil
}

func (x *extractor) removeFile(name string) error {
	if err := x.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// diskMaintainer stands in the packages of dkms mkdriverdisk.
const diskMaintainer = "DKMS <dkms-devel@dell.com>"

// modulePath is where a package has its modules.
var modulePath = regexp.MustCompile(`^(?:usr/)?lib/modules/([^/]+)/(?:.+/)?([^/]+)$`)

// deb extracts a package of dkms mkbmdeb. One without modules is no error here: driver disks may hold others.
func (x *extractor) deb(ra io.ReaderAt, size int64) (err error) {
	a, err := deb.Open(ra, size)
	if err != nil {
		return err
	}
	control, err := a.Control()
	if err != nil {
		return err
	}
	tr, closer, err := a.Data(x.lim.Bytes - x.bytes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closer.Close()) }()

	arch := control.Get("Architecture")
	if known, ok := kernel.ArchOfDebian(arch); ok {
		arch = known.Kernel
	}
	var own []*group
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return cause(err)
		}
		if err := x.debMember(&own, arch, h, tr); err != nil {
			return err
		}
	}
	for _, g := range own {
		if g.Module, err = nameOfPackage(control, g.Kernel); err != nil {
			return err
		}
		g.Version = control.Get("Version")
		if control.Get("Maintainer") == diskMaintainer {
			g.Version = strings.TrimSuffix(g.Version, "-1")
		}
		if !versionName().MatchString(g.Version) {
			return fmt.Errorf("control has no usable Version: %.80q", g.Version)
		}
	}
	return nil
}

func (x *extractor) debMember(own *[]*group, arch string, h *tar.Header, r io.Reader) error {
	name, err := x.check(h, false)
	if err != nil || name == "" {
		return err
	}
	// The reader comes ready-made, so sizes are all that can be summed up.
	x.bytes += h.Size
	m := modulePath.FindStringSubmatch(name)
	if m == nil || !isModule(m[2]) {
		return nil
	}
	if !kernelName().MatchString(m[1]) {
		return fmt.Errorf("member %q does not lie in a folder of a kernel", h.Name)
	}
	if !archName.MatchString(arch) || arch == "all" {
		return fmt.Errorf("control has no architecture that modules could have: %.80q", arch)
	}
	g, err := x.group(own, m[1], arch)
	if err != nil {
		return err
	}
	return x.extract(g, h, m[2], r)
}

// nameOfPackage returns the name of the module in a package NAME-modules-K, of Source NAME-dkms-bin.
func nameOfPackage(control deb.Stanza, kver string) (string, error) {
	pkg := control.Get("Package")
	name, ok := strings.CutSuffix(pkg, "-modules-"+kver)
	if !ok {
		name, ok = strings.CutSuffix(pkg, "-modules-"+strings.ReplaceAll(strings.ToLower(kver), "_", "-"))
	}
	if !ok {
		name, ok = strings.CutSuffix(control.Get("Source"), "-dkms-bin")
	}
	if !ok || !moduleName().MatchString(name) {
		return "", fmt.Errorf("package %.80q is not named NAME-modules-%s: not of dkms mkbmdeb", pkg, kver)
	}
	return name, nil
}

// A meter counts what is read against the limit, and the zeros at the end of it.
type meter struct {
	x     *extractor
	r     io.Reader
	zeros int64
}

func (m *meter) Read(p []byte) (int, error) {
	if err := m.x.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := m.r.Read(p)
	if m.x.bytes += int64(n); m.x.bytes > m.x.lim.Bytes {
		return 0, m.x.tooLarge()
	}
	last := n - 1
	for last >= 0 && p[last] == 0 {
		last--
	}
	if last >= 0 {
		m.zeros = 0
	}
	m.zeros += int64(n - 1 - last)
	return n, err
}

// An interruptible reader ends with its context.
type interruptible struct {
	ctx context.Context
	r   io.Reader
}

func (i *interruptible) Read(p []byte) (int, error) {
	if err := i.ctx.Err(); err != nil {
		return 0, err
	}
	return i.r.Read(p)
}
