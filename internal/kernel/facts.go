package kernel

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"syscall"
)

// maxBuildFile bounds each file that ReadFacts reads; a distribution's configuration has 0.3 MB.
const maxBuildFile = 16 << 20

// Facts is what has to be known of a kernel to build modules for it and to judge them.
type Facts struct {
	Release     string      // as uname -r prints it: 6.1.0-56-amd64
	Arch        string      // Debian's name of the architecture; "" when the table here lacks it
	Machine     elf.Machine // ELF header of its modules; zero when Arch is ""
	Class       elf.Class
	Data        elf.Data
	Modversions bool // symbols carry CRCs; without them the vermagic alone protects
	// LaxNamespaces says that the kernel only warns of symbols whose namespace a module does not import.
	LaxNamespaces bool
	Compression   string // how make modules_install compresses: "", "gz", "xz" or "zst"
	SigHash       string // CONFIG_MODULE_SIG_HASH: sha256; "" when the kernel verifies no signatures
	Compiler      string // CONFIG_CC_VERSION_TEXT: gcc-12 (Debian 12.2.0-14) 12.2.0; "" before Linux 5.8

	// Vermagic is what the kernel's own modules carry, without the words of the architecture at its
	// end, which the configuration alone does not tell: "6.1.0-56-amd64 SMP preempt mod_unload
	// modversions ". A kernel with PREEMPT_RT and PREEMPT_BUILD has "preempt" in it where
	// include/linux/vermagic.h asks in that order, and "preempt_rt" since it asks in the other; Check
	// takes both.
	Vermagic string

	eitherPreempt bool
}

// ReadFacts reads the facts of a kernel from its build directory, which a headers package installs:
// /usr/src/linux-headers-K, and /lib/modules/K/build that leads there. Inside dir no symbolic link is
// followed out of it, but dir itself is taken as it is: in a tree that is not the running system's,
// the caller resolves an absolute link against that tree first.
//
// The release is the one in include/generated/utsrelease.h, for that is what goes into vermagic;
// include/config/kernel.release is the fallback only, because Debian ships 6.1.192 there for the kernel
// 6.1.0-56-amd64 (up to bookworm). The configuration is include/config/auto.conf, or .config.
//
// A directory without these files gives an error that wraps fs.ErrNotExist.
func ReadFacts(dir string) (Facts, error) {
	f, err := readFacts(dir)
	if err != nil {
		return Facts{}, fmt.Errorf("cannot read kernel build directory %s: %w", dir, err)
	}
	return f, nil
}

func readFacts(dir string) (Facts, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Facts{}, bare(err)
	}
	defer root.Close()

	release, err := readRelease(root)
	if err != nil {
		return Facts{}, err
	}
	name, text, err := readFirst(root, "include/config/auto.conf", ".config")
	if err != nil {
		return Facts{}, err
	}
	conf, err := parseConfig(bytes.NewReader(text))
	if err != nil {
		return Facts{}, fmt.Errorf("cannot read %s: %w", name, err)
	}
	return factsOf(release, conf), nil
}

func factsOf(release string, conf config) Facts {
	f := Facts{
		Release:       release,
		Modversions:   conf.set("MODVERSIONS"),
		Compression:   conf.compression(),
		LaxNamespaces: conf.set("MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS"),
		Compiler:      conf["CC_VERSION_TEXT"],
	}
	if conf.set("MODULE_SIG") || conf.set("MODULE_SIG_FORMAT") || conf["MODULE_SIG_HASH"] != "" {
		f.SigHash = conf["MODULE_SIG_HASH"]
	}
	if a, ok := archOfConfig(conf); ok {
		f.Arch, f.Machine, f.Class, f.Data = a.Debian, a.Machine, a.Class, a.Data
	}
	f.Vermagic, f.eitherPreempt = conf.vermagic(release)
	return f
}

// releaseName is what may stand in a release, of maxRelease bytes: it becomes a part
// of paths and of package names.
var releaseName = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z.+_~-]*$`)

const maxRelease = 128

var utsRelease = regexp.MustCompile(`(?m)^\s*#\s*define\s+UTS_RELEASE\s+"([^"\n]*)"`)

