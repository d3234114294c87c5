package repo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"dkms2bin/internal/deb"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Verified tells what Verify looked at.
type Verified struct {
	Packages int  // stanzas of Packages
	Signed   bool // InRelease or Release.gpg is there
	// Key says whose key the signatures were checked with: "given", or the name
	// of the one in the repository.
	Key      string
	Problems []Problem
}

// Verify checks a published flat repository as a client would, and further: the
// signatures, that Release and InRelease say the same, size and digest of every
// file that they list and of its by-hash file, that the compressed Packages are
// the plain one, and presence, size and digest of every package. keyring is the
// public key, armoured; nil stands for the one in the repository.
//
// It changes nothing and takes no lock. An index that is replaced meanwhile is
// a Problem; so is everything else that is found. An error means that it could
// not look.
func Verify(ctx context.Context, dir string, keyring []byte) (_ Verified, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot verify %s: %w", dir, err)
		}
	}()
	fi, err := os.Stat(dir)
	if err != nil {
		return Verified{}, err
	}
	if !fi.IsDir() {
		return Verified{}, errors.New("it is not a directory")
	}
	v := &verifier{dir: dir}
	text := v.release(ctx, keyring)
	if text == nil {
		return v.Verified, ctx.Err()
	}
	release, err := deb.ParseStanza(text)
	if err != nil {
		v.problem("Release", err)
		return v.Verified, nil
	}
	sums, err := parseSums(release.Get("SHA256"))
	if err != nil {
		v.problem("Release", err)
		return v.Verified, nil
	}
	if !slices.ContainsFunc(sums, func(s sum) bool { return s.name == "Packages" }) {
		v.problem("Release", errors.New("it does not list the uncompressed Packages: apt sees no package and does not say so"))
	}
	for _, s := range sums {
		if err := v.file(ctx, s.name, s); err != nil {
			v.problem(s.name, err)
		}
		if release.Get("Acquire-By-Hash") == "yes" {
			name := path.Join(path.Dir(s.name), byHash(s.digest))
			if err := v.file(ctx, name, s); err != nil {
				v.problem(name, err)
			}
		}
		if suffix := path.Ext(s.name); suffix != "" && strings.TrimSuffix(s.name, suffix) == "Packages" {
			if err := v.unpacked(ctx, s.name, sums); err != nil {
				v.problem(s.name, err)
			}
		}
	}
	if err := v.packages(ctx); err != nil {
		v.problem("Packages", err)
	}
	slices.SortFunc(v.Problems, func(a, b Problem) int {
		return strings.Compare(a.Path+"\x00"+a.Reason, b.Path+"\x00"+b.Reason)
	})
	return v.Verified, ctx.Err()
}

type verifier struct {
	Verified
	dir string
	mu  sync.Mutex
}

func (v *verifier) problem(name string, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.Problems = append(v.Problems, Problem{name, reason(err)})
}

func (v *verifier) path(name string) string { return filepath.Join(v.dir, filepath.FromSlash(name)) }

// read returns the content of a file; nil when there is none.
func (v *verifier) read(name string) []byte {
	f, err := openRegular(v.path(name))
	if err == nil {
		defer f.Close() // read only
		var b []byte
		if b, err = io.ReadAll(io.LimitReader(f, maxRelease)); err == nil {
			return b
		}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		v.problem(name, err)
	}
	return nil
}

// release returns the text of Release, after a look at its signatures; nil
// when there is no use in going on.
func (v *verifier) release(ctx context.Context, keyring []byte) []byte {
	plain, in, detached := v.read("Release"), v.read("InRelease"), v.read("Release.gpg")
	v.Signed = in != nil || detached != nil
	if plain == nil && in == nil {
		v.problem("Release", errors.New("there is none: this is no repository"))
		return nil
	}
	if !v.Signed {
		if keyring != nil {
			v.problem("InRelease", errors.New("there is none: the repository is not signed"))
		}
		return plain
	}
	v.Key = "given"
	if keyring == nil {
		v.Key = KeyName
		if keyring = v.read(KeyName); keyring == nil {
			v.problem(KeyName, errors.New("there is none to check the signatures with"))
			if plain != nil {
				return plain
			}
			return in
		}
	}
	if in != nil {
		text, err := VerifyInRelease(ctx, in, keyring)
		if err != nil {
			v.problem("InRelease", err)
		} else {
			if plain != nil && !bytes.Equal(bytes.TrimRight(text, "\n"), bytes.TrimRight(plain, "\n")) {
				v.problem("Release", errors.New("it does not say what InRelease says"))
			}
			plain = text // what clients go by
		}
	}
	if release := v.read("Release"); detached != nil && release != nil {
		if err := VerifyDetached(ctx, release, detached, keyring); err != nil {
			v.problem("Release.gpg", err)
		}
	}
	return plain
}

