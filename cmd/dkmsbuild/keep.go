package main

import (
	"context"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/state"
	"fmt"
	"path/filepath"
)

// keepDeb keeps a package itself, which was just installed, for what it ships and
// says beside its sources: debextract makes a package of that.
func (b *builder) keepDeb(ctx context.Context, inside apt.Inside, p *pkg) error {
	if p.Kind == state.KindSource {
		return nil
	}
	dir, err := b.tree.Record(packageLayer(p))
	if err != nil {
		return err
	}
	to := filepath.Join(dir, state.PackageFile)
	if p.Kind == state.KindDeb {
		err = apt.SaveFile(p.Request, to)
	} else {
		err = inside.SaveDeb(ctx, p.Name, p.Version, to)
	}
	if err != nil {
		return fmt.Errorf("cannot keep the package %s: %w", p.Name, err)
	}
	return nil
}

// adopt has the document tell the digest of what was installed. Two repositories may
// have one version with different content, and apt chooses; a .deb may have changed
// since it was looked at.
func adopt(p *state.Package) (err error) {
	if p.Kind != state.KindSource {
		p.Digest, err = state.FileDigest(filepath.Join(p.Doc, state.PackageFile))
	}
	return err
}
