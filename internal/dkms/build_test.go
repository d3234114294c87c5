package dkms

import (
	"context"
	"dkms2bin/internal/sandbox"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

const kver = "6.1.0-56-amd64"

var mod = Module{"m", "1"}

// layerOf makes a layer of files by path; a value tells what: "fifo", "-> TARGET",
// "dir", or content.
func layerOf(t *testing.T, files map[string]string) (*os.Root, string) {
	t.Helper()
	dir := t.TempDir()
	for name, what := range files {
		path := filepath.Join(dir, name)
		assert.NilError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		target, isLink := strings.CutPrefix(what, "-> ")
		switch {
		case isLink:
			assert.NilError(t, os.Symlink(target, path))
		case what == "fifo":
			assert.NilError(t, syscall.Mkfifo(path, 0o644))
		case what == "dir":
			assert.NilError(t, os.MkdirAll(path, 0o755))
		default:
			assert.NilError(t, os.WriteFile(path, []byte(what), 0o644))
		}
	}
	root, err := os.OpenRoot(dir)
	assert.NilError(t, err)
	t.Cleanup(func() { assert.Check(t, root.Close()) })
	return root, dir
}

// soon fails the test when f waits for somebody who never comes.
func soon(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("it hangs")
	}
}

func TestStopped(t *testing.T) {
	t.Parallel()
	interrupted, cancel := context.WithCancel(t.Context())
	cancel()
	tests := []struct {
		name        string
		ctx         context.Context
		err         error
		reason, out string
	}{
		{"too long", t.Context(), fmt.Errorf("cannot run dkms in the sandbox: %w", ErrTimeout), "timed out after 1m0s", ""},
		{"killed", t.Context(), fmt.Errorf("cannot run dkms in the sandbox: %w (signal: killed)", sandbox.ErrDied), "its sandbox was killed: it did that itself, or memory was short", ""},
		{"no sandbox to be had", t.Context(), errors.New("cannot create a user namespace"), "", "user namespace"},
		{"interrupted", interrupted, fmt.Errorf("cannot run dkms in the sandbox: %w", context.Canceled), "", "canceled"},
		{"interrupted and killed", interrupted, sandbox.ErrDied, "", "died"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			res, err := BuildSpec{Timeout: time.Minute}.stopped(tt.ctx, tt.err)
			assert.Equal(t, res.Reason, tt.reason)
			if tt.out != "" {
				assert.ErrorContains(t, err, tt.out)
				assert.Equal(t, res, Result{})
				return
			}
			assert.NilError(t, err)
			assert.Equal(t, res.Outcome, OutcomeFailed)
		})
	}
}

func TestReadMakeLog(t *testing.T) {
	t.Parallel()
	const ofBuild, ofResult = "var/lib/dkms/m/1/build/make.log", "var/lib/dkms/m/1/" + kver + "/x86_64/log/make.log"
	tests := []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"none", nil, ""},
		{"of a failure", map[string]string{ofBuild: "failed"}, "failed"},
		{"of a result", map[string]string{ofBuild: "failed", ofResult: "made"}, "made"},
		{"a link", map[string]string{ofBuild: "-> other", filepath.Dir(ofBuild) + "/other": "elsewhere"}, "elsewhere"},
		{"a fifo", map[string]string{ofBuild: "fifo"}, ""},
		{"a fifo beside a log", map[string]string{ofBuild: "failed", ofResult: "fifo"}, "failed"},
		{"a directory", map[string]string{ofBuild: "dir"}, ""},
		{"a link out of the layer", map[string]string{ofBuild: "-> /etc/passwd"}, ""},
		{"a fifo for a directory", map[string]string{"var/lib/dkms/m/1/" + kver: "fifo"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			layer, _ := layerOf(t, tt.files)
			soon(t, func() { assert.Check(t, string(readMakeLog(layer, mod, kver, io.Discard)) == tt.want) })
		})
	}
}

// A log of any length is copied whole, and does not fill the memory.
func TestLongMakeLog(t *testing.T) {
	t.Parallel()
	text := "first\n" + strings.Repeat("0123456789abcdef", 5*mostKept/16) + "\nlast"
	layer, _ := layerOf(t, map[string]string{"var/lib/dkms/m/1/build/make.log": text})
	var log strings.Builder
	kept := string(readMakeLog(layer, mod, kver, &log))
	assert.Assert(t, len(kept) <= 3*mostKept && strings.HasPrefix(kept, "first\n") && strings.HasSuffix(kept, "\nlast"))
	assert.Assert(t, log.String() == "\n# make.log\n"+text)
}

