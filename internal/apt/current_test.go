package apt

import (
	"dkms2bin/internal/sandbox"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

func TestRunsOut(t *testing.T) {
	now := time.Date(2026, time.November, 27, 8, 0, 0, 0, time.UTC)
	for text, want := range map[string]bool{
		"Suite: x\n": false,
		"Suite: x\nValid-Until: Fri, 27 Nov 2026 08:00:01 UTC\n": false,
		"Suite: x\nValid-Until: Fri, 27 Nov 2026 07:59:59 UTC\n": true,
		"Valid-Until: Sat, 28 Nov 2026 07:59:59 UTC  \r\n":       false,
		"Valid-Until: soon\n":              true,
		"Description: Valid-Until: soon\n": false,
	} {
		assert.Equal(t, runsOut([]byte(text), now), want, text)
	}
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

// Where apt has to look, nobody is asked before.
func TestCurrentCannotTell(t *testing.T) {
	ours := Source{URI: "http://127.0.0.1:9/debian", Suite: "x", Components: []string{"main"}}
	for name, test := range map[string]struct {
		source  Source
		release string
	}{
		"no lists":                {ours, ""},
		"run out":                 {ours, "Valid-Until: Fri, 27 Nov 2020 08:00:00 UTC\n"},
		"its file is elsewhere":   {ours.With("InRelease-Path", "InRelease.new"), "Suite: x\n"},
		"another limit":           {ours.With("Valid-Until-Max", "60"), "Suite: x\n"},
		"a repository on disk":    {Source{URI: "copy:/run/dkms2bin/repository-0", Suite: "./"}, "Suite: x\n"},
		"a link among the lists":  {ours, "-> /etc/hostname"},
		"a folder in their place": {ours, "dir"},
	} {
		t.Run(name, func(t *testing.T) {
			upper, layer := t.TempDir(), t.TempDir()
			lists := filepath.Join(layer, "var/lib/apt/lists")
			assert.NilError(t, os.MkdirAll(lists, 0o755))
			file := filepath.Join(lists, releaseFile(test.source, "InRelease"))
			odd := false
			switch test.release {
			case "":
			case "dir":
				odd = true
				assert.NilError(t, os.Mkdir(file, 0o755))
			case "-> /etc/hostname":
				odd = true
				assert.NilError(t, os.Symlink("/etc/hostname", file))
			default:
				assert.NilError(t, os.WriteFile(file, []byte(test.release), 0o644))
			}
			inside := Inside{Spec: sandbox.Spec{Root: sandbox.Root{Upper: upper, Layers: []string{layer}}}}
			current, err := inside.Current(t.Context(), []Source{test.source})
			assert.Assert(t, !current)
			assert.Equal(t, err != nil, odd, "%v", err)
		})
	}
}
