// Package dkms runs dkms inside a tree, and reads what dkms leaves: archives,
// logs and its status. See dkms(8).
package dkms

import (
	"bytes"
	"context"
	"dkms2bin/internal/sandbox"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
)

// A Module is a module as dkms knows it: one dkms.conf.
type Module struct{ Name, Version string }

func (m Module) String() string { return m.Name + " " + m.Version }

// stub is what dkms is during the installation of packages: their scripts may
// call it as they like, and nothing is built.
const stub = "#!/bin/sh\n# Builds come later, each in a layer of its own.\nexit 0\n"

// InstallStubs take the place of dkms and of its scripts while packages are
// installed, whatever version of dkms the tree has.
func InstallStubs() []sandbox.File {
	var files []sandbox.File
	for _, target := range []string{
		"/usr/sbin/dkms", "/usr/lib/dkms/common.postinst", "/usr/lib/dkms/dkms_autoinstaller",
	} {
		files = append(files, sandbox.File{Target: target, Content: []byte(stub), Mode: 0o755, IfExists: true})
	}
	return files
}

// ConfigFiles are dkms's settings in the tree, by path: modules are not built
// when packages are installed, and not signed with a key that dkms makes up.
func ConfigFiles() map[string]string {
	return map[string]string{
		"/etc/dkms/no-autoinstall":                 "",
		"/etc/dkms/framework.conf.d/dkms2bin.conf": "sign_file=/nonexistent\ntry_sign_modules=false\n",
	}
}

// addScript registers a source directory. In /usr/src/NAME-VERSION the directory says
// which version it is, as for the scripts of packages, which call dkms add with -m and
// -v: a dkms.conf may say another one (mstflint-dkms of trixie).
const addScript = `
name=$(. "$1/dkms.conf" >/dev/null 2>&1; builtin printf %s "$PACKAGE_NAME")
version=${1#/usr/src/"$name"-}
if [ -n "$name" ] && [ -n "$version" ] && [ "$version" != "$1" ]; then
	exec dkms add -m "$name" -v "$version"
fi
exec dkms add "$1"
`

// Add registers source directories with the tree's dkms, which evaluates each
// dkms.conf, and returns the modules that the writable layer of spec then has.
// Directories are paths inside. Output goes to log.
func Add(ctx context.Context, spec sandbox.Spec, log io.Writer, dirs ...string) ([]Module, error) {
	var own []Module
	for _, dir := range dirs {
		if spec.Root.InPlace {
			m, err := forget(ctx, spec, log, dir)
			if err != nil {
				return nil, err
			}
			own = append(own, m)
		}
		var out bytes.Buffer
		spec.Args = []string{"bash", "-c", addScript, "bash", dir}
		spec.Stdout = io.MultiWriter(&out, log)
		spec.Stderr = spec.Stdout
		err := sandbox.Run(ctx, spec)
		var exit *sandbox.ExitError
		switch {
		case errors.As(err, &exit) && exit.Code == 3: // added already
		case errors.As(err, &exit):
			return nil, fmt.Errorf("dkms add refuses %s: %s", dir, Reason("", out.String()))
		case err != nil:
			return nil, err
		}
	}
	if spec.Root.InPlace { // where others are, too
		return own, nil
	}
	return Added(spec.Root.Upper)
}

// forget has dkms forget a module that it knows from an earlier run in the same root,
// and removes what it built. It is that of a source directory.
func forget(ctx context.Context, spec sandbox.Spec, log io.Writer, dir string) (Module, error) {
	const script = `cd "$1"; . ./dkms.conf >/dev/null 2>&1; printf '%s\n' "$PACKAGE_NAME" "$PACKAGE_VERSION"`
	var out bytes.Buffer
	spec.Args = []string{"bash", "-c", script, "bash", dir}
	spec.Stdout, spec.Stderr = &out, log
	if err := sandbox.Run(ctx, spec); err != nil {
		return Module{}, err
	}
	name, version, _ := strings.Cut(strings.TrimSuffix(out.String(), "\n"), "\n")
	for _, s := range []string{name, version} {
		if !saneName().MatchString(s) || s == "." || s == ".." {
			return Module{}, fmt.Errorf("%q is not usable as the name or version of a module", s)
		}
	}
	root, err := os.OpenRoot(spec.Root.Upper)
	if err != nil {
		return Module{}, err
	}
	defer root.Close()
	err = root.RemoveAll(path.Join(state, name, version))
	if source := "usr/src/" + name + "-" + version; "/"+source != dir {
		err = errors.Join(err, root.RemoveAll(source))
	}
	return Module{name, version}, err
}

