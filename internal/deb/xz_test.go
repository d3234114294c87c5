package deb

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/mikelolasagasti/xz"
	"gotest.tools/v3/assert"
)

// sumsText is text as md5sums has it: what compresses, what does not, and matches
// of all distances and lengths.
func sumsText(size int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	for b.Len() < size {
		fmt.Fprintf(&b, "%016x%016x  usr/share/doc/%s/%d\n", r.Uint64(), r.Uint64(), strings.Repeat("ab", r.IntN(300)), r.IntN(50))
		if r.IntN(1000) == 0 {
			noise := make([]byte, r.IntN(100_000))
			for i := range noise {
				noise[i] = byte(r.Uint32())
			}
			b.Write(noise)
		}
	}
	return b.Bytes()[:size]
}

// What unxz reads is what the real xz packed; what it leaves to others is known.
func TestUnxz(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args  string
		sizes []int
		not   bool // for unxz
	}{
		{args: "-0", sizes: []int{0, 1, 2, 100, 70_000, 2_000_000}},
		{args: "-6", sizes: []int{0, 1, 2, 100, 70_000, 2_000_000}},
		{args: "-9e -T1", sizes: []int{2_000_000}},
		{args: "-C crc32", sizes: []int{0, 70_000}},
		{args: "-T2 --block-size=100000", sizes: []int{0, 100_000, 500_001}},
		{args: "--lzma2=preset=6,lc=0,lp=4,pb=4", sizes: []int{300_000}},
		{args: "--lzma2=preset=6,lc=4,lp=0,pb=0", sizes: []int{300_000}},
		{args: "--lzma2=preset=6,lc=1,lp=3,pb=1,dict=4KiB", sizes: []int{300_000}},
		{args: "-C none", sizes: []int{100}, not: true},
		{args: "-C sha256", sizes: []int{100}, not: true},
		{args: "--delta --lzma2", sizes: []int{100}, not: true},
		{args: "-6 -T1", sizes: []int{maxUnpacked + 1}, not: true},
	} {
		t.Run(test.args, func(t *testing.T) {
			t.Parallel()
			for _, size := range test.sizes {
				content := sumsText(size)
				packed := xzs(content, strings.Fields(test.args)...)
				got, ok := unxz(nil, packed)
				assert.Equal(t, ok, !test.not, "%d bytes", size)
				assert.Assert(t, !ok || bytes.Equal(got, content), "%d bytes", size)
			}
		})
	}
}

// No damage passes: each bit of a small file, some of a large one.
func TestUnxzDamage(t *testing.T) {
	t.Parallel()
	for size, step := range map[int]int{700: 1, 200_000: 7919} {
		content := sumsText(size)
		packed := xzs(content)
		for at := 0; at < 8*len(packed); at += step {
			damaged := bytes.Clone(packed)
			damaged[at/8] ^= 1 << (at % 8)
			_, ok := unxz(nil, damaged)
			assert.Assert(t, !ok, "bit %d", at)
		}
		for n := range packed {
			if n%step == 0 {
				_, ok := unxz(nil, packed[:n])
				assert.Assert(t, !ok, "cut to %d", n)
			}
		}
		for _, more := range []string{"\x00", "\x00\x00\x00\x00", "more", string(packed)} {
			_, ok := unxz(nil, append(bytes.Clone(packed), more...))
			assert.Assert(t, !ok, "and %q", more)
		}
	}
}

// Whatever unxz returns is what a full decoder returns.
func FuzzUnxz(f *testing.F) {
	for _, args := range []string{"-0", "-6", "-C crc32", "-T2 --block-size=1000", "--lzma2=preset=0,lc=0,lp=2,pb=3"} {
		for _, size := range []int{0, 10, 5000} {
			f.Add(xzs(sumsText(size), strings.Fields(args)...))
		}
	}
	f.Fuzz(func(t *testing.T, packed []byte) {
		got, ok := unxz(nil, packed)
		if !ok {
			return
		}
		zr, err := xz.NewReader(bytes.NewReader(packed), maxDict)
		assert.NilError(t, err)
		want, err := io.ReadAll(zr)
		assert.NilError(t, err)
		assert.Assert(t, bytes.Equal(got, want))
	})
}

// The decoder itself, without the checksums that keep changes from it.
func FuzzLZMA2(f *testing.F) {
	for _, lzma2 := range []string{"preset=0", "preset=6", "preset=6,lc=0,lp=4,pb=4", "preset=6,lc=2,lp=2,pb=0,dict=4KiB"} {
		for _, size := range []int{10, 5000} {
			f.Add(xzs(sumsText(size), "--format=raw", "--lzma2="+lzma2))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		const dict, prefix = 4 << 10, "before"
		got, n, ok := new(lzmaDecoder).lzma2([]byte(prefix), data, dict, 1<<20)
		if !ok {
			return
		}
		assert.Assert(t, n <= len(data) && strings.HasPrefix(string(got), prefix) && len(got) <= 1<<20)
	})
}
