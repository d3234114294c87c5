package rootfs

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

// system are the members that make a tree a system with apt.
var system = []tar.Header{
	{Name: "./usr/bin/", Typeflag: tar.TypeDir, Mode: 0o755},
	{Name: "./usr/bin/dpkg", Mode: 0o755},
	{Name: "./usr/bin/apt-get", Mode: 0o4755, Uid: 12, Gid: 34},
	{Name: "./var/lib/dpkg/", Typeflag: tar.TypeDir, Mode: 0o755},
	{Name: "./var/lib/dpkg/status", Mode: 0o644},
	{Name: "./dev/", Typeflag: tar.TypeDir, Mode: 0o755},
	{Name: "./dev/null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3},
	{Name: "./bin", Typeflag: tar.TypeSymlink, Linkname: "usr/bin"},
}

func tarOf(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(h.Name))
		}
		assert.NilError(t, w.WriteHeader(&h))
		if h.Typeflag == tar.TypeReg {
			_, err := io.WriteString(w, h.Name)
			assert.NilError(t, err)
		}
	}
	assert.NilError(t, w.Close())
	return b.Bytes()
}

func takeBase(t *testing.T, given string) (string, error) {
	t.Helper()
	// Below a directory that others can enter, as layers are.
	dir := t.TempDir()
	_, err := MakeBase(t.Context(), t.TempDir(), dir, BaseSpec{Given: given, Log: io.Discard})
	return dir, err
}

func TestGivenBase(t *testing.T) {
	t.Parallel()
	plain := tarOf(t, system...)
	check := func(t *testing.T, given string) {
		t.Helper()
		dir, err := takeBase(t, given)
		assert.NilError(t, err)
		found := list(t, dir)
		assert.Equal(t, found["usr/bin/apt-get"], "urwxr-xr-x")
		assert.Equal(t, found["bin"], "Lrwxrwxrwx")
		assert.Equal(t, found["tmp"], "dtrwxrwxrwx")
		for _, name := range []string{"dev", "proc", "sys", "run"} {
			assert.Equal(t, found[name], "drwxr-xr-x", name)
		}
		assert.Equal(t, found["dev/null"], "")
		owner, err := exec.Command("stat", "-c", "%u:%g", filepath.Join(dir, "usr/bin/apt-get")).Output()
		assert.NilError(t, err)
		assert.Equal(t, string(owner), "12:34\n")
	}
	for _, program := range []string{"cat", "gzip", "xz", "zstd"} {
		t.Run(program, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "a base")
			cmd := exec.Command(program)
			cmd.Stdin = bytes.NewReader(plain)
			packed, err := cmd.Output()
			assert.NilError(t, err)
			assert.NilError(t, os.WriteFile(path, packed, 0o600))
			check(t, path)
		})
	}
	t.Run("directory", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		cmd := exec.Command("tar", "-x", "-C", dir)
		cmd.Stdin = bytes.NewReader(plain)
		out, err := cmd.CombinedOutput()
		assert.NilError(t, err, "%s", out)
		check(t, dir)
	})
}

func TestGivenBaseRefused(t *testing.T) {
	t.Parallel()
	outside := filepath.Join(t.TempDir(), "outside")
	write(t, filepath.Join(outside, "victim"), "untouched")
	tests := []struct {
		name string
		tar  []byte
		want string // of the error, "" if there is to be none
	}{
		{"no archive", []byte("no archive"), "cannot take "},
		{"cut off", tarOf(t, system...)[:2000], "there is no /usr/bin/apt-get in it"},
		{"no dpkg", tarOf(t, system[3:]...), "there is no /usr/bin/dpkg in it"},
		{"no apt", tarOf(t, append(system[:2:2], system[3:]...)...), "there is no /usr/bin/apt-get in it"},
		{"dpkg outside", tarOf(t, append(system[2:], tar.Header{Name: "usr/bin/dpkg", Typeflag: tar.TypeSymlink, Linkname: "/usr/bin/dpkg"})...), "there is no /usr/bin/dpkg in it"},
		{"upwards", tarOf(t, append(system, tar.Header{Name: "../victim", Mode: 0o644})...), "cannot take "},
		{"absolute", tarOf(t, append(system, tar.Header{Name: outside + "/victim", Mode: 0o644})...), ""},
		{
			"through a link", tarOf(t, append(system, tar.Header{Name: "way", Typeflag: tar.TypeSymlink, Linkname: outside}, tar.Header{Name: "way/victim", Mode: 0o644})...),
			"cannot take ",
		},
		{"a hard link", tarOf(t, append(system, tar.Header{Name: "hard", Typeflag: tar.TypeLink, Linkname: outside + "/victim"})...), "cannot take "},
		{"a device", tarOf(t, append(system, tar.Header{Name: "srv/disk", Typeflag: tar.TypeBlock, Devmajor: 254})...), "cannot take "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "base.tar")
			assert.NilError(t, os.WriteFile(path, tt.tar, 0o600))
			dir, err := takeBase(t, path)
			if tt.want != "" {
				assert.ErrorContains(t, err, tt.want)
			} else {
				assert.NilError(t, err)
			}
			victim, err := os.ReadFile(filepath.Join(outside, "victim"))
			assert.NilError(t, err)
			assert.Equal(t, string(victim), "untouched")
			for name, mode := range list(t, dir) {
				assert.Assert(t, !strings.HasPrefix(mode, "D"), "%s is a device", name)
			}
			_, err = os.Lstat(filepath.Join(filepath.Dir(dir), "victim"))
			assert.ErrorIs(t, err, os.ErrNotExist)
		})
	}
}
