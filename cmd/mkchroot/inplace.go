package main

import (
	"bytes"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/diag"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// checkInPlace looks whether --in-place fits: it changes the packages and settings of
// this system for good.
func (o *options) checkInPlace() error {
	switch {
	case !o.inPlace:
		return nil
	case o.base != "":
		return cli.Usagef("--in-place builds in this system's own root: it goes without --base")
	case os.Geteuid() != 0:
		return cli.Usagef("--in-place: only root can install packages")
	case !disposable():
		return diag.WithHint(&cli.UsageError{Err: errors.New("--in-place is for containers that are thrown away afterwards, and this seems to be none")},
			"if this system may be changed for good, say so: touch %s", disposableFile)
	}
	o.noCache = true
	return nil
}

// disposableFile is how people say that a system may be changed for good.
const disposableFile = "/.dkms2bin-disposable"

// disposable says whether this is a container, by what their engines leave, or a root
// that is no mount point, as in a chroot.
func disposable() bool {
	for _, path := range []string{disposableFile, "/.dockerenv", "/run/.containerenv"} {
		if _, err := os.Stat(path); err == nil {
			return true
		}
	}
	if env, err := os.ReadFile("/proc/1/environ"); err == nil && bytes.Contains(append([]byte{0}, env...), []byte("\x00container=")) {
		return true
	}
	var fs unix.Statfs_t
	if unix.Statfs("/", &fs) == nil && fs.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return true
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[4] == "/" {
			return false
		}
	}
	return err == nil
}
