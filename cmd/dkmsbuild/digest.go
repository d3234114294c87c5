package main

import (
	"crypto/sha256"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/dkms"
	"dkms2bin/internal/state"
	"encoding/hex"
	"fmt"
	"path/filepath"
)

// A digester says what builds are made from.
type digester struct {
	*builder
	layers map[string]string // what is installed in them
}

// of is a digest of everything that a build is made from: the package's name,
// version and content, the kernel package, dkms, the compiler, build packages, all
// that is installed in the layers below, and what other modules it needs are made
// from. It says nothing of when and where these were installed. It is "" where that
// cannot be told.
func (d *digester) of(i int) string {
	j := d.jobs[i]
	if j.source != "" || j.pkg.Error != "" {
		return j.source
	}
	p, k := j.pkg.Package, j.kernel
	sum := sha256.New()
	fmt.Fprintf(sum, "%q %q %q %q %q %q %q %q", p.Name, p.Version, p.Digest, k.Headers, k.Version, d.Doc.Tree.DKMS, d.Doc.Tree.Compiler, p.Tools)
	fmt.Fprintf(sum, " %q %q", j.module, k.Release)
	for _, layer := range append(d.layersOf(p), k.Layer, d.Doc.Tree.Base) {
		installed, err := d.installed(layer)
		if err != nil {
			return ""
		}
		fmt.Fprintf(sum, " %s", installed)
	}
	if p.Kind == state.KindSource {
		// It may have changed before it was copied.
		copied, _, err := digestDir(filepath.Join(d.tree.LayerPath(p.Layer), dkms.Source(j.module)))
		if err != nil {
			return ""
		}
		fmt.Fprintf(sum, " %s", copied)
	}
	for _, n := range d.graph[i] {
		needed := d.of(n.job)
		if needed == "" {
			return ""
		}
		fmt.Fprintf(sum, " needs %s", needed)
	}
	if j.needed && j.conf.DropsSymbols {
		fmt.Fprint(sum, " keeps its symbols")
	}
	j.source = hex.EncodeToString(sum.Sum(nil))
	return j.source
}

func (d *digester) installed(layer string) (string, error) {
	if known, ok := d.layers[layer]; ok {
		return known, nil
	}
	installed, err := apt.Content(d.tree.LayerPath(layer))
	if err == nil {
		d.layers[layer] = installed
	}
	return installed, err
}
