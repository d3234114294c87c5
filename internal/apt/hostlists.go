package apt

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// CopyLists copies to the directory dir what the host's apt has of the sources in its
// directory from: Release files and package lists, called as apt calls them, without
// compression. apt elsewhere, with the same sources, brings them up to date: it checks
// the signatures, and fetches only what has changed. As it takes lists beside an
// unchanged Release file for what that names, only those are copied whose digests it
// has: the host's apt may be at work. It returns how many lists it copied.
func CopyLists(ctx context.Context, from string, sources []Source, architecture, dir string) (n int, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot copy the package lists of the host: %w", err)
		}
	}()
	for _, s := range sources {
		if Directory(s.URI) != "" {
			continue // goes by another name in the tree
		}
		name := releaseFile(s, "InRelease")
		// The time first: should the host's apt put a newer file there meanwhile, the
		// server is asked with too early a time, not with one that hides the newer file.
		info, err := os.Stat(filepath.Join(from, name))
		if err != nil {
			continue // not fetched, or in the older form
		}
		release, err := readFile(filepath.Join(from, name))
		if err != nil {
			continue
		}
		to := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(to, release, 0o644), os.Chtimes(to, info.ModTime(), info.ModTime())); err != nil {
			return n, err
		}
		digests := releaseDigests(release)
		for _, key := range packageLists(s, architecture) {
			if digests[key] == "" {
				continue
			}
			name := releaseFile(s, key)
			copied, err := copyList(ctx, filepath.Join(from, name), filepath.Join(dir, name), digests[key])
			if err != nil {
				return n, err
			}
			if copied {
				n++
			}
		}
	}
	return n, nil
}

// packageLists are the lists of a source as its Release file calls them.
func packageLists(s Source, architecture string) (keys []string) {
	if len(s.Components) == 0 {
		return []string{"Packages"}
	}
	for _, c := range s.Components {
		for _, a := range []string{architecture, "all"} {
			keys = append(keys, c+"/binary-"+a+"/Packages")
		}
	}
	return keys
}

// releaseDigests reads the SHA256 field of a Release file, signed or not.
func releaseDigests(release []byte) map[string]string {
	digests, on := map[string]string{}, false
	for line := range strings.Lines(string(release)) {
		if !strings.HasPrefix(line, " ") {
			on = strings.TrimSpace(line) == "SHA256:"
			continue
		}
		if f := strings.Fields(line); on && len(f) == 3 {
			digests[f[2]] = f[0]
		}
	}
	return digests
}

// copyList copies a list, in whichever form the host's apt keeps it, if it has the
// digest.
func copyList(ctx context.Context, from, to, digest string) (ok bool, err error) {
	from, info := existing(from)
	if info == nil {
		return false, nil
	}
	out, err := os.Create(to)
	if err != nil {
		return false, err
	}
	defer func() {
		err = errors.Join(err, out.Close())
		if !ok {
			err = errors.Join(err, os.Remove(to))
		}
	}()
	sum := sha256.New()
	cmd := exec.CommandContext(ctx, "/usr/lib/apt/apt-helper", "cat-file", from)
	cmd.Stdout = io.MultiWriter(out, sum)
	if err := cmd.Run(); err != nil || hex.EncodeToString(sum.Sum(nil)) != digest {
		return false, context.Cause(ctx)
	}
	return true, os.Chtimes(to, info.ModTime(), info.ModTime())
}

// existing finds the file, or one that apt keeps in its place with compression.
func existing(path string) (string, fs.FileInfo) {
	for _, ext := range []string{"", ".lz4", ".gz", ".zst", ".xz", ".bz2", ".lzma"} {
		if info, err := os.Stat(path + ext); err == nil {
			return path + ext, info
		}
	}
	return "", nil
}
