package main

import (
	"dkms2bin/internal/deb"
	"dkms2bin/internal/modpkg"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

// A package that another version of dkms2bin made stays, unless there is another
// difference.
func TestWriteKeepsWhatAnotherVersionMade(t *testing.T) {
	t.Parallel()
	o := &options{outDir: t.TempDir()}
	ko := filepath.Join(t.TempDir(), "a.ko")
	assert.NilError(t, os.WriteFile(ko, nil, 0o644))
	write := func(program, compiler string) (string, error) {
		d, err := write(o, modpkg.Origin{Program: program, Compiler: compiler}, func(origin modpkg.Origin) (deb.Package, error) {
			return modpkg.Spec{
				Module: "a", ModuleVersion: "1", Kernel: "6.1.0-56-amd64", Architecture: "amd64", ModulesPrefix: "/lib/modules",
				Files: []string{ko}, Time: time.Unix(1e9, 0), Origin: origin,
			}.Compose()
		})
		if err == nil {
			assert.Equal(t, d.MadeOf.Program, madeBy(d.Path))
		}
		return d.Digest, err
	}
	first, err := write("dkms2bin 1.0", "gcc 12")
	assert.NilError(t, err)
	for _, program := range []string{"dkms2bin 1.0", "dkms2bin 1.1"} {
		again, err := write(program, "gcc 12")
		assert.NilError(t, err)
		assert.Equal(t, again, first)
	}
	_, err = write("dkms2bin 1.1", "gcc 13")
	assert.ErrorContains(t, err, "a package of that name with other content is there")
	assert.Equal(t, madeBy("/nowhere"), "")
	assert.Equal(t, madeBy(ko), "")
}
