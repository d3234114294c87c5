package main

import (
	"context"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/dkms"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/sandbox"
	"dkms2bin/internal/state"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"
)

func (b *builder) spec(root sandbox.Root) sandbox.Spec {
	return sandbox.Spec{Root: root, Mountpoint: b.tree.Mountpoint(), Env: sandbox.DefaultEnv()}
}

func (b *builder) inside(root sandbox.Root, log io.Writer) apt.Inside {
	inside := apt.Inside{Spec: b.spec(root), Fetch: apt.Binds(b.tree.Apt(), b.Doc.Tree.Directories()), Log: log}
	if b.cache != nil {
		inside.Keeper = b.cache
	}
	return inside
}

func orRequest(p state.Package) string {
	if p.Name != "" {
		return p.Name
	}
	return p.Request
}

// installAll installs all packages that are not installed yet, side by side, and
// those of other DKMS packages that apt brought along, and learns what their
// dkms.conf files say. What fails is recorded in the package.
func (b *builder) installAll(ctx context.Context) error {
	ready := func(p *pkg) bool { return p.confs != nil || p.Error != "" }
	for !all(b.packages, ready) { // those that were brought along come after those that need them
		for _, p := range b.packages {
			p.with = b.companions(p)
		}
		settled := func(i int) bool { return ready(b.packages[i]) }
		err := schedule(ctx, make(graph, len(b.packages)), settled, b.most, func(i, _ int) error { return b.prepare(ctx, b.packages[i]) }, func(int) {})
		if err != nil {
			return err
		}
		if err := b.settle(ctx); err != nil {
			return err
		}
	}
	b.dropBuilds()
	b.save()
	return nil
}

func all[T any](list []T, is func(T) bool) bool {
	return !slices.ContainsFunc(list, func(e T) bool { return !is(e) })
}

// dropBuilds removes what was built of packages that nothing depends on any more.
func (b *builder) dropBuilds() {
	for _, gone := range b.neededBefore() {
		if !slices.ContainsFunc(b.packages, func(p *pkg) bool { return p.Name == gone.Name }) {
			b.Doc.Builds = slices.DeleteFunc(b.Doc.Builds, func(r state.Build) bool { return r.Package == gone.Name })
		}
	}
}

// companions are the packages of this run that a package depends on, over however many
// steps, and that are installed with it: else apt would take other versions of them, or
// know nothing of those that are files. Of alternatives the first that is of this run
// counts. Versions that are kept from an earlier run may have left the archive: apt
// takes what there is, and modules are built upon those of the version that is kept.
func (b *builder) companions(p *pkg) (list []*pkg) {
	var add func(*pkg)
	add = func(of *pkg) {
		for _, alternatives := range of.depends {
			for _, name := range alternatives {
				i := slices.IndexFunc(b.packages, func(q *pkg) bool {
					return q.Kind != state.KindSource && (q.Name == name || slices.Contains(q.provides, name))
				})
				if i < 0 {
					continue
				}
				q := b.packages[i]
				keptFromArchive := q.kept && q.Kind == state.KindArchive
				if q != p && !slices.Contains(list, q) && !keptFromArchive {
					list = append(list, q)
					add(q)
				}
				break
			}
		}
	}
	add(p)
	return list
}

// prepare installs a package and evaluates its dkms.conf files.
func (b *builder) prepare(ctx context.Context, p *pkg) error {
	done := b.live.begin("installing " + orRequest(p.Package))
	defer done()
	if !p.kept {
		err := b.installInTime(ctx, p)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			p.Error = strings.ReplaceAll(err.Error(), "\n", "; ")
			return nil
		}
	}
	modules, err := b.modulesIn(p.Layer)
	if err != nil {
		p.Error = strings.ReplaceAll(err.Error(), "\n", "; ")
		return nil
	}
	p.modules = modules
	p.confs, err = b.readConfs(ctx, p)
	return err
}

// modulesFile lists the modules of a package that was installed in place, where its
// layer has those of others, too.
const modulesFile = "modules.json"

// modulesIn are the modules that a package's layer brings.
func (b *builder) modulesIn(layer string) (modules []dkms.Module, err error) {
	if !b.tree.InPlace() {
		return dkms.Added(b.tree.LayerPath(layer))
	}
	dir, err := b.tree.Record(layer)
	if err != nil {
		return nil, err
	}
	return modules, readJSON(filepath.Join(dir, modulesFile), &modules)
}

