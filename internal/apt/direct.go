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

// lookScript asks for both in one run: what apt prefers, and what there is.
const lookScript = `apt-cache policy "$@" && echo ` + lookMark + ` && exec apt-cache show --all-versions "$@"`

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

// errNotAlone says that a package was not installed, as apt has to be asked.
var errNotAlone = errors.New("it cannot be installed alone")

// InstallKnown is Install for a version that Look has told of. Where it needs nothing
// that is not installed, neither apt's look at all packages of the archive nor its
// resolver is wanted: its own helper fetches the file, and dpkg installs it. Whatever
// stands in the way is left to apt.
func (i Inside) InstallKnown(ctx context.Context, c Candidate) error {
	request := []string{"install", c.Name + "=" + c.Version}
	err := i.fetchKnown(ctx, request, c)
	if err == nil {
		err = i.installAlone(ctx, archiveOf(c))
	}
	if errors.Is(err, errNotAlone) {
		return i.Install(ctx, request[1:]...)
	}
	return err
}

// archiveOf is where apt keeps a package that it has fetched, relative to the root.
func archiveOf(c Candidate) string {
	return path.Join(archives, fmt.Sprintf("%s_%s_%s.deb", c.Name, strings.ReplaceAll(c.Version, ":", "%3a"), c.Architecture))
}

// fetchScript fetches a file by apt's helper. What comes from a repository that is not
// checked, apt may refuse. Where something is amiss, apt says so after more attempts.
const fetchScript = `grep -q . "$5" && ! grep -qi '^Allow-\|^Trusted: *no' "$5" || exit 1
/usr/lib/apt/apt-helper -q -o Acquire::Retries=0 download-file "$1" "$2" "SHA256:$3" && mv "$2" "$4"`

// fetchKnown fetches a package to where apt does, unless it is kept from before.
func (i Inside) fetchKnown(ctx context.Context, request []string, c Candidate) error {
	if c.URL == "" || c.SHA256 == "" {
		return errNotAlone
	}
	root, err := i.openWritten()
	if err != nil {
		return err
	}
	defer root.Close()
	file := archiveOf(c)
	keeper := i.keeper(request)
	if keeper != nil {
		if err := keeper.Give(ctx, request, i.archives()); err != nil {
			return err
		}
		switch right, err := hasDigest(root, file, c.SHA256); {
		case err != nil:
			return err
		case right:
			return nil
		}
		if err := i.Clean(ctx); err != nil {
			return err
		}
	}
	// apt's user may write there, who does the talking.
	partial := path.Join(archives, "partial", path.Base(file))
	_, err = i.command(ctx, true, "sh", "-c", fetchScript, "sh", c.URL, "/"+partial, c.SHA256, "/"+file, SourcesFile)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return errNotAlone
	}
	switch right, err := hasDigest(root, file, c.SHA256); {
	case err != nil:
		return err
	case !right:
		return errors.Join(i.Clean(ctx), errNotAlone)
	}
	if keeper == nil {
		return nil
	}
	return keeper.Take(ctx, request, i.archives())
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

// installAlone installs a .deb, by its name relative to the root, by dpkg alone, if that
// needs nothing else.
func (i Inside) installAlone(ctx context.Context, file string) error {
	all, err := i.readInstalled()
	if err != nil {
		return err
	}
	control, err := i.control(file)
	if err != nil {
		return err
	}
	if !all.takes(control) {
		return errNotAlone
	}
	return i.unpack(ctx, "/"+file)
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
