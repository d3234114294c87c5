package apt

import (
	"bytes"
	"context"
	"dkms2bin/internal/deb"
	"dkms2bin/internal/diag"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// A Source is one repository: a URI with one suite. See sources.list(5).
type Source struct {
	URI        string
	Suite      string
	Components []string // none for a flat repository, whose suite ends in "/"
	// Options are the other fields of the deb822 format by their names there,
	// such as Signed-By and Trusted.
	Options map[string]string
	// Priority is the pin of its packages, apt_preferences(5); 0 for apt's own.
	Priority int
}

// optionNames maps the options of the one-line format to fields of the deb822
// format.
var optionNames = map[string]string{
	"arch": "Architectures", "trusted": "Trusted", "signed-by": "Signed-By",
	"check-valid-until": "Check-Valid-Until", "check-date": "Check-Date",
	"valid-until-min": "Valid-Until-Min", "valid-until-max": "Valid-Until-Max",
	"allow-insecure": "Allow-Insecure", "allow-weak": "Allow-Weak", "by-hash": "By-Hash",
	"lang": "Languages", "pdiffs": "PDiffs", "target": "Targets", "inrelease-path": "InRelease-Path",
}

// SignedBy is the keyring or the key itself that signs the repository, or "".
func (s Source) SignedBy() string { return s.Options["Signed-By"] }

// Keyrings are the files among what SignedBy names: there may be several,
// separated by blanks or commas, and fingerprints among them.
func (s Source) Keyrings() []string {
	var files []string
	for _, word := range splitSignedBy(s.SignedBy()) {
		if strings.HasPrefix(word, "/") {
			files = append(files, word)
		}
	}
	return files
}

// WithKeyrings returns a copy in which keyrings are called otherwise; those that
// renamed does not have keep their names.
func (s Source) WithKeyrings(renamed map[string]string) Source {
	if len(s.Keyrings()) == 0 {
		return s
	}
	words := splitSignedBy(s.SignedBy())
	for i, word := range words {
		if to := renamed[word]; to != "" {
			words[i] = to
		}
	}
	return s.With("Signed-By", strings.Join(words, " "))
}

// splitSignedBy gives the words of a Signed-By, and nothing for a key itself.
func splitSignedBy(value string) []string {
	if strings.Contains(value, "-----BEGIN ") {
		return nil
	}
	return strings.FieldsFunc(value, func(r rune) bool { return r == ',' || unicode.IsSpace(r) })
}

// Trusted says that signatures are not checked.
func (s Source) Trusted() bool { return isYes(s.Options["Trusted"]) }

// isYes and isNo know the words that apt takes for a boolean.
func isYes(word string) bool {
	return slices.Contains([]string{"yes", "true", "with", "on", "enable", "1"}, strings.ToLower(word))
}

func isNo(word string) bool {
	return slices.Contains([]string{"no", "false", "without", "off", "disable", "0"}, strings.ToLower(word))
}

// String gives the source as the user would write it.
func (s Source) String() string {
	return strings.Join(append([]string{"deb", s.URI, s.Suite}, s.Components...), " ")
}

// With returns a copy whose option is set, or removed for an empty value.
func (s Source) With(option, value string) Source {
	options := map[string]string{}
	for k, v := range s.Options {
		options[k] = v
	}
	if options[option] = value; value == "" {
		delete(options, option)
	}
	s.Options = options
	return s
}

// ParseLine reads an entry of the one-line format, to which a priority may be
// appended after a comma. Entries for source packages are an error, and so are
// unknown options.
func ParseLine(line string) (Source, error) { return parseLine(line, false) }

// priorityPattern is what fuel-bootstrap appends to an entry. No component and no
// suite has a comma.
var priorityPattern = regexp.MustCompile(`\s*,\s*([^\s,/]*)\s*$`)

// cutPriority takes the priority off the end of an entry.
func cutPriority(line string) (rest string, priority int, err error) {
	m := priorityPattern.FindStringSubmatchIndex(line)
	if m == nil {
		return line, 0, nil
	}
	priority, err = parsePriority(line[m[2]:m[3]])
	return line[:m[0]], priority, err
}

// parsePriority knows the numbers that apt takes.
func parsePriority(word string) (int, error) {
	n, err := strconv.Atoi(word)
	if err != nil || n == 0 || n < math.MinInt16 || n > math.MaxInt16 {
		return 0, fmt.Errorf("the priority %q is none of apt's: a number from -32768 to 32767, and not 0", word)
	}
	return n, nil
}

func parseLine(line string, lenient bool) (s Source, err error) {
	defer func() {
		if err != nil {
			err = diag.WithHint(fmt.Errorf("cannot read the repository %q: %w", line, err),
				"write it as 'deb http://example.org/debian bookworm main', with options as 'deb [trusted=yes] …' and a priority as '…,1001'")
		}
	}()
	rest := strings.TrimSpace(strings.ReplaceAll(line, "\t", " "))
	if !lenient {
		if rest, s.Priority, err = cutPriority(rest); err != nil {
			return s, err
		}
	}
	kind, rest, _ := strings.Cut(rest, " ")
	if kind != "deb" {
		return s, fmt.Errorf("its type is %q, not deb", kind)
	}
	s.Options = map[string]string{}
	rest = strings.TrimSpace(rest)
	if strings.HasPrefix(rest, "[") {
		options, after, ok := strings.Cut(rest[1:], "]")
		if !ok {
			return s, errors.New("its options have no closing bracket")
		}
		for _, option := range strings.Fields(options) {
			name, value, ok := strings.Cut(option, "=")
			// "arch+=i386" adds to what is the default, "arch-=" takes away.
			base, suffix := strings.TrimRight(name, "+-"), ""
			switch name[len(base):] {
			case "+":
				suffix = "-Add"
			case "-":
				suffix = "-Remove"
			}
			field := optionNames[base]
			if field == "" && lenient {
				continue
			}
			if !ok || field == "" {
				return s, fmt.Errorf("unknown option %q", option)
			}
			s.Options[field+suffix] = strings.ReplaceAll(value, ",", " ")
		}
		rest = after
	}
	fields := strings.Fields(rest)
	if len(fields) < 2 {
		return s, errors.New("it has no URI or no suite")
	}
	s.URI, s.Suite, s.Components = fields[0], fields[1], fields[2:]
	return s, s.check()
}

func (s Source) check() error {
	if scheme, _, ok := strings.Cut(s.URI, ":"); !ok || scheme == "" {
		return fmt.Errorf("%q is not a URI", s.URI)
	}
	flat := strings.HasSuffix(s.Suite, "/")
	if flat && len(s.Components) > 0 {
		return fmt.Errorf("the suite %q ends in a slash, so there can be no components", s.Suite)
	}
	if !flat && len(s.Components) == 0 {
		return fmt.Errorf("the suite %q needs components, such as main, or a slash at its end", s.Suite)
	}
	return nil
}

// parseList reads a file of the one-line format. Unknown options are passed over,
// as apt does.
func parseList(text []byte) ([]Source, error) {
	var sources []Source
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		line = strings.Join(strings.Fields(line), " ")
		if line == "" || strings.HasPrefix(line, "deb-src ") {
			continue
		}
		s, err := parseLine(line, true)
		if err != nil {
			return nil, err
		}
		sources = append(sources, s)
	}
	return sources, nil
}

