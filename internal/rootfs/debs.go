package rootfs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
)

// debsItem are the packages that were fetched for a request: those named in it, and
// what they needed besides.
func debsItem(request []string) Item {
	return Item{Kind: "debs", About: "fetched packages", Key: request}
}

// Give copies the packages that were fetched for a request into dir, if they are kept.
// Whoever uses them checks their digests.
func (c *Cache) Give(ctx context.Context, request []string, dir string) error {
	e, err := c.Find(ctx, debsItem(request))
	if e == nil || err != nil {
		return err
	}
	return errors.Join(copyFiles(e.Content(), dir), e.Close())
}

// Take keeps .debs in dir, which were fetched for a request: those of these names, or all.
func (c *Cache) Take(ctx context.Context, request []string, dir string, debs ...string) (err error) {
	if len(debs) == 0 {
		if debs, err = debsIn(dir); err != nil {
			return err
		}
	}
	item := debsItem(request)
	item.Current = func(e *Entry) (bool, error) {
		kept, err := debsIn(e.Content())
		return slices.Equal(kept, debs), err
	}
	item.Make = func(to string) error {
		for _, name := range debs {
			if err := copyFile(filepath.Join(dir, name), filepath.Join(to, name)); err != nil {
				return err
			}
		}
		return nil
	}
	e, err := c.Get(ctx, item)
	return errors.Join(err, e.Close())
}

// debsIn are the names of the .debs in a directory.
func debsIn(dir string) (names []string, err error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if f.Type().IsRegular() && filepath.Ext(f.Name()) == ".deb" {
			names = append(names, f.Name())
		}
	}
	return names, nil
}
