// Rmchroot removes the build tree of a document, the trees given as operands, or
// those that a stage left behind when it died.
//
//	rmchroot <4.json >5.json
//	rmchroot --stale >/dev/null
//	rmchroot --cache >/dev/null
package main

import (
	"context"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/scratch"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

const manual = `
Removes the document's build tree, or the trees DIR. A tree in which a stage is at
work is left alone, and so is whatever is not a build tree.

With --stale it removes, below the work directory, the trees of stages that died, and
the temporary files of these; with --older-than as well, those that nobody used for that long. With --cache it
empties the cache, except for what a tree or a stage at work needs. With --keep it
removes nothing, and says where the document's tree is and how to enter it.`

type options struct {
	stale     bool
	keep      bool
	olderThan time.Duration
	workDir   string
	cache     bool
	cacheDir  string
}

// standalone says that there is no document to read.
func (o *options) standalone(operands []string) bool {
	return o.stale || o.cache || len(operands) > 0
}

func (o *options) check(operands []string) error {
	if o.stale && len(operands) > 0 {
		return cli.Usagef("--stale looks for trees itself: give no operands")
	}
	if o.keep && o.standalone(operands) {
		return cli.Usagef("--keep is for the tree of a document: it goes with no operands, nor with --stale or --cache")
	}
	if o.olderThan < 0 {
		return cli.Usagef("--older-than %s: it must not be negative", o.olderThan)
	}
	var err error
	if o.workDir, err = rootfs.WorkDir(o.workDir); err != nil {
		return err
	}
	if o.cache || o.stale {
		o.cacheDir, err = rootfs.CacheDir(o.cacheDir)
	}
	if !o.cache { // without a home there is none to tidy
		return nil
	}
	return err
}

func remove(_ context.Context, s *cli.Session, o *options) error {
	switch {
	case o.stale:
		return removeStale(s, o)
	case len(s.Operands) > 0:
		var trees []*rootfs.Tree
		for _, operand := range s.Operands {
			path, err := filepath.Abs(operand)
			if err != nil {
				return err
			}
			tree, err := rootfs.Open(path)
			if err != nil {
				return unusable(err)
			}
			trees = append(trees, tree)
		}
		if err := removeTrees(s, trees); err != nil || !o.cache {
			return err
		}
		return emptyCache(s, o.cacheDir)
	case o.cache:
		return emptyCache(s, o.cacheDir)
	case s.Doc.Tree == nil || s.Doc.Tree.Removed:
		return nil
	}
	tree, err := rootfs.Open(s.Doc.Tree.Path)
	if err != nil {
		return unusable(err)
	}
	if o.keep {
		keep(s)
		return tree.Keep()
	}
	if err := removeTrees(s, []*rootfs.Tree{tree}); err != nil {
		return err
	}
	s.Doc.Tree.Removed = true
	return nil
}

// keep says where everything is. The copy of the document is written when this
// stage hands it on.
func keep(s *cli.Session) {
	document := s.Copy()
	s.Msg.Info("the chroot environment is kept in %s", s.Doc.Tree.Path)
	s.Msg.Info("its document is %s", document)
	program := "dkmsbuild"
	if self, err := os.Executable(); err == nil {
		program = filepath.Join(filepath.Dir(self), program)
	}
	for _, b := range s.Doc.Builds {
		if b.Layer != "" {
			s.Msg.Hint("a shell in the build of %s (%s): %s --shell %s <%s", b.Module, b.Status, quote(program),
				quote(b.Module+"/"+b.ModuleVersion+","+b.Kernel), quote(document))
		}
	}
	s.Msg.Hint("remove it with: %s <%s >/dev/null", quote(strings.TrimSuffix(program, "dkmsbuild")+"rmchroot"), quote(document))
}

var plain = regexp.MustCompile(`^[A-Za-z0-9_./,:+~=-]+$`)

// quote gives a word as the shell reads it.
func quote(word string) string {
	if plain.MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// unusable makes wrong usage of what is not a tree.
func unusable(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return diag.WithHint(&cli.UsageError{Err: err}, "it was removed already: there is nothing to do")
	}
	if errors.Is(err, rootfs.ErrNoTree) {
		return diag.WithHint(&cli.UsageError{Err: err}, "rmchroot removes only trees that mkchroot made")
	}
	return err
}

// removeStale removes what dead programs left: trees, temporary files, and what is half
// made in the cache.
func removeStale(s *cli.Session, o *options) error {
	trees, err := rootfs.Stale(o.workDir, o.olderThan, os.Getenv(cli.RunVar))
	if err != nil {
		return err
	}
	errs := []error{removeTrees(s, trees), scratch.Sweep()}
	if !o.cache && o.cacheDir != "" && rootfs.IsCache(o.cacheDir) {
		cache, err := rootfs.OpenCache(o.cacheDir)
		if err == nil {
			err = cache.Sweep()
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil || !o.cache {
		return err
	}
	return emptyCache(s, o.cacheDir)
}

func removeTrees(s *cli.Session, trees []*rootfs.Tree) error {
	var errs []error
	for _, t := range trees {
		if run, alive, err := t.Run(); err != nil || alive && run != os.Getenv(cli.RunVar) {
			if err == nil {
				err = diag.WithHint(rootfs.ErrBusy, "wait for the run that works in it to end, or end it")
			}
			errs = append(errs, fmt.Errorf("cannot remove the tree %s: %w", t.Path, err))
			continue
		}
		s.Msg.Announce("removing chroot environment %s", t.Path)
		if t.InPlace() {
			s.Msg.Info("what was installed and built in this system's own root stays: throw the container away")
		}
		errs = append(errs, t.Remove())
	}
	return errors.Join(errs...)
}

// emptyCache removes what nobody needs, the trees that go being gone already.
func emptyCache(s *cli.Session, dir string) error {
	if !rootfs.IsCache(dir) {
		s.Msg.Info("there is no cache in %s", dir)
		return nil
	}
	cache, err := rootfs.OpenCache(dir)
	if err != nil {
		return err
	}
	s.Msg.Announce("emptying the cache %s", cache.Path)
	left, err := cache.Empty()
	if left > 0 {
		s.Msg.Info("%d entries are in use and stay", left)
		s.Msg.Hint("they go with the trees that have them: rmchroot --stale --older-than 1h --cache")
	}
	return err
}

func main() {
	o := &options{}
	run := func(ctx context.Context, s *cli.Session) error { return remove(ctx, s, o) }
	cli.Main(cli.Program{
		Name: "rmchroot", Manual: manual, Operands: "DIR...",
		Flags: func(fs *flag.FlagSet) {
			fs.BoolVar(&o.stale, "stale", false, "remove the trees of stages that died")
			fs.BoolVar(&o.keep, "keep", false, "only say where the document's tree is and how to enter it")
			fs.DurationVar(&o.olderThan, "older-than", 0, "with --stale also trees that nobody used for this `time`")
			fs.BoolVar(&o.cache, "cache", false, "empty the cache, except for what is in use")
			fs.StringVar(&o.cacheDir, "cache-dir", "", "`directory` of the cache, for --cache and --stale (default as for mkchroot)")
			fs.StringVar(&o.workDir, "work-dir", "", "`directory` of build trees (default as for mkchroot)")
		},
		Check:      o.check,
		Standalone: o.standalone,
		Run:        run,
		Pass:       run,
	})
}