func TestFindModules(t *testing.T) {
	t.Parallel()
	const dir = "var/lib/dkms/m/1/" + kver + "/x86_64/module"
	tests := []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"none", map[string]string{dir: "dir"}, ""},
		{"two", map[string]string{dir + "/b.ko.xz": "", dir + "/a.ko": "", dir + "/c.o": ""}, "a.ko b.ko.xz"},
		{"a fifo for the directory", map[string]string{dir: "fifo"}, ""},
		{"a link out of the layer", map[string]string{dir: "-> /"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			layer, _ := layerOf(t, tt.files)
			soon(t, func() {
				names, found := findModules(layer, mod, kver)
				assert.Check(t, strings.Join(names, " ") == tt.want)
				assert.Check(t, found == (tt.want != ""))
			})
		})
	}
}

func TestSaveTarball(t *testing.T) {
	t.Parallel()
	const dir = "var/lib/dkms/m/1/tarball"
	tests := []struct {
		name  string
		files map[string]string
		want  string // of the archive
		odd   string // of the error
	}{
		{"one", map[string]string{dir + "/m-1.dkms.tar.gz": "archive", dir + "/a.txt": ""}, "archive", ""},
		{"no directory", nil, "", "no such file"},
		{"none in it", map[string]string{dir: "dir"}, "", "find an archive in"},
		{"a link to the root", map[string]string{dir: "-> /"}, "", "path escapes from parent"},
		{"a link to itself", map[string]string{dir: "-> tarball"}, "", "too many levels"},
		{"a file", map[string]string{dir: "x"}, "", "not a directory"},
		{"a fifo", map[string]string{dir: "fifo"}, "", "not a directory"},
		{"a fifo in it", map[string]string{dir + "/m.tar.gz": "fifo"}, "", "find an archive in"},
		{"a link in it", map[string]string{dir + "/m.tar.gz": "-> /etc/passwd"}, "", "find an archive in"},
		{"a directory in it", map[string]string{dir + "/m.tar.gz": "dir"}, "", "find an archive in"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			layer, _ := layerOf(t, tt.files)
			to := filepath.Join(t.TempDir(), "archive")
			soon(t, func() {
				err := saveTarball(layer, mod, to)
				if tt.odd == "" {
					assert.Check(t, err == nil, "%v", err)
					got, err := os.ReadFile(to)
					assert.Check(t, err == nil && string(got) == tt.want)
					return
				}
				var odd *oddError
				assert.Check(t, errors.As(err, &odd), "%v", err)
				assert.Check(t, strings.Contains(err.Error(), tt.odd), "%v", err)
				_, err = os.Stat(to)
				assert.Check(t, os.IsNotExist(err))
			})
		})
	}
}

// An archive of a terabyte is easily made, of one hole.
func TestSaveTarballRefusesHugeOnes(t *testing.T) {
	t.Parallel()
	const name = "var/lib/dkms/m/1/tarball/m.tar.gz"
	layer, dir := layerOf(t, map[string]string{name: ""})
	assert.NilError(t, os.Truncate(filepath.Join(dir, name), maxArchive+1))
	var odd *oddError
	assert.Assert(t, errors.As(saveTarball(layer, mod, filepath.Join(t.TempDir(), "archive")), &odd))
}

// What the machine is to blame for is not the build's failure.
func TestSaveTarballOnABrokenHost(t *testing.T) {
	t.Parallel()
	layer, _ := layerOf(t, map[string]string{"var/lib/dkms/m/1/tarball/m.tar.gz": "archive"})
	err := saveTarball(layer, mod, filepath.Join(t.TempDir(), "gone", "archive"))
	assert.ErrorContains(t, err, "no such file")
	var oddErr *oddError
	assert.Assert(t, !errors.As(err, &oddErr))
	for _, host := range []error{syscall.EIO, syscall.ENOSPC, &os.PathError{Op: "open", Path: "x", Err: syscall.EMFILE}} {
		assert.Assert(t, !errors.As(odd(host), &oddErr), "%v", host)
	}
}
