//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"dkms2bin/internal/deb"
	"dkms2bin/internal/state"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"gotest.tools/v3/assert"
)

// What a program may use of memory, in bytes, and of the processor, in seconds, to
// find out that something is a bomb.
const (
	bombMemory = 1 << 30
	bombTime   = 60
)

// limited is a command under these limits, which the kernel enforces.
func limited(c command) command {
	program := c.name
	if !filepath.IsAbs(program) {
		program = filepath.Join(bin, c.name)
	}
	c.args = append([]string{fmt.Sprintf("--data=%d", bombMemory), fmt.Sprintf("--cpu=%d", bombTime), "--", program}, c.args...)
	c.name = "/usr/bin/prlimit"
	return c
}

func zst(t *testing.T, plain []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	assert.NilError(t, err)
	return w.EncodeAll(plain, nil)
}

// bombTar is a tar of these members, packed; more follows its end.
func bombTar(t *testing.T, more []byte, members ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range members {
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		assert.NilError(t, w.WriteHeader(&h))
	}
	_ = w.Close() // a member may be shorter than it says
	return append(zst(t, b.Bytes()), more...)
}

// bombDeb is a package of these two members.
func bombDeb(control, data []byte) []byte {
	out := []byte("!<arch>\n")
	for _, m := range []struct {
		name    string
		content []byte
	}{{"debian-binary", []byte("2.0\n")}, {"control.tar.zst", control}, {"data.tar.zst", data}} {
		out = fmt.Appendf(out, "%-16s%-12d%-6d%-6d%-8o%-10d`\n%s", m.name, 0, 0, 0, 0o100644, len(m.content), m.content)
		if len(m.content)%2 != 0 {
			out = append(out, '\n')
		}
	}
	return out
}

// repeated is a file that is so often the same.
func repeated(t *testing.T, path string, piece []byte, times int) {
	t.Helper()
	f, err := os.Create(path)
	assert.NilError(t, err)
	defer f.Close()
	for range times {
		_, err := f.Write(piece)
		assert.NilError(t, err)
	}
}

