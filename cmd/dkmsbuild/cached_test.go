package main

import (
	"dkms2bin/internal/dkms"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/state"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

// TestBuildItem: a build is taken from the cache as long as its archive is the one that
// was recorded, also where there is so much that the cache looks at no content.
func TestBuildItem(t *testing.T) {
	t.Parallel()
	cache, err := rootfs.OpenCache(filepath.Join(t.TempDir(), "cache"))
	assert.NilError(t, err)
	b := jobsOf("k", "p: m")
	j := &job{module: b.packages[0].modules[0], kernel: b.kernels[0], source: "1"}
	old := time.Now().Add(-time.Hour).Truncate(time.Second)
	const much = 17 << 20
	write := func(record, content string) error {
		archive := filepath.Join(record, j.fileName()+archiveExt)
		return errors.Join(os.MkdirAll(record, 0o755), os.WriteFile(archive, []byte(content), 0o644), os.Chtimes(archive, old, old))
	}
	made, record := 0, ""
	get := func(outcome dkms.Outcome) {
		item := b.buildItem(j)
		item.Make = func(dir string) error {
			made++
			record = filepath.Join(dir, "record")
			if outcome == dkms.OutcomeSkipped {
				r := result{Result: dkms.Result{Outcome: outcome, Reason: "not meant"}}
				return errors.Join(os.MkdirAll(record, 0o755), r.save(record, ""))
			}
			r := result{Result: dkms.Result{Outcome: outcome}, Started: old, Seconds: 1.5}
			err := errors.Join(write(record, "good"), r.save(record, filepath.Join(record, j.fileName()+archiveExt)))
			return errors.Join(err, os.WriteFile(filepath.Join(dir, "large"), nil, 0o644), os.Truncate(filepath.Join(dir, "large"), much))
		}
		e, err := cache.Get(t.Context(), item)
		assert.NilError(t, err)
		record = e.Record()
		assert.NilError(t, e.Close())
	}
	get(dkms.OutcomeBuilt)
	get(dkms.OutcomeBuilt)
	assert.Equal(t, made, 1)
	r, err := readResult(record)
	assert.NilError(t, err)
	digest, err := state.FileDigest(filepath.Join(record, j.fileName()+archiveExt))
	assert.NilError(t, err)
	assert.DeepEqual(t, r, result{Result: dkms.Result{Outcome: dkms.OutcomeBuilt}, Archive: digest, Started: old.UTC(), Seconds: 1.5})

	assert.NilError(t, write(record, "evil")) // of the same size and time
	get(dkms.OutcomeBuilt)
	assert.Equal(t, made, 2)

	j.source = "2"
	get(dkms.OutcomeSkipped)
	get(dkms.OutcomeSkipped)
	assert.Equal(t, made, 3)
}

// TestSaveFailed: what came of a failed build is not kept.
func TestSaveFailed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := result{Result: dkms.Result{Outcome: dkms.OutcomeFailed}}
	assert.NilError(t, r.save(dir, ""))
	_, err := readResult(dir)
	assert.ErrorIs(t, err, os.ErrNotExist)
}
