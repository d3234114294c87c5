package main

import (
	"compress/gzip"
	"context"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/state"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// docFiles are where a package keeps its copyright and changelog, and a source
// directory its license; the first that is there counts.
func docFiles(p state.Package) (dir string, names map[string]string) {
	if p.Kind == state.KindSource {
		return copied, map[string]string{
			"copyright": "debian/copyright",
			"license":   "COPYING COPYING.txt LICENSE LICENSE.txt LICENSE.md",
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
		if content, err := readDoc(inside.Spec.Root.Upper, dir, strings.Fields(candidates)); err == nil {
			if len(content) > 0 && len(content) <= maxDoc {
				if err := os.WriteFile(filepath.Join(to, name), content, 0o644); err != nil {
					return err
				}
			}
			continue
		}
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

// errElsewhere says that a file may be in another layer, or behind a link.
var errElsewhere = errors.New("it may be elsewhere")

// readDoc reads the first of these files of a directory that was made in a layer, or
// nothing, at most one byte more than it may have. An error says that somebody who sees
// the whole root has to look.
func readDoc(layer, dir string, candidates []string) ([]byte, error) {
	root, err := os.OpenRoot(layer)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	dir = strings.TrimPrefix(dir, "/")
	if info, err := root.Lstat(dir); err != nil || !info.IsDir() {
		return nil, errElsewhere
	}
	for _, name := range candidates {
		info, err := root.Lstat(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil || !info.Mode().IsRegular() {
			return nil, errElsewhere
		}
		f, err := root.Open(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		defer f.Close()
		var r io.Reader = f
		if strings.HasSuffix(name, ".gz") {
			if r, err = gzip.NewReader(f); err != nil {
				return nil, err
			}
		}
		return io.ReadAll(io.LimitReader(r, maxDoc+1))
	}
	return nil, nil
}
