package state

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

// TestManual holds dkms2bin-document(5) against the schema, and so against the types:
// it has the same fields, and says of the same ones that they are always there.
func TestManual(t *testing.T) {
	t.Parallel()
	type object struct {
		Properties map[string]json.RawMessage
		Required   []string
	}
	var all struct {
		object
		Defs map[string]object `json:"$defs"`
	}
	raw, err := os.ReadFile(schemaFile)
	assert.NilError(t, err)
	assert.NilError(t, json.Unmarshal(raw, &all))
	all.Defs["Document"] = all.object
	page, err := os.ReadFile("../../scripts/dkms2bin-document.5")
	assert.NilError(t, err)

	sections := map[string]string{
		"Document": "Sh THE OBJECT", "Tree": "Ss The tree", "Kernel": "Ss Each of kernels", "Package": "Ss Each of packages",
		"Build": "Ss Each of builds", "Module": "Ss Each of the modules of a build", "Deb": "Ss Each of debs", "Index": "Ss The index",
		"Audit": "Ss The audit", "InstalledModule": "Ss Each of the modules of an audit", "Error": "Ss The error",
	}
	item := regexp.MustCompile(`(?m)^\.It Li (.*)\n\.Pq Em (.*)`)
	for name, o := range all.Defs {
		heading, ok := sections[name]
		if !ok { // described where it is used
			for field := range o.Properties {
				mark := map[bool]string{true: " Ns *", false: ""}[slices.Contains(o.Required, field)]
				assert.Assert(t, regexp.MustCompile(`(?m)^\.(Pf \( )?Li `+field+regexp.QuoteMeta(mark)+`( [,;:)].*)?$`).Match(page), "%s of %s: .Li %[1]s%s", field, name, mark)
			}
			continue
		}
		_, rest, ok := strings.Cut(string(page), "\n."+heading+"\n")
		assert.Assert(t, ok, heading)
		if end := regexp.MustCompile(`(?m)^\.S[hs] `).FindStringIndex(rest); end != nil {
			rest = rest[:end[0]]
		}
		described := map[string]bool{}
		for _, m := range item.FindAllStringSubmatch(rest, -1) {
			for _, field := range strings.Split(m[1], " , ") {
				_, twice := described[field]
				assert.Assert(t, !twice, "%s: %s", heading, field)
				described[field] = strings.HasSuffix(m[2], ", always")
			}
		}
		want := map[string]bool{}
		for field := range o.Properties {
			want[field] = slices.Contains(o.Required, field)
		}
		assert.DeepEqual(t, described, want)
	}
}
