package apt

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"gotest.tools/v3/assert"
)

func TestParseName(t *testing.T) {
	t.Parallel()
	for file, want := range map[string][3]string{
		"a/b/dkms_3.0.10-8+deb12u1_all.deb": {"dkms", "3.0.10-8+deb12u1", "all"},
		"zfs-dkms_1%3a2.1~rc1_amd64.deb":    {"zfs-dkms", "1:2.1~rc1", "amd64"},
		"dkms.deb":                          {},
		"dkms_%zz_all.deb":                  {},
		"a_b_c_d.deb":                       {},
	} {
		name, version, architecture := parseName(file)
		assert.DeepEqual(t, [3]string{name, version, architecture}, want)
	}
}

// TestIsAmong: what is kept is used only when the package lists vouch for it.
func TestIsAmong(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const name, content = "a_1%3a1_all.deb", "content"
	assert.NilError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
	root, err := os.OpenRoot(dir)
	assert.NilError(t, err)
	defer root.Close()
	right := Candidate{Name: "a", Version: "1:1", Architecture: "all", SHA256: fmt.Sprintf("%x", sha256.Sum256([]byte(content)))}
	other := func(change func(*Candidate)) []Candidate {
		c := right
		change(&c)
		return []Candidate{c}
	}
	for _, row := range []struct {
		name  string
		known []Candidate
		want  bool
	}{
		{"the same", []Candidate{right}, true},
		{"one of several", append(other(func(c *Candidate) { c.Version = "1:2" }), right), true},
		{"nothing", nil, false},
		{"another version", other(func(c *Candidate) { c.Version = "1" }), false},
		{"another architecture", other(func(c *Candidate) { c.Architecture = "amd64" }), false},
		{"other content", other(func(c *Candidate) { c.SHA256 = fmt.Sprintf("%x", sha256.Sum256(nil)) }), false},
	} {
		got, err := isAmong(root, name, map[string][]Candidate{"a": row.known})
		assert.NilError(t, err)
		assert.Equal(t, got, row.want, row.name)
	}
}

func TestMakeArchives(t *testing.T) { // not in parallel: the umask is that of the process
	defer unix.Umask(unix.Umask(0o077))
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	assert.NilError(t, err)
	defer root.Close()
	assert.NilError(t, makeArchives(root))
	assert.NilError(t, makeArchives(root))
	for sub := archives; sub != "."; sub = filepath.Dir(sub) {
		info, err := os.Stat(filepath.Join(dir, sub))
		assert.NilError(t, err)
		assert.Equal(t, info.Mode().Perm(), os.FileMode(0o755), sub)
	}
}

type keeper struct{}

func (keeper) Give(context.Context, []string, string) error            { return nil }
func (keeper) Take(context.Context, []string, string, ...string) error { return nil }

func TestKeeper(t *testing.T) {
	t.Parallel()
	i := Inside{Keeper: keeper{}}
	assert.Assert(t, i.keeper([]string{"install", "a=1"}) != nil)
	assert.Assert(t, i.keeper([]string{"install", "a=1", "/run/given.deb"}) == nil)
	assert.Assert(t, Inside{}.keeper([]string{"install", "a=1"}) == nil)
}
