package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// runInPlace runs the command in the root that this process has itself, without any
// isolation. What a PID namespace does otherwise is done by hand: whatever the command
// has started ends with it, and with the program that asked for it.
func runInPlace(conf config, rep *report) (err error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot take care of orphans: %w", err)
	}
	unix.Umask(0o022)
	if err := os.Chdir("/"); err != nil {
		return err
	}
	restore, err := placeInPlace(conf)
	defer func() { err = errors.Join(err, restore()) }()
	if err != nil {
		return err
	}
	over := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		_, _ = unix.Read(fdLife, make([]byte, 1)) // its end of file
		for {
			killAll(os.Getpid())
			select {
			case <-over:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	defer close(over)
	err = runCommand(conf, rep, func() {})
	// What it left behind, daemons for instance, is a child of this process now.
	go func() {
		for killAll(os.Getpid()) {
			time.Sleep(10 * time.Millisecond)
		}
		close(ended)
	}()
	for {
		pid, waitErr := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if errors.Is(waitErr, unix.ECHILD) {
			break
		}
		if pid == 0 {
			time.Sleep(5 * time.Millisecond)
		}
	}
	<-ended
	return err
}

// killAll kills all descendants of a process, and says whether there were any.
func killAll(of int) bool {
	found := false
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", of))
	for _, task := range tasks {
		list, _ := os.ReadFile(task)
		for _, field := range strings.Fields(string(list)) {
			if pid, err := strconv.Atoi(field); err == nil {
				found = true
				_ = unix.Kill(pid, unix.SIGSTOP) // so that it starts no more
				killAll(pid)
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
	}
	return found
}

// savedTag ends the name of a file in whose place another one is for the time of a run.
const savedTag = ".dkms2bin-saved"

// placeInPlace puts the files and binds of a run into the root, and returns what takes
// them away.
func placeInPlace(conf config) (restore func() error, err error) {
	var undo []func() error
	restore = func() error {
		var errs []error
		for i := len(undo) - 1; i >= 0; i-- {
			errs = append(errs, undo[i]())
		}
		return errors.Join(errs...)
	}
	for _, b := range conf.Binds {
		if err := os.MkdirAll(filepath.Dir(b.Target), 0o755); err != nil {
			return restore, err
		}
		// One that a killed run left is a link, too.
		if info, err := os.Lstat(b.Target); err == nil && info.Mode()&fs.ModeSymlink != 0 {
			if err := os.Remove(b.Target); err != nil {
				return restore, err
			}
		}
		if err := os.Symlink(b.Source, b.Target); err != nil {
			return restore, err
		}
		undo = append(undo, func() error { return os.Remove(b.Target) })
	}
	for _, f := range conf.Files {
		back, err := placeFile(f)
		if err != nil {
			return restore, err
		}
		undo = append(undo, back)
	}
	return restore, nil
}

func placeFile(f File) (back func() error, err error) {
	saved := f.Target + savedTag
	_, err = os.Lstat(f.Target)
	_, savedErr := os.Lstat(saved)
	there := err == nil
	switch {
	case savedErr == nil: // by a run that was killed
		there = true
	case there:
		if err := os.Rename(f.Target, saved); err != nil {
			return nil, err
		}
	case f.IfExists:
		return func() error { return nil }, nil
	}
	if err := os.MkdirAll(filepath.Dir(f.Target), 0o755); err != nil {
		return nil, err
	}
	if err := errors.Join(os.WriteFile(f.Target, f.Content, f.Mode), os.Chmod(f.Target, f.Mode)); err != nil {
		return nil, err
	}
	return func() error {
		now, err := os.ReadFile(f.Target)
		switch {
		case err == nil && !bytes.Equal(now, f.Content) && there: // dpkg has put a new one there
			return os.Remove(saved)
		case there:
			return os.Rename(saved, f.Target)
		case errors.Is(err, fs.ErrNotExist):
			return nil
		}
		return os.Remove(f.Target)
	}, nil
}
