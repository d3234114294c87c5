package main

import (
	"dkms2bin/internal/kernel"
	"dkms2bin/internal/modpkg"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/state"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"gotest.tools/v3/assert"
)

// TestRecall: a package is made again when it is not there as it was written, or when
// anything that goes into it is another.
func TestRecall(t *testing.T) {
	t.Parallel()
	cache, err := rootfs.OpenCache(filepath.Join(t.TempDir(), "cache"))
	assert.NilError(t, err)
	o := &options{outDir: t.TempDir(), image: modpkg.ImageDependencies[0]}
	file := filepath.Join(o.outDir, "a.deb")
	write := func(content string) { assert.NilError(t, os.WriteFile(file, []byte(content), 0o644)) }
	for _, row := range []struct {
		name   string
		change func(m *memory, o *options, b *batch, c *candidate)
		damage func()
		made   bool
	}{
		{"the first time", nil, nil, true},
		{"again", nil, nil, false},
		{"another archive", func(_ *memory, _ *options, _ *batch, c *candidate) { c.build.ArchiveDigest = "2" }, nil, true},
		{"another program", func(m *memory, _ *options, _ *batch, _ *candidate) { m.program = "2" }, nil, true},
		{"another version", func(_ *memory, _ *options, _ *batch, c *candidate) { c.spec.VersionSuffix = "+site2" }, nil, true},
		{"another changelog", func(_ *memory, _ *options, _ *batch, c *candidate) { c.spec.Changelog = []byte("new") }, nil, true},
		{"another compression", func(_ *memory, _ *options, b *batch, _ *candidate) { b.facts.Compression = "xz" }, nil, true},
		{"other options", func(_ *memory, o *options, _ *batch, _ *candidate) { o.initramfs = true }, nil, true},
		{"another directory", func(_ *memory, o *options, _ *batch, _ *candidate) { o.outDir = "/other" }, nil, true},
		{"a module less", func(_ *memory, _ *options, _ *batch, c *candidate) {
			c.modules = []kernel.Module{{Path: "/x/a.ko"}}
		}, nil, true},
		{"the name of the file of the archive", func(_ *memory, _ *options, _ *batch, c *candidate) { c.build.Archive = "/other" }, nil, false},
		{"the first one once more", nil, nil, false},
		{"other content", nil, func() { write("damaged") }, true},
		{"mended", nil, nil, false},
		{"gone", nil, func() { assert.NilError(t, os.Remove(file)) }, true},
		{"without a cache", func(m *memory, _ *options, _ *batch, _ *candidate) { m.cache = nil }, nil, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			m, o := memory{cache: cache, program: "1"}, *o
			b := &batch{facts: kernel.Facts{Release: "k"}}
			c := &candidate{build: &state.Build{Module: "a", Kernel: "k", ArchiveDigest: "1"}, spec: modpkg.Spec{Module: "a", Kernel: "k"}}
			if row.change != nil {
				row.change(&m, &o, b, c)
			}
			if row.damage != nil {
				row.damage()
			}
			made := false
			p, err := m.recall(t.Context(), &o, b, c, func() (packed, error) {
				made = true
				write("content")
				digest, err := state.FileDigest(file)
				return packed{Deb: state.Deb{Path: file, Digest: digest}, Files: []string{"a.ko"}}, err
			})
			assert.NilError(t, err)
			assert.Equal(t, made, row.made)
			assert.Equal(t, p.Deb.Path, file)
			assert.DeepEqual(t, p.Files, []string{"a.ko"})
		})
	}
	broken := errors.New("broken")
	_, err = memory{cache: cache}.recall(t.Context(), o, &batch{}, &candidate{build: &state.Build{}}, func() (packed, error) { return packed{}, broken })
	assert.ErrorIs(t, err, broken)
}
