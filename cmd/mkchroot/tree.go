package main

import (
	"context"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/sandbox"
	"dkms2bin/internal/state"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// buildSet is what every build needs besides headers. Debhelper, by which dkms mkbmdeb
// made packages, is not among it: a sixth of all packages, and nothing calls it.
var buildSet = []string{"build-essential", "dkms", "kmod"}

const baseLayer = "base"

// makeTree makes the tree and fills the document. What was made before an error
// is in the document too, so that rmchroot can remove it.
func makeTree(ctx context.Context, s *cli.Session, o *options) (err error) {
	cache, err := o.openCache(s.Msg) // which looks at what it has while the host is asked
	if err != nil {
		return err
	}
	from, err := findOrigin(ctx, s.Msg, o)
	if err != nil {
		return err
	}

	defer func() { err = advise(err) }()
	s.Msg.Announce("creating chroot environment")
	step := s.Msg.Wait("creating chroot environment")
	defer step.Done("")
	if err := enoughSpace(o.workDir, o.workDir, smallTree, "--work-dir"); err != nil {
		return err
	}
	tree, err := rootfs.Create(o.workDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	if run := os.Getenv(cli.RunVar); run != "" {
		if err := tree.BelongTo(run); err != nil {
			return err
		}
	}
	s.Doc.Tree = &state.Tree{
		Path: tree.Path, Suite: from.sources[0].Suite, Distribution: from.host.Distribution,
		Architecture: from.host.Architecture, Created: time.Now().UTC().Truncate(time.Second),
	}
	if s.Doc.Tree.InPlace = o.inPlace; o.inPlace {
		s.Msg.Warn("NO ISOLATION: the root of this system itself is the build tree, and its packages and settings are changed for good")
		s.Msg.Warn("the scripts of all packages, and what they compile, run as root of this system, with its files, devices and network")
		s.Msg.Hint("throw this container away afterwards: rmchroot removes only what lies in %s", tree.Path)
		if err := tree.UseThisRoot(); err != nil {
			return err
		}
	}
	lack, err := tree.Probe(ctx, cache)
	switch {
	case err != nil:
		return err
	case tree.Copies():
		s.Doc.Tree.Copies = lack.Error()
		s.Msg.Info("roots are put together by copying, which takes more time and space: %s", s.Doc.Tree.Copies)
	case lack != nil:
		s.Msg.Info("what is written goes to memory first: %s", lack.Upper)
	}
	s.Doc.Tree.Log = filepath.Join(tree.Path, "records", "mkchroot.log")
	log, err := os.Create(s.Doc.Tree.Log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	watch := io.MultiWriter(log, step)

	if s.Doc.Tree.Repositories, err = from.provide(ctx, s.Msg, tree); err != nil {
		return err
	}
	b := &baseMaker{origin: from, msg: s.Msg, given: o.base, tree: tree, cache: cache, inside: apt.Inside{
		Spec:  sandbox.Spec{Mountpoint: tree.Mountpoint(), Env: sandbox.DefaultEnv()},
		Fetch: apt.Binds(tree.Apt(), s.Doc.Tree.Directories()), Log: watch,
	}}
	if cache != nil {
		b.inside.Keeper = cache
	}
	made, err := b.take(ctx)
	if err != nil {
		return err
	}
	s.Doc.Tree.Base = baseLayer
	var facts baseFacts
	if err := readRecord(tree, baseLayer, factsFile, &facts); err != nil {
		return err
	}
	s.Doc.Tree.Distribution, s.Doc.Tree.DKMS, s.Doc.Tree.Compiler = facts.Distribution, facts.DKMS, facts.Compiler
	if !made {
		if err := b.takeLists(ctx); err != nil {
			return err
		}
		// Where those of the base system are still the present ones, all that is kept of
		// what stands on it goes on to hold.
		empty, err := hasNoFiles(tree.LayerPath(listsLayer))
		if err != nil {
			return err
		}
		if !empty {
			s.Doc.Tree.Lists = listsLayer
		}
	}
	if err := addKernels(ctx, s, b, o.selection()); err != nil || cache == nil {
		return err
	}
	return cache.Trim()
}

// openCache opens the cache, or returns nil where none is wanted.
func (o *options) openCache(msg *cli.Messenger) (*rootfs.Cache, error) {
	if o.noCache {
		return nil, nil
	}
	cache, err := rootfs.OpenCache(o.cacheDir)
	if err != nil {
		return nil, err
	}
	cache.Notice = msg.Info
	if o.cacheLimit >= 0 {
		if err := cache.SetLimit(o.cacheLimit); err != nil {
			return nil, err
		}
	}
	if err := cache.Trim(); err != nil { // what a dead run left may be what is missing of space
		return nil, err
	}
	return cache, cache.Foresee("base", "headers")
}

const (
	// baseSize is what a base system takes with the headers of one kernel, in
	// bytes. Trixie's bring the kernel's image along.
	baseSize = 1 << 30
	// smallTree is what a tree takes besides: the packages and their builds.
	smallTree = 128 << 20
)

// enoughSpace refuses at once what would fail after a minute.
func (b *baseMaker) enoughSpace(dir string) error {
	if b.cache != nil {
		return enoughSpace(dir, b.cache.Path, baseSize, "--cache-dir")
	}
	return enoughSpace(dir, filepath.Dir(filepath.Dir(b.tree.Path)), baseSize, "--work-dir")
}

// wasThereSpace says so when an error came with a full disk: apt and its helpers
// speak of signatures then.
func (b *baseMaker) wasThereSpace(dir string, err error) error {
	if err == nil {
		return nil
	}
	const full = 4 << 20
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) != nil || fs.Bavail*uint64(fs.Bsize) > full {
		return err
	}
	if b.cache != nil {
		return diag.WithHint(fmt.Errorf("no space left in %s: %w", b.cache.Path, err), "--cache-dir names another place; rmchroot --cache empties it")
	}
	return diag.WithHint(fmt.Errorf("no space left in %s: %w", b.tree.Path, err), "--work-dir names another place; rmchroot --stale removes what dead runs left")
}

// enoughSpace says whether there is enough in dir, which is called so for people
// and was chosen by a flag.
func enoughSpace(dir, called string, need int64, flag string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("cannot make the work directory: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("cannot look for space in %s: %w", dir, err)
	}
	if free := int64(fs.Bavail * uint64(fs.Bsize)); free < need {
		return diag.WithHint(fmt.Errorf("no space left for a tree in %s: it takes about %d MB, and %d MB are free", called, need>>20, free>>20),
			"%s names another place; rmchroot --stale removes what dead runs left, rmchroot --cache the cache", flag)
	}
	return nil
}

// moveKeyrings returns the sources with keyrings as they are called in the tree,
// and those keyrings.
func moveKeyrings(sources []apt.Source) ([]apt.Source, []rootfs.ConfigFile, error) {
	var files []rootfs.ConfigFile
	moved := map[string]string{}
	out := make([]apt.Source, 0, len(sources))
	for _, s := range sources {
		for _, key := range s.Keyrings() {
			if moved[key] != "" {
				continue
			}
			content, err := os.ReadFile(key)
			if err != nil {
				return nil, nil, fmt.Errorf("cannot read the keyring of %s: %w", s, err)
			}
			moved[key] = fmt.Sprintf("/etc/apt/dkms2bin-%d%s", len(moved), filepath.Ext(key))
			files = append(files, rootfs.ConfigFile{Path: moved[key], Content: content, Mode: 0o644})
		}
		out = append(out, s.WithKeyrings(moved))
	}
	return out, files, nil
}

// generalKeyrings are the host's keyrings, in its directory etc, for repositories
// that name none: those of trusted.gpg.d that apt reads, and its predecessor. As
// apt does, it passes over what cannot be read.
func generalKeyrings(etc string) ([]rootfs.ConfigFile, error) {
	paths := []string{"trusted.gpg"}
	entries, err := os.ReadDir(filepath.Join(etc, "trusted.gpg.d"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot list the host's keyrings: %w", err)
	}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext == ".gpg" || ext == ".asc" {
			paths = append(paths, filepath.Join("trusted.gpg.d", e.Name()))
		}
	}
	var files []rootfs.ConfigFile
	for _, path := range paths {
		content, err := os.ReadFile(filepath.Join(etc, path))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EISDIR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read a keyring of the host: %w", err)
		}
		files = append(files, rootfs.ConfigFile{Path: filepath.Join("/etc/apt", path), Content: content, Mode: 0o644})
	}
	return files, nil
}