// parseStanzas reads a file of the deb822 format.
func parseStanzas(text []byte) ([]Source, error) {
	var sources []Source
	r := deb.NewReader(bytes.NewReader(text))
	for {
		stanza, err := r.Next()
		if errors.Is(err, io.EOF) {
			return sources, nil
		}
		if err != nil {
			return nil, err
		}
		if isNo(stanza.Get("Enabled")) || !slices.Contains(strings.Fields(stanza.Get("Types")), "deb") {
			continue
		}
		options := map[string]string{}
		for _, field := range optionNames {
			if v := stanza.Get(field); v != "" {
				options[field] = v
			}
		}
		for _, uri := range strings.Fields(stanza.Get("URIs")) {
			for _, suite := range strings.Fields(stanza.Get("Suites")) {
				s := Source{URI: uri, Suite: suite, Components: strings.Fields(stanza.Get("Components")), Options: options}
				if err := s.check(); err != nil {
					return nil, err
				}
				sources = append(sources, s)
			}
		}
	}
}

// SourcesFile is where the repositories of a tree stand, by Stanzas.
const SourcesFile = "/etc/apt/sources.list.d/dkms2bin.sources"

// Stanzas gives the sources in the deb822 format, as they are put into a tree.
func Stanzas(sources []Source) []byte {
	var b bytes.Buffer
	for _, s := range sources {
		fmt.Fprintf(&b, "Types: deb\nURIs: %s\nSuites: %s\n", s.URI, s.Suite)
		if len(s.Components) > 0 {
			fmt.Fprintf(&b, "Components: %s\n", strings.Join(s.Components, " "))
		}
		for _, field := range []string{
			"Architectures", "Signed-By", "Trusted", "Check-Valid-Until", "Check-Date",
			"Valid-Until-Min", "Valid-Until-Max", "Allow-Insecure", "Allow-Weak", "By-Hash", "PDiffs", "InRelease-Path",
		} {
			if v := s.Options[field]; v != "" {
				fmt.Fprintf(&b, "%s: %s\n", field, v)
			}
		}
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// A Host is what the host's apt and /etc/os-release say.
type Host struct {
	Distribution string // ID of os-release(5): "debian", "ubuntu"
	Like         []string
	Codename     string
	Architecture string
	Sources      []Source
	Lists        string // directory of what apt has fetched of them
	// Origins are the Origin fields of the Release files that apt has
	// fetched, by URI and suite; empty before the first apt-get update.
	Origins map[[2]string]string
}

// ReadSystem asks for the host's distribution and architecture alone, where its
// repositories are not wanted: they may be broken.
func ReadSystem(ctx context.Context) (h Host, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot find out the host's distribution: %w", err)
		}
	}()
	release, err := readFile("/etc/os-release")
	if err != nil {
		return h, err
	}
	values := map[string]string{}
	for line := range strings.Lines(string(release)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			values[k] = strings.Trim(v, `"'`)
		}
	}
	h.Distribution, h.Like, h.Codename = values["ID"], strings.Fields(values["ID_LIKE"]), values["VERSION_CODENAME"]
	arch, err := output(ctx, "dpkg", "--print-architecture")
	if err != nil {
		return h, err
	}
	h.Architecture = strings.TrimSpace(arch)
	return h, nil
}

