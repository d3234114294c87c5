package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

// endless gives a pattern again and again.
type endless struct {
	pattern []byte
	at      int
}

func (e *endless) Read(p []byte) (n int, err error) {
	for n < len(p) {
		c := copy(p[n:], e.pattern[e.at:])
		n, e.at = n+c, (e.at+c)%len(e.pattern)
	}
	return n, nil
}

// overlapping is a module of n exports, the CRC of each in a section of its own; all
// sections are the same 4 MiB of the file.
func overlapping(t *testing.T, n int) []byte {
	m := testModule{info: []string{magic61}, more: []testSection{{"crcs", make([]byte, 4<<20)}}}
	for i := range n {
		name := fmt.Sprint("s", i)
		m.marks = append(m.marks, testMark{"__ksymtab_" + name, "ABS", 0}, testMark{"__crc_" + name, "crcs", 0})
	}
	ko := m.build(t)
	// More section headers for the same bytes, and each symbol in one of them.
	le := binary.LittleEndian
	last := bytes.Clone(sectionField(ko, 5, 0)[:64])
	for range n - 1 {
		ko = append(ko, last...)
	}
	le.PutUint16(ko[60:], uint16(5+n))
	symtab := ko[le.Uint64(sectionField(ko, 2, 24)):]
	for i := range n {
		const record = elf.Sym64Size
		le.PutUint16(symtab[(2+2*i+1)*record+6:], uint16(5+i))
	}
	return ko
}

// TestBombs: what is made to ask for memory or time without end gets neither.
// Memory is all that was allocated, used at the same time or not.
func TestBombs(t *testing.T) { // not beside others, for the memory
	many := func(n int, prefix string) (names []string) {
		for i := range n {
			names = append(names, fmt.Sprint(prefix, i))
		}
		return names
	}
	le := binary.LittleEndian
	const limit = 16 << 20
	zeros := make([]byte, 4<<20)
	good := testModule{info: []string{magic61}}.build(t)
	unpacked := func(format string) func() error {
		packed := compressed(t, format, zeros) // streams may follow each other
		return func() error {
			_, err := unpack(&endless{pattern: packed}, limit)
			return err
		}
	}
	parsed := func(ko []byte) func() error {
		return func() error {
			m, err := parseModule("x.ko", bytes.NewReader(ko), int64(len(ko)))
			if err == nil {
				target := testTarget(t)
				target.Facts.Modversions = false // it would want CRCs first
				_, err = target.Check(m)
			}
			return err
		}
	}
	for _, row := range []struct {
		name   string
		run    func() error
		err    string
		memory uint64 // MiB
	}{
		{"gzip without end", unpacked("gz"), "larger than 16777216 bytes when decompressed", 6 * limit >> 20},  // a buffer that grows by a quarter comes to five
		{"zstd without end", unpacked("zst"), "larger than 16777216 bytes when decompressed", 6 * limit >> 20}, // a buffer that grows by a quarter comes to five
		{"a million symbols", parsed(testModule{info: []string{magic61}, imports: many(1_000_000, "s")}.build(t)), "needs the symbol", 600},
		{"a million exports", parsed(testModule{info: []string{magic61}, exports: many(1_100_000, "__ksymtab_")}.build(t)), "1100002 symbols, where at most 1048576", 200},
		{"a symbol of a megabyte", parsed(testModule{info: []string{magic61}, imports: []string{strings.Repeat("x", 1<<20)}}.build(t)), "too long", 20},
		{"sections that are the same bytes", parsed(overlapping(t, 60_000)), "bytes, where at most", 300},
		{"sections of the whole address space", parsed(patch(t, func(ko []byte) { le.PutUint64(sectionField(ko, 2, 32), math.MaxUint64) })), "symbol table: 18446744073709551615 bytes", 1},
		{"65,535 sections of nothing", parsed(patch(t, func(ko []byte) { le.PutUint16(ko[60:], 0xffff) })), "truncated", 1},
		{"a thousand signatures", func() error {
			ko := bytes.Clone(good)
			for range 1000 {
				ko = signed(ko, "x")
			}
			return parsed(ko)()
		}, "more than 16 module signatures", 100},
		{"a million imported namespaces", parsed(testModule{info: append(many(1_000_000, "import_ns="), magic61)}.build(t)), "section .modinfo", 100},
		{"Module.symvers of a million lines in a file", func() error {
			dir := t.TempDir()
			content := strings.Repeat("0x00000000\tsymbol\tvmlinux\tEXPORT_SYMBOL\t\n", 1_000_000)
			assert.NilError(t, os.WriteFile(filepath.Join(dir, symversFile), []byte(content), 0o644))
			_, err := ReadSymvers(dir)
			return err
		}, "longer than 16777216 bytes", 200},
		{"a configuration of one line", func() error {
			_, err := parseConfig(io.LimitReader(&endless{pattern: []byte("CONFIG_")}, 1<<40))
			return err
		}, "a line is longer than", 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			start := time.Now()
			err := row.run()
			runtime.ReadMemStats(&after)
			allocated := (after.TotalAlloc - before.TotalAlloc) >> 20
			t.Logf("%d MiB, %s: %.200s", allocated, time.Since(start).Round(time.Millisecond), fmt.Sprint(err))
			assert.ErrorContains(t, err, row.err)
			assert.Assert(t, allocated <= row.memory, "%d MiB", allocated)
			assert.Assert(t, time.Since(start) < time.Minute)
		})
	}
}
