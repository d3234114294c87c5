package rootfs

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"dkms2bin/internal/diag"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Cache keeps what took long to make, for later runs and for those at the same
// time. It is a directory with this inside:
//
//	dkms2bin-cache   says that it is one
//	size             how large it may become, in bytes
//	entries/         a directory for each entry, KIND-KEY.GENERATION
//	locks/           a lock for each key: whoever looks for an entry, makes or
//	                 removes it, holds it meanwhile
//	making/          entries that are being made, and removed
//
// An entry is a directory with this inside:
//
//	entry.json       what it is, and a digest of its content; written last
//	content/         the content, which nobody changes any more
//	used             its time is that of the last use
//	lock             held by whoever uses the entry: flock(2), shared
//	trees/           a file for each tree that names it, see Tree.TakeLayer
//
// Nothing is synced to the disk. What a crash of the machine leaves has the wrong
// size, which is noticed, since file systems record a size after the data.
type Cache struct {
	Path string // absolute, without links
	// Notice takes what people may want to know: that an entry was damaged, or
	// that another run is waited for. It may be nil.
	Notice func(format string, args ...any)

	foreseen sync.Map // of paths of entries: func() (digest string, err error)
}

const (
	cacheMarker  = "dkms2bin-cache"
	cacheText    = "dkms2bin cache\n"
	entryFile    = "entry.json"
	contentDir   = "content"
	defaultLimit = 10 << 30
)

// cacheLayout is in each key and each entry: what another version of this program
// made in another way is never used.
const cacheLayout = 2

// CacheDir is where the cache lies, as an absolute path: the directory that was
// asked for, else one in the work directory that is used when none is asked for.
func CacheDir(asked string) (string, error) {
	if asked != "" {
		return filepath.Abs(asked)
	}
	work, err := WorkDir("")
	if err != nil {
		return "", diag.WithHint(fmt.Errorf("cannot find a directory for the cache: %w", err), "name one with --cache-dir, or use --no-cache")
	}
	return filepath.Join(work, "cache"), nil
}

// OpenCache opens the cache in dir, and makes it if there is none.
func OpenCache(dir string) (c *Cache, err error) {
	defer func() {
		if err != nil {
			wrap(&err, "cannot use the cache %s", dir)
			err = diag.WithHint(err, "--cache-dir names another place; --no-cache does without")
		}
	}()
	if err := errors.Join(os.MkdirAll(filepath.Dir(dir), 0o755), ignore(os.Mkdir(dir, 0o700), fs.ErrExist)); err != nil {
		return nil, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, err
	}
	if err := onlyOurs(dir); err != nil {
		return nil, err
	}
	c = &Cache{Path: dir}
	marker := filepath.Join(dir, cacheMarker)
	text, err := os.ReadFile(marker)
	switch {
	case err == nil && string(text) == cacheText:
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	default:
		there, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range there {
			if !slices.Contains([]string{cacheMarker, "entries", "locks", "making"}, e.Name()) {
				return nil, fmt.Errorf("it is no cache: there is %s in it, and no file %s", e.Name(), cacheMarker)
			}
		}
	}
	for _, d := range []string{"entries", "locks", "making"} {
		// Setuid programs of the layers are nobody else's business.
		if err := ignore(os.Mkdir(filepath.Join(dir, d), 0o700), fs.ErrExist); err != nil {
			return nil, err
		}
	}
	if string(text) != cacheText {
		return c, os.WriteFile(marker, []byte(cacheText), 0o644)
	}
	return c, nil
}

// IsCache says whether there is a cache in dir.
func IsCache(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, cacheMarker))
	return err == nil
}

// onlyOurs refuses a directory into which others could put something.
func onlyOurs(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	if int(owner) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("its owner is the user %d and its mode %v: others could write to it", owner, info.Mode().Perm())
	}
	return nil
}

func ignore(err, expected error) error {
	if errors.Is(err, expected) {
		return nil
	}
	return err
}

func (c *Cache) notice(format string, args ...any) {
	if c.Notice != nil {
		c.Notice(format, args...)
	}
}

// SetLimit sets how large the cache may become, in bytes, for all who use it.
func (c *Cache) SetLimit(bytes int64) error {
	return os.WriteFile(filepath.Join(c.Path, "size"), fmt.Appendln(nil, bytes), 0o600)
}