// readConfs evaluates the dkms.conf files of a package for all kernels.
func (b *builder) readConfs(ctx context.Context, p *pkg) (map[string][]dkms.Conf, error) {
	confs := map[string][]dkms.Conf{}
	for _, k := range b.kernels {
		layers := unique([]string{p.Layer, p.ToolsLayer, k.Layer, b.Doc.Tree.Base})
		cache, inputs := b.cache, b.inputs(p, k, layers)
		if inputs == "" {
			cache = nil
		}
		item := rootfs.Item{
			Kind: "answer", About: fmt.Sprintf("what %s says for %s", orRequest(p.Package), k.Release),
			Key: []string{b.program, b.tree.LayerKey(b.Doc.Tree.Base), "dkms.conf", inputs},
		}
		list, err := rootfs.Remember(ctx, cache, item, func() ([]dkms.Conf, error) { return b.askConfs(ctx, p, k, layers) })
		var odd *oddConfError
		switch {
		case errors.As(err, &odd):
			list = odd.confs
		case err != nil:
			return nil, err
		}
		confs[k.Release] = list
	}
	return confs, nil
}

// An oddConfError says that not all dkms.conf files came to their end.
type oddConfError struct {
	error
	confs []dkms.Conf
}

// askConfs evaluates the dkms.conf files of a package for a kernel.
func (b *builder) askConfs(ctx context.Context, p *pkg, k state.Kernel, layers []string) (list []dkms.Conf, err error) {
	var odd error
	for _, m := range p.modules {
		conf, err := dkms.ReadConf(ctx, b.spec(b.tree.Root(layers...)), k.Release, m)
		if err != nil && !errors.Is(err, dkms.ErrConf) {
			return nil, err
		}
		odd = errors.Join(odd, err)
		list = append(list, conf)
	}
	if odd != nil {
		return nil, &oddConfError{odd, list}
	}
	return list, nil
}

func readJSON(file string, v any) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, v)
}

func writeJSON(file string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return renameio.WriteFile(file, raw, 0o644, renameio.WithTempDir(filepath.Dir(file)))
}

// layersOf are the layers of a package and of those that it depends on, the topmost
// first, without kernel and base.
func (b *builder) layersOf(p state.Package) []string {
	return packageLayers(p, func(name string) *state.Package {
		for _, q := range b.packages {
			if q.Name == name {
				return &q.Package
			}
		}
		return nil
	})
}

// packageLayers are the layers of packages and of those that they depend on, which
// find finds, the topmost first. Those of build packages come last.
func packageLayers(p state.Package, find func(name string) *state.Package) (list []string) {
	list = append(list, p.Layer)
	tools := []string{p.ToolsLayer}
	for _, name := range p.Depends { // has all of them, over however many steps
		if q := find(name); q != nil {
			list, tools = append(list, q.Layer), append(tools, q.ToolsLayer)
		}
	}
	return unique(append(list, tools...))
}

// unique leaves out empty names, and those that came before.
func unique(names []string) (list []string) {
	for _, n := range names {
		if n != "" && !slices.Contains(list, n) {
			list = append(list, n)
		}
	}
	return list
}

// installInTime is install with the time limit of a build: packages' scripts and
// dkms.conf are programs, too.
func (b *builder) installInTime(ctx context.Context, p *pkg) error {
	limited, cancel := context.WithTimeoutCause(ctx, b.opts.timeout, dkms.ErrTimeout)
	defer cancel()
	err := b.install(limited, p)
	if errors.Is(err, dkms.ErrTimeout) {
		return fmt.Errorf("timed out after %s", b.opts.timeout)
	}
	return err
}

// A brought package is one with DKMS modules that apt installed because another one
// depends on it.
type brought struct{ Name, Version string }

