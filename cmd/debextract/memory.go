package main

import (
	"context"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/modpkg"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/state"
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
)

// A memory knows what was made of builds before, so that what is in the output
// directory and would be made again is told by its digest. It lies in the cache of the
// build tree; ordinary users, and archives as operands, have none.
type memory struct {
	cache   *rootfs.Cache // or nil
	program string        // rootfs.ProgramID
}

func openMemory(s *cli.Session) (m memory, err error) {
	if s.Doc.Tree == nil {
		return m, nil
	}
	tree, err := rootfs.Open(s.Doc.Tree.Path)
	if err != nil || !tree.HasLayer(s.Doc.Tree.Base) {
		return m, nil // without a tree there is nothing to be made
	}
	if m.cache, err = tree.Cache(s.Doc.Tree.Base); m.cache == nil || err != nil {
		return m, err
	}
	m.cache.Notice = s.Msg.Info
	m.program, err = rootfs.ProgramID()
	return m, err
}

// recall is the package of a candidate as make makes it: one that was made before of the
// same, and is still there with the same content, or else a new one.
func (m memory) recall(ctx context.Context, o *options, batch *batch, c *candidate, make func() (packed, error)) (packed, error) {
	if m.cache == nil {
		return make()
	}
	signer := ""
	if o.sign.signer != nil {
		signer = o.sign.signer.Fingerprint()
	}
	var modules []string // of an archive some may be left out
	for _, k := range c.remaining() {
		modules = append(modules, filepath.Base(k.Path))
	}
	spec, err := json.Marshal(struct {
		modpkg.Spec
		Compression, SigHash string
		Modules              []string
	}{c.spec, batch.facts.Compression, batch.facts.SigHash, modules})
	if err != nil {
		return packed{}, err
	}
	return rootfs.Remember(ctx, m.cache, rootfs.Item{
		Kind: "answer", About: "the package of " + c.build.Module + " for " + c.build.Kernel,
		Key: slices.Concat([]string{m.program, "package", o.outDir, c.build.ArchiveDigest, signer, string(spec)}, o.forModules()),
		Current: func(e *rootfs.Entry) (bool, error) {
			p, err := rootfs.Answer[packed](e)
			if err != nil {
				return false, nil
			}
			digest, err := state.FileDigest(p.Deb.Path)
			if errors.Is(err, fs.ErrNotExist) {
				return false, nil
			}
			return digest == p.Deb.Digest, err
		},
	}, make)
}
