package main

import (
	"crypto/sha256"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/dkms"
	"dkms2bin/internal/state"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"sync"
)

// contents is what is installed in the layers of the tree, as far as was asked.
type contents struct {
	mu    sync.Mutex
	known map[string]string
}

// of is apt.Content of a layer.
func (c *contents) of(b *builder, layer string) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if known, ok := c.known[layer]; ok {
		return known, nil
	}
	content, err := apt.Content(b.tree.LayerPath(layer))
	if err != nil {
		return "", err
	}
	if c.known == nil {
		c.known = map[string]string{}
	}
	c.known[layer] = content
	return content, nil
}

// foresee begins to look at what all builds stand upon, while packages are fetched; but
// where all is done in one root, which changes meanwhile.
func (b *builder) foresee() {
	if b.cache == nil || b.tree.InPlace() {
		return
	}
	layers := []string{b.Doc.Tree.Base}
	for _, k := range b.kernels {
		layers = append(layers, k.Layer)
	}
	go func() {
		for _, layer := range layers {
			_, _ = b.contents.of(b, layer) // whoever asks gets the error
		}
	}()
}

// inputs is a digest of a package and all that is below it for a kernel: its name,
// version and content, the kernel package, dkms, the compiler, build packages, and what
// is installed in these layers. It says nothing of when and where they were installed.
// It is "" where that cannot be told.
func (b *builder) inputs(p *pkg, k state.Kernel, layers []string) string {
	sum := sha256.New()
	fmt.Fprintf(sum, "%q %q %q %q %q %q %q %q %q", p.Name, p.Version, p.Digest, p.Tools, k.Release, k.Headers, k.Version, b.Doc.Tree.DKMS, b.Doc.Tree.Compiler)
	for _, layer := range layers {
		content, err := b.contents.of(b, layer)
		if err != nil {
			return ""
		}
		fmt.Fprintf(sum, " %s", content)
	}
	for _, m := range p.modules {
		if p.Kind != state.KindSource {
			break
		}
		// The directory may have changed before it was copied.
		copied, _, err := digestDir(filepath.Join(b.tree.LayerPath(p.Layer), dkms.Source(m)))
		if err != nil {
			return ""
		}
		fmt.Fprintf(sum, " %s", copied)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// digest gives a job the digest of everything that its build is made from: inputs, and
// what other modules it needs are made from. It is "" where that cannot be told.
func (b *builder) digest(i int) string {
	j := b.jobs[i]
	if j.source != "" || j.pkg.Error != "" {
		return j.source
	}
	inputs := b.inputs(j.pkg, j.kernel, append(b.layersOf(j.pkg.Package), j.kernel.Layer, b.Doc.Tree.Base))
	if inputs == "" {
		return ""
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%s %q", inputs, j.module)
	for _, n := range b.graph[i] {
		needed := b.digest(n.job)
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
