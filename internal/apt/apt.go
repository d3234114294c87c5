// Package apt finds the host's package repositories, and runs apt and dpkg
// inside a root tree.
package apt

import (
	"bytes"
	"context"
	"dkms2bin/internal/deb"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/sandbox"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Config is apt's configuration inside a tree, apt.conf(5): nothing that was not
// asked for is installed, half an update is a failure, a mirror that stalls is
// given up, what is pinned high replaces what is newer, and logins are to be had
// only while apt fetches.
const Config = `APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Get::Assume-Yes "true";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
Dpkg::Use-Pty "0";
APT::Get::allow-downgrades "true";
Dir::Etc::netrc "` + privateDir + "/" + AuthFile + `";
`

// Inside runs apt and dpkg in the root of a sandbox.
type Inside struct {
	// Spec has the root; what is run is filled in here.
	Spec sandbox.Spec
	// Fetch is what is visible while apt fetches, see Binds.
	Fetch []sandbox.Bind
	// Log takes all output of apt-get and dpkg, may be nil.
	Log io.Writer
	// Keeper keeps what Install has fetched, may be nil.
	Keeper Keeper
}

// mostOutput is more than any command prints whose output is wanted here.
const mostOutput = 64 << 20

// ErrTooLong says that a command printed more than it may.
var ErrTooLong = errors.New("its output is too long")

// Output runs a command without network and returns its standard output, of
// which there may be 64 MiB.
func (i Inside) Output(ctx context.Context, args ...string) ([]byte, error) {
	return i.OutputLimited(ctx, mostOutput, args...)
}

// OutputLimited is Output with a limit, in bytes, of its own. A command that
// prints more is killed, and the error wraps ErrTooLong: packages decide what
// is in the files that commands print.
func (i Inside) OutputLimited(ctx context.Context, limit int64, args ...string) ([]byte, error) {
	running, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := &bounded{left: limit, full: func() {
		cancel(fmt.Errorf("%w: more than %d bytes", ErrTooLong, limit))
	}}
	spec := i.Spec
	spec.Args, spec.Stdout, spec.Stderr = args, out, i.Log
	err := sandbox.Run(running, spec)
	// It may have come to its end before it was killed.
	if cause := context.Cause(running); errors.Is(cause, ErrTooLong) && !errors.Is(err, ErrTooLong) {
		err = fmt.Errorf("cannot take what %s prints: %w", args[0], cause)
	}
	return out.kept.Bytes(), err
}

// bounded keeps the first bytes; it calls full, and drops the rest, when there
// are more.
type bounded struct {
	kept bytes.Buffer
	left int64
	full func()
}

func (b *bounded) Write(p []byte) (int, error) {
	keep := min(b.left, int64(len(p)))
	b.left -= keep
	if keep < int64(len(p)) {
		b.full()
	}
	b.kept.Write(p[:keep])
	return len(p), nil
}

// run runs apt-get; its failure carries apt's own reason.
func (i Inside) run(ctx context.Context, network bool, args ...string) error {
	_, err := i.command(ctx, network, append([]string{"apt-get"}, args...)...)
	return err
}

// command runs apt-get or dpkg and returns the end of what it prints.
func (i Inside) command(ctx context.Context, network bool, args ...string) (string, error) {
	var out limited
	spec := i.Spec
	spec.Args, spec.Network = args, network
	if network {
		spec.Binds = slices.Concat(spec.Binds, i.Fetch)
	}
	spec.Stdout = &out
	if i.Log != nil {
		spec.Stdout = io.MultiWriter(&out, i.Log)
	}
	spec.Stderr = spec.Stdout
	err := sandbox.Run(ctx, spec)
	var exit *sandbox.ExitError
	if errors.As(err, &exit) {
		if reason := Reason(out.String()); reason != "" {
			err = &Failure{Reason: sandbox.Outside(reason, i.Fetch), Output: out.String(), Err: err}
		}
	}
	return out.String(), err
}

// A Failure is apt-get's exit with an error, and the reason that it printed.
type Failure struct {
	Reason string
	Output string // the end of what it printed
	Err    error
}

func (f *Failure) Error() string { return f.Reason }
func (f *Failure) Unwrap() error { return f.Err }

// limited keeps the last megabyte.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	const most = 1 << 20
	if l.Len()+len(p) > most && l.Len() > most/2 {
		l.Next(l.Len() - most/2)
	}
	return l.Buffer.Write(p)
}