// Limit is how large the cache may become.
func (c *Cache) Limit() int64 {
	text, err := os.ReadFile(filepath.Join(c.Path, "size"))
	if err != nil {
		return defaultLimit
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || n < 0 {
		return defaultLimit
	}
	return n
}

// An Item is what is wanted of a cache.
type Item struct {
	Kind  string   // a word, such as "base"
	Key   []string // everything that the content depends on
	About string   // what it is, for people
	// On is the entry that it cannot be used without, or "".
	On string
	// MaxAge is how old it may be; 0 stands for any age.
	MaxAge time.Duration
	// Current, if not nil, says whether the entry that is there will do.
	Current func(*Entry) (bool, error)
	// Make fills dir, an empty directory.
	Make func(dir string) error
}

func (it Item) key() string { return LayerName(it.Kind, it.parts()...) }

func (it Item) parts() []string {
	return append([]string{fmt.Sprint("layout ", cacheLayout), it.On}, it.Key...)
}

// An Entry is something in a cache, in use by this process until it is closed.
type Entry struct {
	Name string // no other entry ever has it
	path string
	lock *os.File
}

// Content is the directory that Item.Make has filled.
func (e *Entry) Content() string { return filepath.Join(e.path, contentDir) }

// Close ends the use of the entry.
func (e *Entry) Close() error {
	if e == nil || e.lock == nil {
		return nil
	}
	err := e.lock.Close()
	e.lock = nil
	return err
}

// description is entry.json.
type description struct {
	Layout int       `json:"layout"`
	Key    string    `json:"key"`
	About  string    `json:"about"`
	On     string    `json:"on,omitempty"`
	Made   time.Time `json:"made"`
	Until  time.Time `json:"until,omitzero"` // when it becomes too old
	Bytes  int64     `json:"bytes"`          // on the disk
	Digest string    `json:"digest"`
}

// old says that its time is over, or that its clock was wrong.
func (d *description) old() bool {
	now := time.Now()
	return !d.Until.IsZero() && (now.After(d.Until) || now.Before(d.Made.Add(-time.Hour)))
}

// Get takes an item from the cache, and makes it if it is not there, too old, or
// damaged. Of several that want the same one makes it, and the others wait. An
// error of Make is returned as it is.
func (c *Cache) Get(ctx context.Context, it Item) (*Entry, error) {
	lock, err := c.lockKey(ctx, it)
	if err != nil {
		return nil, fmt.Errorf("cannot lock %s in the cache: %w", it.About, err)
	}
	defer lock.Close()
	e, err := c.find(it)
	if err != nil {
		return nil, err
	}
	if e != nil && it.Current != nil {
		current, err := it.Current(e)
		if err != nil {
			return nil, errors.Join(err, e.Close())
		}
		if !current {
			made, err := c.make(it)
			return made, errors.Join(err, e.Close()) // it may be made of the one before
		}
	}
	if e != nil {
		return e, nil
	}
	return c.make(it)
}

// Find takes an item from the cache, or returns nil if it is not there, too old,
// or damaged.
func (c *Cache) Find(ctx context.Context, it Item) (*Entry, error) {
	lock, err := c.lockKey(ctx, it)
	if err != nil {
		return nil, fmt.Errorf("cannot lock %s in the cache: %w", it.About, err)
	}
	defer lock.Close()
	return c.find(it)
}

// Remember takes an answer from the cache, or asks and keeps it there. Without a cache
// it asks. Of the item Make is not used, and errors of ask are returned as they are.
func Remember[T any](ctx context.Context, cache *Cache, item Item, ask func() (T, error)) (answer T, err error) {
	if cache == nil {
		return ask()
	}
	item.Make = func(dir string) error {
		answer, err := ask()
		if err != nil {
			return err
		}
		text, err := json.Marshal(answer)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, answerFile), text, 0o644)
	}
	e, err := cache.Get(ctx, item)
	if err != nil {
		return answer, err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	return Answer[T](e)
}

const answerFile = "answer.json"

// Answer is what Remember has kept in an entry.
func Answer[T any](e *Entry) (answer T, err error) {
	text, err := os.ReadFile(filepath.Join(e.Content(), answerFile))
	if err != nil {
		return answer, err
	}
	err = json.Unmarshal(text, &answer)
	return answer, err
}

// patience is how long another run is waited for without a word.
const patience = 2 * time.Second