func readRelease(root *os.Root) (string, error) {
	name, text, err := readFirst(root, "include/generated/utsrelease.h", "include/config/kernel.release")
	if err != nil {
		return "", err
	}
	release := strings.TrimSpace(string(text))
	if strings.HasSuffix(name, ".h") {
		m := utsRelease.FindSubmatch(text)
		if m == nil {
			return "", fmt.Errorf("%s does not define UTS_RELEASE", name)
		}
		release = string(m[1])
	}
	if len(release) > maxRelease || !releaseName.MatchString(release) {
		return "", fmt.Errorf("%s holds no usable kernel release: %.80q", name, release)
	}
	return release, nil
}

// readFirst reads the first of the named files that exists.
func readFirst(root *os.Root, names ...string) (string, []byte, error) {
	for _, name := range names {
		text, err := readFile(root, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", nil, fmt.Errorf("cannot read %s: %w", name, bare(err))
		}
		return name, text, nil
	}
	return "", nil, fmt.Errorf("neither %s is there: %w", strings.Join(names, " nor "), fs.ErrNotExist)
}

func readFile(root *os.Root, name string) ([]byte, error) {
	// Without O_NONBLOCK a fifo in its place would make us wait for ever.
	file, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	text, err := io.ReadAll(io.LimitReader(file, maxBuildFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxBuildFile {
		return nil, fmt.Errorf("longer than %d bytes", maxBuildFile)
	}
	return text, nil
}

// bare takes the operation and the path off an error whose caller names the path itself.
func bare(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// A config holds what a kernel's configuration sets, without the leading CONFIG_ and without quotes.
type config map[string]string

// maxConfigLine bounds a line of the configuration; real ones stay below 1,000 bytes.
const maxConfigLine = 64 << 10

// parseConfig reads a .config or auto.conf (Linux: Documentation/kbuild/kconfig.rst). Strings are quoted
// in .config, and in auto.conf up to Linux 5.15. Comments, "is not set" among them, are passed over, and
// so is every other line that is not an assignment to a CONFIG_ name: make would read it, we need not.
func parseConfig(r io.Reader) (config, error) {
	c := config{}
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 4096), maxConfigLine)
	for s.Scan() {
		name, value, ok := strings.Cut(strings.TrimRight(s.Text(), " \t\r"), "=")
		if !ok {
			continue
		}
		name, ok = strings.CutPrefix(name, "CONFIG_")
		if !ok || name == "" {
			continue
		}
		if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
			value = unquote.Replace(value[1 : len(value)-1])
		}
		c[name] = value
	}
	if err := s.Err(); err != nil {
		if errors.Is(err, bufio.ErrTooLong) {
			return nil, fmt.Errorf("a line is longer than %d bytes", maxConfigLine)
		}
		return nil, err
	}
	return c, nil
}

var unquote = strings.NewReplacer(`\"`, `"`, `\\`, `\`)

func (c config) set(name string) bool { return c[name] == "y" }

// compression returns the suffix of the modules that make modules_install leaves. Linux 6.12 split the
// question: MODULE_COMPRESS allows compression there, and MODULE_COMPRESS_ALL makes it happen.
func (c config) compression() string {
	if c.set("MODULE_COMPRESS") && c.set("MODULE_DECOMPRESS") && !c.set("MODULE_COMPRESS_ALL") {
		return ""
	}
	switch {
	case c.set("MODULE_COMPRESS_GZIP"):
		return "gz"
	case c.set("MODULE_COMPRESS_XZ"):
		return "xz"
	case c.set("MODULE_COMPRESS_ZSTD"):
		return "zst"
	}
	return ""
}

// vermagic puts together what include/linux/vermagic.h does, up to the words of the architecture. The
// second result says that "preempt" and "preempt_rt" are both possible.
func (c config) vermagic(release string) (string, bool) {
	words := []string{release}
	if c.set("SMP") {
		words = append(words, "SMP")
	}
	rt := c.set("PREEMPT_RT") || c.set("PREEMPT_RT_FULL")
	full := c.set("PREEMPT_BUILD") || c.set("PREEMPT")
	switch {
	case rt:
		words = append(words, "preempt_rt")
	case full:
		words = append(words, "preempt")
	}
	if c.set("MODULE_UNLOAD") {
		words = append(words, "mod_unload")
	}
	if c.set("MODVERSIONS") {
		words = append(words, "modversions")
	}
	return strings.Join(words, " ") + " ", rt && full
}
