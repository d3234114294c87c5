package kernel

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

func TestCompiler(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		assert.NilError(t, err, "%s", out)
		return string(out)
	}
	assert.NilError(t, os.WriteFile(filepath.Join(dir, "x.c"), []byte("int x;\n"), 0o644))
	run("gcc", "-c", "x.c", "-o", "plain.ko")
	run("gcc", "-c", "x.c", "-o", "packed.ko")
	run("xz", "--check=crc32", "packed.ko")
	run("objcopy", "--remove-section=.comment", "plain.ko", "stripped.ko")
	version := strings.TrimSpace(run("gcc", "-dumpfullversion"))
	for file, want := range map[string]string{"plain.ko": version, "packed.ko.xz": version, "stripped.ko": ""} {
		name, err := Compiler(filepath.Join(dir, file))
		assert.NilError(t, err)
		if want == "" {
			assert.Equal(t, name, "")
			continue
		}
		assert.Assert(t, strings.HasPrefix(name, "GCC: (") && strings.HasSuffix(name, ") "+want), name)
	}
	_, err := Compiler(filepath.Join(dir, "x.c"))
	assert.ErrorContains(t, err, "not an ELF file")
	_, err = Compiler(filepath.Join(dir, "none.ko"))
	assert.ErrorIs(t, err, os.ErrNotExist)
}