// lockKey locks the key of an item. Nobody makes or removes entries with it
// meanwhile.
func (c *Cache) lockKey(ctx context.Context, it Item) (*os.File, error) {
	told := time.AfterFunc(patience, func() { c.notice("waiting for another run that makes %s, too", it.About) })
	defer told.Stop()
	path := filepath.Join(c.Path, "locks", it.key())
	for {
		lock, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if err := flock(ctx, lock); err != nil {
			return nil, errors.Join(err, lock.Close())
		}
		there, err := stillThere(lock)
		if there || err != nil {
			return lock, err
		}
		lock.Close() // it was removed while this process waited
	}
}

func stillThere(f *os.File) (bool, error) {
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	return info.Sys().(*syscall.Stat_t).Nlink > 0, nil
}

// find looks for the newest good entry. The key is locked.
func (c *Cache) find(it Item) (*Entry, error) {
	names, err := c.generations(it.key())
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		e, err := c.open(name)
		if err != nil {
			return nil, err
		}
		err = e.check(it, c.digest)
		switch {
		case err == nil:
			if err := touch(filepath.Join(e.path, "used")); err != nil {
				return nil, errors.Join(err, e.Close())
			}
			return e, nil
		case errors.Is(err, errTooOld):
			if err := e.Close(); err != nil {
				return nil, err
			}
		default:
			c.notice("%s in the cache is damaged and will not be used: %v", it.About, err)
			if err := e.Close(); err != nil {
				return nil, err
			}
			if _, err := c.evict(name); err != nil {
				return nil, err
			}
		}
	}
	return nil, nil
}

// touch gives a file the present time, and makes it if it is missing.
func touch(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	now := time.Now()
	return errors.Join(f.Close(), os.Chtimes(path, now, now))
}

// generations are the names of the entries with a key, the newest first.
func (c *Cache) generations(key string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(c.Path, "entries"))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if keyOf(e.Name()) == key {
			names = append(names, e.Name())
		}
	}
	slices.Reverse(names)
	return names, nil
}

func keyOf(name string) string {
	key, _, _ := strings.Cut(name, ".")
	return key
}

