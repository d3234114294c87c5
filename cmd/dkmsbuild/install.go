package main

import (
	"context"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/dkms"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/sandbox"
	"dkms2bin/internal/state"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
)

func (b *builder) spec(root sandbox.Root) sandbox.Spec {
	return sandbox.Spec{Root: root, Mountpoint: b.tree.Mountpoint(), Env: sandbox.DefaultEnv()}
}

func (b *builder) inside(root sandbox.Root, log io.Writer) apt.Inside {
	return apt.Inside{Spec: b.spec(root), Fetch: apt.Binds(b.tree.Apt(), b.Doc.Tree.Directories()), Log: log}
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