// sum is a file that Release lists.
type sum struct {
	digest string
	size   int64
	name   string
}

func parseSums(value string) ([]sum, error) {
	var sums []sum
	seen := make(map[string]bool)
	for line := range strings.SplitSeq(strings.TrimSpace(value), "\n") {
		fields := strings.Fields(line)
		if len(fields) != 3 || !isDigest(fields[0]) || !filepath.IsLocal(fields[2]) {
			return nil, fmt.Errorf("SHA256 has the line %q", line)
		}
		size, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("SHA256 has the line %q", line)
		}
		if seen[fields[2]] {
			return nil, fmt.Errorf("SHA256 has %q twice", fields[2])
		}
		seen[fields[2]] = true
		sums = append(sums, sum{fields[0], size, fields[2]})
	}
	return sums, nil
}

// file checks size and digest of a file.
func (v *verifier) file(ctx context.Context, name string, want sum) error {
	return checkFile(ctx, v.path(name), want)
}

// checkFile says why a file does not have the wanted size and digest.
func checkFile(ctx context.Context, path string, want sum) error {
	f, err := openRegular(path)
	if err != nil {
		return err
	}
	defer f.Close() // read only
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if fi.Size() != want.size {
		return fmt.Errorf("it has %d bytes, and not %d", fi.Size(), want.size)
	}
	sum, err := digest(ctx, f, fi.Size(), nil, make([]byte, 64<<10))
	if err != nil {
		return err
	}
	if got := hex.EncodeToString(sum); got != want.digest {
		return fmt.Errorf("its SHA-256 is %s, and not %s", got, want.digest)
	}
	return nil
}

// unpacked checks that a compressed Packages holds the plain one.
func (v *verifier) unpacked(ctx context.Context, name string, sums []sum) error {
	i := slices.IndexFunc(sums, func(s sum) bool { return s.name == "Packages" })
	if i < 0 {
		return nil
	}
	if fi, err := os.Stat(v.path("Packages")); err != nil || fi.Size() != sums[i].size {
		return nil // known already; and nothing else bounds what it unpacks to
	}
	f, err := openRegular(v.path(name))
	if err != nil {
		return nil // known already
	}
	defer f.Close() // read only
	var r io.Reader
	switch path.Ext(name) {
	case ".gz":
		r, err = gzip.NewReader(f)
	case ".zst":
		var zr *zstd.Decoder
		if zr, err = zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(128<<20)); err == nil {
			defer zr.Close()
		}
		r = zr
	default:
		return nil
	}
	if err != nil {
		return err
	}
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(&contextReader{ctx, r}, sums[i].size+1))
	if err != nil {
		return err
	}
	if n != sums[i].size || hex.EncodeToString(h.Sum(nil)) != sums[i].digest {
		return errors.New("it does not unpack to Packages")
	}
	return nil
}

// packages checks every package that Packages lists.
func (v *verifier) packages(ctx context.Context) error {
	f, err := openRegular(v.path("Packages"))
	if err != nil {
		return nil // known already, if it is listed
	}
	defer f.Close() // read only
	jobs := make(chan sum)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(jobs)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for s := range jobs {
				if err := v.file(ctx, s.name, s); err != nil && ctx.Err() == nil {
					v.problem(s.name, err)
				}
			}
		})
	}
	for r := deb.NewReader(f); ctx.Err() == nil; {
		s, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		v.Packages++
		name := strings.TrimPrefix(s.Get("Filename"), "./")
		size, err := strconv.ParseInt(s.Get("Size"), 10, 64)
		if err != nil || !filepath.IsLocal(name) || !isDigest(s.Get("SHA256")) {
			v.problem("Packages", fmt.Errorf("the stanza of %s %s has no usable Filename, Size and SHA256", s.Get("Package"), s.Get("Version")))
			continue
		}
		jobs <- sum{s.Get("SHA256"), size, name}
	}
	return nil
}