// open takes an entry into use. Its key is locked.
func (c *Cache) open(name string) (*Entry, error) {
	e := &Entry{Name: name, path: filepath.Join(c.Path, "entries", name)}
	lock, err := os.OpenFile(filepath.Join(e.path, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_SH); err != nil {
		return nil, errors.Join(&fs.PathError{Op: "lock", Path: lock.Name(), Err: err}, lock.Close())
	}
	e.lock = lock
	return e, nil
}

var errTooOld = errors.New("too old")

// Foresee begins to look at what the last run has used of these kinds, before anybody
// asks for it: the check of tens of thousands of files needs nothing that is waited for
// meanwhile. What it finds holds for this process.
func (c *Cache) Foresee(kinds ...string) error {
	all, err := c.list()
	if err != nil {
		return err
	}
	const oneRun = 20 * time.Second
	var last time.Time
	var work []func() (string, error)
	for _, kind := range kinds {
		for _, s := range slices.Backward(all) {
			if !strings.HasPrefix(s.name, kind+"-") || s.useless || !last.IsZero() && last.Sub(s.used).Abs() > oneRun {
				continue
			}
			if last.IsZero() {
				last = s.used
			}
			path := filepath.Join(c.Path, "entries", s.name)
			look := sync.OnceValues(func() (string, error) {
				digest, _, err := contentDigest(filepath.Join(path, contentDir))
				return digest, err
			})
			c.foreseen.Store(path, look)
			work = append(work, look)
		}
	}
	go func() {
		for _, look := range work {
			_, _ = look() // whoever asks gets the error
		}
	}()
	return nil
}

// digest is contentDigest of the content of an entry.
func (c *Cache) digest(e *Entry) (string, error) {
	if look, ok := c.foreseen.Load(e.path); ok {
		return look.(func() (string, error))()
	}
	digest, _, err := contentDigest(e.Content())
	return digest, err
}

// check says what is wrong with an entry for the item.
func (e *Entry) check(it Item, digestOf func(*Entry) (string, error)) error {
	d, err := e.describe()
	if err != nil {
		return err
	}
	switch {
	case d.Layout != cacheLayout:
		return fmt.Errorf("it has the layout %d", d.Layout)
	case d.Key != fullKey(it):
		return errors.New("it is something else")
	case d.old():
		return errTooOld
	}
	digest, err := digestOf(e)
	if err != nil {
		return err
	}
	if digest != d.Digest {
		return errors.New("its content has changed")
	}
	return nil
}

func (e *Entry) describe() (d description, err error) {
	text, err := os.ReadFile(filepath.Join(e.path, entryFile))
	if err != nil {
		return d, err
	}
	err = json.Unmarshal(text, &d)
	return d, err
}

// fullKey is the key at its full length.
func fullKey(it Item) string {
	sum := sha256.New()
	for _, p := range append([]string{it.Kind}, it.parts()...) {
		fmt.Fprintf(sum, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// make makes an entry. The key is locked.
func (c *Cache) make(it Item) (e *Entry, err error) {
	var makeErr error
	defer func() {
		if makeErr == nil {
			wrap(&err, "cannot keep %s in the cache %s", it.About, c.Path)
		}
	}()
	making := filepath.Join(c.Path, "making")
	dir, lock, err := c.begin(it.key())
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	defer func() {
		if err != nil {
			err = errors.Join(err, removeAll(making, filepath.Base(dir)))
		}
	}()
	content := filepath.Join(dir, contentDir)
	if err := os.Mkdir(content, 0o755); err != nil {
		return nil, err
	}
	if makeErr = it.Make(content); makeErr != nil {
		return nil, makeErr
	}
	for _, f := range []string{"lock", "used"} {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
			return nil, err
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "trees"), 0o700); err != nil {
		return nil, err
	}
	d := description{Layout: cacheLayout, Key: fullKey(it), About: it.About, On: it.On, Made: time.Now().UTC()}
	if it.MaxAge > 0 {
		d.Until = d.Made.Add(it.MaxAge)
	}
	if d.Digest, d.Bytes, err = contentDigest(content); err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, entryFile), append(text, '\n'), 0o600); err != nil {
		return nil, err
	}
	older, err := c.generations(it.key())
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%s.%016x", it.key(), d.Made.UnixNano())
	if err := os.Rename(dir, filepath.Join(c.Path, "entries", name)); err != nil {
		return nil, err
	}
	if e, err = c.open(name); err != nil {
		return nil, err
	}
	for _, old := range older {
		if _, err := c.evict(old); err != nil {
			return nil, errors.Join(err, e.Close())
		}
	}
	return e, nil
}

// begin makes a directory in which an entry is made. Its lock, held as long as
// this process lives or works, tells it from what a dead one left.
func (c *Cache) begin(key string) (dir string, lock *os.File, err error) {
	making := filepath.Join(c.Path, "making")
	all, err := lockAll(making, unix.LOCK_SH)
	if err != nil {
		return "", nil, err
	}
	defer all.Close()
	var id [4]byte
	_, _ = rand.Read(id[:])
	dir = filepath.Join(making, key+"."+hex.EncodeToString(id[:]))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", nil, err
	}
	lock, err = os.Open(dir)
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	}
	return dir, lock, err
}

// Sweep removes what dead processes have left half made or half removed.
func (c *Cache) Sweep() error {
	making := filepath.Join(c.Path, "making")
	all, err := lockAll(making, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer all.Close()
	dirs, err := os.ReadDir(making)
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range dirs {
		lock, err := os.Open(filepath.Join(making, d.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			errs = append(errs, removeAll(making, d.Name()))
		}
		lock.Close()
	}
	return errors.Join(errs...)
}

// evict removes an entry unless somebody uses it or a tree names it. Its key is
// locked.
func (c *Cache) evict(name string) (gone bool, err error) {
	defer wrap(&err, "cannot remove %s from the cache %s", name, c.Path)
	path := filepath.Join(c.Path, "entries", name)
	lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return false, ignore(err, unix.EWOULDBLOCK)
	}
	if named, err := isNamed(path); named || err != nil {
		return false, err
	}
	mounts, err := mountsBelow(path)
	if len(mounts) > 0 || err != nil {
		return false, err
	}
	making := filepath.Join(c.Path, "making")
	all, err := lockAll(making, unix.LOCK_SH)
	if err != nil {
		return false, err
	}
	defer all.Close()
	if err := os.Rename(path, filepath.Join(making, name)); err != nil {
		return false, err
	}
	// Closed, since NFS and FUSE keep a file that is open, under another name.
	return true, errors.Join(lock.Close(), removeAll(making, name))
}

// isNamed says whether a tree has a layer of the entry at path, which nobody takes into
// a tree meanwhile. The names of trees that are gone are forgotten.
func isNamed(path string) (named bool, err error) {
	trees := filepath.Join(path, "trees")
	refs, err := os.ReadDir(trees)
	if err != nil {
		return false, ignore(err, fs.ErrNotExist)
	}
	for _, r := range refs {
		ref := filepath.Join(trees, r.Name())
		link, err := os.ReadFile(ref)
		if err != nil {
			return false, err
		}
		target, err := os.Readlink(string(link))
		switch {
		case err == nil && strings.HasPrefix(target, path+"/"):
			named = true
		case err == nil, errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EINVAL):
			if err := os.Remove(ref); err != nil {
				return false, err
			}
		default:
			named = true // it cannot be told
		}
	}
	return named, nil
}

