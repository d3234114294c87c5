package main

import (
	"context"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/sandbox"
	"dkms2bin/internal/state"
	"errors"
	"fmt"
	"os"
	"strings"
)

// A target names a build: MODULE/VERSION,KVER.
type target struct{ module, version, kver string }

func parseTarget(s string) (t target, err error) {
	mv, kver, ok := strings.Cut(s, ",")
	if ok {
		t.module, t.version, ok = strings.Cut(mv, "/")
	}
	if t.kver = strings.TrimSpace(kver); !ok || t.module == "" || t.version == "" || t.kver == "" {
		return t, cli.Usagef("--shell %q: not of the form MODULE/VERSION,KVER", s)
	}
	return t, nil
}

// shell opens a shell on the terminal, in the layer in which a build ran.
func shell(ctx context.Context, s *cli.Session, want string) (err error) {
	s.Silent = true // the document is as it was, and stdout likely a terminal
	t, err := parseTarget(want)
	if err != nil {
		return err
	}
	tree, err := openTree(s.Doc)
	if err != nil {
		return err
	}
	for _, r := range s.Doc.Builds {
		if r.Module != t.module || r.ModuleVersion != t.version || r.Kernel != t.kver {
			continue
		}
		p, k := s.Doc.Package(r.Package), s.Doc.Kernel(r.Kernel)
		if p == nil || k == nil || r.Layer == "" {
			continue
		}
		if err := tree.Use(); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, tree.Close()) }()
		if err := probe(ctx, s, tree, nil); err != nil {
			return err
		}
		below := append(layersOfBuild(s.Doc, r), k.Layer, s.Doc.Tree.Base)
		var root sandbox.Root
		var done func() error
		if tree.LayerID(r.Layer) == "" {
			root, done, err = tree.Writable(r.Layer, below...)
		} else { // it is others', too
			root, done, err = tree.Scratch(append([]string{r.Layer}, below...)...)
		}
		if err != nil {
			return err
		}
		tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
		if err != nil {
			return errors.Join(diag.WithHint(fmt.Errorf("cannot open a shell: %w", err), "--shell needs a terminal"), done())
		}
		defer tty.Close()
		s.Msg.Info("this is where the build of %s %s for %s ran (%s); leave with exit", r.Module, r.ModuleVersion, r.Kernel, r.Status)
		script := `cd "/var/lib/dkms/$1/$2/build" 2>/dev/null || cd "/var/lib/dkms/$1/$2"; exec bash --norc -i`
		err = sandbox.Run(ctx, sandbox.Spec{
			Root: root, Mountpoint: tree.Mountpoint(), Terminal: tty,
			Args: []string{"sh", "-c", script, "sh", r.Module, r.ModuleVersion},
			Env:  append(sandbox.DefaultEnv(), "TERM="+os.Getenv("TERM"), `PS1=\w\$ `, "kernelver="+r.Kernel),
		})
		var exit *sandbox.ExitError
		if errors.As(err, &exit) { // of the user's last command
			err = nil
		}
		return errors.Join(err, done())
	}
	var have []string
	for _, r := range s.Doc.Builds {
		if r.Layer != "" {
			have = append(have, fmt.Sprintf("%s/%s,%s", r.Module, r.ModuleVersion, r.Kernel))
		}
	}
	return diag.WithHint(cli.Usagef("--shell %s: the document has no such build", want), "it has %s", strings.Join(have, " "))
}

// layersOfBuild are the layers below that of a build, but for kernel and base: those
// of the builds that it stood on, and the packages'.
func layersOfBuild(doc *state.Document, r state.Build) []string {
	var builds, packages []string
	if p := doc.Package(r.Package); p != nil {
		packages = packageLayers(*p, doc.Package)
	}
	for _, d := range r.Depends {
		for _, o := range doc.Builds {
			if o.Kernel == r.Kernel && o.Module+"/"+o.ModuleVersion == d {
				builds = append(append(builds, o.Layer), layersOfBuild(doc, o)...)
			}
		}
	}
	return unique(append(builds, packages...))
}
