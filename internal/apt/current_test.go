package apt

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

func TestValidScript(t *testing.T) {
	in := func(d time.Duration) string {
		return time.Now().Add(d).UTC().Format("Mon, 02 Jan 2006 15:04:05 UTC")
	}
	for name, test := range map[string]struct {
		text string
		want bool
	}{
		"says nothing":     {"Suite: x\n", true},
		"for an hour":      {"Suite: x\nValid-Until: " + in(time.Hour) + "\nDate: y\n", true},
		"an hour ago":      {"Suite: x\nValid-Until: " + in(-time.Hour) + "\n", false},
		"cannot be read":   {"Valid-Until: whenever it pleases\n", false},
		"twice":            {"Valid-Until: " + in(time.Hour) + "\nValid-Until: " + in(time.Hour) + "\n", false},
		"is another field": {"Description: Valid-Until: " + in(-time.Hour) + "\n", true},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "InRelease")
			assert.NilError(t, os.WriteFile(file, []byte(test.text), 0o644))
			out, err := exec.Command("sh", "-c", validScript+`valid "$1"`, "sh", file).CombinedOutput()
			assert.Equal(t, err == nil, test.want, "%s", out)
		})
	}
	assert.Assert(t, exec.Command("sh", "-c", validScript+`valid "$1"`, "sh", "/nonexistent").Run() != nil)
}

func TestSourceDirectory(t *testing.T) {
	for want, s := range map[string]Source{
		"http://example.org/debian/dists/x/":                  {URI: "http://example.org/debian/", Suite: "x", Components: []string{"main"}},
		"http://example.org/debian/dists/x/updates/":          {URI: "http://example.org/debian", Suite: "x/updates", Components: []string{"main"}},
		"https://example.org:8443/pool/./":                    {URI: "https://example.org:8443/pool", Suite: "./"},
		"copy:/run/dkms2bin/repository-0/dists/stable-local/": {URI: "copy:///run/dkms2bin/repository-0", Suite: "stable-local"},
	} {
		assert.Equal(t, s.directory(), want)
	}
}

// Where apt has to look, nobody is asked before: here there is no root to ask in.
func TestCurrentCannotTell(t *testing.T) {
	ours := Source{URI: "http://127.0.0.1:9/debian", Suite: "x", Components: []string{"main"}}
	for name, source := range map[string]Source{
		"its file is elsewhere": ours.With("InRelease-Path", "InRelease.new"),
		"another limit":         ours.With("Valid-Until-Max", "60"),
		"a repository on disk":  {URI: "copy:/run/dkms2bin/repository-0", Suite: "./"},
	} {
		current, err := Inside{}.Current(t.Context(), []Source{source})
		assert.NilError(t, err, name)
		assert.Assert(t, !current, name)
	}
}