// forget has an entry forget trees that are gone, unless it is in use.
func (c *Cache) forget(name string) error {
	e := filepath.Join(c.Path, "entries", name)
	lock, err := os.Open(filepath.Join(e, "lock"))
	if err != nil {
		return ignore(err, fs.ErrNotExist)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return ignore(err, unix.EWOULDBLOCK)
	}
	_, err = isNamed(e)
	return err
}

// Trim removes what is not needed any more: what dead processes left, entries that
// are too old, for which there is a newer one, or that stand on one that is gone, and, as long as the
// cache is larger than its limit, those that nobody used for the longest time.
func (c *Cache) Trim() error { return c.shrink(c.Limit()) }

// Empty removes everything that is not in use, and returns how many entries are.
func (c *Cache) Empty() (left int, err error) {
	if err := c.shrink(-1); err != nil {
		return 0, err
	}
	all, err := c.list()
	return len(all), err
}

// stored is an entry as shrink sees it.
type stored struct {
	name, on string
	used     time.Time
	bytes    int64
	useless  bool
}

func (c *Cache) shrink(limit int64) (err error) {
	defer wrap(&err, "cannot tidy the cache %s", c.Path)
	if err := c.Sweep(); err != nil {
		return err
	}
	var all []stored
	// What stood on an entry that is removed goes with it, in another round.
	for again := true; again; {
		again = false
		if all, err = c.list(); err != nil {
			return err
		}
		var total int64
		for _, s := range all {
			total += s.bytes
		}
		for _, s := range all {
			if !s.useless && total <= limit {
				continue
			}
			gone, err := c.tryEvict(s.name)
			if err != nil {
				return err
			}
			if gone {
				total -= s.bytes
				again = true
			}
		}
	}
	for _, s := range all {
		if err := c.forget(s.name); err != nil {
			return err
		}
	}
	return c.dropLocks()
}

// list gives all entries, the longest unused first.
func (c *Cache) list() ([]stored, error) {
	dirs, err := os.ReadDir(filepath.Join(c.Path, "entries"))
	if err != nil {
		return nil, err
	}
	var all []stored
	for i, dir := range dirs {
		e := &Entry{path: filepath.Join(c.Path, "entries", dir.Name())}
		s := stored{name: dir.Name()}
		if info, err := os.Stat(filepath.Join(e.path, "used")); err == nil {
			s.used = info.ModTime()
		}
		d, err := e.describe()
		if err != nil {
			s.useless = true
		}
		s.bytes, s.on = d.Bytes, d.On
		newer := i+1 < len(dirs) && keyOf(dirs[i+1].Name()) == keyOf(s.name)
		orphan := s.on != "" && !slices.ContainsFunc(dirs, func(o fs.DirEntry) bool { return o.Name() == s.on })
		s.useless = s.useless || newer || orphan || d.old()
		all = append(all, s)
	}
	slices.SortStableFunc(all, func(a, b stored) int { return a.used.Compare(b.used) })
	return all, nil
}

// tryEvict is evict for those who have not locked the key: it does not wait.
func (c *Cache) tryEvict(name string) (bool, error) {
	lock, err := os.OpenFile(filepath.Join(c.Path, "locks", keyOf(name)), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return false, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return false, ignore(err, unix.EWOULDBLOCK)
	}
	if there, err := stillThere(lock); !there || err != nil {
		return false, err
	}
	return c.evict(name)
}

// dropLocks removes the locks of keys that have no entries.
func (c *Cache) dropLocks() error {
	dir := filepath.Join(c.Path, "locks")
	locks, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, l := range locks {
		path := filepath.Join(dir, l.Name())
		lock, err := os.Open(path)
		if err != nil {
			continue // somebody else removed it
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			names, err := c.generations(l.Name())
			there, thereErr := stillThere(lock)
			if err = errors.Join(err, thereErr); err == nil && len(names) == 0 && there {
				err = os.Remove(path)
			}
			if err != nil {
				return errors.Join(err, lock.Close())
			}
		}
		lock.Close()
	}
	return nil
}
