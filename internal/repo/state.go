package repo

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"time"
)

// saved is what one run leaves for the next. When it is lost or damaged, the
// index is published anew, and grace periods begin again.
type saved struct {
	Version int `json:"version"`
	// Options stands for the options of the published index.
	Options string `json:"options"`
	// Files are the published files by name.
	Files map[string]stamp `json:"files"`
	// Generations are the digests of the files named by the last Releases, the
	// newest first.
	Generations [][]string `json:"generations"`
	// Parts are those of the published Packages, in their order.
	Parts []part `json:"parts"`
	// Unneeded are the files that wait for their removal, since when.
	Unneeded map[string]time.Time `json:"unneeded"`
}

// stamp says whether a published file is still the one that was written.
type stamp struct {
	Size   int64  `json:"size"`
	MTime  int64  `json:"mtime"`
	Inode  uint64 `json:"inode"`
	SHA256 string `json:"sha256"`
}

const (
	stateName    = privateDir + "/state.json"
	stateVersion = 1
	maxState     = 64 << 20
)

func (r *Repo) readState() saved {
	none := saved{Version: stateVersion, Files: map[string]stamp{}, Unneeded: map[string]time.Time{}}
	f, err := openRegular(r.path(stateName))
	if err != nil {
		return none
	}
	defer f.Close() // read only
	s := saved{}
	dec := json.NewDecoder(io.LimitReader(f, maxState))
	if dec.Decode(&s) != nil || s.Version != stateVersion || s.Files == nil || s.Unneeded == nil {
		return none
	}
	for _, generation := range s.Generations {
		for _, digest := range generation {
			if !isDigest(digest) {
				return none
			}
		}
	}
	return s
}

func isDigest(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32
}

func (r *Repo) writeState(s saved) error {
	text, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return err
	}
	return r.Replace(map[string][]byte{stateName: append(text, '\n')})
}

// intact says whether all published files are those that were written, by-hash
// files included.
func (r *Repo) intact(s saved) bool {
	if len(s.Generations) == 0 {
		return false
	}
	for name, want := range s.Files {
		fi, err := os.Lstat(r.path(name))
		if err != nil || !fi.Mode().IsRegular() {
			return false
		}
		if id := identityOf(fi); (stamp{id.size, id.mtime, id.inode, want.SHA256}) != want {
			return false
		}
		if !listed(name) {
			continue
		}
		fi, err = os.Lstat(r.path(byHash(want.SHA256)))
		if err != nil || !fi.Mode().IsRegular() || fi.Size() != want.Size {
			return false
		}
	}
	return true
}

// Replace writes files of the repository, each by a rename and with mode 0644,
// unless it has that content already. The names are slash-separated.
func (r *Repo) Replace(contents map[string][]byte) (err error) {
	var files []*file
	defer func() {
		for _, f := range files {
			err = errors.Join(err, f.discard())
		}
	}()
	for name, content := range contents {
		if old, err := os.ReadFile(r.path(name)); err == nil && bytes.Equal(old, content) {
			continue
		}
		f, err := r.create(name)
		if err != nil {
			return err
		}
		files = append(files, f)
		if _, err := f.Write(content); err != nil {
			return err
		}
	}
	if err := r.ready(files); err != nil {
		return err
	}
	for _, f := range files {
		if err := f.replace(r.path(f.name)); err != nil {
			return err
		}
	}
	return nil
}
