package apt

import (
	"context"
	"crypto/sha256"
	"dkms2bin/internal/deb"
	"dkms2bin/internal/sandbox"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
)

// An Offer is what the repositories have of a package.
type Offer struct {
	Preferred string      // the version that apt would install, or ""
	Versions  []Candidate // all of them, the newest first
}

// lookScript asks for both in one run, at the same time: what apt prefers, and what
// there is.
const lookScript = `records=$(mktemp) && trap 'rm -f "$records"' EXIT || exit 1
apt-cache show --all-versions "$@" >"$records" &
apt-cache policy "$@" && echo ` + lookMark + ` && { wait $! || status=$?; cat "$records"; exit ${status-0}; }`

// lookMark is no line of apt-cache policy.
const lookMark = "== records"

// Look tells what the repositories have of the named packages, as Preferred and Show
// do, and where each version can be fetched. Unknown names have no entry.
func (i Inside) Look(ctx context.Context, names ...string) (map[string]Offer, error) {
	found := map[string]Offer{}
	for chunk := range slices.Chunk(names, 500) {
		out, err := i.Output(ctx, append([]string{"sh", "-c", lookScript, "sh"}, chunk...)...)
		var exit *sandbox.ExitError
		table, records, ok := strings.Cut(string(out), lookMark+"\n")
		if err != nil && (!errors.As(err, &exit) || !ok) { // an unknown name is exit 100
			return nil, err
		}
		versions := map[string][]Candidate{}
		if err := addCandidates(versions, strings.NewReader(records)); err != nil {
			return nil, err
		}
		policies := parsePolicies(table)
		for name, list := range versions {
			o := Offer{Preferred: policies[name].candidate, Versions: list}
			for n, c := range list {
				list[n].URL = policies[name].url(c, list)
			}
			found[name] = o
		}
		for name, p := range policies {
			if _, ok := found[name]; !ok && p.candidate != "" {
				found[name] = Offer{Preferred: p.candidate}
			}
		}
	}
	return found, nil
}

// A policy is what apt-cache policy prints of a package.
type policy struct {
	candidate, installed string              // versions, or ""
	origins              map[string][]string // by version: what each repository is called
}

var (
	policyVersion = regexp.MustCompile(`^ (?:\*\*\*|   ) (\S+) -?\d+(?: .*)?$`)
	policyOrigin  = regexp.MustCompile(`^ +-?\d+ (\S.*)$`)
)

// parsePolicies reads the output of apt-cache policy for several packages.
func parsePolicies(out string) map[string]policy {
	found := map[string]policy{}
	name, version := "", ""
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\n")
		p := found[name]
		if n, ok := strings.CutSuffix(line, ":"); ok && !strings.HasPrefix(line, " ") {
			name, version = n, ""
			found[name] = policy{origins: map[string][]string{}}
			continue
		}
		if v, ok := strings.CutPrefix(line, "  Candidate: "); ok && v != "(none)" {
			p.candidate = v
		} else if v, ok := strings.CutPrefix(line, "  Installed: "); ok && v != "(none)" {
			p.installed = v
		} else if m := policyVersion.FindStringSubmatch(line); m != nil {
			version = m[1]
		} else if m := policyOrigin.FindStringSubmatch(line); m != nil && version != "" {
			p.origins[version] = append(p.origins[version], m[1])
		}
		if name != "" {
			found[name] = p
		}
	}
	return found
}

// origin fits how apt calls a repository in dists/ that is fetched by HTTP, as
// "http://example.org/debian bookworm/main amd64 Packages".
var origin = regexp.MustCompile(`^(https?://[^ @]+) [^ ]+/[^ /]+ [^ ]+ Packages$`)

