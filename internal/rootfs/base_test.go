package rootfs

import (
	"dkms2bin/internal/diag"
	"dkms2bin/internal/sandbox"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

func TestConfigure(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	layer, outside := filepath.Join(dir, "layer"), filepath.Join(dir, "outside")
	write(t, filepath.Join(outside, "victim"), "untouched")
	write(t, filepath.Join(layer, "etc/hosts"), "old")
	write(t, filepath.Join(layer, "etc/apt/sources.list"), "old")
	write(t, filepath.Join(layer, "etc/apt/sources.list.d/a/b"), "old")
	write(t, filepath.Join(layer, "usr/sbin/real"), "")
	write(t, filepath.Join(layer, "run/stub.conf"), "of the tree")
	for name, target := range map[string]string{
		"sbin": "usr/sbin", "etc/resolv.conf": "../run/stub.conf", "etc/machine-id": outside + "/victim",
		"etc/loop": "loop", "etc/gone": outside, "etc/apt/linked": outside,
	} {
		assert.NilError(t, os.Symlink(target, filepath.Join(layer, name)))
	}
	assert.NilError(t, Configure(layer, []ConfigFile{
		{"/etc/hosts", []byte("new"), 0o644},
		{"/etc/resolv.conf", nil, 0o644},
		{"/etc/machine-id", []byte("id"), 0o444},
		{"/etc/loop", []byte("x"), 0o600},
		{"/etc/apt/sources.list.d/dkms2bin.sources", []byte("Types: deb"), 0o600},
		{"/sbin/policy-rc.d", []byte("#!/bin/sh"), 0o755},
		{"/new/deep/file", []byte("x"), 0o644},
		{"/top", []byte("x"), 0o666}, // whatever the umask
	}, "/etc/apt/sources.list", "/etc/apt/sources.list.d", "/etc/apt/linked", "/etc/not/there"))
	assert.DeepEqual(t, list(t, layer), map[string]string{
		"etc": "drwxr-xr-x", "etc/hosts": "-rw-r--r--", "etc/resolv.conf": "-rw-r--r--", "etc/machine-id": "-r--r--r--", "etc/loop": "-rw-------",
		"etc/gone": "Lrwxrwxrwx",
		"etc/apt":  "drwxr-xr-x", "etc/apt/sources.list.d": "drwxr-xr-x", "etc/apt/sources.list.d/dkms2bin.sources": "-rw-------",
		"usr": "drwxr-xr-x", "usr/sbin": "drwxr-xr-x", "usr/sbin/real": "-rw-r--r--", "usr/sbin/policy-rc.d": "-rwxr-xr-x", "sbin": "Lrwxrwxrwx",
		"run": "drwxr-xr-x", "run/stub.conf": "-rw-r--r--", "new": "drwxr-xr-x", "new/deep": "drwxr-xr-x", "new/deep/file": "-rw-r--r--", "top": "-rw-rw-rw-",
	})
	for path, want := range map[string]string{
		filepath.Join(layer, "etc/hosts"): "new", filepath.Join(layer, "etc/resolv.conf"): "", filepath.Join(layer, "etc/machine-id"): "id",
		filepath.Join(layer, "run/stub.conf"): "of the tree", filepath.Join(outside, "victim"): "untouched",
	} {
		got, err := os.ReadFile(path)
		assert.NilError(t, err)
		assert.Equal(t, string(got), want, path)
	}
}

func TestConfigureStaysInside(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	layer, outside := filepath.Join(dir, "layer"), filepath.Join(dir, "outside")
	write(t, filepath.Join(layer, "etc/file"), "")
	write(t, filepath.Join(outside, "victim"), "untouched")
	assert.NilError(t, os.Symlink(outside, filepath.Join(layer, "absolute")))
	assert.NilError(t, os.Symlink("../outside", filepath.Join(layer, "relative")))
	before := list(t, outside)
	for _, path := range []string{"/absolute/new", "/relative/new", "/absolute/victim", "/../outside/victim", "/etc"} {
		err := Configure(layer, []ConfigFile{{path, []byte("x"), 0o644}})
		assert.ErrorContains(t, err, "cannot configure the base system: ", path)
	}
	for _, path := range []string{"/absolute/victim", "/relative/victim", "/../outside/victim"} {
		assert.ErrorContains(t, Configure(layer, nil, path), "cannot configure the base system: ", path)
	}
	assert.DeepEqual(t, list(t, outside), before)
	assert.ErrorContains(t, Configure(filepath.Join(dir, "gone"), nil), "no such file")
}

func TestBaseReason(t *testing.T) {
	t.Parallel()
	exit := &sandbox.ExitError{Args: []string{"mmdebstrap", "http://user:secret@example.org"}, Code: 25, Tail: "the end"}
	tests := []struct{ name, output, want string }{
		{"nothing said", "I: running apt-get update...\ndone\n", "exit status 25: the end"},
		{
			"unreachable", `I: running apt-get update...
Err:1 http://127.0.0.1:9/debian bookworm InRelease
  Could not connect to 127.0.0.1:9 (127.0.0.1). - connect (111: Connection refused)
E: Failed to fetch http://127.0.0.1:9/debian/dists/bookworm/InRelease  Could not connect to 127.0.0.1:9 (127.0.0.1). - connect (111: Connection refused)
E: Some index files failed to download. They have been ignored, or old ones used instead.
E: apt-get update --error-on=any -oAPT::Status-Fd=<$fd> -oDpkg::Use-Pty=false failed: process exited with 100 and error in console output
`, "Failed to fetch http://127.0.0.1:9/debian/dists/bookworm/InRelease  Could not connect to 127.0.0.1:9 (127.0.0.1). - connect (111: Connection refused)",
		},
		{
			"wrong keyring", `W: GPG error: http://127.0.0.1:8765 ./ InRelease: The following signatures couldn't be verified because the public key is not available: NO_PUBKEY 92E752B204AAC47C
E: The repository 'http://127.0.0.1:8765 ./ InRelease' is not signed.
E: apt-get update --error-on=any failed: process exited with 100 and error in console output
`, "GPG error: http://127.0.0.1:8765 ./ InRelease: The following signatures couldn't be verified because the public key is not available: NO_PUBKEY 92E752B204AAC47C; " +
				"The repository 'http://127.0.0.1:8765 ./ InRelease' is not signed.",
		},
		{
			"unknown package", "E: Unable to locate package nonsense\nE: apt-get -o x install failed: process exited with 100\n",
			"Unable to locate package nonsense",
		},
		{"other warnings", "W: it is late\n", "exit status 25: the end"},
		{"many", "E: one\nE: two\nE: three\n", "one; two"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			assert.Equal(t, baseReason(tt.output, exit), tt.want)
		})
	}
}

func TestDebootstrap(t *testing.T) {
	t.Parallel()
	const minbase, rest = "debootstrap --variant=minbase ", "--components=main,contrib bookworm /tmp/base http://example.org/debian"
	for _, tt := range []struct {
		name    string
		keyring string
		trusted bool
		want    string
	}{
		{"plain", "", false, minbase + rest},
		{"a keyring", "/my keys/a.gpg", false, minbase + "--keyring=/my keys/a.gpg " + rest},
		{"trusted", "", true, minbase + "--no-check-gpg " + rest},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := debootstrap(BaseSpec{
				Suite: "bookworm", Mirror: "http://example.org/debian", Parts: []string{"main", "contrib"}, Keyring: tt.keyring, Trusted: tt.trusted,
			})
			assert.Equal(t, strings.Join(got, " "), tt.want)
		})
	}
}

func TestMakeBaseNeedsAProgram(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := MakeBase(t.Context(), t.TempDir(), t.TempDir(), BaseSpec{Suite: "bookworm", Log: io.Discard})
	assert.Error(t, err, "neither mmdebstrap nor debootstrap is installed")
	assert.Equal(t, diag.Hint(err), "apt-get install mmdebstrap")
}
