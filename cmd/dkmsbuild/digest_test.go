package main

import (
	"dkms2bin/internal/dkms"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/state"
	"os"
	"path/filepath"
	"testing"

	"gotest.tools/v3/assert"
)

// TestDigests: what a build is made from is everything that may make it another one,
// and nothing else.
func TestDigests(t *testing.T) {
	t.Parallel()
	write := func(b *builder, path, content string) {
		path = filepath.Join(b.tree.Path, "layers", path)
		assert.NilError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		assert.NilError(t, os.WriteFile(path, []byte(content), 0o644))
	}
	status := func(b *builder, layer, content string) {
		write(b, layer+"/var/lib/dpkg/status", "Package: gcc\nVersion: "+content+"\n")
	}
	// The modules a, b, which needs a, and c, which needs b, are of one package, x is
	// of another one, and s is a source directory.
	digests := func(change func(*builder)) map[string]string {
		b := jobsOf("k", "p: a b<a c<b", "q: x", "s: s")
		b.tree = &rootfs.Tree{Path: t.TempDir()}
		b.Doc.Tree.Base, b.kernels[0].Layer = "base", "headers"
		for _, p := range b.packages {
			p.Layer = p.Name
		}
		b.packages[2].Kind = state.KindSource
		for _, layer := range []string{"base", "headers", "p", "q"} {
			status(b, layer, "1")
		}
		write(b, "s/"+dkms.Source(b.packages[2].modules[0])+"/dkms.conf", "MAKE=a")
		change(b)
		b.planJobs()
		list := map[string]string{}
		for _, j := range b.jobs {
			list[j.module.Name] = j.source
		}
		return list
	}
	before := digests(func(*builder) {})
	for name, row := range map[string]struct {
		change func(*builder)
		differ string
	}{
		"nothing":                 {func(*builder) {}, ""},
		"a package":               {func(b *builder) { b.packages[1].Digest = "new" }, "x"},
		"what others need":        {func(b *builder) { b.packages[0].Digest = "new" }, "abc"},
		"that it is needed":       {func(b *builder) { b.packages[0].confs["k"][2].BuildDepends = nil }, "c"},
		"that it keeps symbols":   {func(b *builder) { b.packages[0].confs["k"][1].DropsSymbols = true }, "bc"},
		"the kernel":              {func(b *builder) { b.kernels[0].Version = "2" }, "abcsx"},
		"dkms":                    {func(b *builder) { b.Doc.Tree.DKMS = "2" }, "abcsx"},
		"what the base has":       {func(b *builder) { status(b, "base", "2") }, "abcsx"},
		"what headers bring":      {func(b *builder) { status(b, "headers", "2") }, "abcsx"},
		"what a package brings":   {func(b *builder) { status(b, "q", "2") }, "x"},
		"build packages":          {func(b *builder) { b.packages[1].Tools = []string{"libelf-dev (= 1)"} }, "x"},
		"a copied file":           {func(b *builder) { write(b, "s/usr/src/s-1/dkms.conf", "MAKE=b") }, "s"},
		"the name of the tree":    {func(b *builder) { b.Doc.Tree.Path = "/other" }, ""},
		"how the package is read": {func(b *builder) { b.packages[1].Request = "q=1" }, ""},
		"something needed": {func(b *builder) {
			b.packages[1].Digest = "new"
			b.packages[0].confs["k"][0].BuildDepends = []string{"x"}
		}, "abcx"},
	} {
		t.Run(name, func(t *testing.T) {
			after, differ := digests(row.change), ""
			for _, name := range []string{"a", "b", "c", "s", "x"} {
				assert.Assert(t, after[name] != "")
				if after[name] != before[name] {
					differ += name
				}
			}
			assert.Equal(t, differ, row.differ)
		})
	}
	// What cannot be told has none, nor has what is built on it.
	unknown := digests(func(b *builder) { assert.NilError(t, os.RemoveAll(b.tree.LayerPath("p"))) })
	assert.Equal(t, unknown["a"]+unknown["b"]+unknown["c"], "")
	assert.Equal(t, unknown["x"], before["x"])
}
