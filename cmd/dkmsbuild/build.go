package main

import (
	"context"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/dkms"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/state"
	"errors"
)

// A builder is one run of this stage.
type builder struct {
	*cli.Session
	opts     *options
	tree     *rootfs.Tree
	cache    *rootfs.Cache // that the tree is made of, or nil
	program  string        // rootfs.ProgramID, with a cache
	contents contents      // of the tree's layers
	lists    []string      // layers with package lists below a package's, the topmost first
	fresh    string        // the layer with newer package lists, of this run alone
	tools    tools         // for what is built in this run
	most     slots
	kernels  []state.Kernel
	packages []*pkg
	jobs     []*job
	graph    graph // of the jobs
	live     *live
}

// A pkg is a package of this run.
type pkg struct {
	state.Package
	offered  *apt.Candidate // what the repositories have, if it was looked up there in this run
	depends  [][]string     // the alternatives in its Depends, and
	provides []string       // the names in its Provides, if it was looked up in this run
	with     []*pkg         // those that are installed with it
	kept     bool           // from an earlier run, with its layer
	notes    []string       // messages of its installation
	brought  []brought
	modules  []dkms.Module
	confs    map[string][]dkms.Conf // by kernel, one for each module
}

func build(ctx context.Context, s *cli.Session, o *options) (err error) {
	b := &builder{Session: s, opts: o, most: o.slots()}
	if b.tree, err = openTree(s.Doc); err != nil {
		return err
	}
	if err := b.tree.Use(); err != nil {
		return err
	}
	defer func() {
		if b.fresh != "" {
			err = errors.Join(err, b.tree.RemoveLayer(b.fresh))
		}
		err = errors.Join(err, b.tree.Close())
	}()
	if err := b.openCache(); err != nil {
		return err
	}
	if err := probe(ctx, s, b.tree, b.cache); err != nil {
		return err
	}
	if b.tree.InPlace() {
		s.Msg.Warn("%s", inPlaceWarning)
		b.most.jobs = 1
	}
	if err := b.chooseKernels(); err != nil {
		return err
	}
	if len(s.Doc.Kernels) == 0 {
		s.Msg.Info("there is no kernel to build for") // none was new
		return nil
	}
	if err := b.choosePackages(ctx); err != nil {
		return err
	}
	b.foresee()
	b.live = newLive(s.Msg)
	defer b.live.Done("")
	if err := b.installAll(ctx); err != nil {
		return err
	}
	b.planJobs()
	err = b.runJobs(ctx)
	if b.cache != nil { // which has become larger
		err = errors.Join(err, b.cache.Trim())
	}
	return err
}

const inPlaceWarning = "NO ISOLATION: packages are installed and built in this system's own root, as its root"

// probe finds out how roots are put together in the tree here. The cache may be nil.
func probe(ctx context.Context, s *cli.Session, tree *rootfs.Tree, cache *rootfs.Cache) error {
	lack, err := tree.Probe(ctx, cache)
	if err != nil || !tree.Copies() {
		return err
	}
	if s.Doc.Tree.Copies == "" {
		s.Msg.Info("roots are put together by copying, which takes more time and space: %v", lack)
	}
	s.Doc.Tree.Copies = lack.Error()
	return nil
}

// openCache opens the cache that the tree is made of.
func (b *builder) openCache() (err error) {
	if b.opts.noCache {
		return nil
	}
	if b.cache, err = b.tree.Cache(b.Doc.Tree.Base); b.cache == nil || err != nil {
		return err
	}
	b.cache.Notice = b.Msg.Info
	b.program, err = rootfs.ProgramID()
	return err
}

// openTree opens the document's tree. A document that cannot be worked on is
// wrong usage.
func openTree(doc *state.Document) (*rootfs.Tree, error) {
	if doc.Tree == nil {
		return nil, cli.Usagef("the document names no build tree: mkchroot makes one")
	}
	if doc.Tree.Removed {
		return nil, cli.Usagef("the build tree %s was removed: begin with mkchroot", doc.Tree.Path)
	}
	tree, err := rootfs.Open(doc.Tree.Path)
	if errors.Is(err, rootfs.ErrNoTree) {
		return nil, diag.WithHint(&cli.UsageError{Err: err}, "begin with mkchroot: a tree that is gone must be made again")
	}
	if err != nil {
		return nil, err
	}
	if !tree.HasLayer(doc.Tree.Base) {
		return nil, cli.Usagef("the build tree %s is not complete: it has no base system", doc.Tree.Path)
	}
	for _, k := range doc.Kernels {
		if k.Layer == "" {
			return nil, diag.WithHint(cli.Usagef("the build tree %s has no headers of %s", doc.Tree.Path, k.Release), "was mkchroot run with --dry-run?")
		}
	}
	return tree, nil
}
