package apt

import (
	"context"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
)

// A Keeper keeps packages that were fetched from one run to the next.
type Keeper interface {
	// Give copies into dir what was fetched for a request before, if it has that.
	Give(ctx context.Context, request []string, dir string) error
	// Take keeps a copy of .debs in dir, which were fetched for a request: those of these
	// names, or all.
	Take(ctx context.Context, request []string, dir string, names ...string) error
}

// keeper is the one for a request, or nil. What given files need is not kept: their
// names say nothing.
func (i Inside) keeper(request []string) Keeper {
	if slices.ContainsFunc(request, path.IsAbs) {
		return nil
	}
	return i.Keeper
}

// give puts what was fetched for a request before where apt fetches to. apt takes a
// file there for the package by its name and size, so what has another digest than
// the package lists say, or is in none of them any more, is removed.
func (i Inside) give(ctx context.Context, request []string) error {
	keeper := i.keeper(request)
	if keeper == nil {
		return nil
	}
	root, err := i.openWritten()
	if err != nil {
		return err
	}
	defer root.Close()
	if err := keeper.Give(ctx, request, i.archives()); err != nil {
		return err
	}
	given, err := i.fetched()
	if err != nil || len(given) == 0 {
		return err
	}
	var names []string
	for _, file := range given {
		name, _, _ := parseName(file)
		names = append(names, name)
	}
	known, err := i.Show(ctx, names...)
	if err != nil {
		return err
	}
	for _, file := range given {
		ok, err := isAmong(root, file, known)
		if err == nil && !ok {
			err = root.Remove(file)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// openWritten opens what is written to, with the directory that apt fetches to.
func (i Inside) openWritten() (*os.Root, error) {
	root, err := os.OpenRoot(i.Spec.Root.Upper)
	if err != nil {
		return nil, err
	}
	if err := makeArchives(root); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}

// makeArchives makes the directory with those above it, for all to enter whatever the
// umask is: in a layer they stand for those of the layers below.
func makeArchives(root *os.Root) error {
	dir := ""
	for name := range strings.SplitSeq(archives, "/") {
		dir = path.Join(dir, name)
		err := root.Mkdir(dir, 0o755)
		if err == nil {
			err = root.Chmod(dir, 0o755)
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// take keeps what was fetched for a request, before any script of it has run.
func (i Inside) take(ctx context.Context, request []string) error {
	keeper := i.keeper(request)
	if keeper == nil {
		return nil
	}
	debs, err := i.fetched()
	if err != nil || len(debs) == 0 {
		return err
	}
	return keeper.Take(ctx, request, i.archives())
}

// parseName reads the name that apt gives a file: PACKAGE_VERSION_ARCHITECTURE.deb,
// with %3a for the colon of an epoch.
func parseName(file string) (name, version, architecture string) {
	parts := strings.Split(strings.TrimSuffix(path.Base(file), ".deb"), "_")
	if len(parts) != 3 {
		return "", "", ""
	}
	version, err := url.PathUnescape(parts[1])
	if err != nil {
		return "", "", ""
	}
	return parts[0], version, parts[2]
}

// isAmong says whether a file has the content that package lists have for its name.
func isAmong(root *os.Root, file string, known map[string][]Candidate) (ok bool, err error) {
	name, version, architecture := parseName(file)
	for _, c := range known[name] {
		if c.Version != version || c.Architecture != architecture {
			continue
		}
		return hasDigest(root, file, c.SHA256)
	}
	return false, nil
}