// url is where a version among those that there are can be fetched, or "" where that
// cannot be told for certain: there are several places, or one of another kind, or the
// package is installed.
func (p policy) url(c Candidate, list []Candidate) string {
	same := 0
	for _, o := range list {
		if o.Version == c.Version {
			same++
		}
	}
	origins := p.origins[c.Version]
	if p.installed != "" || same != 1 || len(origins) != 1 || c.Filename == "" {
		return ""
	}
	m := origin.FindStringSubmatch(origins[0])
	if m == nil {
		return ""
	}
	return strings.TrimSuffix(m[1], "/") + "/" + c.Filename
}

// errNotKnown says that a package was not installed, as apt has to be asked.
var errNotKnown = errors.New("it cannot be installed without apt's resolver")

// InstallKnown is Install for a version that Look has told of. Where what it needs is
// installed, or there is no choice of it, neither apt's look at all packages of the
// archive nor its resolver is wanted: its own helper fetches the files, and dpkg
// installs them. Whatever stands in the way is left to apt.
func (i Inside) InstallKnown(ctx context.Context, c Candidate) error {
	err := i.installKnown(ctx, c)
	if errors.Is(err, errNotKnown) {
		return i.Install(ctx, c.Name+"="+c.Version)
	}
	return err
}

// Takes says whether a version can be installed as all else is in the root: it needs
// nothing more, and stands in nobody's way. Then InstallKnown installs nothing else.
func (i Inside) Takes(c Candidate) (bool, error) {
	all, err := i.readInstalled()
	return err == nil && all.takes(c.stanza()), err
}

func (i Inside) installKnown(ctx context.Context, c Candidate) error {
	all, err := i.readInstalled()
	if err != nil {
		return err
	}
	list, err := i.needed(ctx, all, c)
	if err != nil {
		return err
	}
	if err := i.fetchKnown(ctx, list); err != nil {
		return err
	}
	var controls []deb.Stanza
	var files []string
	for _, c := range list {
		control, err := i.control(archiveOf(c))
		if err != nil {
			return err
		}
		controls, files = append(controls, control), append(files, "/"+archiveOf(c))
	}
	if !all.takes(controls...) {
		return errNotKnown
	}
	return i.unpack(ctx, files...)
}

// needed is a version of a package, and before it what it needs that is not installed,
// if that is clear: one package, in one version, without an alternative.
func (i Inside) needed(ctx context.Context, all *installed, c Candidate) ([]Candidate, error) {
	list, last := []Candidate{c}, []Candidate{c}
	known := all.with([]deb.Stanza{c.stanza()})
	for len(last) > 0 {
		missing := map[string][]relation{}
		for _, c := range last {
			if c.URL == "" || c.SHA256 == "" {
				return nil, errNotKnown
			}
			for _, group := range parseRelations(c.Depends) {
				if slices.ContainsFunc(group, known.has) {
					continue
				}
				if len(group) != 1 || group[0].name == "" {
					return nil, errNotKnown
				}
				missing[group[0].name] = append(missing[group[0].name], group[0])
			}
		}
		last = nil
		if len(missing) == 0 {
			break
		}
		offers, err := i.Look(ctx, slices.Sorted(maps.Keys(missing))...)
		if err != nil {
			return nil, err
		}
		for _, name := range slices.Sorted(maps.Keys(missing)) {
			versions := slices.DeleteFunc(slices.Clone(offers[name].Versions), func(c Candidate) bool { return c.Version != offers[name].Preferred })
			if len(versions) != 1 || slices.ContainsFunc(missing[name], func(r relation) bool { return !r.allows(versions[0].Version) }) {
				return nil, errNotKnown
			}
			last = append(last, versions[0])
			known = known.with([]deb.Stanza{versions[0].stanza()})
		}
		list = append(slices.Clone(last), list...)
	}
	return list, nil
}

// archiveOf is where apt keeps a package that it has fetched, relative to the root.
func archiveOf(c Candidate) string {
	return path.Join(archives, fmt.Sprintf("%s_%s_%s.deb", c.Name, strings.ReplaceAll(c.Version, ":", "%3a"), c.Architecture))
}

