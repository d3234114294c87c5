package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path"
	"slices"
	"strings"
)

// adminDir is where dpkg keeps its books.
const adminDir = "/var/lib/dpkg"

// books is what dpkg knows of a tree: packages by file, versions by package, and MD5 sums
// by package and file.
type books struct {
	tree    *tree
	of      map[string][]string
	version map[string]string
	sums    map[string]map[string]string
}

// readBooks asks dpkg-query of the host; nil when dpkg has no books in the tree.
func (t *tree) readBooks(ctx context.Context) (*books, error) {
	status, err := t.open(path.Join(adminDir, "status"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	status.Close()
	listed, err := t.query(ctx, "--search", "*"+modulesDir+"/*")
	if err != nil {
		return nil, err
	}
	versions, err := t.query(ctx, "--show", "--showformat", "${binary:Package}\t${Version}\n")
	if err != nil {
		return nil, err
	}
	b := &books{tree: t, of: parseOwners(listed), version: map[string]string{}, sums: map[string]map[string]string{}}
	for line := range strings.Lines(versions) {
		if name, v, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok {
			b.version[name] = v
		}
	}
	return b, nil
}

// unowned says that no package owns a file. Without books nobody knows.
func (b *books) unowned(file string) bool { return b != nil && len(b.of[file]) == 0 }

// fillIn tells of the package that owns a module.
func (b *books) fillIn(ctx context.Context, m *Module) error {
	if b == nil || b.unowned(m.Path) {
		return nil
	}
	name := b.of[m.Path][0]
	m.Package, _, _ = strings.Cut(name, ":")
	m.PackageVersion = b.version[name]
	if b.sums[name] == nil {
		text, err := b.tree.query(ctx, "--control-show", name, "md5sums")
		if err != nil {
			return err
		}
		b.sums[name] = parseSums(text)
	}
	noted := b.sums[name][m.Path]
	m.Altered = noted != "" && noted != m.sum
	return nil
}

// query asks the tree's books. Nothing found is no error: a package need not have sums.
func (t *tree) query(ctx context.Context, args ...string) (string, error) {
	dir, err := t.open(adminDir)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "dpkg-query", append([]string{"--admindir=/proc/self/fd/3"}, args...)...)
	cmd.Env = append(cmd.Environ(), "LC_ALL=C", "DPKG_ROOT=")
	cmd.ExtraFiles = append(cmd.ExtraFiles, dir)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 { // dpkg-query(1): not found
		err = nil
	}
	if err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		return "", fmt.Errorf("dpkg-query: %w: %s", err, strings.Join(strings.Fields(stderr.String()), " "))
	}
	return stdout.String(), nil
}

// parseOwners reads what dpkg-query --search prints: packages by path. Where a package has
// led a file away, what lies under its name is that package's own, and the others' lies
// where it was led to. Paths in /usr/lib are those in /lib.
func parseOwners(listed string) map[string][]string {
	of := map[string][]string{}
	type diversion struct{ by, from, to string }
	var diversions []diversion
	var now diversion
	for line := range strings.Lines(listed) {
		who, file, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		if !ok {
			continue
		}
		file = merged(file)
		by, isDiversion := strings.CutPrefix(who, "diversion by ")
		local, isLocal := strings.CutPrefix(who, "local diversion ")
		switch {
		case isDiversion || isLocal:
			what := local
			if isDiversion {
				i := strings.LastIndex(by, " ")
				if i < 0 {
					continue
				}
				now.by, what = by[:i], by[i+1:]
			} else {
				now.by = ""
			}
			if what == "from" {
				now.from = file
			} else {
				now.to = file
				if !slices.Contains(diversions, now) {
					diversions = append(diversions, now)
				}
			}
		default:
			for name := range strings.SplitSeq(who, ", ") {
				if !slices.Contains(of[file], name) {
					of[file] = append(of[file], name)
				}
			}
		}
	}
	for _, d := range diversions {
		mine := func(name string) bool {
			short, _, _ := strings.Cut(name, ":")
			return short == d.by
		}
		for _, name := range of[d.from] {
			if !mine(name) {
				of[d.to] = append(of[d.to], name)
			}
		}
		of[d.from] = slices.DeleteFunc(slices.Clone(of[d.from]), func(name string) bool { return !mine(name) })
	}
	return of
}

// parseSums reads the md5sums of a package: sums by path.
func parseSums(text string) map[string]string {
	sums := map[string]string{}
	for line := range strings.Lines(text) {
		if sum, file, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  "); ok {
			sums[merged("/"+file)] = sum
		}
	}
	return sums
}

// merged is a path as it is where /lib is /usr/lib, whichever of the two a package has.
func merged(file string) string {
	if strings.HasPrefix(file, "/usr"+modulesDir+"/") {
		return strings.TrimPrefix(file, "/usr")
	}
	return file
}
