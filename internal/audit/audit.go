// Package audit looks at the kernel modules in a root tree: the running system's, or one
// of an image, whatever its suite and architecture. Nothing of the tree is run, and links
// in it lead nowhere outside of it.
package audit

import (
	"context"
	"crypto/md5" // what dpkg notes
	"dkms2bin/internal/kernel"
	"dkms2bin/internal/modsign"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// A Report is what a tree has.
type Report struct {
	Kernels []Kernel // the oldest first
	Modules []Module // by kernel and path
	// Owners says that the tree has the books of dpkg; without them no module has a
	// package.
	Owners bool
}

// A Kernel is one that the tree has a directory of modules for.
type Kernel struct {
	Release string
	Own     int // modules of its own
	Against Against
}

// Against is what tells whether modules can load.
type Against int

// The sources of that, the best first.
const (
	Headers Against = iota // the kernel's build directory, in the tree
	Modules                // the kernel's own modules, as kernel.Observed has it
	Nothing
)

// A Verdict is whether a kernel would load a module.
type Verdict int

// The verdicts.
const (
	Loads Verdict = iota
	Fails
	Unknown
)

// A Module is one that is not the kernel's own: it was not built with the kernel (intree
// in modinfo), no package owns it, or it cannot be read.
type Module struct {
	Path    string // seen from the root
	Kernel  string // in whose directory it lies
	Name    string
	Version string
	License string

	Package        string // that owns the file; "" where none does
	PackageVersion string
	Altered        bool // the file has another MD5 sum than dpkg noted

	Signature modsign.Signature // not verified
	Replaces  string            // place of the kernel's own module that it is loaded instead of

	Verdict Verdict
	Reason  string // of the other verdicts than Loads

	sum    string
	module *kernel.Module // nil where it cannot be read
}

// Root looks at the tree at dir. An error that wraps fs.ErrNotExist says that there is no
// tree with modules. Verdicts do not depend on signatures: whether one is asked for is the
// machine's to say.
func Root(ctx context.Context, dir string) (_ *Report, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot audit %s: %w", dir, err)
		}
	}()
	t, err := openTree(dir)
	if err != nil {
		return nil, err
	}
	defer t.close()
	entries, err := t.list(modulesDir)
	if err != nil {
		return nil, err
	}
	var releases []string
	for _, e := range entries {
		if e.IsDir() {
			releases = append(releases, e.Name())
		}
	}
	slices.SortFunc(releases, kernel.CompareReleases)
	books, err := t.readBooks(ctx)
	if err != nil {
		return nil, err
	}
	report := &Report{Owners: books != nil}
	for _, release := range releases {
		k, err := t.look(ctx, release, books)
		if err != nil {
			return nil, err
		}
		k.judge()
		report.Kernels = append(report.Kernels, Kernel{release, len(k.own), k.against})
		for _, m := range k.others {
			if err := books.fillIn(ctx, m); err != nil {
				return nil, err
			}
			report.Modules = append(report.Modules, *m)
		}
	}
	return report, nil
}

// modulesDir has a directory for each kernel.
const modulesDir = "/lib/modules"

// found is what a kernel's directory holds.
type found struct {
	release string
	own     map[string]string // the kernel's own modules: place by name
	others  []*Module         // by path
	against Against
	target  kernel.Target

	judged map[*Module]bool // false while one is being judged
}

var moduleName = regexp.MustCompile(`\.ko(\.gz|\.xz|\.zst)?$`)

// look reads all modules of a kernel.
func (t *tree) look(ctx context.Context, release string, books *books) (*found, error) {
	k := &found{release: release, own: map[string]string{}, against: Headers}
	if k.target = t.headers(release); k.target.Symvers == nil {
		k.against = Modules
	}
	dir := path.Join(modulesDir, release)
	paths, err := t.files(dir)
	if err != nil {
		return nil, err
	}
	var observed kernel.Observed
	var lock sync.Mutex
	work := make(chan string)
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for file := range work {
				m := t.read(file)
				place := moduleName.ReplaceAllString(strings.TrimPrefix(strings.TrimPrefix(file, dir+"/"), "kernel/"), "")
				lock.Lock()
				m.Kernel = release
				inTree := m.module != nil && m.module.InTree
				if !inTree || books.unowned(file) {
					k.others = append(k.others, m)
				}
				if inTree {
					k.own[m.Name] = place
					if k.against == Modules {
						observed.Add(place, *m.module)
					}
				}
				lock.Unlock()
			}
		})
	}
	for _, file := range paths {
		if ctx.Err() != nil {
			break
		}
		work <- file
	}
	close(work)
	workers.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	slices.SortFunc(k.others, func(a, b *Module) int { return strings.Compare(a.Path, b.Path) })
	if k.against == Modules {
		if k.target = observed.Target(); len(k.own) == 0 {
			k.against = Nothing
		}
		k.target.Facts.Release = release
	}
	return k, nil
}

