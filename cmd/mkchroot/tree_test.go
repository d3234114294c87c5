package main

import (
	"dkms2bin/internal/apt"
	"os"
	"path/filepath"
	"testing"

	"gotest.tools/v3/assert"
)

func write(t *testing.T, path, content string) {
	t.Helper()
	assert.NilError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	assert.NilError(t, os.WriteFile(path, []byte(content), 0o600))
}

func TestMoveKeyrings(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.gpg"), filepath.Join(dir, "b.asc")
	write(t, a, "key a")
	write(t, b, "key b")
	const key = "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n /abc\n -----END PGP PUBLIC KEY BLOCK-----"
	var sources []apt.Source
	for _, signedBy := range []string{a, a + " " + b, b + "," + a + "\t0123456789ABCDEF0123456789ABCDEF01234567!", key, ""} {
		sources = append(sources, apt.Source{URI: "http://example.org/", Suite: "./"}.With("Signed-By", signedBy))
	}
	out, files, err := moveKeyrings(sources)
	assert.NilError(t, err)
	var got []string
	for _, s := range out {
		got = append(got, s.SignedBy())
	}
	const inTree = "/etc/apt/dkms2bin-"
	assert.DeepEqual(t, got, []string{
		inTree + "0.gpg", inTree + "0.gpg " + inTree + "1.asc",
		inTree + "1.asc " + inTree + "0.gpg 0123456789ABCDEF0123456789ABCDEF01234567!", key, "",
	})
	assert.Equal(t, len(files), 2)
	for i, want := range []string{inTree + "0.gpg key a", inTree + "1.asc key b"} {
		assert.Equal(t, files[i].Path+" "+string(files[i].Content), want)
		assert.Equal(t, files[i].Mode, os.FileMode(0o644))
	}
	assert.Equal(t, sources[0].SignedBy(), a)

	_, _, err = moveKeyrings([]apt.Source{sources[0].With("Signed-By", a+","+dir+"/gone.gpg")})
	assert.ErrorContains(t, err, "cannot read the keyring of deb http://example.org/ ./: ")
	assert.ErrorContains(t, err, "gone.gpg")
}

func TestGeneralKeyrings(t *testing.T) {
	t.Parallel()
	etc := t.TempDir()
	files, err := generalKeyrings(etc)
	assert.NilError(t, err)
	assert.Equal(t, len(files), 0)

	write(t, filepath.Join(etc, "trusted.gpg"), "old")
	for _, name := range []string{"a.gpg", "b.asc", "c.gpg~", "README"} {
		write(t, filepath.Join(etc, "trusted.gpg.d", name), name)
	}
	assert.NilError(t, os.Mkdir(filepath.Join(etc, "trusted.gpg.d", "directory.gpg"), 0o755))
	assert.NilError(t, os.Symlink("gone", filepath.Join(etc, "trusted.gpg.d", "dangling.gpg")))
	files, err = generalKeyrings(etc)
	assert.NilError(t, err)
	var got []string
	for _, f := range files {
		got = append(got, f.Path+": "+string(f.Content))
	}
	assert.DeepEqual(t, got, []string{"/etc/apt/trusted.gpg: old", "/etc/apt/trusted.gpg.d/a.gpg: a.gpg", "/etc/apt/trusted.gpg.d/b.asc: b.asc"})
}

// What --repo replaces is not read.
func TestRepositoriesForBrokenHost(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "sources.list"), "deb nonsense\n")
	write(t, filepath.Join(dir, "apt.conf"), "Dir::Etc \""+dir+"\";\nDir::Etc::sourceparts \"none\";\n")
	t.Setenv("APT_CONFIG", filepath.Join(dir, "apt.conf"))
	_, _, err := repositoriesFor(t.Context(), &options{})
	assert.ErrorContains(t, err, "cannot find out the host's repositories: ")
	given := []apt.Source{{URI: "http://example.org/", Suite: "./"}}
	host, sources, err := repositoriesFor(t.Context(), &options{sources: given})
	assert.NilError(t, err)
	assert.DeepEqual(t, sources, given)
	assert.Assert(t, host.Distribution != "" && host.Architecture != "")
}
