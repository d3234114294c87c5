package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Where overlayfs can read layers but not write beside them, since these lie on an
// overlay themselves or on a network, a run writes to memory. What it has written
// becomes part of Upper at its end, as overlayfs would have left it there: nothing is
// in memory between two runs.

// errMemory says that a run needs more memory than it may have.
var errMemory = errors.New("what it writes needs more memory than there is for it")

// inMemory says whether the run is to write to memory: not if it was too little before.
func (r Root) inMemory() bool {
	_, err := os.Stat(filepath.Join(r.Copies, snapshotFile))
	return r.Memory > 0 && (r.Copies == "" || err != nil)
}

// A written is what a run writes to memory.
type written struct {
	root                 Root
	memory, upper, below int // mounts that are seen nowhere: the first has Upper of the overlay in it
	full                 atomic.Bool
}

// mountInMemory is mountRoot for a root with Upper and Memory.
func mountInMemory(r Root, root string) (w *written, err error) {
	w = &written{root: r}
	// There is room for twice as much: who needs more than it may have is to be stopped
	// before it learns that there is none.
	if err := unix.Mount("tmpfs", root, "tmpfs", unix.MS_NODEV, fmt.Sprintf("mode=755,size=%d", 2*r.Memory)); err != nil {
		return nil, fmt.Errorf("cannot mount a tmpfs of %d MB: %w", 2*r.Memory>>20, err)
	}
	upper, work, below := filepath.Join(root, "upper"), filepath.Join(root, "work"), filepath.Join(root, "below")
	if err := errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755), os.Mkdir(below, 0o755), copyAttributes(r.Upper, upper)); err != nil {
		return nil, err
	}
	if err := mountRoot(Root{Layers: r.Layers}, below); err != nil {
		return nil, err
	}
	for fd, dir := range map[*int]string{&w.memory: root, &w.upper: r.Upper, &w.below: below} {
		if *fd, err = unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC); err != nil {
			return nil, fmt.Errorf("cannot hold %s: %w", dir, err)
		}
	}
	return w, mountRoot(Root{Layers: append([]string{r.Upper}, r.Layers...), Upper: upper, Work: work}, root)
}

// watch stops the run when it has written more than it may: it can be run again elsewhere.
func (w *written) watch() {
	const often = 10 * time.Millisecond
	for range time.Tick(often) {
		if w.tooMuch() {
			killOthers()
			return
		}
	}
}

// tooMuch says whether the run has ever been seen to have written more than it may.
func (w *written) tooMuch() bool {
	var fs unix.Statfs_t
	if unix.Fstatfs(w.memory, &fs) == nil && (fs.Bfree < fs.Blocks/2 || fs.Ffree < fs.Files/8) {
		w.full.Store(true)
	}
	return w.full.Load()
}

// keep makes what was written part of Upper. Nothing of the run is alive any more, and
// what is mounted at the directory at is not needed.
func (w *written) keep(at string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot keep what was written, in %s: %w", w.root.Upper, err)
		}
	}()
	if err := unix.Mount("tmpfs", at, "tmpfs", 0, "mode=700,size=1m"); err != nil {
		return err
	}
	name := func(name string) string { return filepath.Join(at, name) }
	for dir, fd := range map[string]int{"memory": w.memory, "upper": w.upper, "below": w.below} {
		if err := errors.Join(os.Mkdir(name(dir), 0o700), unix.MoveMount(fd, "", unix.AT_FDCWD, name(dir), unix.MOVE_MOUNT_F_EMPTY_PATH)); err != nil {
			return err
		}
	}
	return tooDeep((&copier{layer: name("upper")}).add(name("memory/upper"), name("upper"), name("below")))
}

// killOthers kills all other processes of the sandbox, of which this is the first.
func killOthers() { _ = unix.Kill(-1, unix.SIGKILL) }

// reapAll waits until this process is alone.
func reapAll() error {
	for {
		killOthers()
		_, err := unix.Wait4(-1, nil, 0, nil)
		if errors.Is(err, unix.ECHILD) {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("cannot wait for what is left in the sandbox: %w", err)
		}
	}
}
