// Package repo makes a flat apt repository out of a directory of .debs, keeps
// it in order and checks it: Packages, Release, signatures and by-hash files as
// apt-secure(8) and sources.list(5) have them ("deb URL ./").
//
// Clients may read the repository at any time, through any web server, while
// runs on several hosts write to it.
package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Repo is a directory that this process alone may publish.
type Repo struct {
	dir  string
	mode fs.FileMode // of dir
	lock *os.File
}

const (
	// privateDir holds what apt must not see: lock, cache, state, and the files
	// on their way. It starts with a dot, so that no index has it.
	privateDir = ".dkms2bin"
	tmpDir     = privateDir + "/tmp"
	lockName   = privateDir + "/lock"
	lockRetry  = 50 * time.Millisecond
)

// Open takes the lock of dir (flock(2), which network file systems pass on),
// and waits for it as long as ctx lasts; waiting, unless nil, is called once if
// that takes more than a moment. What a killed run left half-written is removed.
func Open(ctx context.Context, dir string, waiting func()) (_ *Repo, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot open the repository %s: %w", dir, err)
		}
	}()
	fi, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() {
		return nil, &os.PathError{Op: "open", Path: dir, Err: syscall.ENOTDIR}
	}
	r := &Repo{dir: dir, mode: fi.Mode()}
	if err := errors.Join(r.mkdir(privateDir), r.mkdir(tmpDir)); err != nil {
		return nil, err
	}
	// The lock file is never removed: another run might hold the removed one
	// while a third makes it anew.
	r.lock, err = os.OpenFile(r.path(lockName), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o666)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.lock.Close())
		}
	}()
	for {
		err := syscall.Flock(int(r.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, &os.PathError{Op: "flock", Path: r.lock.Name(), Err: err}
		}
		if waiting != nil && errors.Is(err, syscall.EWOULDBLOCK) {
			waiting()
			waiting = nil
		}
		if err := sleep(ctx, lockRetry); err != nil {
			return nil, fmt.Errorf("another run holds %s: %w", r.lock.Name(), err)
		}
	}
	return r, r.clean()
}

// Close gives the lock back.
func (r *Repo) Close() error { return r.lock.Close() }

func (r *Repo) path(name string) string { return filepath.Join(r.dir, filepath.FromSlash(name)) }

// mkdir makes a directory, unless it is there, that the same users can read and
// write as can the repository, whatever the umask.
func (r *Repo) mkdir(name string) error {
	err := os.Mkdir(r.path(name), 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(r.path(name), r.mode)
}

// clean removes what a killed run left.
func (r *Repo) clean() error {
	left, err := os.ReadDir(r.path(tmpDir))
	if err != nil {
		return err
	}
	for _, e := range left {
		if err := os.Remove(filepath.Join(r.path(tmpDir), e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// Options are the fields of Release and what else makes a difference to the
// index.
type Options struct {
	// The fields may be empty, and then are left out. apt asks its user before
	// it accepts a repository whose Origin, Label, Suite or Codename changed,
	// so they should stay what they were.
	Origin, Label, Suite, Codename, Description string
	// Date goes into Release, cut to seconds. The zero value stands for the
	// present time. It is always later than that of the Release there is, as
	// apt ignores a Release older than the one it knows.
	Date time.Time
	Key  *Key   // signs the index; nil for none
	URL  string // where clients find the repository, for the .sources file; "" for its path
	Keep Keep   // what is left out because it is old
	// DryRun publishes nothing.
	DryRun bool
	// Beside, unless nil, gives the contents of other files that tell of the index, by
	// their slash-separated names. They are published with it, after InRelease. It is
	// called with what the result is going to be, all but its Release, whenever it may
	// have Changed: in a goroutine, so that it takes no time of its own.
	Beside func(Result) map[string][]byte
}

// Result tells what Index found and did.
type Result struct {
	Packages []Package // in Packages, by path
	Outdated []Package // left out by Options.Keep
	Release  string    // SHA-256 of Release, in hex; "" after a DryRun
	Date     time.Time // of Release
	Changed  bool      // the published index was replaced
	Problems []Problem
}

// Package is a .deb of the repository.
type Package struct {
	Path                        string // below the directory, slash-separated
	Name, Version, Architecture string
	Kernel                      string // release of the kernel that its name ends with; "" for none
	Size                        int64  // of the file, in bytes
}

// Problem is a file or directory that was left out of the index.
type Problem struct {
	Path   string // below the directory, slash-separated
	Reason string
}

// Index publishes the index of all .debs in the directory and its
// subdirectories. Files and directories starting with a dot are passed over (as
// half-done uploads are named), and so are symbolic links to directories; a
// symbolic link to a .deb counts as a file.
//
// Packages has a stanza for each .deb in the bytewise order of their paths:
// the fields of its control file, in the order of apt-ftparchive(1), with
// Filename, Size and SHA256. Of several files with the same package, version
// and architecture the first counts; another one is a Problem unless it has
// the same bytes. So are files that cannot be read as a .deb: the rest is
// indexed all the same. The same files give the same Packages, Packages.gz and
// Packages.zst.
//
// When nothing has changed, nothing is written. Otherwise everything is brought
// to the disk under other names first, and until then nothing of the old index
// is touched. Then come by-hash files, key and .sources file, Packages, Release,
// Release.gpg, InRelease, and last what Options.Beside gives, each by a rename,
// with mode 0644. So a client that uses by-hash files (every apt since 1.1) sees the old index or the new
// one, and finds every file it names, also when the process is killed between
// any two steps; the next run completes what is missing. Two publications are a
// second apart or more, as apt and web servers know whole seconds only.
//
// A repository that is signed stays so: without a key, Index refuses it.
func (r *Repo) Index(ctx context.Context, opt Options) (_ Result, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot index %s: %w", r.dir, err)
		}
	}()
	if err := opt.validate(); err != nil {
		return Result{}, err
	}
	if opt.Key == nil {
		if err := r.unsigned(); err != nil {
			return Result{}, err
		}
	}
	cache := make(chan cached, 1)
	go func() { cache <- openCache(r.path(cacheName)) }()
	paths, problems, err := findDebs(ctx, r.dir)
	known := <-cache
	if err != nil {
		return Result{}, errors.Join(err, known.close())
	}
	c, err := r.collect(ctx, paths, known)
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, c.close()) }()

	sel, err := c.selectPackages(opt.Keep)
	if err != nil {
		return Result{}, err
	}
	res := Result{Problems: append(problems, sel.problems...), Packages: make([]Package, 0, len(sel.packages))}
	for _, e := range sel.packages {
		res.Packages = append(res.Packages, e.pkg())
	}
	for _, e := range sel.outdated {
		res.Outdated = append(res.Outdated, e.pkg())
	}
	slices.SortFunc(res.Problems, func(a, b Problem) int { return strings.Compare(a.Path, b.Path) })
	if opt.DryRun {
		return res, nil
	}
	st := r.readState()
	if c.unchanged && st.Options == opt.digest() && r.intact(st) {
		res.Release, res.Date = st.Files["Release"].SHA256, oldDate(r.path("Release"))
		return res, nil
	}
	if err := r.publish(ctx, opt, c, sel, st, &res); err != nil {
		return Result{}, err
	}
	return res, nil
}

// reason is the text of an error without the path, which a Problem has itself.
func reason(err error) string {
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		return pe.Op + ": " + pe.Err.Error()
	}
	return err.Error()
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
