package repo

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"
)

// Sweep removes files that nobody needs: those of the given paths (below the
// directory, slash-separated), and the by-hash files of earlier indexes but the
// last two. Each goes when it has been unneeded for the time of grace, as
// clients that read an older index may still want it; until then Sweep
// remembers it, also when it is not named again. One for which needed says so
// stays. It returns those of the given paths that were removed, now or named
// earlier.
//
// It is to be called after Index.
func (r *Repo) Sweep(unneeded []string, needed func(path string) bool, grace time.Duration) (removed []string, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot remove what is not needed from %s: %w", r.dir, err)
		}
	}()
	st := r.readState()
	if len(st.Generations) == 0 {
		return nil, nil // damaged; the next Index makes a new one
	}
	now := time.Now().UTC()
	since := make(map[string]time.Time)
	add := func(path string) {
		t, ok := st.Unneeded[path]
		if !ok || t.After(now) {
			t = now
		}
		since[path] = t
	}
	for path := range st.Unneeded {
		if !needed(path) {
			add(path)
		}
	}
	for _, path := range unneeded {
		if !needed(path) {
			add(path)
		}
	}
	known := slices.Concat(st.Generations...)
	entries, err := os.ReadDir(r.path(byHashDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		path := byHash(e.Name())
		switch {
		case slices.Contains(known, e.Name()):
			delete(since, path)
		case isDigest(e.Name()):
			add(path)
		}
	}
	// What the state says must not lead outside.
	root, err := os.OpenRoot(r.dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	for path, t := range since {
		if now.Sub(t) < grace {
			if _, err := root.Lstat(path); errors.Is(err, fs.ErrNotExist) {
				delete(since, path)
			}
			continue
		}
		switch err := root.Remove(path); {
		case err == nil && !strings.HasPrefix(path, byHashDir):
			removed = append(removed, path)
		case err == nil:
		case !errors.Is(err, fs.ErrNotExist):
			return removed, err
		}
		delete(since, path)
	}
	slices.Sort(removed)
	st.Unneeded = since
	return removed, r.writeState(st)
}
