package rootfs

import (
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"io"
	"os"
)

// ProgramID tells this program from all others, for the keys of what it makes: what Go's
// linker notes in it, which has a digest of its content (go tool buildid), or, where
// that was left out or stripped, a digest of the file.
func ProgramID() (string, error) { return programID("/proc/self/exe") }

func programID(path string) (id string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// The header, the name "Go", and the ID.
	const header, least = 16, 40
	if program, err := elf.NewFile(f); err == nil {
		if note := program.Section(".note.go.buildid"); note != nil {
			if text, err := note.Data(); err == nil && len(text) >= header+least {
				return hex.EncodeToString(text[header:]), nil
			}
		}
	}
	sum := sha256.New()
	_, err = io.Copy(sum, io.NewSectionReader(f, 0, 1<<62))
	return hex.EncodeToString(sum.Sum(nil)), err
}
