package main

import (
	"cmp"
	"context"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/dkms"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/sandbox"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A baseMaker makes the base layer.
type baseMaker struct {
	*origin
	msg    *cli.Messenger
	given  string // ready tree, or ""
	tree   *rootfs.Tree
	cache  *rootfs.Cache // nil without
	inside apt.Inside    // without a root
}

// maxAge is how old a base system of the cache may be. Packages that need newer ones
// of it than it has bring those into their own layers.
const maxAge = 7 * 24 * time.Hour

// take takes the layer from the cache, or makes it. The program that makes it reads
// the keyrings on the host, apt inside reads copies of them in the tree.
func (b *baseMaker) take(ctx context.Context) (made bool, err error) {
	sources := apt.Bound(b.sources)
	main := b.sources[0]
	files, err := b.configFiles(sources)
	if err != nil {
		return false, err
	}
	spec := rootfs.BaseSpec{
		Given: b.given, Suite: main.Suite, Mirror: main.URI, Parts: main.Components, Trusted: main.Trusted(),
		Wgetrc:  apt.Wgetrc(b.proxies, b.certs != nil, b.auth, main.URI),
		Sources: apt.Stanzas(sources), Packages: buildSet, AptConf: b.aptConf(),
		Fetch: b.inside.Fetch, Lists: apt.ListsInside, Log: b.inside.Log,
	}
	if apt.Directory(main.URI) != "" {
		spec.Mirror = strings.Replace(sources[0].URI, "copy:", "file://", 1)
	}
	if keys := main.Keyrings(); len(keys) > 0 {
		spec.Keyring = keys[0]
	}
	if b.prioritised() {
		// Priorities need the indexes first, and apt knows those only in the tree.
		spec.Packages = nil
	}
	item := rootfs.Item{Kind: "base", About: "the base system of " + main.Suite, MaxAge: maxAge}
	if item.Key, err = b.key(spec, files); err != nil {
		return false, err
	}
	return b.tree.TakeLayer(ctx, b.cache, item, rootfs.LayerSpec{
		Name: baseLayer,
		Make: func(root sandbox.Root) (err error) {
			if err := b.enoughSpace(root.Upper); err != nil {
				return err
			}
			defer func() { err = b.wasThereSpace(root.Upper, err) }()
			installed := false
			if !root.InPlace {
				var remove func() error
				if remove, err = b.hostLists(ctx); err != nil {
					return err
				}
				defer func() { err = errors.Join(err, remove()) }()
				if installed, err = rootfs.MakeBase(ctx, b.tree.Mountpoint(), root.Upper, spec); err != nil {
					return err
				}
			}
			err = rootfs.Configure(root.Upper, files, "/etc/apt/sources.list", "/etc/apt/sources.list.d", "/etc/apt/apt.conf.d/99mmdebstrap")
			if err != nil {
				return err
			}
			inside := b.inside
			inside.Spec.Root = root
			if installed {
				if err := inside.ConfirmIndex(); err != nil {
					return err
				}
			}
			if !installed || spec.Packages == nil {
				if err := b.complete(ctx, inside, root.Upper); err != nil {
					return err
				}
			}
			if err := inside.Index(ctx); err != nil {
				return err
			}
			return b.record(ctx, inside)
		},
	})
}

// hostLists has the package lists of the host's apt put where the program that makes
// the base system finds them, which takes that about as long to get to. The returned
// function waits for the end of it, and removes them.
func (b *baseMaker) hostLists(ctx context.Context) (remove func() error, err error) {
	if b.given != "" || b.host.Lists == "" || rootfs.Maker() != "mmdebstrap" {
		return func() error { return nil }, nil
	}
	dir := filepath.Join(b.tree.Apt(), apt.ListsDir)
	root, err := os.OpenRoot(b.tree.Apt())
	if err != nil {
		return nil, err
	}
	if err := root.Mkdir(apt.ListsDir, 0o755); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	n, done := 0, make(chan error)
	go func() {
		var err error
		n, err = apt.CopyLists(ctx, b.host.Lists, b.sources, b.host.Architecture, dir)
		done <- errors.Join(err, os.WriteFile(filepath.Join(dir, rootfs.ListsReady), nil, 0o644))
	}()
	return func() error {
		err := <-done
		fmt.Fprintf(b.inside.Log, "package lists of the host's apt: %d\n", n)
		return errors.Join(err, root.RemoveAll(apt.ListsDir), root.Close())
	}, nil
}

// key is everything that the base layer is made of.
func (b *baseMaker) key(spec rootfs.BaseSpec, files []rootfs.ConfigFile) ([]string, error) {
	given, maker := "", rootfs.Maker()
	if b.given != "" {
		maker = "given"
		var err error
		if given, err = rootfs.GivenDigest(b.given); err != nil {
			return nil, err
		}
	}
	key := []string{maker, given, b.host.Distribution, b.host.Architecture, spec.Suite, spec.Mirror, fmt.Sprint(spec.Trusted), string(spec.AptConf), string(spec.Sources)}
	key = append(key, spec.Parts...)
	key = append(key, buildSet...)
	for _, s := range b.sources {
		key = append(key, fmt.Sprint(s.Priority))
	}
	for _, f := range slices.SortedFunc(slices.Values(files), func(x, y rootfs.ConfigFile) int { return cmp.Compare(x.Path, y.Path) }) {
		key = append(key, f.Path, f.Mode.String(), string(f.Content))
	}
	// Directories of .debs are preferred to all else, for the base system as well.
	for i := range b.directories {
		packages, err := os.ReadFile(filepath.Join(givenDirectory(b.tree, i), "Packages"))
		if err != nil {
			return nil, err
		}
		key = append(key, string(packages))
	}
	return key, nil
}

// baseFacts are what the document says of the base layer.
type baseFacts struct {
	Distribution string `json:"distribution"`
	DKMS         string `json:"dkms"`
	Compiler     string `json:"compiler"`
}

const factsFile = "facts.json"

// record writes down, beside the layer, what the document says of it.
func (b *baseMaker) record(ctx context.Context, inside apt.Inside) error {
	facts := baseFacts{Distribution: b.host.Distribution}
	if id, err := inside.Output(ctx, "sh", "-c", ". /etc/os-release && echo $ID"); err == nil {
		facts.Distribution = strings.TrimSpace(string(id))
	}
	installed, err := inside.Installed(ctx)
	if err != nil {
		return err
	}
	facts.DKMS, facts.Compiler = installed["dkms"], installed["gcc"]
	return writeRecord(b.tree, baseLayer, factsFile, facts)
}

// writeRecord writes a file of a layer's record.
func writeRecord(tree *rootfs.Tree, layer, name string, content any) error {
	dir, err := tree.Record(layer)
	if err != nil {
		return err
	}
	text, err := json.Marshal(content)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name), text, 0o644)
}