// ReadHost asks the host's apt and dpkg.
func ReadHost(ctx context.Context) (h Host, err error) {
	if h, err = ReadSystem(ctx); err != nil {
		return h, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot find out the host's repositories: %w", err)
		}
	}()
	settings, err := hostSettings(ctx)
	if err != nil {
		return h, err
	}
	if h.Sources, err = readHostSources(settings); err != nil {
		return h, err
	}
	keepUnchecked(settings, h.Sources)
	h.Lists = settings["LISTS"]
	h.Origins = hostOrigins(h.Lists, h.Sources)
	for i, s := range h.Sources {
		file, ok := strings.CutPrefix(originKey(s.URI, "")[0], "mirror+file:")
		if !ok {
			continue
		}
		// A list of mirrors on the host, as in the distributions' images for
		// clouds, is not to be found in a tree. One that cannot be read is
		// apt's to complain about, should the repository be wanted.
		mirror, err := firstMirror(file)
		if err != nil {
			continue
		}
		h.Sources[i].URI = mirror
		if origin, known := h.Origins[originKey(s.URI, s.Suite)]; known {
			h.Origins[originKey(mirror, s.Suite)] = origin
		}
	}
	return h, nil
}

// maxFile bounds each file that is read here, in bytes: a Release of Debian has 0.2 MB.
const maxFile = 4 << 20

// readFile is os.ReadFile with that bound.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("%s is longer than %d bytes", path, maxFile)
	}
	return text, err
}