var (
	errorLine  = regexp.MustCompile(`(?m)^E: (.*)$`)
	dpkgLine   = regexp.MustCompile(`(?m)^dpkg: error processing [^\n]*:\n (.*)$`)
	unmetLine  = regexp.MustCompile(`(?m)^ ?(\S+ : (?:Depends|PreDepends|Conflicts|Breaks): .*)$`)
	gpgLine    = regexp.MustCompile(`(?m)^[WE]: (.*(?:GPG error|signature verification failed): .*)$`)
	uselessErr = regexp.MustCompile(`^(Sub-process .* returned an error code|Some (?:index )?files failed to download|Unable to fetch some archives|Unable to correct problems|The repository '.*' is not signed|Error, pkgProblemResolver)`)
)

// Reason finds in apt-get's output why it failed, in one line.
func Reason(output string) string {
	var reasons []string
	add := func(s string) {
		if s = strings.TrimSpace(s); s != "" && !slices.Contains(reasons, s) {
			reasons = append(reasons, s)
		}
	}
	for _, m := range unmetLine.FindAllStringSubmatch(output, 2) {
		add(m[1])
	}
	for _, m := range gpgLine.FindAllStringSubmatch(output, 2) {
		add(m[1])
	}
	for _, m := range dpkgLine.FindAllStringSubmatchIndex(output, 2) {
		reason := output[m[2]:m[3]]
		if strings.Contains(reason, "subprocess") && strings.Contains(reason, "script") {
			if said := lastWords(output[:m[0]]); said != "" {
				reason = said + " (" + strings.TrimSpace(reason) + ")"
			}
		}
		add(reason)
	}
	var weak []string
	for _, m := range errorLine.FindAllStringSubmatch(output, -1) {
		quoted := func(reason string) bool { return strings.Contains(reason, strings.TrimSpace(m[1])) }
		switch {
		case uselessErr.MatchString(m[1]):
			weak = append(weak, m[1])
		case len(reasons) < 2 && !slices.ContainsFunc(reasons, quoted):
			add(m[1])
		}
	}
	if len(reasons) == 0 && len(weak) > 0 {
		reasons = weak[:1]
	}
	return strings.Join(reasons, "; ")
}

var (
	// progressLine fits what apt and dpkg print before a script runs.
	progressLine = regexp.MustCompile(`^(Selecting previously unselected |Selecting previously deselected |Preparing to unpack |Unpacking |Setting up |` +
		`Processing triggers for |Removing |Purging |\(Reading database |Preconfiguring packages |Extracting templates |Get:|Hit:|Fetched |` +
		`Need to get |After this operation|Errors were encountered )`)
	// idleLine fits what is printed meanwhile and explains nothing.
	idleLine = regexp.MustCompile(`^(debconf: (delaying package configuration|unable to initialize frontend|falling back to frontend|\()|dpkg: (warning|trying|\.\.\. )|perl: warning|locale: )`)
)

// lastWords are the last lines that a maintainer script printed, in one line:
// output ends with the script's own end, and begins with that of others.
func lastWords(output string) string {
	const (
		mostLines = 3
		mostRunes = 240
	)
	var said []string
	for len(said) < mostLines && output != "" {
		output = strings.TrimSuffix(output, "\n")
		start := strings.LastIndexByte(output, '\n') + 1
		line := output[start:]
		output = output[:start]
		line = strings.TrimRight(line, "\r")
		line = line[strings.LastIndexByte(line, '\r')+1:] // what a terminal would show
		if progressLine.MatchString(line) {
			break
		}
		line = printable(line)
		if line != "" && !idleLine.MatchString(line) {
			said = append(said, strings.TrimPrefix(line, "E: "))
		}
	}
	slices.Reverse(said)
	words := []rune(strings.Join(said, " | "))
	if len(words) > mostRunes {
		words = append([]rune("…"), words[len(words)-mostRunes+1:]...)
	}
	return string(words)
}

