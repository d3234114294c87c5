//go:build e2e

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

// TestCompat builds a sample beside plain apt and dkms; scripts/test nightly builds
// all there is.
func TestCompat(t *testing.T) {
	t.Parallel()
	document := filepath.Join(t.TempDir(), "1.json")
	assert.NilError(t, os.WriteFile(document, sharedTree(t), 0o644))
	r := command{name: "compat", args: []string{"--tree", document, "--json", "--sample"}}.run(t).mustExit(t, 0)
	var table []struct {
		Package, Plain, Ours, Reason string
		Missing                      []string
	}
	assert.NilError(t, json.Unmarshal(r.raw, &table))
	got := map[string]string{}
	for _, row := range table {
		got[row.Package] = row.Plain + ", " + row.Ours
		assert.Equal(t, len(row.Missing), 0)
		assert.Assert(t, row.Ours == "built" || row.Reason != "", row.Package)
	}
	assert.Equal(t, got["bbswitch-dkms"], "built, built", "%v", got)
	if strings.Contains(shared.doc.Tree.Suite, "bookworm") {
		assert.Equal(t, got["librem-ec-acpi-dkms"], "failed, failed", "%v", got)
	}
}