// install makes the package's layer.
func (b *builder) install(ctx context.Context, p *pkg) (err error) {
	name := packageLayer(p)
	dir, err := b.tree.Record(name)
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(dir, "install.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	out := io.MultiWriter(log, b.live)
	list := filepath.Join(dir, "brought.json")
	cache := b.cacheOfLists()
	if p.Kind == state.KindSource {
		cache = nil // it changes while it is worked on
	}
	alone, err := b.isAlone(p)
	if err != nil {
		return err
	}
	_, err = b.tree.TakeLayer(ctx, cache, b.packageItem(p, alone), rootfs.LayerSpec{
		Name: name, On: unique(append([]string{p.ToolsLayer}, b.lists...)),
		Make: func(root sandbox.Root) error {
			inside := b.inside(root, out)
			sources, err := b.unpack(ctx, p, inside)
			if err != nil {
				return err
			}
			added, err := dkms.Add(ctx, inside.Spec, out, sources...)
			if err != nil {
				return err
			}
			if len(added) == 0 && len(p.brought) == 0 {
				return errors.New("it brings no DKMS module: none of its files is a /usr/src/*/dkms.conf")
			}
			if b.tree.InPlace() {
				if err := writeJSON(filepath.Join(dir, modulesFile), added); err != nil {
					return err
				}
			}
			return errors.Join(writeJSON(list, p.brought), saveDoc(ctx, inside, p.Package, dir))
		},
	})
	if err != nil {
		return err
	}
	if err := readJSON(list, &p.brought); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	p.Layer, p.Doc = name, dir
	return adopt(&p.Package)
}

// settle looks at what the installed packages turned out to be: in their order, so
// that it does not depend on which was there first.
func (b *builder) settle(ctx context.Context) error {
	for i := 0; i < len(b.packages); i++ {
		p := b.packages[i]
		for _, note := range p.notes {
			b.Msg.Info("%s: %s", p.Name, note)
		}
		p.notes = nil
		if p.Error != "" {
			for _, q := range p.with {
				if q.Error != "" {
					p.Error = fmt.Sprintf("needs %s, which cannot be installed", q.Name)
				}
			}
			continue
		}
		if p.Kind == state.KindSource && p.Version == "" {
			b.nameSource(p, b.packages[:i])
		}
		for _, q := range p.brought {
			p.Depends = unique(append(p.Depends, q.Name))
		}
		for _, name := range p.Depends {
			if slices.ContainsFunc(b.packages, func(q *pkg) bool { return q.Kind != state.KindSource && q.Name == name }) {
				continue
			}
			q, err := b.needed(ctx, p, name)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				p.Error = strings.ReplaceAll(err.Error(), "\n", "; ")
				break
			}
			if !q.kept {
				b.Msg.Info("%s depends on %s, which has modules, too", p.Name, q.Name)
			}
			b.packages = slices.Insert(b.packages, i, q)
			i++
		}
	}
	return nil
}

// nameSource gives a source directory the name that its dkms.conf has for it.
func (b *builder) nameSource(p *pkg, before []*pkg) {
	m := p.modules[0]
	for _, o := range before {
		if o.Name == m.Name && o.Error == "" {
			p.Error = fmt.Sprintf("%s brings a package %s, too", o.Request, o.Name)
			return
		}
	}
	p.Name, p.Version = m.Name, m.Version
}

// needed is the package of that name that apt brought along, or, when that failed
// before, the one that it would bring now.
func (b *builder) needed(ctx context.Context, p *pkg, name string) (*pkg, error) {
	failed := slices.ContainsFunc(b.Doc.Builds, func(r state.Build) bool { return r.Package == name && r.Status == state.Failed })
	request := name
	for _, q := range p.brought {
		if q.Name == name && !failed {
			request = q.Name + "=" + q.Version
		}
	}
	for _, q := range b.neededBefore() {
		same := request == name || request == q.Name+"="+q.Version
		if q.Name == name && same && !failed && q.Error == "" && b.tree.HasLayer(q.Layer) {
			return &pkg{Package: q, kept: true}, nil
		}
	}
	found, err := resolve(ctx, b.inside(b.tree.Root(b.lists...), io.Discard), request)
	if err != nil {
		return nil, fmt.Errorf("%s depends on %s: %w", p.Name, name, err)
	}
	q := found[0]
	q.Needed, q.Tools, q.ToolsLayer = true, p.Tools, p.ToolsLayer
	return q, nil
}

// identity tells a package, with what is installed beside it, from all others.
func (p *pkg) identity() []string {
	parts := append([]string{p.Kind, p.Name, p.Version, p.Digest}, p.Tools...)
	for _, q := range p.with {
		parts = append(parts, "with", q.Name, q.Version, q.Digest)
	}
	return parts
}

// packageLayer is the name of the layer in which a package is installed.
func packageLayer(p *pkg) string { return rootfs.LayerName("package", p.identity()...) }

// packageItem is that layer in the cache. What apt brings along depends on the package
// lists; a package that needs nothing is installed alone.
func (b *builder) packageItem(p *pkg, alone bool) rootfs.Item {
	item := rootfs.Item{Kind: "package", About: p.Name + " " + p.Version, On: b.tree.LayerID(b.Doc.Tree.Base), Key: p.identity()}
	if alone {
		item.Key = append(item.Key, "alone", p.offered.SHA256)
	} else {
		item.Key = append(item.Key, b.listIDs()...)
	}
	return item
}

// listIDs are what the package lists add to the key of what depends on them.
func (b *builder) listIDs() (key []string) {
	for _, l := range b.lists {
		key = append(key, "on", b.tree.LayerID(l))
	}
	return key
}

// cacheOfLists is the cache for what is installed from the package lists, or nil where
// these are of this run alone.
func (b *builder) cacheOfLists() *rootfs.Cache {
	if b.fresh != "" {
		return nil
	}
	return b.cache
}

// isAlone says whether nothing but the package itself is installed in its layer.
func (b *builder) isAlone(p *pkg) (bool, error) {
	if p.offered == nil || p.offered.SHA256 == "" || len(p.with) > 0 || p.ToolsLayer != "" || b.tree.InPlace() {
		return false, nil
	}
	return b.inside(b.tree.Root(b.lists...), io.Discard).Takes(*p.offered)
}

