package main

import (
	"context"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/dkms"
	"dkms2bin/internal/kernel"
	"dkms2bin/internal/modpkg"
	"dkms2bin/internal/modsign"
	"dkms2bin/internal/state"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A batch is all that a run has for one kernel. Its modules are loaded side by side,
// so they are judged together: one may need another's symbols, and one that has the
// name of a module of the kernel's own takes that one's place, for all of them.
type batch struct {
	facts      kernel.Facts
	symvers    kernel.Symvers
	own        map[string]string // the kernel's own modules: their place in its tree, by name
	candidates []*candidate
	memory     memory
}

// A candidate is a build of a batch, with its modules unpacked.
type candidate struct {
	build   *state.Build
	spec    modpkg.Spec
	kept    bool            // its package is there
	modules []kernel.Module // all that it has
	left    []leftOut       // those that its package goes without
	checked []checked       // the others; of a candidate that cannot be a package those that were right
	files   []string        // of the package, when they are finished
	signed  []modsign.Signature
	err     error // why it cannot become a package; else nil
}

// A checked is a module that can be loaded.
type checked struct {
	module kernel.Module
	found  kernel.Checked
}

// A leftOut is a module that cannot be loaded, and that its build can go without.
type leftOut struct {
	module kernel.Module
	err    error
}

// readBatch reads what there is to know of a kernel.
func readBatch(dir string) (*batch, error) {
	facts, err := kernel.ReadFacts(dir)
	if err != nil {
		return nil, err
	}
	symvers, err := kernel.ReadSymvers(dir)
	if err != nil {
		return nil, err
	}
	return &batch{facts: facts, symvers: symvers, own: symvers.Modules()}, nil
}

// unpack takes the build's modules out of its archive into dir, and reads them. What
// is wrong with the archive makes the build unfit; an error is for what is wrong here.
func (m *candidate) unpack(ctx context.Context, dir string) error {
	b := m.build
	digest, err := state.FileDigest(b.Archive)
	if err != nil {
		return fmt.Errorf("cannot read the archive of %s %s for %s: %w", b.Module, b.ModuleVersion, b.Kernel, err)
	}
	if b.ArchiveDigest != "" && digest != b.ArchiveDigest {
		return fmt.Errorf("the archive %s is not the one that dkmsbuild recorded: run dkmsbuild on the document again", b.Archive)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	archives, err := dkms.Extract(ctx, b.Archive, dir, dkms.Limits{})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		m.err = err
		return nil
	}
	i := slices.IndexFunc(archives, func(a dkms.Archive) bool { return a.Kernel == b.Kernel })
	if i < 0 {
		m.err = fmt.Errorf("its archive holds modules for %s only", archives[0].Kernel)
		return nil
	}
	b.ArchiveDigest = digest
	m.read(archives[i].Files)
	return nil
}

// read reads module files.
func (m *candidate) read(files []string) {
	for _, file := range files {
		module, err := kernel.ReadModule(file)
		if err != nil {
			m.err = err
			return
		}
		m.modules = append(m.modules, module)
	}
}

// remaining are the modules that are not left out.
func (m *candidate) remaining() []kernel.Module {
	if len(m.left) == 0 {
		return m.modules
	}
	return slices.DeleteFunc(slices.Clone(m.modules), func(k kernel.Module) bool {
		return slices.ContainsFunc(m.left, func(l leftOut) bool { return l.module.Path == k.Path })
	})
}

// without are the modules that are left out.
func (m *candidate) without() []kernel.Module {
	var list []kernel.Module
	for _, l := range m.left {
		list = append(list, l.module)
	}
	return list
}

// judge says of each candidate whether its modules can be loaded, and which ones it goes
// without. What cannot be loaded takes no other module's place and has no symbols for
// others, so all are looked at again when something of the kind was found.
func (s *batch) judge() {
	var readable []*candidate
	for _, m := range s.candidates {
		if m.err == nil {
			readable = append(readable, m)
		}
	}
	out := map[*candidate]bool{} // those that would replace modules, and cannot be loaded
	for again := true; again; {
		again = false
		replaced := s.replaced(readable, out)
		for _, m := range s.inOrder(readable) {
			if out[m] {
				continue
			}
			before := len(m.left)
			m.err = s.check(m, replaced)
			switch {
			case m.err != nil && s.replaces(m.modules):
				out[m], again = true, true
			case len(m.left) > before:
				again = true
			}
		}
	}
}

// replaces says whether one of the modules has the name of one of the kernel's.
func (s *batch) replaces(modules []kernel.Module) bool {
	return slices.ContainsFunc(modules, func(k kernel.Module) bool { return s.own[k.Name] != "" })
}

// replaced lists the kernel's own modules that candidates replace, with what replaces
// them.
func (s *batch) replaced(candidates []*candidate, but map[*candidate]bool) map[string]string {
	by := map[string]string{}
	for _, m := range candidates {
		for _, k := range m.remaining() {
			if s.own[k.Name] != "" && !but[m] && by[k.Name] == "" {
				by[k.Name] = filepath.Base(k.Path) + " of " + m.name()
			}
		}
	}
	return by
}

// name is what a candidate is called in messages.
func (m *candidate) name() string {
	if m.build.Package != "" {
		return m.build.Package
	}
	return filepath.Base(m.build.Archive)
}

// key is how other builds name this one in what they depend on.
func (m *candidate) key() string { return m.build.Module + "/" + m.build.ModuleVersion }

// dependsOf lists the candidates that a candidate depends on, directly or by others, each once, in
// the order in which they are built.
func (s *batch) dependsOf(m *candidate) []*candidate {
	var list []*candidate
	seen := map[*candidate]bool{m: true}
	var add func(*candidate)
	add = func(of *candidate) {
		for _, key := range of.build.Depends {
			i := slices.IndexFunc(s.candidates, func(o *candidate) bool { return o.key() == key })
			if i < 0 || seen[s.candidates[i]] {
				continue
			}
			seen[s.candidates[i]] = true
			add(s.candidates[i])
			list = append(list, s.candidates[i])
		}
	}
	add(m)
	return list
}

// inOrder puts candidates behind those that they depend on.
func (s *batch) inOrder(candidates []*candidate) []*candidate {
	var list []*candidate
	for _, m := range candidates {
		for _, d := range append(s.dependsOf(m), m) {
			if !slices.Contains(list, d) && slices.Contains(candidates, d) {
				list = append(list, d)
			}
		}
	}
	return list
}

// check checks a candidate's modules; those that it depends on were checked before.
//
// A module that needs a symbol that nobody exports is left out, and so is what was built
// against it, as long as others remain. modpost refuses such a module, and with it the whole
// build, unless the package's own makefile has it only warn (KBUILD_MODPOST_WARN; old kernels'
// modpost always does). So who made the package meant the others to be used without it, and
// they are, when dkms installs them all. The one itself serves nobody, and depmod would warn of
// it at each run. Whatever else is wrong with a module nobody meant: it fails the build.
//
// What was left out stays so when a candidate is checked again: neither what it depends on
// nor the kernel exports more by then.
func (s *batch) check(m *candidate, replaced map[string]string) error {
	m.checked = nil
	var beside, without []kernel.Module
	deps := s.dependsOf(m)
	for _, d := range deps {
		if d.err != nil {
			return fmt.Errorf("it was built on %s %s, which cannot be loaded: %w", d.build.Module, d.build.ModuleVersion, d.err)
		}
		beside, without = append(beside, d.remaining()...), append(without, d.without()...)
	}
	for {
		modules := m.remaining()
		if len(modules) == 0 && len(m.left) > 0 {
			return m.left[0].err
		}
		target := kernel.Target{
			Facts: s.facts, Symvers: s.symvers, Replaced: replaced,
			Beside:  kernel.Offer(slices.Concat(modules, beside)...),
			LeftOut: kernel.Offer(slices.Concat(m.without(), without)...),
		}
		m.checked = nil
		before := len(m.left)
		for _, k := range modules {
			c, err := target.Check(k)
			switch {
			case err == nil:
				m.checked = append(m.checked, checked{k, c})
			case s.dispensable(err, target, m, deps):
				m.left = append(m.left, leftOut{k, err})
			default:
				return s.withProvider(err, m, deps)
			}
		}
		if len(m.left) == before {
			return nil
		}
	}
}

// dispensable says that an error is of the kind for which a module is left out: nobody exports
// a symbol, or who exports it is left out. Where the user can mend it, by building on another
// candidate or without the one that replaces a module of the kernel's, the build fails.
func (s *batch) dispensable(err error, target kernel.Target, m *candidate, deps []*candidate) bool {
	var missing *kernel.MissingError
	if !errors.As(err, &missing) {
		return false
	}
	if _, left := target.LeftOut[missing.Symbol]; left {
		return true
	}
	return !missing.Replaced && s.provider(missing, m, deps) == nil
}

// A provider is a module of another candidate that exports a symbol.
type provider struct {
	of     *candidate
	module kernel.Module
}

// provider is who else in the batch has a missing symbol, nil for nobody. To build on that one
// mends the error.
func (s *batch) provider(missing *kernel.MissingError, m *candidate, deps []*candidate) *provider {
	for _, o := range s.candidates {
		if o == m || slices.Contains(deps, o) {
			continue
		}
		for _, k := range o.modules {
			if slices.ContainsFunc(k.Exports, func(x kernel.Export) bool { return x.Symbol == missing.Symbol }) {
				return &provider{o, k}
			}
		}
	}
	return nil
}

// withProvider names, with the error of a missing symbol, who else has it.
func (s *batch) withProvider(err error, m *candidate, deps []*candidate) error {
	var missing *kernel.MissingError
	if !errors.As(err, &missing) {
		return err
	}
	p := s.provider(missing, m, deps)
	if p == nil {
		return err
	}
	return diag.WithHint(err, "%s of %s exports it: name %s in BUILD_DEPENDS of the dkms.conf of %s",
		filepath.Base(p.module.Path), p.of.name(), p.of.build.Module, m.build.Module)
}

// infer fills in, for archives that no document tells of, what their builds depend
// on: the modules themselves name the modules whose symbols they use.
func (s *batch) infer() {
	for _, m := range s.candidates {
		for _, k := range m.modules {
			for _, name := range k.Depends {
				has := func(o *candidate) bool {
					return slices.ContainsFunc(o.modules, func(k kernel.Module) bool { return k.Name == strings.ReplaceAll(name, "-", "_") })
				}
				i := slices.IndexFunc(s.candidates, has)
				if i < 0 || has(m) || slices.Contains(m.build.Depends, s.candidates[i].key()) {
					continue
				}
				m.build.Depends = append(m.build.Depends, s.candidates[i].key())
			}
		}
	}
}

// record puts into the build what was checked.
func (s *batch) record(m *candidate) {
	m.build.Modules, m.build.Left = nil, nil
	if m.err == nil {
		for _, l := range m.left {
			m.build.Left = append(m.build.Left, state.LeftOut{File: filepath.Base(l.module.Path), Reason: oneLine(l.err)})
		}
	}
	for i, c := range m.checked {
		k, c := c.module, c.found
		r := state.Module{
			File: filepath.Base(k.Path), Vermagic: strings.TrimSpace(k.Vermagic), License: k.License,
			Symbols: c.Symbols, GPLSymbols: c.GPL, CRCs: c.CRCs, CRCCheck: state.CRCsCompared, Namespaces: c.Namespaces,
			Replaces: s.own[k.Name],
		}
		if !s.facts.Modversions {
			r.CRCCheck = state.CRCsNone
		}
		if i < len(m.signed) {
			r.File, r.Signer, r.SigKey, r.SigHash = filepath.Base(m.files[i]), m.signed[i].Signer, m.signed[i].Key, m.signed[i].Hash
		}
		m.build.Modules = append(m.build.Modules, r)
	}
}

// finish makes the files of a candidate ready for its package.
func (s *batch) finish(ctx context.Context, m *candidate, signer *modsign.Signer) error {
	modules := m.remaining()
	dir, err := os.MkdirTemp(filepath.Dir(modules[0].Path), "finished-")
	if err != nil {
		return err
	}
	files := make([]string, len(modules))
	m.signed = make([]modsign.Signature, len(modules))
	for i, k := range modules {
		files[i], m.signed[i], err = modsign.Finish(ctx, dir, k, s.facts, signer)
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("cannot make the package of %s %s for %s: %w", m.build.Module, m.build.ModuleVersion, m.build.Kernel, err)
		}
	}
	m.files = files
	return nil
}

// relations are the packages of the candidates that a candidate names as those it was
// built on.
func (s *batch) relations(m *candidate) []string {
	var list []string
	for _, d := range s.dependsOf(m) {
		if slices.Contains(m.build.Depends, d.key()) {
			list = append(list, d.spec.Name()+" (= "+d.spec.Version()+")")
		}
	}
	return list
}

// unpackAll unpacks all candidates below dir.
func (s *batch) unpackAll(ctx context.Context, dir string) error {
	for i, m := range s.candidates {
		if err := m.unpack(ctx, filepath.Join(dir, strconv.Itoa(i))); err != nil {
			return err
		}
	}
	return nil
}
