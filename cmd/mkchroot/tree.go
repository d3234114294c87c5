package main

import (
	"context"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/dkms"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/sandbox"
	"dkms2bin/internal/state"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// buildSet is what every build needs besides headers.
var buildSet = []string{"build-essential", "dkms", "debhelper", "kmod"}

const baseLayer = "base"

// makeTree makes the tree and fills the document. What was made before an error
// is in the document too, so that rmchroot can remove it.
func makeTree(ctx context.Context, s *cli.Session, o *options) (err error) {
	host, sources, err := repositoriesFor(ctx, o)
	if err != nil {
		return err
	}

	s.Msg.Announce("creating chroot environment")
	step := s.Msg.Wait("creating chroot environment")
	defer step.Done("")
	if err := enoughSpace(o.workDir); err != nil {
		return err
	}
	tree, err := rootfs.Create(o.workDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	s.Doc.Tree = &state.Tree{
		Path: tree.Path, Suite: sources[0].Suite, Distribution: host.Distribution,
		Architecture: host.Architecture, Repositories: repositories(sources), Created: time.Now().UTC().Truncate(time.Second),
	}
	s.Doc.Tree.Log = filepath.Join(tree.Path, "records", "mkchroot.log")
	log, err := os.Create(s.Doc.Tree.Log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	watch := io.MultiWriter(log, step)

	if err := makeBase(ctx, tree, sources, watch); err != nil {
		return err
	}
	s.Doc.Tree.Base = baseLayer
	inside := apt.Inside{
		Spec: sandbox.Spec{Root: tree.Root(baseLayer), Mountpoint: tree.Mountpoint(), Env: sandbox.DefaultEnv()},
		Log:  watch,
	}
	if id, err := inside.Output(ctx, "sh", "-c", ". /etc/os-release && echo $ID"); err == nil {
		s.Doc.Tree.Distribution = strings.TrimSpace(string(id))
	}
	installed, err := inside.Installed(ctx)
	if err != nil {
		return err
	}
	s.Doc.Tree.DKMS, s.Doc.Tree.Compiler = installed["dkms"], installed["gcc"]

	return addKernels(ctx, s, tree, inside, o.selection())
}

// repositoriesFor are those that --repo names, or the distribution's own among
// the host's. Only for these the host's are read.
func repositoriesFor(ctx context.Context, o *options) (apt.Host, []apt.Source, error) {
	if len(o.sources) > 0 {
		host, err := apt.ReadSystem(ctx)
		return host, o.sources, err
	}
	host, err := apt.ReadHost(ctx)
	if err != nil {
		return host, nil, err
	}
	sources, err := host.Own()
	if err == nil && o.release != "" {
		sources = apt.ForSuite(sources, o.release)
	}
	return host, sources, err
}

// treeSize is what a tree takes with the headers of one kernel, in bytes. Trixie's
// bring the kernel's image along.
const treeSize = 1 << 30

// enoughSpace refuses at once what would fail after a minute.
func enoughSpace(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("cannot make the work directory: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("cannot look for space in %s: %w", dir, err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < treeSize {
		return diag.WithHint(fmt.Errorf("no space left for a tree in %s: it takes about %d MB, and %d MB are free", dir, treeSize>>20, free>>20),
			"--work-dir names another place; rmchroot --stale removes what dead runs left")
	}
	return nil
}

// repositories are the sources as the document tells them, without credentials.
func repositories(sources []apt.Source) []state.Repository {
	var out []state.Repository
	for _, s := range sources {
		uri := s.URI
		if u, err := url.Parse(uri); err == nil {
			u.User = nil
			uri = u.String()
		}
		out = append(out, state.Repository{URI: uri, Suite: s.Suite, Components: s.Components, Trusted: s.Trusted()})
	}
	return out
}

// makeBase makes the base layer. The program that makes it reads the keyrings on
// the host, apt inside reads copies of them in the tree.
func makeBase(ctx context.Context, tree *rootfs.Tree, sources []apt.Source, log io.Writer) error {
	general, err := generalKeyrings("/etc/apt")
	if err != nil {
		return err
	}
	inTree, keyrings, err := moveKeyrings(sources)
	if err != nil {
		return err
	}
	spec := rootfs.BaseSpec{
		Suite: sources[0].Suite, Mirror: sources[0].URI, Parts: sources[0].Components,
		Sources: apt.Stanzas(sources), Packages: buildSet, AptConf: []byte(apt.Config), Log: log,
		Trusted: sources[0].Trusted(),
	}
	if keys := sources[0].Keyrings(); len(keys) > 0 {
		spec.Keyring = keys[0]
	}
	for _, s := range sources {
		if strings.HasPrefix(s.URI, "https:") {
			spec.Packages = append(spec.Packages, "ca-certificates")
			break
		}
	}
	files := append(append(general, keyrings...),
		rootfs.ConfigFile{Path: "/etc/apt/sources.list.d/dkms2bin.sources", Content: apt.Stanzas(inTree), Mode: 0o600},
		rootfs.ConfigFile{Path: "/etc/apt/apt.conf.d/90dkms2bin", Content: []byte(apt.Config), Mode: 0o644},
		rootfs.ConfigFile{Path: "/etc/dpkg/dpkg.cfg.d/dkms2bin", Content: []byte("force-confdef\nforce-confold\nforce-unsafe-io\n"), Mode: 0o644},
		rootfs.ConfigFile{Path: "/usr/sbin/policy-rc.d", Content: []byte("#!/bin/sh\nexit 101\n"), Mode: 0o755},
		// Regular files, so that the sandbox can put the host's over them.
		rootfs.ConfigFile{Path: "/etc/resolv.conf", Mode: 0o644},
		rootfs.ConfigFile{Path: "/etc/hosts", Content: []byte("127.0.0.1 localhost\n"), Mode: 0o644},
	)
	for path, content := range dkms.ConfigFiles() {
		files = append(files, rootfs.ConfigFile{Path: path, Content: []byte(content), Mode: 0o644})
	}
	return tree.MakeLayer(ctx, rootfs.LayerSpec{
		Name: baseLayer,
		Make: func(root sandbox.Root) error {
			if err := rootfs.MakeBase(ctx, tree.Mountpoint(), root.Upper, spec); err != nil {
				return err
			}
			return rootfs.Configure(root.Upper, files, "/etc/apt/sources.list", "/etc/apt/sources.list.d", "/etc/apt/apt.conf.d/99mmdebstrap")
		},
	})
}

// moveKeyrings returns the sources with keyrings as they are called in the tree,
// and those keyrings.
func moveKeyrings(sources []apt.Source) ([]apt.Source, []rootfs.ConfigFile, error) {
	var files []rootfs.ConfigFile
	moved := map[string]string{}
	out := make([]apt.Source, 0, len(sources))
	for _, s := range sources {
		for _, key := range s.Keyrings() {
			if moved[key] != "" {
				continue
			}
			content, err := os.ReadFile(key)
			if err != nil {
				return nil, nil, fmt.Errorf("cannot read the keyring of %s: %w", s, err)
			}
			moved[key] = fmt.Sprintf("/etc/apt/dkms2bin-%d%s", len(moved), filepath.Ext(key))
			files = append(files, rootfs.ConfigFile{Path: moved[key], Content: content, Mode: 0o644})
		}
		out = append(out, s.WithKeyrings(moved))
	}
	return out, files, nil
}

// generalKeyrings are the host's keyrings, in its directory etc, for repositories
// that name none: those of trusted.gpg.d that apt reads, and its predecessor. As
// apt does, it passes over what cannot be read.
func generalKeyrings(etc string) ([]rootfs.ConfigFile, error) {
	paths := []string{"trusted.gpg"}
	entries, err := os.ReadDir(filepath.Join(etc, "trusted.gpg.d"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot list the host's keyrings: %w", err)
	}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext == ".gpg" || ext == ".asc" {
			paths = append(paths, filepath.Join("trusted.gpg.d", e.Name()))
		}
	}
	var files []rootfs.ConfigFile
	for _, path := range paths {
		content, err := os.ReadFile(filepath.Join(etc, path))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EISDIR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read a keyring of the host: %w", err)
		}
		files = append(files, rootfs.ConfigFile{Path: filepath.Join("/etc/apt", path), Content: content, Mode: 0o644})
	}
	return files, nil
}