// state is dkms's own directory, relative to the root.
const state = "var/lib/dkms"

// saneName fits what may be a module's name or version: they become parts of
// paths, of command lines, of messages and of the document, and any package can
// make directories below /var/lib/dkms.
var saneName = expression(`^[A-Za-z0-9._+~:#][A-Za-z0-9._+~:#-]{0,127}$`)

// Added lists what is registered in a layer: dkms makes a link "source" in
// /var/lib/dkms/MODULE/VERSION. A name that no module can sanely have is an
// error.
func Added(layer string) ([]Module, error) {
	root, err := os.OpenRoot(layer)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	names, err := subdirs(root, state)
	if err != nil {
		return nil, err
	}
	var modules []Module
	for _, name := range names {
		versions, err := subdirs(root, path.Join(state, name))
		if err != nil {
			return nil, err
		}
		for _, version := range versions {
			if _, err := root.Lstat(path.Join(state, name, version, "source")); err == nil {
				for _, s := range []string{name, version} {
					if !saneName().MatchString(s) {
						return nil, fmt.Errorf("%q is not usable as the name or version of a module", s)
					}
				}
				modules = append(modules, Module{name, version})
			}
		}
	}
	return modules, nil
}

// Source is where dkms has the source of a module that was added, relative to the root.
func Source(m Module) string { return path.Join("usr/src", m.Name+"-"+m.Version) }

// pristine says whether the source of a module, which is in one of the layers, has
// nothing in it that a build leaves, and that make would take for its own. Of one that is
// deeper or larger than any real one it does not say so.
func pristine(layers []string, m Module) bool {
	const deepest, largest = 30, 50_000
	found, entries := false, 0
	for _, layer := range layers {
		root, err := os.OpenRoot(layer)
		if err != nil {
			return false
		}
		err = fs.WalkDir(root.FS(), Source(m), func(name string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			entries++
			odd := entries > largest || strings.Count(name, "/") > deepest || name == Source(m) && !d.IsDir()
			if odd || leftOver(d.Name()) {
				return fs.ErrExist
			}
			return nil
		})
		found = found || err == nil
		if err = errors.Join(err, root.Close()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return found
}

// leftOver says whether a file is called as one that a build makes.
func leftOver(name string) bool {
	made := []string{"*.o", "*.ko", "*.mod", "*.mod.c", ".*.cmd", "*.order", "Module.symvers", ".tmp_versions"}
	return slices.ContainsFunc(made, func(pattern string) bool {
		is, _ := path.Match(pattern, name)
		return is
	})
}

// readDir lists a directory, sorted by name.
func readDir(root *os.Root, dir string) (entries []fs.DirEntry, err error) {
	// Without O_NONBLOCK a fifo in its place would make us wait for ever.
	f, err := root.OpenFile(dir, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, err = f.ReadDir(-1)
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, err
}

// openRegular opens a file for reading, if it is a regular one.
func openRegular(root *os.Root, name string) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: name, Err: errors.New("not a regular file")}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func subdirs(root *os.Root, dir string) ([]string, error) {
	entries, err := readDir(root, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Sources lists the directories of an installed package's files that hold a
// dkms.conf.
func Sources(files []string) []string {
	var dirs []string
	for _, file := range files {
		if dir, ok := strings.CutSuffix(file, "/dkms.conf"); ok && path.Dir(dir) == "/usr/src" {
			dirs = append(dirs, dir)
		}
	}
	slices.Sort(dirs)
	return dirs
}

// SourcesIn lists the directories below /usr/src of a layer that hold a
// dkms.conf, for packages whose scripts unpack their sources.
func SourcesIn(layer string) ([]string, error) {
	root, err := os.OpenRoot(layer)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	names, err := subdirs(root, "usr/src")
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, name := range names {
		if _, err := root.Stat(path.Join("usr/src", name, "dkms.conf")); err == nil {
			dirs = append(dirs, path.Join("/usr/src", name))
		}
	}
	return dirs, nil
}
