package repo

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"gotest.tools/v3/assert"
)

// packedIndex is a published index of stanzas without packages.
type packedIndex struct {
	packages, gz, zst string
	saved             saved
}

// pack makes the index of made stanzas, one for each number, from what is left of
// an old one in dir.
func pack(t *testing.T, dir string, numbers []int, old saved) (p packedIndex) {
	t.Helper()
	cache, err := os.Create(filepath.Join(t.TempDir(), "cache"))
	assert.NilError(t, err)
	w, err := newCacheWriter(cache)
	assert.NilError(t, err)
	c := &collection{known: stanzas{file: cache}}
	defer func() { assert.NilError(t, c.close()) }()
	var entries []*entry
	for _, n := range numbers {
		e := &entry{path: fmt.Sprintf("pool/p%06d.deb", n)}
		size := 500 + n*7919%1000
		if n%997 == 0 {
			size = 400_000 // so that some parts end by their size
		}
		noise := rand.New(rand.NewPCG(uint64(n), 0))
		var b bytes.Buffer
		fmt.Fprintf(&b, "Package: p%d\nDescription: made\n", n)
		for b.Len() < size {
			fmt.Fprintf(&b, " of some words and %x\n", noise.Uint32())
		}
		assert.NilError(t, w.add(e, append(b.Bytes(), '\n')))
		entries = append(entries, e)
	}
	assert.NilError(t, w.finish(cache))

	r := &Repo{dir: dir}
	parts := r.openParts(old)
	defer parts.close()
	var packages, gz, zst bytes.Buffer
	list, err := c.writePackages(t.Context(), entries, parts, &packages, &gz, &zst)
	assert.NilError(t, err)
	p = packedIndex{packages.String(), gz.String(), zst.String(), saved{Parts: list, Files: map[string]stamp{}}}
	for name, content := range map[string]string{"Packages.gz": p.gz, "Packages.zst": p.zst} {
		digest := hexDigest([]byte(content))
		p.saved.Files[name] = stamp{SHA256: digest}
		assert.NilError(t, os.MkdirAll(filepath.Join(dir, byHashDir), 0o755))
		assert.NilError(t, os.WriteFile(filepath.Join(dir, byHash(digest)), []byte(content), 0o644))
	}
	return p
}

// What is packed on top of an old index has the same bytes as what is packed at
// once, also when the old one is damaged, and all readers read it.
func TestPack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	random := rand.New(rand.NewPCG(1, 2))
	numbers := make([]int, 2000)
	for i := range numbers {
		numbers[i] = 10 * i
	}
	index := pack(t, dir, numbers, saved{})
	for round := range 13 {
		old := index.saved
		switch round % 5 {
		case 1: // one goes
			at := random.IntN(len(numbers))
			numbers = slices.Delete(numbers, at, at+1)
		case 2: // many go
			numbers = slices.DeleteFunc(numbers, func(int) bool { return random.IntN(10) == 0 })
		default: // one comes
			numbers = append(numbers, random.IntN(20_000))
			slices.Sort(numbers)
			numbers = slices.Compact(numbers)
		}
		switch round {
		case 10: // a bit of the old files
			for _, name := range []string{"Packages.gz", "Packages.zst"} {
				path := filepath.Join(dir, byHash(old.Files[name].SHA256))
				b, err := os.ReadFile(path)
				assert.NilError(t, err)
				b[len(b)/3] ^= 4
				assert.NilError(t, os.WriteFile(path, b, 0o644))
			}
		case 11: // what is known of them
			for i := range old.Parts {
				old.Parts[i].Gz += random.IntN(3) - 1
				old.Parts[i].Zst -= 1 << (i % 40)
			}
		case 12:
			old.Files = nil
		}
		index = pack(t, dir, numbers, old)
		whole := pack(t, t.TempDir(), numbers, saved{})
		assert.DeepEqual(t, index.saved.Parts, whole.saved.Parts)
		assert.Assert(t, index.packages == whole.packages && index.gz == whole.gz && index.zst == whole.zst, "round %d", round)
	}
	assert.Assert(t, len(index.saved.Parts) > 4, "%d", len(index.saved.Parts))
	readable(t, index)
}

// A repository without packages has an index too.
func TestPackNothing(t *testing.T) {
	t.Parallel()
	index := pack(t, t.TempDir(), nil, saved{})
	assert.Equal(t, index.packages, "")
	readable(t, index)
}

// readable unpacks by the tools that people have, and as a reader does that knows
// of one stream in a gzip file only.
func readable(t *testing.T, index packedIndex) {
	t.Helper()
	for _, tool := range []struct{ name, packed string }{{"gzip", index.gz}, {"zstd", index.zst}} {
		cmd := exec.Command(tool.name, "-dc")
		cmd.Stdin = strings.NewReader(tool.packed)
		out, err := cmd.Output()
		assert.NilError(t, err, tool.name)
		assert.Assert(t, string(out) == index.packages, tool.name)
	}
	zr, err := gzip.NewReader(strings.NewReader(index.gz))
	assert.NilError(t, err)
	zr.Multistream(false)
	out, err := io.ReadAll(zr)
	assert.NilError(t, err)
	assert.Assert(t, string(out) == index.packages)
}