// fetchScript fetches files by apt's helper: URIs, names and digests. What comes from a
// repository that is not checked, apt may refuse. Where something is amiss, apt says so
// after more attempts.
const fetchScript = `grep -q . "$1" && ! grep -qi '^Allow-\|^Trusted: *no' "$1" || exit 1
shift
/usr/lib/apt/apt-helper -q -o Acquire::Retries=0 download-file "$@" || exit 1
while [ $# -gt 2 ]; do
	mv "$2" "${2%/partial/*}" || exit 1
	shift 3
done`

// fetchKnown fetches packages to where apt does, unless they are kept from before: each
// by itself, as several kernels' headers need the same.
func (i Inside) fetchKnown(ctx context.Context, list []Candidate) error {
	root, err := i.openWritten()
	if err != nil {
		return err
	}
	defer root.Close()
	kept := func(c Candidate) []string { return []string{"file", c.SHA256} }
	var missing []Candidate
	for _, c := range list {
		if i.Keeper != nil {
			if err := i.Keeper.Give(ctx, kept(c), i.archives()); err != nil {
				return err
			}
		}
		right, err := hasDigest(root, archiveOf(c), c.SHA256)
		if err != nil {
			return err
		}
		if right {
			continue
		}
		if err := root.Remove(archiveOf(c)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		missing = append(missing, c)
	}
	if len(missing) == 0 {
		return nil
	}
	// apt's user may write there, who does the talking.
	args := []string{"sh", "-c", fetchScript, "sh", SourcesFile}
	for _, c := range missing {
		args = append(args, c.URL, "/"+path.Join(archives, "partial", path.Base(archiveOf(c))), "SHA256:"+c.SHA256)
	}
	_, err = i.command(ctx, true, args...)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return errNotKnown
	}
	for _, c := range missing {
		right, err := hasDigest(root, archiveOf(c), c.SHA256)
		if err == nil && !right {
			err = errors.Join(i.Clean(ctx), errNotKnown)
		}
		if err == nil && i.Keeper != nil {
			err = i.Keeper.Take(ctx, kept(c), i.archives(), path.Base(archiveOf(c)))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// hasDigest says whether a file is there with that content.
func hasDigest(root *os.Root, name, digest string) (right bool, err error) {
	f, err := root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	sum := sha256.New()
	_, err = io.Copy(sum, f)
	return hex.EncodeToString(sum.Sum(nil)) == digest, errors.Join(err, f.Close())
}

// control reads the control file of a .deb that lies in what was written.
func (i Inside) control(file string) (deb.Stanza, error) {
	root, err := os.OpenRoot(i.Spec.Root.Upper)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := open(root, file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	archive, err := deb.Open(f, info.Size())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return archive.Control()
}

// addCandidates adds what apt-cache show prints, without what is only installed.
func addCandidates(found map[string][]Candidate, out io.Reader) error {
	r := deb.NewReader(out)
	for {
		s, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("cannot read the output of apt-cache show: %w", err)
		}
		c := Candidate{
			Name: s.Get("Package"), Version: s.Get("Version"), Architecture: s.Get("Architecture"),
			Depends: s.Get("Depends"), Provides: s.Get("Provides"), SHA256: s.Get("SHA256"),
			PreDepends: s.Get("Pre-Depends"), Conflicts: strings.Trim(s.Get("Conflicts")+", "+s.Get("Breaks"), ", "),
			Description: s.Get("Description"), Filename: s.Get("Filename"),
		}
		c.Source, c.SourceVersion = SourceOf(s)
		if c.SHA256 == "" {
			continue // no repository has it
		}
		same := func(o Candidate) bool { return o.Version == c.Version && o.Architecture == c.Architecture }
		if !slices.ContainsFunc(found[c.Name], same) {
			found[c.Name] = append(found[c.Name], c)
		}
	}
	for _, list := range found {
		slices.SortStableFunc(list, func(a, b Candidate) int { return deb.CompareVersions(b.Version, a.Version) })
	}
	return nil
}