// hostSettings asks the host's apt, once for all: each time it asks dpkg first. A
// setting that it has not is "".
func hostSettings(ctx context.Context) (map[string]string, error) {
	out, err := output(ctx, "apt-config", "shell", "LIST", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d",
		"LISTS", "Dir::State::lists/d", "Check-Valid-Until", "Acquire::Check-Valid-Until/b", "Check-Date", "Acquire::Check-Date/b")
	settings := map[string]string{}
	for line := range strings.Lines(out) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		settings[name] = strings.Trim(value, "'")
	}
	return settings, err
}

// keepUnchecked gives the sources what the host's configuration says for all: one
// that reads a frozen mirror does not check how old it is.
func keepUnchecked(settings map[string]string, sources []Source) {
	for _, option := range []string{"Check-Valid-Until", "Check-Date"} {
		if settings[option] != "false" {
			continue
		}
		for i, s := range sources {
			if s.Options[option] == "" {
				sources[i] = s.With(option, "no")
			}
		}
	}
}

// firstMirror is the first of a list of mirrors, apt-transport-mirror(1).
func firstMirror(file string) (string, error) {
	list, err := readFile(file)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(list)) {
		if f := strings.Fields(line); len(f) > 0 && !strings.HasPrefix(f[0], "#") {
			return f[0], nil
		}
	}
	return "", fmt.Errorf("%s: there are no mirrors in it", file)
}

// hostOrigins reads the Origin of each source whose Release file the host's apt has
// fetched. apt itself tells it only after it has read all package lists, which takes
// half a second where it may not keep an index of them.
func hostOrigins(dir string, sources []Source) map[[2]string]string {
	origins := map[[2]string]string{}
	for _, s := range sources {
		for _, name := range []string{"InRelease", "Release"} {
			text, err := readFile(filepath.Join(dir, releaseFile(s, name)))
			if err != nil {
				continue // not fetched, or in the other form
			}
			if m := originLine.FindSubmatch(text); m != nil {
				origins[originKey(s.URI, s.Suite)] = string(m[1])
			}
			break
		}
	}
	return origins
}

var originLine = regexp.MustCompile(`(?m)^Origin: *(.*\S)`)

