package apt

import (
	"crypto/sha256"
	"dkms2bin/internal/deb"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
)

// Content is a digest of what is installed in a layer by what dpkg notes there: name,
// version and state of each package, and the checksums of all its files. Two layers
// that were made at other times, in another order, or on another base, have the same
// digest when the same packages are in them. A layer in which nothing was installed
// has the digest "".
//
// See dpkg-query(1) for the fields, and deb-md5sums(5).
func Content(layer string) (digest string, err error) {
	root, err := os.OpenRoot(layer)
	if err != nil {
		return "", err
	}
	defer root.Close()
	status, err := open(root, statusFile)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer status.Close()
	installed, err := installedIn(status)
	if err != nil {
		return "", fmt.Errorf("cannot read the status of dpkg in %s: %w", layer, err)
	}
	sum, left := sha256.New(), int64(mostContent)
	for _, p := range installed {
		fmt.Fprintln(sum, p)
	}
	info, err := root.OpenRoot("var/lib/dpkg/info")
	if errors.Is(err, fs.ErrNotExist) {
		return hex.EncodeToString(sum.Sum(nil)), nil
	}
	if err != nil {
		return "", err
	}
	defer info.Close()
	lists, err := fs.Glob(info.FS(), "*.md5sums") // sorted
	if err != nil {
		return "", err
	}
	for _, name := range lists {
		f, err := open(info, name)
		if err != nil {
			return "", err
		}
		fmt.Fprintln(sum, "var/lib/dpkg/info/"+name)
		n, err := io.Copy(sum, io.LimitReader(f, left))
		if err := errors.Join(err, f.Close()); err != nil {
			return "", err
		}
		if left -= n; left == 0 {
			return "", fmt.Errorf("dpkg's lists of files in %s have more than %d bytes", layer, mostContent)
		}
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// mostContent is more than dpkg's lists of files ever have, in bytes.
const mostContent = 256 << 20

// open opens a file of dpkg's, in whose place scripts of packages may have put
// something else.
func open(root *os.Root, name string) (*os.File, error) {
	info, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("not a regular file")}
	}
	return root.Open(name)
}

// installedIn lists the packages of a status file, sorted.
func installedIn(status io.Reader) (list []string, err error) {
	r := deb.NewReader(status)
	for {
		s, err := r.Next()
		if errors.Is(err, io.EOF) {
			slices.Sort(list)
			return list, nil
		}
		if err != nil {
			return nil, err
		}
		list = append(list, fmt.Sprintf("%q %q %q %q %q", s.Get("Package"), s.Get("Architecture"), s.Get("Version"), s.Get("Status"), s.Get("Conffiles")))
	}
}

// readList reads dpkg's list of the files of a package that was installed in a layer,
// where it has the plain name.
func readList(layer, name string) ([]byte, error) {
	root, err := os.OpenRoot(layer)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := open(root, "var/lib/dpkg/info/"+name+".list")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, mostOutput))
}