// copied is where a given source directory is copied to; dkms add copies it once
// more, to where it belongs by its dkms.conf.
const copied = "/usr/src/dkms2bin-given"

// unpack puts the package into the tree and returns its source directories
// there. It notes the other DKMS packages that came along.
func (b *builder) unpack(ctx context.Context, p *pkg, inside apt.Inside) ([]string, error) {
	const given = "/run/dkms2bin/given"
	if p.Kind == state.KindSource {
		inside.Spec.Binds = []sandbox.Bind{{Source: p.Request, Target: given}}
		if _, err := inside.Output(ctx, "sh", "-c", `rm -rf "$2" && cp -rL --no-preserve=ownership "$1" "$2"`, "sh", given, copied); err != nil {
			return nil, err
		}
		return []string{copied}, nil
	}
	var what []string
	for i, q := range append([]*pkg{p}, p.with...) {
		name := q.Name + "=" + q.Version
		if q.Kind == state.KindDeb {
			name = fmt.Sprintf("%s-%d.deb", given, i)
			inside.Spec.Binds = append(inside.Spec.Binds, sandbox.Bind{Source: q.Request, Target: name})
		}
		what = append(what, name)
	}
	before, err := sourcesBefore(inside)
	if err != nil {
		return nil, err
	}
	inside.Spec.Files = dkms.InstallStubs()
	if err := installPackages(ctx, inside, p, what); err != nil {
		if ctx.Err() != nil || !failedOnItsOwn(ctx, inside, p.Name) {
			return nil, err
		}
		p.notes = append(p.notes, fmt.Sprintf("its postinst, which calls dkms itself, failed; going on without: %v", err))
	}
	if err := b.keepDeb(ctx, inside, p); err != nil {
		return nil, err
	}
	if err := inside.Clean(ctx); err != nil {
		return nil, err
	}
	return ownSources(ctx, p, inside, before)
}

// installPackages installs a package and those that are installed with it.
func installPackages(ctx context.Context, inside apt.Inside, p *pkg, what []string) error {
	if p.offered != nil && len(what) == 1 {
		return inside.InstallKnown(ctx, *p.offered)
	}
	return inside.Install(ctx, what...)
}

// sourcesBefore are the source directories of others that are in the layer already, as
// they are only where all is done in place.
func sourcesBefore(inside apt.Inside) ([]string, error) {
	if !inside.Spec.Root.InPlace {
		return nil, nil
	}
	return dkms.SourcesIn(inside.Spec.Root.Upper)
}

// ownSources are the package's source directories: those of its files, or else those
// that its scripts unpacked. Those of other packages that are new in the layer are noted.
func ownSources(ctx context.Context, p *pkg, inside apt.Inside, before []string) ([]string, error) {
	files, err := inside.Files(ctx, p.Name)
	if err != nil {
		return nil, err
	}
	own := dkms.Sources(files)
	found, err := dkms.SourcesIn(inside.Spec.Root.Upper)
	if err != nil {
		return nil, err
	}
	found = slices.DeleteFunc(found, func(dir string) bool { return slices.Contains(own, dir) || slices.Contains(before, dir) })
	if len(found) == 0 {
		return own, nil
	}
	owners, err := inside.Owners(ctx, confsOf(found)...)
	if err != nil {
		return nil, err
	}
	versions, err := inside.Installed(ctx)
	if err != nil {
		return nil, err
	}
	var unpacked []string
	for _, dir := range found {
		i := slices.IndexFunc(owners, func(o apt.Owner) bool { return o.Path == dir+"/dkms.conf" })
		if i < 0 {
			unpacked = append(unpacked, dir)
			continue
		}
		if q := (brought{owners[i].Package, versions[owners[i].Package]}); !slices.Contains(p.brought, q) {
			p.brought = append(p.brought, q)
		}
	}
	if len(own) == 0 {
		own = unpacked
	}
	return own, nil
}

func confsOf(dirs []string) (files []string) {
	for _, dir := range dirs {
		files = append(files, dir+"/dkms.conf")
	}
	return files
}

// failedOnItsOwn says that nothing but the postinst of the package failed, and that
// this is one that calls dkms: it may want a running kernel, or to see a module
// built, while here all that is wanted of the package is its source.
func failedOnItsOwn(ctx context.Context, inside apt.Inside, name string) bool {
	script := `[ "$(dpkg-query -W -f '${db:Status-Status}' "$1")" = half-configured ] && grep -q dkms "$(dpkg-query --control-path "$1" postinst)"`
	_, err := inside.Output(ctx, "sh", "-c", script, "sh", name)
	return err == nil
}