var colours = regexp.MustCompile(`\x1b\[[0-9;?]*[ -/]*[@-~]`)

// printable leaves colours and control characters out of a line, and folds blanks.
func printable(line string) string {
	return diag.Printable(colours.ReplaceAllString(line, ""))
}

// Update fetches the package lists. Any list that cannot be had is an error.
func (i Inside) Update(ctx context.Context) error {
	return i.run(ctx, true, "update", "-q")
}

// FetchLists is Update without the indexes that apt makes of the lists, which are
// most of its time; where the lists have changed, the indexes are then out of date.
func (i Inside) FetchLists(ctx context.Context) error {
	return i.run(ctx, true, "update", "-q", "-o", "pkgCacheFile::Generate=false")
}

// Index makes the indexes of the package lists. With them apt answers at once;
// without, it makes them anew in memory, each time.
func (i Inside) Index(ctx context.Context) error {
	_, err := i.Output(ctx, "apt-cache", "-q", "gencaches")
	return err
}

// ConfirmIndex is for indexes that were made before sources.list(5) was written anew,
// of the same lists: apt does not look at any that are older than that file. Whether
// they fit the lists is for apt to see.
func (i Inside) ConfirmIndex() error {
	root, err := os.OpenRoot(i.Spec.Root.Upper)
	if err != nil {
		return err
	}
	defer root.Close()
	now := time.Now()
	for _, name := range []string{"srcpkgcache.bin", "pkgcache.bin"} {
		if err := root.Chtimes("var/cache/apt/"+name, now, now); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Upgrade brings all packages to the versions that are preferred.
func (i Inside) Upgrade(ctx context.Context) error {
	i.Keeper = nil // it has no name for what it brings
	return i.fetchAndRun(ctx, "dist-upgrade")
}

// Install installs packages (names, name=version, or paths inside the tree of
// .debs): first everything is fetched, then the network is cut off. Lists that
// have become old since, so that the mirror no longer has what they name, are
// fetched again.
func (i Inside) Install(ctx context.Context, packages ...string) error {
	return i.fetchAndRun(ctx, append([]string{"install"}, packages...)...)
}

func (i Inside) fetchAndRun(ctx context.Context, command ...string) error {
	args := func(more ...string) []string {
		args := []string{"-q", "-y", "--no-install-recommends"}
		if !i.onBase() {
			// The index with what is installed, 40 MB in each layer, would serve
			// nobody. That of the lists alone is in a layer below.
			args = append(args, "-o", "Dir::Cache::pkgcache=")
		}
		return append(append(args, more...), command...)
	}
	if err := i.give(ctx, command); err != nil {
		return err
	}
	var out string
	var err error
	for attempt := range 3 {
		if attempt > 0 {
			if !refetchable(err) {
				return err
			}
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(time.Duration(attempt) * time.Second):
			}
			if updateErr := i.Update(ctx); updateErr != nil {
				return fmt.Errorf("%w; %w", err, updateErr)
			}
		}
		if out, err = i.command(ctx, true, append([]string{"apt-get"}, args("--download-only")...)...); err == nil {
			break
		}
	}
	if err != nil {
		return err
	}
	if err := i.take(ctx, command); err != nil {
		return err
	}
	debs, err := i.onlyNew(out)
	if err != nil {
		return err
	}
	if len(debs) > 0 {
		return i.unpack(ctx, debs...)
	}
	return i.run(ctx, false, args()...)
}

var onlyNew = regexp.MustCompile(`(?m)^0 upgraded, (\d+) newly installed, 0 to remove and `)

// onlyNew are the fetched .debs, inside, when they are all that apt would install, and
// dpkg needs nobody to say in which order; or none.
func (i Inside) onlyNew(output string) (inside []string, err error) {
	m := onlyNew.FindStringSubmatch(output)
	if m == nil {
		return nil, nil
	}
	debs, err := i.fetched()
	if err != nil || fmt.Sprint(len(debs)) != m[1] {
		return nil, err
	}
	all, err := i.readInstalled()
	if err != nil {
		return nil, err
	}
	for _, deb := range debs {
		control, err := i.control(deb)
		if err != nil {
			return nil, err
		}
		if !all.hasAll(control.Get("Pre-Depends")) {
			return nil, nil
		}
		inside = append(inside, "/"+deb)
	}
	return inside, nil
}

// unpack installs packages that need nothing else. apt would look at all packages of
// the repositories once more, half a second, and then call dpkg as well.
func (i Inside) unpack(ctx context.Context, debs ...string) error {
	_, err := i.command(ctx, false, append([]string{"dpkg", "--install"}, debs...)...)
	return err
}

// fetched lists the .debs that apt has fetched, relative to the root.
func (i Inside) fetched() ([]string, error) {
	root, err := os.OpenRoot(i.Spec.Root.Upper)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return fs.Glob(root.FS(), archives+"/*.deb")
}

// archives is where apt fetches to, on the host.
func (i Inside) archives() string { return filepath.Join(i.Spec.Root.Upper, archives) }

// oldLists fits what apt says where the mirror has something else than its lists name.
// What else keeps it from fetching it has tried several times itself, with pauses.
var oldLists = regexp.MustCompile(`(?m)^E: Failed to fetch .*(?:  404  |Hash Sum mismatch|unexpected size|Size mismatch|File not found|Failed to stat)`)

func refetchable(err error) bool {
	var f *Failure
	return errors.As(err, &f) && oldLists.MatchString(f.Output)
}

// Clean removes fetched .debs from what was written to. apt's own clean would
// remove, and so hide, the indexes of layers below as well.
func (i Inside) Clean(context.Context) error {
	debs, err := i.fetched()
	if err != nil {
		return err
	}
	for _, deb := range debs {
		if err := i.Spec.Root.Remove(deb); err != nil {
			return fmt.Errorf("cannot remove fetched packages: %w", err)
		}
	}
	return nil
}

// A Candidate is a version of a package that the repositories have.
type Candidate struct {
	Name, Version, Architecture string
	Depends, Provides           string
	PreDepends, Conflicts       string // the latter with Breaks
	Description                 string
	SHA256                      string
	Source, SourceVersion       string
	Filename                    string // in its repository
	URL                         string // where it can be fetched, if Look could tell
}

// stanza has what of it tells whether others need more.
func (c Candidate) stanza() deb.Stanza {
	var s deb.Stanza
	s.Set("Package", c.Name)
	s.Set("Version", c.Version)
	s.Set("Provides", c.Provides)
	s.Set("Depends", c.Depends)
	s.Set("Pre-Depends", c.PreDepends)
	s.Set("Conflicts", c.Conflicts)
	return s
}

// Show lists every version of the named packages that the repositories have,
// the newest of each first. Unknown names have no entry.
func (i Inside) Show(ctx context.Context, names ...string) (map[string][]Candidate, error) {
	found := map[string][]Candidate{}
	for chunk := range slices.Chunk(names, 500) {
		out, err := i.Output(ctx, append([]string{"apt-cache", "show", "--all-versions"}, chunk...)...)
		var exit *sandbox.ExitError
		if err != nil && !errors.As(err, &exit) { // an unknown name is exit 100
			return nil, err
		}
		if err := addCandidates(found, bytes.NewReader(out)); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// SourceOf gives the source package that a binary package's control fields name,
// and its version: those of the binary package where they are the same.
func SourceOf(control deb.Stanza) (name, version string) {
	name, version, ok := strings.Cut(control.Get("Source"), " ")
	if name == "" {
		name = control.Get("Package")
	}
	if !ok {
		return name, control.Get("Version")
	}
	return name, strings.Trim(version, "()")
}

// Names lists the packages that the repositories have, sorted.
func (i Inside) Names(ctx context.Context) ([]string, error) {
	// apt-cache writes each of them by itself.
	const script = `names=$(mktemp) && trap 'rm -f "$names"' EXIT && apt-cache pkgnames >"$names" && cat "$names"`
	out, err := i.Output(ctx, "sh", "-c", script)
	if err != nil {
		return nil, err
	}
	names := strings.Fields(string(out))
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Preferred returns the version that apt would install of each package, by its
// own rules of preference.
func (i Inside) Preferred(ctx context.Context, names ...string) (map[string]string, error) {
	found := map[string]string{}
	for chunk := range slices.Chunk(names, 500) {
		out, err := i.Output(ctx, append([]string{"apt-cache", "policy"}, chunk...)...)
		if err != nil {
			return nil, err
		}
		for name, p := range parsePolicies(string(out)) {
			if p.candidate != "" {
				found[name] = p.candidate
			}
		}
	}
	return found, nil
}

// Files lists the files of an installed package, or of one that was just installed.
func (i Inside) Files(ctx context.Context, name string) ([]string, error) {
	if list, err := readList(i.Spec.Root.Upper, name); err == nil {
		return strings.Split(strings.TrimRight(string(list), "\n"), "\n"), nil
	}
	out, err := i.Output(ctx, "dpkg-query", "--listfiles", name)
	if err != nil {
		return nil, err
	}
	return strings.Split(strings.TrimRight(string(out), "\n"), "\n"), nil
}

// An Owner is an installed package that ships a file.
type Owner struct{ Path, Package string }

// Owners lists the files of installed packages that fit one of the patterns, which
// are those of dpkg-query --search: absolute, with the shell's wildcards.
func (i Inside) Owners(ctx context.Context, patterns ...string) ([]Owner, error) {
	out, err := i.Output(ctx, append([]string{"dpkg-query", "--search"}, patterns...)...)
	var exit *sandbox.ExitError
	if errors.As(err, &exit) && exit.Code == 1 { // one of the patterns fits nothing
		err = nil
	}
	if err != nil {
		return nil, err
	}
	var owners []Owner
	for line := range strings.Lines(string(out)) {
		packages, path, ok := strings.Cut(strings.TrimRight(line, "\n"), ": ")
		if !ok || strings.HasPrefix(line, "diversion by ") {
			continue
		}
		for name := range strings.SplitSeq(packages, ", ") {
			name, _, _ = strings.Cut(name, ":") // of an architecture
			owners = append(owners, Owner{path, name})
		}
	}
	return owners, nil
}

// Providers lists the packages of the repositories that provide name, sorted.
func (i Inside) Providers(ctx context.Context, name string) ([]string, error) {
	out, err := i.Output(ctx, "apt-cache", "showpkg", name)
	var exit *sandbox.ExitError
	if err != nil && !errors.As(err, &exit) { // an unknown name is exit 100 for some versions
		return nil, err
	}
	_, list, _ := strings.Cut(string(out), "\nReverse Provides: \n")
	var names []string
	for line := range strings.Lines(list) {
		if provider, _, ok := strings.Cut(line, " "); ok {
			names = append(names, provider)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Installed returns the versions of all installed packages by name.
func (i Inside) Installed(ctx context.Context) (map[string]string, error) {
	out, err := i.Output(ctx, "dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Package} ${Version}\n")
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "installed" {
			found[f[1]] = f[2]
		}
	}
	return found, nil
}

// Similar picks, out of names, those that a person who typed want may have
// meant: the most similar first, at most n.
func Similar(want string, names []string, n int) []string {
	scores := map[string]int{}
	for _, name := range names {
		d := distance(want, name)
		if strings.Contains(name, strings.TrimSuffix(want, "-dkms")) {
			d = min(d, 2)
		}
		if d <= max(2, len(want)/3) {
			scores[name] = d
		}
	}
	found := slices.SortedFunc(maps.Keys(scores), func(a, b string) int {
		if d := scores[a] - scores[b]; d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	return found[:min(n, len(found))]
}

// distance is the Levenshtein distance of a and b, in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
