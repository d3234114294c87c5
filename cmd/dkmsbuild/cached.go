package main

import (
	"dkms2bin/internal/dkms"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/state"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"
)

// A result is what came of a build. That of one that was built or skipped lies beside
// its archive and log, in the record of its layer, which the cache keeps together.
type result struct {
	dkms.Result
	Archive string // digest, where it was built
	Started time.Time
	Seconds float64
}

const (
	resultFile = "result.json"
	archiveExt = ".dkms.tar.gz"
	logExt     = ".log"
)

// fileName is what the files of a build are called, without what they end in.
func (j *job) fileName() string {
	return strings.ReplaceAll(fmt.Sprintf("%s-%s-%s", j.module.Name, j.module.Version, j.kernel.Release), "/", "_")
}

func (r *result) save(dir, archive string) (err error) {
	switch r.Outcome {
	case dkms.OutcomeBuilt:
		if r.Archive, err = state.FileDigest(archive); err != nil {
			return err
		}
	case dkms.OutcomeFailed:
		return nil
	}
	return writeJSON(filepath.Join(dir, resultFile), r)
}

func readResult(dir string) (r result, err error) {
	err = readJSON(filepath.Join(dir, resultFile), &r)
	return r, err
}

// buildItem is a build in the cache. It can be used without what it was built on, and
// outlives that: a base system or a package that is installed anew is the same mostly.
// Besides all that a build is made from, it is what this program does that counts.
func (b *builder) buildItem(j *job) rootfs.Item {
	return rootfs.Item{
		Kind: "build", About: fmt.Sprintf("the build of %s for %s", j, j.kernel.Release),
		Key: []string{b.program, b.tree.LayerKey(b.Doc.Tree.Base), j.source},
		Current: func(e *rootfs.Entry) (bool, error) {
			r, err := readResult(e.Record())
			if err != nil || r.Outcome == dkms.OutcomeSkipped {
				return err == nil, nil
			}
			digest, err := state.FileDigest(filepath.Join(e.Record(), j.fileName()+archiveExt))
			if errors.Is(err, fs.ErrNotExist) {
				return false, nil
			}
			return digest == r.Archive, err
		},
	}
}
