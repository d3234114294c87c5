package rootfs

import (
	"bytes"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"gotest.tools/v3/assert"
)

func TestProgramID(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	build := func(name, text string, flags ...string) string {
		write(t, filepath.Join(dir, name, "go.mod"), "module x\n")
		write(t, filepath.Join(dir, name, "main.go"), "package main\n\nfunc main() { println(\""+text+"\") }\n")
		cmd := exec.CommandContext(t.Context(), "go", append(append([]string{"build", "-trimpath", "-buildvcs=false", "-o", "program"}, flags...), ".")...)
		cmd.Dir = filepath.Join(dir, name)
		out, err := cmd.CombinedOutput()
		assert.NilError(t, err, string(out))
		return filepath.Join(cmd.Dir, "program")
	}
	id := func(program string) string {
		id, err := programID(program)
		assert.NilError(t, err)
		return id
	}
	one := build("one", "1")
	said, err := exec.CommandContext(t.Context(), "go", "tool", "buildid", one).Output()
	assert.NilError(t, err)
	noted, err := hex.DecodeString(id(one))
	assert.NilError(t, err)
	assert.Equal(t, string(bytes.TrimRight(noted, "\x00")), string(bytes.TrimSpace(said)))
	assert.Equal(t, id(build("same", "1")), id(one))
	assert.Assert(t, id(build("two", "2")) != id(one))

	bare := build("bare", "1", "-ldflags=-buildid=")
	other := build("other", "2", "-ldflags=-buildid=")
	assert.Equal(t, len(id(bare)), 64)
	assert.Assert(t, id(bare) != id(other))
	script := filepath.Join(dir, "script")
	write(t, script, "#!/bin/sh\n")
	assert.Equal(t, id(script), "a8076d3d28d21e02012b20eaf7dbf75409a6277134439025f282e368e3305abf")
	_, err = programID(filepath.Join(dir, "gone"))
	assert.ErrorIs(t, err, os.ErrNotExist)
}
