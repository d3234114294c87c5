// Package modsign makes the module files of a package ready: it strips them of what is for
// debuggers, signs them, and compresses them as the kernel's own modules are, in this order,
// since a signature covers what stands before it, and the kernel decompresses first. The same
// module and key give the same bytes, with RSA keys; signatures by ECDSA have chance in them.
//
// Everything runs on the host: strip of binutils, openssl, the user's own signer, xz. What is
// handed to them lies in a directory that only the user can enter.
package modsign

import (
	"bytes"
	"context"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/kernel"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Finish makes module m ready for a kernel and returns its new file, in dir, which exists and is
// the caller's alone. Without a signer a signature that the module has stays, and with it all that
// it covers.
func Finish(ctx context.Context, dir string, m kernel.Module, facts kernel.Facts, signer *Signer) (path string, sig Signature, err error) {
	name := filepath.Base(m.Path)
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot make %s ready for its package: %w", name, err)
		}
	}()
	content, err := kernel.ReadPlain(m.Path)
	if err != nil {
		return "", sig, err
	}
	if i := strings.LastIndex(name, ".ko"); i >= 0 {
		name = name[:i+len(".ko")]
	}
	path = filepath.Join(dir, name)
	if signer != nil {
		if content, _, err = kernel.TrimSignature(content); err != nil {
			return "", sig, err
		}
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return "", sig, err
	}
	if m.Debug && (signer != nil || !m.Signed) {
		if err := strip(ctx, path); err != nil {
			return "", sig, err
		}
	}
	if signer != nil {
		if sig, err = signer.sign(ctx, path, facts.SigHash); err != nil {
			return "", sig, err
		}
	}
	path, err = compress(ctx, path, facts.Compression)
	return path, sig, err
}

// strip takes away what debuggers alone need, as the kernel's INSTALL_MOD_STRIP and dkms do. Symbols,
// relocations and .BTF stay.
func strip(ctx context.Context, path string) error {
	err := run(exec.CommandContext(ctx, "strip", "--strip-debug", path))
	if err != nil {
		return diag.WithHint(err, "strip must know the module's architecture: install binutils, for a foreign one binutils-multiarch")
	}
	return nil
}

// compress packs a file as its suffix, without the dot, says; "" leaves it as it is. xz gets the check
// and the dictionary that the kernel's own decompressor can do (Linux: scripts/Makefile.modinst).
func compress(ctx context.Context, path, suffix string) (string, error) {
	if suffix == "" {
		return path, nil
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	switch suffix {
	case "gz":
		err = through(content, func() (io.WriteCloser, error) { return gzip.NewWriterLevel(&b, gzip.BestCompression) })
	case "zst":
		err = through(content, func() (io.WriteCloser, error) {
			return zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithWindowSize(2<<20))
		})
	case "xz":
		cmd := exec.CommandContext(ctx, "xz", "--compress", "--stdout", "--format=xz", "--check=crc32", "--threads=1", "--lzma2=preset=6,dict=1MiB")
		cmd.Stdin, cmd.Stdout = bytes.NewReader(content), &b
		err = diag.WithHint(run(cmd), "install xz-utils")
	default:
		err = fmt.Errorf("unknown compression %q", suffix)
	}
	if err != nil {
		return "", err
	}
	return path + "." + suffix, os.WriteFile(path+"."+suffix, b.Bytes(), 0o600)
}

func through(content []byte, open func() (io.WriteCloser, error)) error {
	w, err := open()
	if err != nil {
		return err
	}
	_, err = w.Write(content)
	return errors.Join(err, w.Close())
}

// run runs a command of the host without a terminal to ask on. An error has the end of what it
// printed, and no arguments, which may say where keys are.
func run(cmd *exec.Cmd, env ...string) error {
	var printed tail
	cmd.Stderr = &printed
	if cmd.Stdout == nil {
		cmd.Stdout = &printed
	}
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, PassphraseVariable+"=") })
	cmd.Env = append(append(cmd.Env, "LC_ALL=C"), env...)
	err := cmd.Run()
	if err == nil {
		return nil
	}
	text := strings.Join(strings.Fields(diag.Printable(string(printed))), " ")
	if text == "" || errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%s: %w", filepath.Base(cmd.Path), err)
	}
	return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, text)
}

// tail keeps the end of what is written.
type tail []byte

func (t *tail) Write(p []byte) (int, error) {
	const most = 500
	*t = append(*t, p...)
	*t = (*t)[max(0, len(*t)-most):]
	return len(p), nil
}