// TestBombs: what is small and asks for memory, disk or time without end is an error
// within limits, and leaves nothing.
func TestBombs(t *testing.T) {
	t.Parallel()
	sharedTree(t)
	headers := shared.doc.Kernels[0].Facts
	dir := t.TempDir()
	nightly := os.Getenv("DKMS2BIN_NIGHTLY") != ""

	many := func(n int, name string) (members []tar.Header) {
		for i := range n {
			members = append(members, tar.Header{Name: fmt.Sprintf(name, i), Typeflag: tar.TypeReg})
		}
		return members
	}
	block := zst(t, make([]byte, 1<<27))
	const terabyte = 1 << (40 - 27)
	// Headers for a next member that never comes: 100 comments of half a megabyte each.
	var comments bytes.Buffer
	for range 100 {
		var one bytes.Buffer
		assert.NilError(t, tar.NewWriter(&one).WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": strings.Repeat("x", 1<<19)}}))
		h := one.Bytes()
		var sum int
		fmt.Sscanf(string(h[148:156]), "%o", &sum)
		copy(h[148:], fmt.Sprintf("%06o\x00 ", sum+tar.TypeXHeader-tar.TypeXGlobalHeader))
		h[156] = tar.TypeXHeader
		comments.Write(append(h, make([]byte, -len(h)&511)...))
	}
	header := zst(t, comments.Bytes())
	text := "Package: x-modules-6.1.0\nVersion: 1\nArchitecture: amd64\n"
	var good bytes.Buffer
	w := tar.NewWriter(&good)
	assert.NilError(t, w.WriteHeader(&tar.Header{Name: "./control", Mode: 0o644, Size: int64(len(text))}))
	_, err := w.Write([]byte(text))
	assert.NilError(t, errors.Join(err, w.Close()))
	control := bombTar(t, nil, tar.Header{Name: "./control", Size: 1 << 40})
	empty := bombTar(t, nil)

	for _, row := range []struct {
		name    string
		content []byte
		says    string
		nightly bool
	}{
		{"a member of a terabyte", bombTar(t, nil, tar.Header{Name: "x", Size: 1 << 40}), "unpacks to more than 4294967296 bytes", false},
		{"a terabyte behind the end", bombTar(t, bytes.Repeat(block, terabyte)), "unpacks to more than 4294967296 bytes", true},
		{"members", bombTar(t, nil, many(250_000, "x%d")...), "more than 200000 members", false},
		{"links", bombTar(t, nil, tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("b/", 400_000)}), "is a symbolic link", false},
		{"a name of a megabyte", bombTar(t, nil, tar.Header{Name: strings.Repeat("a/", 500_000) + "x", Typeflag: tar.TypeReg}), "no kernel module", false},
		{"deep paths", bombTar(t, nil, many(100, "%d/"+strings.Repeat("a/", 2000)+"x")...), "no kernel module", false},
		{"kernels", bombTar(t, nil, many(2_000, "dkms_main_tree/6.1.%d/x86_64/module/x.ko")...), "more than 1000 kernels", false},
		{"a tar in a tar", zst(t, bombTar(t, bytes.Repeat(block, terabyte))), "neither a tar archive nor a .deb", false},
		{"a control file of a terabyte", bombDeb(control, empty), "control has 1099511627776 bytes, more than 1048576", false},
		{"zeros behind the control file", bombDeb(append(slices.Clone(empty), bytes.Repeat(block, terabyte)...), empty), "unpacks to more than 33554432 bytes", false},
		{"headers of no member", bombDeb(zst(t, good.Bytes()), bytes.Repeat(header, 100)), "unpacks to more than 4294967296 bytes", true},
	} {
		t.Run(row.name, func(t *testing.T) {
			if row.nightly && !nightly {
				t.Skip("nightly only: 4 GiB are unpacked first")
			}
			path, out := filepath.Join(dir, "bomb"), t.TempDir()
			assert.NilError(t, os.WriteFile(path, row.content, 0o644))
			limited(command{name: "debextract", args: []string{"--out-dir", out, "--headers", headers, path}}).run(t).
				mustExit(t, state.ExitError).mustSay(t, "debextract: error: ", row.says)
			left, err := os.ReadDir(out)
			assert.NilError(t, err)
			assert.Equal(t, len(left), 0)
		})
	}

	t.Run("repository", func(t *testing.T) {
		out := t.TempDir()
		putDeb(t, out, "good-modules-6.1.0-1-amd64", "1.0")
		for name, content := range map[string][]byte{
			"control.deb": bombDeb(control, empty),
			"zeros.deb":   bombDeb(append(slices.Clone(empty), bytes.Repeat(block, terabyte)...), empty),
			"headers.deb": bombDeb(bytes.Repeat(header, 100), empty),
		} {
			assert.NilError(t, os.WriteFile(filepath.Join(out, name), content, 0o644))
		}
		// What depends on everything and provides it, in versions that do not fit.
		var provides, depends []string
		for i := range 35_000 {
			provides, depends = append(provides, fmt.Sprintf("x (= %d)", i)), append(depends, fmt.Sprintf("x (= 1:%d)", i))
		}
		c := deb.Stanza{
			{Name: "Package", Value: "greedy"},
			{Name: "Version", Value: "1"},
			{Name: "Architecture", Value: "all"},
			{Name: "Maintainer", Value: "A B <ab@example.org>"},
			{Name: "Provides", Value: strings.Join(provides, ", ")},
			{Name: "Depends", Value: strings.Join(depends, ", ")},
			{Name: "Description", Value: "made for a test"},
		}
		f, err := os.Create(filepath.Join(out, "greedy.deb"))
		assert.NilError(t, err)
		assert.NilError(t, deb.Write(f, deb.Package{Control: c, Time: time.Unix(1e9, 0)}))
		assert.NilError(t, f.Close())
		r := limited(command{name: "repoindex", args: []string{"--keep-kernels", "1", out}}).run(t).mustExit(t, state.ExitIncomplete).
			mustSay(t, "control.deb is left out: ", "zeros.deb is left out: ", "headers.deb is left out: ")
		assert.Equal(t, r.doc.Index.Packages, 2)

		// A status of nothing but beginnings, and then an index that says of itself what is not so.
		repeated(t, filepath.Join(out, "status.json"), []byte(`{"version":1,"records":[`+strings.Repeat("{},", 1<<20)), 1)
		limited(command{name: "repoindex", args: []string{out}}).run(t).mustExit(t, state.ExitError).mustSay(t, "status.json: ", "more than 524288 records and packages", "move that file away")
		release := fmt.Sprintf("SHA256:\n %x %d Packages\n %x %d Packages.zst\n", sha256.Sum256(nil), int64(1)<<50, sha256.Sum256(nil), len(block)*terabyte)
		assert.NilError(t, os.WriteFile(filepath.Join(out, "Release"), []byte(release), 0o644))
		repeated(t, filepath.Join(out, "Packages"), []byte("Package"), 1<<20)
		repeated(t, filepath.Join(out, "Packages.zst"), block, terabyte)
		limited(command{name: "repoindex", args: []string{"--verify", out}}).run(t).mustSay(t, "line longer than 1048576 bytes")
	})

	t.Run("documents", func(t *testing.T) {
		path := filepath.Join(dir, "document")
		for _, row := range []struct {
			says  string
			piece string
			times int
		}{
			{"more than 524288 objects", `{"version":1,"builds":[` + strings.Repeat("{},", 1<<20), 1},
			{"or 16777216 values", `{"version":1,"build_packages":[` + strings.Repeat(`"",`, 1<<20), 17},
			{"larger than 256 MiB", strings.Repeat(" ", 1<<20), 300},
			{"not a dkms2bin document", strings.Repeat("[", 1<<20), 2},
		} {
			repeated(t, path, []byte(row.piece), row.times)
			in, err := os.Open(path)
			assert.NilError(t, err)
			c := limited(command{name: "rmchroot"}).command(t.Context())
			var stderr bytes.Buffer
			c.Stdin, c.Stderr = in, &stderr
			_ = c.Run()
			assert.NilError(t, in.Close())
			assert.Equal(t, c.ProcessState.ExitCode(), state.ExitUsage, "%s", stderr.String())
			assert.Assert(t, strings.Contains(stderr.String(), row.says), "%s", stderr.String())
		}
	})

	t.Run("settings", func(t *testing.T) {
		keys := []byte("x: &x {name: x")
		for i := range 100_000 {
			keys = fmt.Appendf(keys, ",k%d: ", i)
		}
		for _, row := range []struct{ name, content, says string }{
			{"of aliases", "x: &x {name: x}\nrepos: [" + strings.Repeat("*x,", 100_000) + "]\n", "more than 1000 repositories"},
			{"of aliases of a long one", string(keys) + "}\nrepos: [" + strings.Repeat("*x,", 1000) + "]\n", "more than 1000 keys"},
			{"of lists in lists", strings.Repeat("[", 1<<20), "depth"},
			{"of five megabytes", strings.Repeat("#\n", 5<<19), "longer than 4194304 bytes"},
		} {
			path := filepath.Join(dir, "settings.yaml")
			assert.NilError(t, os.WriteFile(path, []byte(row.content), 0o644))
			limited(command{name: "mkchroot", args: []string{"--check", "--settings", path}}).run(t).mustExit(t, state.ExitUsage).mustSay(t, row.says)
		}
	})
}
