package sandbox

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

func inMemory(s Spec) Spec {
	s.Root.Memory = testMemory
	return s
}

// TestMemory: what was written to memory is in the layer after the run, however the
// command ended and whatever it left running; only a cancelled run leaves nothing.
func TestMemory(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.dir = func() string {
		dir := onOverlay(t)
		assert.NilError(t, os.CopyFS(filepath.Join(dir, "base"), os.DirFS(b.base())))
		for _, name := range []string{"upper", "work", "root"} {
			assert.NilError(t, os.Mkdir(filepath.Join(dir, name), 0o755))
		}
		return dir
	}()
	_, err := output(t.Context(), b.sh("true"))
	assert.ErrorContains(t, err, "put it on a volume") // without memory

	_, err = output(t.Context(), inMemory(b.sh("echo failed >/etc/failed; setsid sleep 31415 & exit 3")))
	var exit *ExitError
	assert.Assert(t, errors.As(err, &exit) && exit.Code == 3, err)
	assert.DeepEqual(t, processes(t, "31415"), []string(nil))

	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("too late"))
	defer cancel()
	_, err = output(ctx, inMemory(b.sh("echo late >/etc/late; setsid sleep 31415 & sleep 31415")))
	assert.ErrorContains(t, err, "too late")
	assert.DeepEqual(t, processes(t, "31415"), []string(nil))

	ctx, stop := context.WithCancel(t.Context())
	time.AfterFunc(time.Second, stop)
	_, err = output(ctx, inMemory(b.sh("echo cancelled >/etc/cancelled; sleep 31415")))
	assert.ErrorIs(t, err, context.Canceled)

	for name, want := range map[string]string{"etc/failed": "-rw-r--r-- failed\n", "etc/late": "-rw-r--r-- late\n", "etc/cancelled": ""} {
		assert.Equal(t, contents(t, b.upper())[name], want, name)
	}
	assert.Assert(t, !mounted(t, b.dir))
}

// TestTooLittleMemory: a run that needs more memory than it may have is made again by
// copies, and so are later ones with the same root. Nothing of the first try is left.
func TestTooLittleMemory(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	run := func(script string) string {
		spec := inMemory(b.sh(script))
		spec.Root.Copies = filepath.Join(b.dir, "copies")
		out, err := output(t.Context(), spec)
		assert.NilError(t, err)
		return out
	}
	run("echo small >/etc/small; rm /etc/hosts")
	_, err := os.Stat(filepath.Join(b.dir, "copies"))
	assert.ErrorIs(t, err, os.ErrNotExist)
	run("set -e; echo x >>/etc/big-times; [ ! -e /etc/hosts ]; busybox dd if=/dev/zero of=/etc/big bs=1M count=64; rm /etc/big; echo done >/etc/done")
	assert.Equal(t, run("cat /etc/small /etc/big-times /etc/done; echo last >/etc/last"), "small\nx\ndone\n")
	assert.DeepEqual(t, contents(t, b.upper()), map[string]string{
		"etc": "drwxr-xr-x", "etc/small": "-rw-r--r-- small\n", "etc/big-times": "-rw-r--r-- x\n", "etc/done": "-rw-r--r-- done\n",
		"etc/last": "-rw-r--r-- last\n", "etc/hosts": "Dc---------",
	})

	spec := inMemory(b.sh("busybox dd if=/dev/zero of=/etc/big bs=1M count=64"))
	_, err = output(t.Context(), spec)
	assert.ErrorIs(t, err, errMemory)
}

// TestTooDeep: what is too deep to be kept is the command's own failure, and not ours.
func TestTooDeep(t *testing.T) {
	t.Parallel()
	for kind, place := range map[string]func(Spec, box) Spec{
		"memory": func(s Spec, _ box) Spec { return inMemory(s) },
		"copies": func(s Spec, b box) Spec { return onCopies(s, filepath.Join(b.dir, "copies")) },
	} {
		b := newBox(t)
		out, err := output(t.Context(), place(b.sh(`set -e; n=`+strings.Repeat("0", 200)+`; for i in $(seq 60); do mkdir $n; cd $n; done; echo x >file`), b))
		var exit *ExitError
		assert.Assert(t, errors.As(err, &exit) && exit.Code == -1, "%s: %v", kind, err)
		assert.Assert(t, strings.Contains(out, "paths of more than 4096 bytes"), "%s: %s", kind, out)
		if err := exec.CommandContext(t.Context(), "rm", "-rf", b.dir).Run(); err != nil { // the test's own cleanup cannot
			t.Fatal(err)
		}
	}
}