// readRecord reads what writeRecord wrote.
func readRecord(tree *rootfs.Tree, layer, name string, content any) error {
	dir, err := tree.Record(layer)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	return json.Unmarshal(text, content)
}

func (b *baseMaker) aptConf() []byte {
	return []byte(apt.Config + apt.NetworkConfig(b.proxies, b.certs != nil))
}

// configFiles are what the base layer gets besides its packages.
func (b *baseMaker) configFiles(sources []apt.Source) ([]rootfs.ConfigFile, error) {
	general, err := generalKeyrings("/etc/apt")
	if err != nil {
		return nil, err
	}
	inTree, keyrings, err := moveKeyrings(sources)
	if err != nil {
		return nil, err
	}
	dpkgConf := strings.Join(append([]string{"force-confdef", "force-confold", "force-unsafe-io"}, rootfs.PathExcludes...), "\n") + "\n"
	files := append(append(general, keyrings...),
		rootfs.ConfigFile{Path: apt.SourcesFile, Content: apt.Stanzas(inTree), Mode: 0o644},
		rootfs.ConfigFile{Path: "/etc/apt/apt.conf.d/90dkms2bin", Content: b.aptConf(), Mode: 0o644},
		rootfs.ConfigFile{Path: "/etc/dpkg/dpkg.cfg.d/dkms2bin", Content: []byte(dpkgConf), Mode: 0o644},
		rootfs.ConfigFile{Path: "/usr/sbin/policy-rc.d", Content: []byte("#!/bin/sh\nexit 101\n"), Mode: 0o755},
	)
	if !b.tree.InPlace() {
		// Regular files, so that the sandbox can put the host's over them.
		files = append(files,
			rootfs.ConfigFile{Path: "/etc/resolv.conf", Mode: 0o644},
			rootfs.ConfigFile{Path: "/etc/hosts", Content: []byte("127.0.0.1 localhost\n"), Mode: 0o644},
		)
	}
	for path, content := range dkms.ConfigFiles() {
		files = append(files, rootfs.ConfigFile{Path: path, Content: []byte(content), Mode: 0o644})
	}
	return files, nil
}

