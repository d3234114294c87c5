package main

import (
	"bytes"
	"context"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/sandbox"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

const listsLayer = "lists"

// listsDir is where apt has its package lists.
const listsDir = "/var/lib/apt/lists"

// A listMaker makes the layer with the present package lists, for a base system
// that was made earlier.
type listMaker struct {
	*baseMaker
	root   sandbox.Root // in which the lists of the cache were brought up to date
	remove func() error
}

// takeLists fetches the package lists, once in a run, and takes those of the cache
// where nothing has changed since.
func (b *baseMaker) takeLists(ctx context.Context) (err error) {
	m := &listMaker{baseMaker: b, remove: func() error { return nil }}
	defer func() { err = errors.Join(err, m.remove()) }()
	item := rootfs.Item{
		Kind: "lists", About: "the package lists of " + b.sources[0].Suite, On: b.tree.LayerID(baseLayer),
		Current: func(e *rootfs.Entry) (bool, error) { return m.current(ctx, e) },
	}
	_, err = b.tree.TakeLayer(ctx, b.cache, item, rootfs.LayerSpec{
		Name: listsLayer, On: []string{baseLayer},
		Make: func(root sandbox.Root) error {
			if m.root.Upper != "" {
				return m.renew(ctx, root.Upper)
			}
			inside := m.inside
			inside.Spec.Root = root
			// Those of the base system may be the present ones: then nothing is in the layer.
			if _, err := m.refresh(ctx, inside, inside.Update); err != nil {
				return err
			}
			_, err := m.prioritise(ctx, inside)
			return err
		},
	})
	return err
}

// current brings the lists of an entry up to date, on top of it, and says whether
// they were that already.
func (m *listMaker) current(ctx context.Context, e *rootfs.Entry) (bool, error) {
	root, remove, err := m.tree.Scratch(baseLayer)
	if err != nil {
		return false, err
	}
	m.remove = remove
	root.Layers = append([]string{e.Layer()}, root.Layers...)
	inside := m.inside
	inside.Spec.Root = root
	changed, err := m.refresh(ctx, inside, inside.FetchLists)
	if err == nil && changed {
		changed, err = listsDiffer(root.Upper, root.Layers)
	}
	if err != nil {
		return false, err
	}
	pinned, err := m.prioritise(ctx, inside)
	if err != nil || !changed && !pinned {
		return err == nil, err
	}
	m.root = root
	return false, inside.Index(ctx)
}

// refresh updates the lists in a root where they are not the present ones, and says
// whether it did.
func (m *listMaker) refresh(ctx context.Context, inside apt.Inside, update func(context.Context) error) (updated bool, err error) {
	current, err := inside.Current(ctx, apt.Bound(m.sources))
	if current || err != nil {
		return false, err
	}
	return true, update(ctx)
}

// hasNoFiles says whether there are but directories in a layer.
func hasNoFiles(layer string) (bool, error) {
	err := fs.WalkDir(os.DirFS(layer), ".", func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			err = fs.ErrExist
		}
		return err
	})
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	return err == nil, err
}

// listsDiffer says whether a layer has package lists that are not the same in those
// below, the topmost first. apt makes its lock and its directories anew, and often
// what it asked for: that it is older than its own copy is for the server to say.
func listsDiffer(layer string, below []string) (bool, error) {
	dir := filepath.Join(layer, listsDir)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	for _, e := range entries {
		if e.IsDir() || e.Name() == "lock" {
			continue
		}
		if !e.Type().IsRegular() {
			return true, nil // it hides one that is gone
		}
		now, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return false, err
		}
		i := slices.IndexFunc(below, func(l string) bool {
			_, err := os.Lstat(filepath.Join(l, listsDir, e.Name()))
			return err == nil
		})
		if i < 0 {
			return true, nil
		}
		before, err := os.ReadFile(filepath.Join(below[i], listsDir, e.Name()))
		if err != nil || !bytes.Equal(now, before) { // an error where it was hidden
			return true, nil
		}
	}
	return false, nil
}

// prioritise writes the priorities of the repositories, which name them by what
// their Release files say, and says whether they are others than before.
func (m *listMaker) prioritise(ctx context.Context, inside apt.Inside) (changed bool, err error) {
	if !m.prioritised() {
		return false, nil
	}
	preferences, err := m.preferences(ctx, inside)
	if err != nil {
		return false, err
	}
	before, err := inside.Output(ctx, "sh", "-c", `[ ! -e "$1" ] || cat "$1"`, "sh", preferencesFile)
	if err != nil || bytes.Equal(before, preferences) {
		return false, err
	}
	file := rootfs.ConfigFile{Path: preferencesFile, Content: preferences, Mode: 0o644}
	for _, dir := range inside.Spec.Root.Written() {
		err = errors.Join(err, rootfs.Configure(dir, []rootfs.ConfigFile{file}))
	}
	return true, err
}

// renew copies the lists as they are now, in all layers, into a layer that stands
// on the base system alone.
func (m *listMaker) renew(ctx context.Context, layer string) error {
	const target = "/run/dkms2bin/lists"
	inside := m.inside
	inside.Spec.Root = sandbox.Root{Layers: append([]string{m.root.Upper}, m.root.Layers...), Memory: m.root.Memory}
	if m.root.Copies != "" {
		inside.Spec.Root.Copies = m.root.Copies + "-view"
	}
	inside.Spec.Binds = []sandbox.Bind{{Source: layer, Target: target, Write: true}}
	script := `cd / && cp -a --parents .` + listsDir + ` ./var/cache/apt/*.bin ` + target + `
		[ ! -e .` + preferencesFile + ` ] || cp -a --parents .` + preferencesFile + ` ` + target
	if _, err := inside.Output(ctx, "sh", "-ec", script); err != nil {
		return err
	}
	return rootfs.Hide(layer, listsDir)
}
