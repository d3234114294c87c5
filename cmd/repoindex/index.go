package main

import (
	"context"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/repo"
	"dkms2bin/internal/state"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// mostNamed is how many files are named that are left out.
const mostNamed = 20

// index publishes the repository, removes what has been unneeded for long
// enough and records it.
func (o *options) index(ctx context.Context, s *cli.Session, dir string) (err error) {
	s.Msg.Announce("indexing the repository %s", dir)
	opt := repo.Options{
		Origin: "dkms2bin", Label: "dkms2bin", Suite: "stable", Codename: "dkms2bin", Description: o.description,
		URL: o.url, Keep: o.keep, DryRun: o.dryRun,
	}
	if opt.Key, err = o.key(ctx); err != nil {
		return err
	}
	if opt.Key != nil {
		for _, w := range opt.Key.Warnings {
			s.Msg.Warn("%s", w)
		}
	}
	r, err := repo.Open(ctx, dir, func() { s.Msg.Info("waiting for another run on %s", dir) })
	if errors.Is(err, os.ErrNotExist) && len(s.Doc.Debs) > 0 {
		err = diag.WithHint(err, "debextract, run again on the document, writes the packages again")
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	added := records(s.Doc, dir)
	published := make(chan account, 1)
	opt.Beside = func(result repo.Result) map[string][]byte {
		a := accountOf(added, dir, opt, result)
		published <- a
		return a.files()
	}
	result, err := r.Index(ctx, opt)
	if err != nil {
		return err
	}
	s.Doc.Index = &state.Index{Directory: dir, Packages: len(result.Packages), Digest: result.Release}
	if opt.Key != nil {
		s.Doc.Index.SignedBy = opt.Key.Fingerprint
	}
	for i, p := range result.Problems {
		if i < mostNamed {
			s.Msg.Warn("%s is left out: %s", diag.Printable(p.Path), p.Reason)
		}
		s.Doc.Index.Left = append(s.Doc.Index.Left, state.Problem{Path: p.Path, Reason: p.Reason})
	}
	if n := len(result.Problems) - mostNamed; n > 0 {
		s.Msg.Warn("%d more files are left out: the document names them", n)
	}
	if ahead := time.Until(result.Date); ahead > 10*time.Second {
		s.Msg.Warn("the Release is dated %s ahead, and never goes back: apt refuses it until then", ahead.Round(time.Second))
		s.Msg.Hint("set the clocks of the build hosts right; to begin with a new date, remove Release and InRelease, and the lists of every client")
	}
	var a account
	switch {
	case result.Changed:
		a = <-published
	case o.dryRun:
		a = accountOf(added, dir, opt, result)
	case len(added) > 0 || !exists(dir, statusName) || !exists(dir, pageName):
		a = accountOf(added, dir, opt, result)
		a.err = errors.Join(a.err, r.Replace(a.files()))
	}
	if a.err != nil {
		return a.err
	}
	unneeded, logs := a.unneeded, a.logs
	// Seldom asked for: mostly nothing waits for its removal.
	live := sync.OnceValue(func() map[string]bool {
		paths := make(map[string]bool, len(result.Packages))
		for _, p := range result.Packages {
			paths[p.Path] = true
		}
		return paths
	})
	for _, p := range result.Outdated {
		s.Doc.Index.Outdated = append(s.Doc.Index.Outdated, p.Path)
		unneeded = append(unneeded, p.Path)
	}
	needed := func(path string) bool { return logs[path] || live()[path] }
	if o.dryRun {
		for _, path := range unneeded {
			s.Msg.Info("would remove %s", diag.Printable(path))
		}
		return nil
	}
	s.Doc.Index.Removed, err = r.Sweep(unneeded, needed, o.grace)
	for _, path := range s.Doc.Index.Removed {
		s.Msg.Info("removed %s", diag.Printable(path))
	}
	return err
}

// key is that of --sign-with, nil without the flag.
func (o *options) key(ctx context.Context) (*repo.Key, error) {
	if o.signWith == "" {
		return nil, nil
	}
	return repo.FindKey(ctx, o.signWith)
}

// verifyIndex checks the repository.
func (o *options) verifyIndex(ctx context.Context, s *cli.Session, dir string) error {
	s.Msg.Announce("verifying the repository %s", dir)
	key, err := o.key(ctx)
	if err != nil {
		return err
	}
	var keyring []byte
	if key != nil {
		keyring = key.Public()
	}
	v, err := repo.Verify(ctx, dir, keyring)
	if err != nil {
		return err
	}
	for _, p := range v.Problems {
		s.Msg.Warn("%s: %s", diag.Printable(p.Path), p.Reason)
	}
	if n := len(v.Problems); n > 0 {
		return diag.WithHint(fmt.Errorf("problems in %s: %d", dir, n), "repoindex without --verify repairs the index; it cannot bring back packages")
	}
	switch {
	case !v.Signed:
		s.Msg.Info("all %d packages and the index are as they should be; it is not signed", v.Packages)
	case key == nil:
		s.Msg.Info("all %d packages and the index are as they should be, signed with the key in %s", v.Packages, v.Key)
	default:
		s.Msg.Info("all %d packages and the index are as they should be, signed with %s", v.Packages, key.Fingerprint)
	}
	return nil
}
