package dkms

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

// What make, shells, compiler and linker really print, with nothing on PATH but
// what a build always has.
func TestMissingReal(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	for _, tool := range []string{"make", "sh", "bash", "env", "gcc", "ld"} {
		real, err := exec.LookPath(tool)
		assert.NilError(t, err)
		assert.NilError(t, os.Symlink(real, filepath.Join(path, tool)))
	}
	for name, tt := range map[string]struct{ makefile, want string }{
		"header":                      {"all:\n\techo '#include <gelf.h>' | gcc -nostdinc -I. -x c -E - -o /dev/null\n", "libelf-dev"},
		"header in a directory":       {"all:\n\techo '#include <openssl/bio.h>' | gcc -nostdinc -I. -x c -E - -o /dev/null\n", "libssl-dev"},
		"header of the kernel":        {"all:\n\techo '#include <linux/stdarg.h>' | gcc -nostdinc -I. -x c -E - -o /dev/null\n", ""},
		"library":                     {"all:\n\tld -nostdlib -L. -lelf\n", "libelf-dev"},
		"command":                     {"all:\n\tpahole --version\n", "pahole dwarves"},
		"command of a shell":          {"all:\n\tpahole --version | true && bc -l\n", "pahole dwarves"},
		"command of bash":             {"SHELL=bash\nall:\n\ttrue && flex -V\n", "flex"},
		"interpreter":                 {"all:\n\tenv python3 -c pass\n", "python3"},
		"interpreter by its path":     {"all:\n\t/nonexistent/bin/python3 -c pass\n", "python3"},
		"compiler of another version": {"all:\n\ttrue && gcc-97 -c x.c\n", "gcc-97"},
		"the consequence comes first": {"N := $(shell bc -l)\nall:\n\techo 'int x[$(N) / ];' | gcc -nostdinc -x c -S - -o /dev/null\n", "bc"},
		"what the Makefile asks for":  {"$(error \"Cannot generate ORC metadata for CONFIG_UNWINDER_ORC=y, please install libelf-dev, libelf-devel or elfutils-libelf-devel\")\n", "libelf-dev"},
		"an unknown command":          {"all:\n\ttrue && frobnicate\n", ""},
		"another failure":             {"all:\n\tfalse\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			assert.NilError(t, os.WriteFile(filepath.Join(dir, "Makefile"), []byte(tt.makefile), 0o644))
			cmd := exec.CommandContext(t.Context(), filepath.Join(path, "make"))
			cmd.Dir, cmd.Env = dir, []string{"PATH=" + path, "LC_ALL=C.UTF-8"}
			out, err := cmd.CombinedOutput()
			assert.Assert(t, err != nil, "%s", out)
			got := Missing(Reason(string(out), ""), string(out), "")
			assert.Equal(t, strings.Join(got, " "), tt.want, "%s", out)
		})
	}
}

// What only other systems print.
func TestMissing(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ text, want string }{
		{"/var/lib/dkms/a/1/build/x.c:1:10: fatal error: 'libelf.h' file not found\n", "libelf-dev"},
		{"Traceback (most recent call last):\n  File \"x\", line 1, in <module>\n    import yaml\nModuleNotFoundError: No module named 'yaml'\n", "python3-yaml"},
		{"BTF: .tmp_vmlinux.btf: pahole (pahole) is not available\nFailed to generate BTF for vmlinux\nTry to disable CONFIG_DEBUG_INFO_BTF\nmake[1]: *** [Makefile:1106: vmlinux] Error 1\n", "pahole dwarves"},
		{"configure: error: please install the libssl-dev package\n", "libssl-dev"},
		{"configure: error: please install the kernel headers\n", ""},
		{"/bin/sh: 1: /usr/bin/perl: not found\nmake: *** [Makefile:1: all] Error 127\n", "perl"},
		{"/bin/sh: 1: [: unexpected operator\nmake: *** [Makefile:1: all] Error 2\n", ""},
		{"", ""},
	} {
		assert.Equal(t, strings.Join(Missing(Reason(tt.text, ""), tt.text, ""), " "), tt.want, tt.text)
	}
}