// complete installs what is missing of the build set into the tree at dir, from
// repositories with their priorities. A given tree is not brought up to date.
func (b *baseMaker) complete(ctx context.Context, inside apt.Inside, dir string) error {
	if b.given != "" {
		if err := b.checkArchitecture(ctx, inside); err != nil {
			return err
		}
	}
	if err := b.install(ctx, inside, dir); err != nil {
		return b.ofAnother(ctx, inside, fmt.Errorf("cannot complete the base system: %w", err))
	}
	return nil
}

// ofAnother adds to an error that the given tree is of another suite than the
// repositories, as apt says only which packages do not fit.
func (b *baseMaker) ofAnother(ctx context.Context, inside apt.Inside, err error) error {
	if b.given == "" || diag.Hint(err) != "" || ctx.Err() != nil {
		return err
	}
	out, failed := inside.Output(ctx, "sh", "-c", ". /etc/os-release && echo $VERSION_CODENAME")
	if codename := strings.TrimSpace(string(out)); failed == nil && codename != "" && codename != b.sources[0].Suite {
		return diag.WithHint(err, "the given base system is of %s, and the first repository has %s: --release or --repo names others", diag.Printable(codename), b.sources[0].Suite)
	}
	return err
}

func (b *baseMaker) install(ctx context.Context, inside apt.Inside, dir string) error {
	if err := inside.Update(ctx); err != nil {
		return err
	}
	if b.prioritised() {
		preferences, err := b.preferences(ctx, inside)
		if err != nil {
			return err
		}
		file := rootfs.ConfigFile{Path: preferencesFile, Content: preferences, Mode: 0o644}
		if err := rootfs.Configure(dir, []rootfs.ConfigFile{file}); err != nil {
			return err
		}
	}
	if b.given == "" && !b.tree.InPlace() {
		if err := inside.Upgrade(ctx); err != nil {
			return err
		}
	}
	installed, err := inside.Installed(ctx)
	if err != nil {
		return err
	}
	var missing []string
	for _, name := range buildSet {
		if installed[name] == "" {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		if err := inside.Install(ctx, missing...); err != nil {
			return err
		}
	}
	return inside.Clean(ctx)
}

const preferencesFile = "/etc/apt/preferences.d/dkms2bin"

// preferences are the priorities of the repositories, by the lists that are there.
func (b *baseMaker) preferences(ctx context.Context, inside apt.Inside) ([]byte, error) {
	preferences, warnings, err := inside.Pins(ctx, apt.Bound(b.sources))
	for _, w := range warnings {
		b.msg.Warn("%s", w)
	}
	return preferences, err
}

// checkArchitecture refuses a given tree that cannot run here.
func (b *baseMaker) checkArchitecture(ctx context.Context, inside apt.Inside) error {
	out, err := inside.Output(ctx, "dpkg", "--print-architecture")
	if err != nil {
		return diag.WithHint(fmt.Errorf("cannot run dpkg in the given base system: %w", err), "it must be whole, and for %s", b.host.Architecture)
	}
	if arch := strings.TrimSpace(string(out)); arch != b.host.Architecture {
		return fmt.Errorf("the given base system is for %s, and this host is %s", diag.Printable(arch), b.host.Architecture)
	}
	return nil
}
