package main

import (
	"context"
	"crypto/sha256"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/dkms"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/sandbox"
	"dkms2bin/internal/state"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A builder is one run of this stage.
type builder struct {
	*cli.Session
	opts    *options
	tree    *rootfs.Tree
	lists   []string // layers with package lists below a package's, the topmost first
	fresh   string   // the layer with newer package lists, of this run alone
	tools   tools    // for what is built in this run
	kernels []state.Kernel
}

func build(ctx context.Context, s *cli.Session, o *options) (err error) {
	b := &builder{Session: s, opts: o}
	if b.tree, err = openTree(s.Doc); err != nil {
		return err
	}
	if err := b.tree.Use(); err != nil {
		return err
	}
	defer func() {
		if b.fresh != "" {
			err = errors.Join(err, b.tree.RemoveLayer(b.fresh))
		}
		err = errors.Join(err, b.tree.Close())
	}()
	if err := b.chooseKernels(); err != nil {
		return err
	}
	if len(s.Doc.Kernels) == 0 {
		s.Msg.Info("there is no kernel to build for") // none was new
		return nil
	}
	if err := b.choosePackages(ctx); err != nil {
		return err
	}
	for i := range s.Doc.Packages {
		if err := b.buildPackage(ctx, &s.Doc.Packages[i]); err != nil {
			return err
		}
	}
	return nil
}

// openTree opens the document's tree. A document that cannot be worked on is
// wrong usage.
func openTree(doc *state.Document) (*rootfs.Tree, error) {
	if doc.Tree == nil {
		return nil, cli.Usagef("the document names no build tree: mkchroot makes one")
	}
	if doc.Tree.Removed {
		return nil, cli.Usagef("the build tree %s was removed: begin with mkchroot", doc.Tree.Path)
	}
	tree, err := rootfs.Open(doc.Tree.Path)
	if errors.Is(err, rootfs.ErrNoTree) {
		return nil, diag.WithHint(&cli.UsageError{Err: err}, "begin with mkchroot: a tree that is gone must be made again")
	}
	if err != nil {
		return nil, err
	}
	if !tree.HasLayer(doc.Tree.Base) {
		return nil, cli.Usagef("the build tree %s is not complete: it has no base system", doc.Tree.Path)
	}
	return tree, nil
}

// newKernels, as a release, stands for the kernels that mkchroot found by itself.
const newKernels = "new"

func (b *builder) chooseKernels() error {
	for _, want := range b.opts.kvers {
		if want != newKernels && b.Doc.Kernel(want) == nil {
			var have []string
			for _, k := range b.Doc.Kernels {
				have = append(have, k.Release)
			}
			if len(have) == 0 {
				return cli.Usagef("--kver %s: the document has no kernels: mkchroot adds them", want)
			}
			return cli.Usagef("--kver %s: the document's kernels are %s", want, strings.Join(have, ", "))
		}
	}
	for _, k := range b.Doc.Kernels {
		if len(b.opts.kvers) == 0 || slices.Contains(b.opts.kvers, k.Release) || !k.Requested && slices.Contains(b.opts.kvers, newKernels) {
			b.kernels = append(b.kernels, k)
		}
	}
	return nil
}

// choosePackages resolves what the flags add and what has to be built again.
// Packages all of whose builds are good are left as they are.
func (b *builder) choosePackages(ctx context.Context) error {
	var requests []string
	kept := map[string]state.Package{}
	for _, p := range b.Doc.Packages {
		requests = append(requests, p.Request)
		if b.isGood(p) {
			kept[p.Request] = p
		}
	}
	again := len(requests) > len(kept)
	for _, r := range b.opts.packages {
		if isPath(r) {
			abs, err := filepath.Abs(r)
			if err != nil {
				return err
			}
			r = abs
		}
		if !slices.Contains(requests, r) {
			requests = append(requests, r)
		}
	}
	if len(requests) == 0 {
		return cli.Usagef("no package to build: name one with --dkms")
	}
	tools := slices.Clone(b.Doc.Tools)
	for _, t := range b.opts.tools {
		if !slices.Contains(tools, t) {
			tools = append(tools, t)
		}
	}
	open := slices.DeleteFunc(slices.Clone(requests), func(r string) bool { _, ok := kept[r]; return ok })
	b.lists = []string{b.Doc.Tree.Base}
	if len(open) == 0 {
		return nil
	}
	// What failed may have been mended in the archive since.
	fromArchive := slices.ContainsFunc(open, func(r string) bool { return !isPath(r) })
	if (fromArchive || len(tools) > 0) && (again || time.Since(b.Doc.Tree.Created) > time.Hour) {
		if err := b.refreshLists(ctx); err != nil {
			return err
		}
	}
	resolved, err := resolve(ctx, b.inside(b.tree.Root(b.lists...), io.Discard), open)
	if err != nil {
		return err
	}
	if b.tools, err = b.installTools(ctx, tools); err != nil {
		return err
	}
	// A package that is asked for anew takes the place of the one of that name.
	supersedes := func(p state.Package) bool {
		return slices.ContainsFunc(resolved, func(n state.Package) bool { return n.Name == p.Name && n.Request != p.Request })
	}
	var packages []state.Package
	for _, r := range requests {
		if p, ok := kept[r]; ok {
			if p.Kind == state.KindSource || !supersedes(p) {
				packages = append(packages, p)
			}
			continue
		}
		if i := slices.IndexFunc(resolved, func(p state.Package) bool { return p.Request == r }); i >= 0 {
			packages = append(packages, resolved[i])
		}
	}
	b.Doc.Packages = packages
	return nil
}

// isGood says that nothing of the package is to be done for the chosen kernels.
func (b *builder) isGood(p state.Package) bool {
	if p.Error != "" || p.Layer == "" || !b.tree.HasLayer(p.Layer) || p.ToolsLayer != "" && !b.tree.HasLayer(p.ToolsLayer) {
		return false
	}
	if p.Kind != state.KindArchive {
		now, err := resolvePath(p.Request)
		if err != nil || now.Digest != p.Digest {
			return false
		}
	}
	for _, k := range b.kernels {
		n := 0
		for _, r := range b.Doc.Builds {
			if r.Package == p.Name && r.Kernel == k.Release {
				if n++; !b.isGoodBuild(r, p, k) {
					return false
				}
			}
		}
		if n == 0 {
			return false
		}
	}
	return true
}

// isGoodBuild says that a record's results are there, unchanged, and were made
// from what would be used now.
func (b *builder) isGoodBuild(r state.Build, p state.Package, k state.Kernel) bool {
	if r.Status == state.Failed || r.Source != b.sourceDigest(p, k) {
		return false
	}
	if r.Status == state.Skipped {
		return true
	}
	digest, err := state.FileDigest(r.Archive)
	return err == nil && digest == r.ArchiveDigest
}

// sourceDigest stands for everything that a build is made from.
func (b *builder) sourceDigest(p state.Package, k state.Kernel) string {
	sum := sha256.New()
	fmt.Fprintf(sum, "%q %q %q %q %q %q %q", p.Name, p.Version, p.Digest, k.Headers, k.Version, b.Doc.Tree.DKMS, b.Doc.Tree.Compiler)
	if len(p.Tools) > 0 {
		fmt.Fprintf(sum, " %q", p.Tools)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

func (b *builder) spec(root sandbox.Root) sandbox.Spec {
	return sandbox.Spec{Root: root, Mountpoint: b.tree.Mountpoint(), Env: sandbox.DefaultEnv()}
}

func (b *builder) inside(root sandbox.Root, log io.Writer) apt.Inside {
	return apt.Inside{Spec: b.spec(root), Fetch: apt.Binds(b.tree.Apt(), b.Doc.Tree.Directories()), Log: log}
}

func (b *builder) refreshLists(ctx context.Context) error {
	name := rootfs.LayerName("lists", time.Now().String(), fmt.Sprint(os.Getpid()))
	step := b.Msg.Wait("fetching package lists")
	defer step.Done("")
	err := b.tree.MakeLayer(ctx, rootfs.LayerSpec{
		Name: name, On: []string{b.Doc.Tree.Base},
		Make: func(root sandbox.Root) error { return b.inside(root, step).Update(ctx) },
	})
	if err != nil {
		return err
	}
	b.fresh = name
	b.lists = []string{name, b.Doc.Tree.Base}
	return nil
}

// buildPackage installs one package and builds its modules for all kernels. What
// fails is recorded; an error means that the stage cannot go on.
func (b *builder) buildPackage(ctx context.Context, p *state.Package) error {
	var modules []dkms.Module
	if b.isGood(*p) {
		return nil
	}
	p.Tools, p.ToolsLayer = b.tools.packages, b.tools.layer
	for _, k := range b.kernels {
		step := b.Msg.Step("installing %s package, building for %s", orRequest(*p), k.Release)
		if modules == nil && p.Error == "" {
			found, err := b.installInTime(ctx, p, step)
			if ctx.Err() != nil {
				step.Done("INTERRUPTED")
				return context.Cause(ctx)
			}
			if err != nil {
				p.Error = strings.ReplaceAll(err.Error(), "\n", "; ")
			}
			modules = found
		}
		records, err := b.buildModules(ctx, *p, k, modules, step)
		b.record(*p, k, modules, records)
		if ctx.Err() != nil {
			step.Done("INTERRUPTED")
			return context.Cause(ctx)
		}
		if err != nil {
			step.Done("ERROR")
			return err
		}
		b.report(*p, k, records, step)
	}
	return nil
}

func orRequest(p state.Package) string {
	if p.Name != "" {
		return p.Name
	}
	return p.Request
}

// installInTime is install with the time limit of a build: packages' scripts and
// dkms.conf are programs, too.
func (b *builder) installInTime(ctx context.Context, p *state.Package, watch io.Writer) ([]dkms.Module, error) {
	limited, cancel := context.WithTimeoutCause(ctx, b.opts.timeout, dkms.ErrTimeout)
	defer cancel()
	modules, err := b.install(limited, p, watch)
	if errors.Is(err, dkms.ErrTimeout) {
		return nil, fmt.Errorf("timed out after %s", b.opts.timeout)
	}
	return modules, err
}

// install makes the package's layer and returns its modules.
func (b *builder) install(ctx context.Context, p *state.Package, watch io.Writer) (modules []dkms.Module, err error) {
	name := packageLayer(*p)
	dir, err := b.tree.Record(name)
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(dir, "install.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	out := io.MultiWriter(log, watch)
	err = b.tree.MakeLayer(ctx, rootfs.LayerSpec{
		Name: name, On: append(layers(p.ToolsLayer), b.lists...),
		Make: func(root sandbox.Root) error {
			inside := b.inside(root, out)
			sources, err := b.unpack(ctx, *p, inside)
			if err != nil {
				return err
			}
			added, err := dkms.Add(ctx, inside.Spec, out, sources...)
			if err != nil {
				return err
			}
			if len(added) == 0 {
				return errors.New("it brings no DKMS module: none of its files is a /usr/src/*/dkms.conf")
			}
			return saveDoc(ctx, inside, *p, dir)
		},
	})
	if err != nil {
		return nil, err
	}
	if modules, err = dkms.Added(b.tree.LayerPath(name)); err != nil {
		return nil, err
	}
	if p.Kind == state.KindSource {
		for _, o := range b.Doc.Packages {
			if o.Request != p.Request && o.Name == modules[0].Name && o.Layer != "" {
				return nil, fmt.Errorf("%s brings a package %s, too", o.Request, o.Name)
			}
		}
		p.Name, p.Version = modules[0].Name, modules[0].Version
	}
	p.Layer, p.Doc = name, dir
	return modules, nil
}

// packageLayer is the name of the layer in which a package is installed.
func packageLayer(p state.Package) string {
	return rootfs.LayerName("package", append([]string{p.Kind, p.Name, p.Version, p.Digest}, p.Tools...)...)
}

// layers leaves out those that there is no need for.
func layers(names ...string) []string {
	return slices.DeleteFunc(names, func(n string) bool { return n == "" })
}

// copied is where a given source directory is copied to; dkms add copies it once
// more, to where it belongs by its dkms.conf.
const copied = "/usr/src/dkms2bin-given"

// unpack puts the package into the tree and returns its source directories
// there.
func (b *builder) unpack(ctx context.Context, p state.Package, inside apt.Inside) ([]string, error) {
	const given = "/run/dkms2bin/given"
	switch p.Kind {
	case state.KindSource:
		inside.Spec.Binds = []sandbox.Bind{{Source: p.Request, Target: given}}
		if _, err := inside.Output(ctx, "cp", "-rL", "--no-preserve=ownership", given, copied); err != nil {
			return nil, err
		}
		return []string{copied}, nil
	case state.KindDeb:
		inside.Spec.Binds = []sandbox.Bind{{Source: p.Request, Target: given + ".deb"}}
	}
	what := p.Name + "=" + p.Version
	if p.Kind == state.KindDeb {
		what = given + ".deb"
	}
	inside.Spec.Files = dkms.InstallStubs()
	if err := inside.Install(ctx, what); err != nil {
		if ctx.Err() != nil || !failedOnItsOwn(ctx, inside, p.Name) {
			return nil, err
		}
		b.Msg.Info("%s: its postinst, which calls dkms itself, failed; going on without: %v", p.Name, err)
	}
	if err := inside.Clean(ctx); err != nil {
		return nil, err
	}
	files, err := inside.Files(ctx, p.Name)
	if err != nil {
		return nil, err
	}
	if sources := dkms.Sources(files); len(sources) > 0 {
		return sources, nil
	}
	return dkms.SourcesIn(inside.Spec.Root.Upper)
}

// failedOnItsOwn says that nothing but the postinst of the package failed, and that
// this is one that calls dkms: it may want a running kernel, or to see a module
// built, while here all that is wanted of the package is its source.
func failedOnItsOwn(ctx context.Context, inside apt.Inside, name string) bool {
	script := `[ "$(dpkg-query -W -f '${db:Status-Status}' "$1")" = half-configured ] && grep -q dkms "$(dpkg-query --control-path "$1" postinst)"`
	_, err := inside.Output(ctx, "sh", "-c", script, "sh", name)
	return err == nil
}

// docFiles are where a package keeps its copyright and changelog, the first that
// is there counts.
func docFiles(p state.Package) (dir string, names map[string]string) {
	if p.Kind == state.KindSource {
		return copied, map[string]string{
			"copyright": "debian/copyright COPYING COPYING.txt LICENSE LICENSE.txt LICENSE.md",
			"changelog": "debian/changelog",
		}
	}
	return "/usr/share/doc/" + p.Name, map[string]string{
		"copyright": "copyright",
		"changelog": "changelog.Debian.gz changelog.gz changelog.Debian changelog",
	}
}

// maxDoc bounds a copyright file and a changelog, in bytes.
const maxDoc = 4 << 20

// saveDoc keeps the package's copyright and changelog for its binary packages.
func saveDoc(ctx context.Context, inside apt.Inside, p state.Package, to string) error {
	dir, names := docFiles(p)
	for name, candidates := range names {
		script := `cd "$1" 2>/dev/null || exit 0; for f in $2; do if [ -f "$f" ]; then case $f in *.gz) gzip -dc "$f";; *) cat "$f";; esac; exit; fi; done`
		content, err := inside.OutputLimited(ctx, maxDoc, "sh", "-c", script, "sh", dir, candidates)
		if errors.Is(err, apt.ErrTooLong) {
			continue // as good as none
		}
		if err != nil {
			return err
		}
		if len(content) == 0 {
			continue
		}
		if err := os.WriteFile(filepath.Join(to, name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// buildModules builds the package's modules for one kernel, each in a layer of
// its own. Records that are good are kept.
func (b *builder) buildModules(ctx context.Context, p state.Package, k state.Kernel, modules []dkms.Module, step *cli.Step) ([]state.Build, error) {
	if p.Error != "" {
		r := state.Build{Package: p.Name, Kernel: k.Release, Status: state.Failed, Stage: "dkmsbuild", Reason: "cannot install it: " + p.Error}
		if p.Kind == state.KindSource {
			r.Package = p.Request // its name is known once dkms has read it
		}
		dir, err := b.tree.Record(packageLayer(p))
		if err != nil {
			return nil, err
		}
		r.Log = filepath.Join(dir, "install.log")
		return []state.Build{r}, nil
	}
	var records []state.Build
	for _, m := range modules {
		if old := b.find(p.Name, m, k); old != nil && b.isGoodBuild(*old, p, k) {
			records = append(records, *old)
			continue
		}
		r, err := b.buildOne(ctx, p, k, m, step)
		if err != nil {
			return records, err
		}
		records = append(records, r)
	}
	return records, nil
}

// errNoSpace is why the layer of a build that filled the disk is not kept.
var errNoSpace = errors.New("no space left on device")

func (b *builder) buildOne(ctx context.Context, p state.Package, k state.Kernel, m dkms.Module, watch io.Writer) (state.Build, error) {
	// Each build has a name of its own, so that no document loses what it names to
	// another run in the same tree.
	start := time.Now()
	layer := rootfs.LayerName("build", p.Name, m.Name, m.Version, k.Release, fmt.Sprint(start.UnixNano(), os.Getpid()))
	dir, err := b.tree.Record(layer)
	if err != nil {
		return state.Build{}, err
	}
	file := strings.ReplaceAll(fmt.Sprintf("%s-%s-%s", m.Name, m.Version, k.Release), "/", "_")
	r := state.Build{
		Package: p.Name, PackageVersion: p.Version, Module: m.Name, ModuleVersion: m.Version, Kernel: k.Release, Layer: layer,
		Source: b.sourceDigest(p, k), Log: filepath.Join(dir, file+".log"),
		Started: start.UTC().Truncate(time.Second),
	}
	archive := filepath.Join(dir, file+".dkms.tar.gz")
	var res dkms.Result
	err = b.tree.MakeLayer(ctx, rootfs.LayerSpec{
		Name: layer, On: layers(p.Layer, p.ToolsLayer, k.Layer, b.Doc.Tree.Base),
		Make: func(root sandbox.Root) (err error) {
			res, err = dkms.Build(ctx, dkms.BuildSpec{
				Spec: b.spec(root), Module: m, Kernel: k.Release, Timeout: b.opts.timeout,
				Watch: watch, Archive: archive, Log: r.Log,
			})
			if res.NoSpace { // which the next one needs
				return errors.Join(err, errNoSpace)
			}
			return err
		},
	})
	if errors.Is(err, errNoSpace) {
		err, r.Layer = nil, ""
	}
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	if err != nil {
		return r, err
	}
	r.Seconds = float64(time.Since(start).Milliseconds()) / 1000
	switch res.Outcome {
	case dkms.OutcomeBuilt:
		r.Status, r.Archive = state.Built, archive
		if r.ArchiveDigest, err = state.FileDigest(archive); err != nil {
			return r, err
		}
	case dkms.OutcomeSkipped:
		r.Status, r.Reason = state.Skipped, res.Reason
	default:
		r.Status, r.Reason, r.Stage = state.Failed, res.Reason, "dkmsbuild"
		if r.Hint, err = b.missingHint(ctx, p, strings.Fields(res.Missing)); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (b *builder) find(pkg string, m dkms.Module, k state.Kernel) *state.Build {
	for i, r := range b.Doc.Builds {
		if r.Package == pkg && r.Module == m.Name && r.ModuleVersion == m.Version && r.Kernel == k.Release {
			return &b.Doc.Builds[i]
		}
	}
	return nil
}

// record puts the records of a package and kernel into the document, in place of
// older ones, in the order of packages, modules and kernels as asked for.
func (b *builder) record(p state.Package, k state.Kernel, modules []dkms.Module, records []state.Build) {
	stale := func(r state.Build) bool {
		if r.Kernel != k.Release || (r.Package != p.Name && r.Package != p.Request) {
			return false
		}
		// An interrupted run leaves what it has not come to.
		redone := slices.ContainsFunc(records, func(n state.Build) bool { return n.Module == r.Module && n.ModuleVersion == r.ModuleVersion })
		known := slices.ContainsFunc(modules, func(m dkms.Module) bool { return m.Name == r.Module && m.Version == r.ModuleVersion })
		return redone || !known
	}
	all := append(slices.DeleteFunc(b.Doc.Builds, stale), records...)
	place := func(r state.Build) (int, string, int) {
		pi := slices.IndexFunc(b.Doc.Packages, func(o state.Package) bool { return o.Name == r.Package || o.Request == r.Package })
		ki := slices.IndexFunc(b.Doc.Kernels, func(o state.Kernel) bool { return o.Release == r.Kernel })
		return pi, r.Module, ki
	}
	slices.SortStableFunc(all, func(x, y state.Build) int {
		xp, xm, xk := place(x)
		yp, ym, yk := place(y)
		if xp != yp {
			return xp - yp
		}
		if c := strings.Compare(xm, ym); c != 0 {
			return c
		}
		return xk - yk
	})
	b.Doc.Builds = all
}

// report writes what came of a package for a kernel.
func (b *builder) report(p state.Package, k state.Kernel, records []state.Build, step *cli.Step) {
	built, failed := 0, 0
	for _, r := range records {
		switch r.Status {
		case state.Built:
			built++
		case state.Failed:
			failed++
		}
	}
	switch {
	case failed > 0:
		step.Done("FAILED")
	case built == 0:
		step.Done("SKIPPED")
	default:
		step.Done("OK")
	}
	for _, r := range records {
		what := strings.TrimSpace(r.Module + " " + r.ModuleVersion)
		switch {
		case r.Status == state.Failed && r.Module == "":
			b.Msg.Warn("%s: %s", r.Package, r.Reason)
			b.Msg.Hint("the whole log is %s", r.Log)
		case r.Status == state.Failed:
			b.Msg.Warn("%s: cannot build %s for %s: %s", r.Package, what, k.Release, r.Reason)
			if r.Hint != "" {
				b.Msg.Hint("%s", r.Hint)
			}
			b.Msg.Hint("the whole log is %s", r.Log)
		case r.Status == state.Skipped:
			b.Msg.Info("%s: %s is not meant for %s: %s", r.Package, what, k.Release, r.Reason)
		}
	}
	if k.Requested && built == 0 && failed == 0 {
		b.Msg.Warn("%s yields nothing for %s", orRequest(p), k.Release)
	}
}
