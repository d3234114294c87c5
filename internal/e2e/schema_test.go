//go:build e2e

package e2e

import (
	"crypto/sha256"
	"dkms2bin/internal/state"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"gotest.tools/v3/assert"
)

// documents are those that the programs wrote, for TestMain to hold against the schema
// when all tests have ended.
var documents struct {
	sync.Mutex
	dir  string
	seen map[[sha256.Size]byte]bool
}

// keepDocument keeps a document of a test. There may be none where no test runs.
func keepDocument(t *testing.T, raw []byte) {
	t.Helper()
	documents.Lock()
	defer documents.Unlock()
	sum := sha256.Sum256(raw)
	if documents.seen[sum] {
		return
	}
	documents.seen[sum] = true
	name := fmt.Sprintf("%s-%d.json", strings.ReplaceAll(t.Name(), "/", "_"), len(documents.seen))
	assert.NilError(t, os.WriteFile(filepath.Join(documents.dir, name), raw, 0o644))
}

// keepDocuments keeps those that make left in a directory.
func keepDocuments(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	assert.NilError(t, err)
	assert.Assert(t, len(files) > 0)
	for _, file := range files {
		raw, err := os.ReadFile(file)
		assert.NilError(t, err)
		keepDocument(t, raw)
	}
}

// TestOlderDocument: a document as 1.0 had it is taken, and handed on as one of today.
func TestOlderDocument(t *testing.T) {
	minor := fmt.Sprintf("  \"minor\": %d,\n", state.Minor)
	now := string(encode(t, &state.Document{Kernels: []state.Kernel{{Release: "6.1.0-1-amd64"}}, OutDir: t.TempDir()}, nil))
	old := strings.Replace(now, minor, "", 1)
	assert.Assert(t, old != now)
	for _, stage := range []string{"debextract", "rmchroot"} {
		args := []string{"--out-dir", t.TempDir()}
		if stage == "rmchroot" {
			args = nil
		}
		r := command{name: stage, stdin: []byte(old), args: args}.run(t).mustExit(t, 0)
		assert.Equal(t, r.doc.Minor, state.Minor)
		assert.Equal(t, r.doc.Kernels[0].Release, "6.1.0-1-amd64")
		newer := strings.Replace(now, minor, fmt.Sprintf("  \"minor\": %d,\n", state.Minor+1), 1)
		command{name: stage, stdin: []byte(newer), args: args}.run(t).mustExit(t, state.ExitUsage).
			mustSay(t, fmt.Sprintf("the document has version %d.%d", state.Version, state.Minor+1))
	}
}

// againstSchema says what Debian's validator has against the documents that were kept,
// "" when it takes them all.
func againstSchema(schema string) string {
	files, err := filepath.Glob(filepath.Join(documents.dir, "*.json"))
	if err != nil || len(files) == 0 {
		return ""
	}
	args := []string{"--output", "pretty"}
	for _, file := range files {
		args = append(args, "--instance", file)
	}
	out, err := exec.Command("jsonschema", append(args, schema)...).CombinedOutput()
	passed := strings.Count(string(out), "===[SUCCESS]===(")
	fmt.Fprintf(os.Stderr, "e2e: %d of %d documents are as the schema says\n", passed, len(files))
	if err == nil && passed == len(files) {
		return ""
	}
	var bad strings.Builder
	fmt.Fprintf(&bad, "jsonschema: %v\n", err)
	for line := range strings.Lines(string(out)) {
		if !strings.HasPrefix(line, "===[SUCCESS]===(") {
			bad.WriteString(line)
		}
	}
	return bad.String()
}