// releaseFile is what apt calls a Release file among its lists: by its address,
// with what is odd in it as %5f.
func releaseFile(s Source, name string) string {
	_, rest, _ := strings.Cut(s.directory(), ":")
	rest = strings.TrimPrefix(rest, "//")
	if host, path, ok := strings.Cut(rest, "/"); ok {
		rest = host[strings.LastIndexByte(host, '@')+1:] + "/" + path
	}
	var b strings.Builder
	for _, c := range []byte(rest + name) {
		switch {
		case c == '/':
			b.WriteByte('_')
		case c <= ' ' || c >= 0x7f || strings.IndexByte("\\|{}[]<>\"^~_=!@#$%^&*", c) >= 0:
			fmt.Fprintf(&b, "%%%02x", c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// directory is the address of the directory with the Release file, with a slash at its end.
func (s Source) directory() string {
	uri := originKey(s.URI, "")[0]
	if strings.HasSuffix(s.Suite, "/") {
		return uri + "/" + strings.TrimSuffix(s.Suite, "/") + "/"
	}
	return uri + "/dists/" + s.Suite + "/"
}

// originKey brings the URI into the form that apt prints.
func originKey(uri, suite string) [2]string {
	return [2]string{strings.TrimSuffix(strings.Replace(uri, ":///", ":/", 1), "/"), suite}
}

// partName matches the files of sources.list.d that apt reads.
var partName = regexp.MustCompile(`^[A-Za-z0-9._-]+\.(list|sources)$`)

// readHostSources reads all files that apt would, in apt's order.
func readHostSources(settings map[string]string) ([]Source, error) {
	var files []string
	if list := settings["LIST"]; list != "" {
		files = append(files, list)
	}
	if parts := settings["PARTS"]; parts != "" {
		entries, err := os.ReadDir(parts)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if partName.MatchString(e.Name()) {
				files = append(files, filepath.Join(parts, e.Name()))
			}
		}
	}
	var sources []Source
	for _, file := range files {
		text, err := readFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		parse := parseList
		if strings.HasSuffix(file, ".sources") {
			parse = parseStanzas
		}
		found, err := parse(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		sources = append(sources, found...)
	}
	return sources, nil
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(append([]string{name}, args...), " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

// pockets are what is appended to a suite's name for its companions.
var pockets = []string{"-updates", "-security", "/updates", "-backports", "-backports-sloppy", "-proposed", "-proposed-updates"}

// splitSuite cuts "bookworm-security" into "bookworm" and "-security".
func splitSuite(suite string) (base, pocket string) {
	for _, p := range pockets {
		if b, ok := strings.CutSuffix(suite, p); ok {
			return b, p
		}
	}
	return suite, ""
}

// aliases are suite names that are not codenames.
var aliases = []string{"oldoldstable", "oldstable", "stable", "testing", "unstable", "sid"}

// Own returns the distribution's own repositories among the host's, the one
// with the main suite first. What apt has fetched says whose a repository is;
// before the first update, its suite and the keyring that signs it do. Where
// the suite alone speaks for a repository, it does not count beside one of the
// same suite for which there is more to be said.
func (h Host) Own() ([]Source, error) {
	certain := map[string]bool{} // by suite
	for _, s := range h.Sources {
		if owns, sure := h.owns(s); owns && sure {
			certain[s.Suite] = true
		}
	}
	own := slices.DeleteFunc(slices.Clone(h.Sources), func(s Source) bool {
		owns, sure := h.owns(s)
		return !owns || !sure && certain[s.Suite]
	})
	rank := func(s Source) int {
		base, pocket := splitSuite(s.Suite)
		if base == h.Codename {
			return 2 * len(pocket)
		}
		return 2*len(pocket) + 1 // such as sid, for a few packages
	}
	slices.SortStableFunc(own, func(a, b Source) int { return rank(a) - rank(b) })
	if len(own) > 0 {
		if _, pocket := splitSuite(own[0].Suite); pocket == "" {
			return own, nil
		}
	}
	return nil, diag.WithHint(fmt.Errorf("the host's apt has no repository of %s itself among its %d sources", h.Distribution, len(h.Sources)),
		"name it with --repo 'deb http://example.org/debian bookworm main'")
}

// owns says whether a repository is the distribution's, and whether more than
// the name of its suite says so.
func (h Host) owns(s Source) (owns, sure bool) {
	if strings.HasSuffix(s.Suite, "/") || strings.HasPrefix(s.URI, "cdrom:") {
		return false, true
	}
	base, _ := splitSuite(s.Suite)
	if base != h.Codename && !slices.Contains(aliases, base) {
		return false, true
	}
	names := append([]string{h.Distribution}, h.Like...)
	if origin, known := h.Origins[originKey(s.URI, s.Suite)]; known {
		origin = strings.TrimSuffix(origin, " Backports") // Debian's have a name of their own
		return slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, origin) }), true
	}
	if s.SignedBy() == "" {
		return true, false
	}
	return slices.ContainsFunc(names, func(n string) bool {
		return slices.ContainsFunc(s.Keyrings(), func(file string) bool {
			return strings.HasPrefix(filepath.Base(file), n+"-archive-")
		})
	}), true
}

// ForSuite takes the same mirrors with another suite and, where the host has
// these for its own suite, its -updates and -security.
func ForSuite(own []Source, suite string) []Source {
	rolling := suite == "sid" || suite == "unstable" || suite == "experimental"
	main, _ := splitSuite(own[0].Suite)
	var sources []Source
	for _, s := range own {
		base, pocket := splitSuite(s.Suite)
		switch {
		case base != main:
			continue
		case pocket == "":
			s.Suite = suite
		case rolling:
			continue
		case pocket == "-security" || pocket == "/updates":
			s.Suite = suite + "-security"
		case pocket == "-updates":
			s.Suite = suite + "-updates"
		default:
			continue
		}
		sources = append(sources, s)
	}
	return sources
}