// headers is what the build directory of a kernel tells; without Symvers when there is
// none, or none of that kernel.
func (t *tree) headers(release string) kernel.Target {
	build, err := t.open(path.Join(modulesDir, release, "build"))
	if err != nil {
		return kernel.Target{}
	}
	defer build.Close()
	dir := fmt.Sprintf("/proc/self/fd/%d", build.Fd())
	facts, err := kernel.ReadFacts(dir)
	if err != nil || facts.Release != release {
		return kernel.Target{}
	}
	symvers, err := kernel.ReadSymvers(dir)
	if err != nil {
		return kernel.Target{}
	}
	return kernel.Target{Facts: facts, Symvers: symvers}
}

// read reads a module. Of those that say they are the kernel's own it reads no more than
// their symbols.
func (t *tree) read(file string) *Module {
	m := &Module{Path: file, Verdict: Fails}
	err := func() error {
		f, err := t.open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		module, err := kernel.ReadOpenModule(file, f)
		if err != nil {
			return err
		}
		m.Name, m.Version, m.License, m.module = module.Name, module.Version, module.License, &module
		if module.InTree {
			return nil
		}
		sum := md5.New()
		plain, err := kernel.Plain(io.TeeReader(f, sum))
		if err != nil {
			return err
		}
		if _, err := io.Copy(sum, f); err != nil { // what a decompressor left unread
			return err
		}
		m.sum = hex.EncodeToString(sum.Sum(nil))
		m.Signature, _, err = modsign.SignatureOf(plain)
		return err
	}()
	if err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		m.Name, m.Reason, m.module = moduleName.ReplaceAllString(path.Base(file), ""), fmt.Sprintf("it cannot be read: %v", err), nil
	}
	return m
}

// judge says of each module whether it can be loaded.
func (k *found) judge() {
	k.target.Replaced = map[string]string{}
	for _, m := range k.others {
		// Of two modules of a name depmod takes the one in updates, by default.
		if place := k.own[m.Name]; place != "" && m.module != nil && !m.module.InTree && strings.HasPrefix(m.Path, path.Join(modulesDir, k.release, "updates")+"/") {
			m.Replaces = place
			k.target.Replaced[m.Name] = path.Base(m.Path)
		}
	}
	k.judged = map[*Module]bool{}
	for _, m := range k.others {
		k.judgeOne(m)
	}
}

// judgeOne judges a module, after those that it needs.
func (k *found) judgeOne(m *Module) {
	if _, seen := k.judged[m]; seen || m.module == nil {
		return
	}
	k.judged[m] = false
	defer func() { k.judged[m] = true }()
	beside := []kernel.Module{}
	unsure := ""
	for _, name := range m.module.Depends {
		name = strings.ReplaceAll(name, "-", "_")
		switch on := k.other(name); {
		case on != nil:
			k.judgeOne(on)
			if !k.judged[on] {
				m.Reason = fmt.Sprintf("it needs the module %s, which needs this one", name)
				return
			}
			if on.Verdict == Fails {
				m.Reason = fmt.Sprintf("it needs the module %s, which cannot be loaded: %s", name, on.Reason)
				return
			}
			if on.Verdict == Unknown {
				unsure = fmt.Sprintf("it needs the module %s, of which nobody can tell whether it can be loaded", name)
			}
			beside = append(beside, *on.module)
		case k.own[name] == "" && k.against != Nothing:
			m.Reason = fmt.Sprintf("it needs the module %s, which is not there", name)
			return
		}
	}
	m.Verdict, m.Reason = k.check(*m.module, beside)
	if m.Verdict == Loads && unsure != "" {
		m.Verdict, m.Reason = Unknown, unsure
	}
}

// other is the module of that name that is loaded, among those that are not the kernel's
// own; nil where the kernel's own is loaded, or none.
func (k *found) other(name string) *Module {
	var first *Module
	for _, m := range k.others {
		if m.Name != name || m.module == nil {
			continue
		}
		if strings.HasPrefix(m.Path, path.Join(modulesDir, k.release, "updates")+"/") {
			return m
		}
		if first == nil && k.own[name] == "" {
			first = m
		}
	}
	return first
}

func (k *found) check(m kernel.Module, beside []kernel.Module) (Verdict, string) {
	if k.against == Nothing {
		if words := strings.Fields(m.Vermagic); len(words) == 0 || words[0] != k.release {
			return Fails, fmt.Sprintf("it is built for another kernel: its vermagic is %.256q", m.Vermagic)
		}
		return Unknown, "neither headers nor modules of the kernel's own are there to check it against"
	}
	target := k.target
	target.Beside = kernel.Offer(append(beside, m)...)
	_, err := target.Check(m)
	var missing *kernel.MissingError
	switch {
	case err == nil && k.against == Modules && !kernel.GPLCompatible(m.License):
		return Unknown, fmt.Sprintf("its license is %.80q, and without headers nobody can tell which symbols are for the GPL only", m.License)
	case err == nil:
		return Loads, ""
	case k.against == Modules && errors.As(err, &missing):
		return Unknown, fmt.Sprintf("it needs the symbol %.80q, which none of the kernel's own modules needs or exports: its headers would tell", missing.Symbol)
	}
	return Fails, err.Error()
}
