package sandbox

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

func inPlace(script string) Spec {
	return Spec{Root: Root{InPlace: true, Upper: "/"}, Args: []string{"sh", "-c", script}, Env: DefaultEnv()}
}

// TestInPlace: a run in this system's own root has the files that it was given, and
// leaves neither these nor processes.
func TestInPlace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write(t, at("there"), "old", 0o640)
	write(t, at("renewed"), "old", 0o640)
	write(t, at("source/file"), "bound", 0o644)
	before := contents(t, dir)
	daemon := longSleep()
	spec := inPlace(`cd "` + dir + `"; cat there made/new bound/file; [ ! -e missing ] || echo missing is there; umask
		rm renewed; echo newer >renewed; setsid sleep ` + daemon + ` & (sleep ` + daemon + ` &) ; exit 3`)
	spec.Files = []File{
		{Target: at("there"), Content: []byte("new\n"), Mode: 0o600},
		{Target: at("made/new"), Content: []byte("made\n"), Mode: 0o600},
		{Target: at("missing"), Content: []byte("no"), Mode: 0o600, IfExists: true},
		{Target: at("renewed"), Content: []byte("stub"), Mode: 0o600},
	}
	spec.Binds = []Bind{{Source: at("source"), Target: at("bound")}}
	out, err := output(t.Context(), spec)
	var exit *ExitError
	assert.Assert(t, errors.As(err, &exit), "%v", err)
	assert.Equal(t, exit.Code, 3)
	assert.Equal(t, out, "new\nmade\nbound0022\n")
	before["made"] = "drwxr-xr-x" // as dpkg would
	before["renewed"] = "-rw-r--r-- newer\n"
	assert.DeepEqual(t, contents(t, dir), before)
	assert.Equal(t, len(processes(t, daemon)), 0)

	// What a killed run had put in the place of another file is not taken for that.
	write(t, at("there"+savedTag), "old", 0o640)
	write(t, at("there"), "new\n", 0o600)
	_, err = output(t.Context(), spec)
	assert.Assert(t, errors.As(err, &exit))
	assert.DeepEqual(t, contents(t, dir), before)
}

func TestInPlaceIsStopped(t *testing.T) {
	t.Parallel()
	sleep := longSleep()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(300*time.Millisecond, cancel)
	began := time.Now()
	_, err := output(ctx, inPlace("trap '' TERM INT HUP; (setsid sleep "+sleep+" &); sleep "+sleep))
	assert.ErrorIs(t, err, context.Canceled)
	assert.Assert(t, time.Since(began) < 2*time.Second)
	assert.Equal(t, len(processes(t, sleep)), 0)
}

// TestInPlaceParentIsKilled: there is no namespace whose end would take all with it.
func TestInPlaceParentIsKilled(t *testing.T) {
	t.Parallel()
	sleep := longSleep()
	cmd := exec.Command("/proc/self/exe", t.TempDir(), "sh", "-c", "(setsid sleep "+sleep+" &); sleep "+sleep)
	cmd.Env = append(os.Environ(), roleVar+"=in place")
	assert.NilError(t, cmd.Start())
	eventually(t, 10*time.Second, "it runs", func() bool { return len(processes(t, sleep)) >= 2 })
	assert.NilError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	eventually(t, 10*time.Second, "all is gone", func() bool { return len(processes(t, sleep)) == 0 })
}
