package repo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"runtime"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// Packages is packed in parts, each without regard to the others: so all cores
// have a share in it, and a part that was there before is not packed again. The
// stanzas alone decide where a part ends, hence the same Packages gives the same
// bytes, and a new stanza makes one new part.
//
// In Packages.gz the parts are blocks of one stream, as pigz -i makes them. In
// Packages.zst each is a frame of its own; a file has as many as it likes (RFC
// 8878), and every apt that knows the format reads them all.
const (
	partEnds = 256     // about one stanza in so many is the last of a part
	maxPart  = 1 << 20 // bytes after which a part ends in any case

	gzipHeader = "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff" // no name, no time, no system
	gzipEnd    = "\x01\x00\x00\xff\xff"                     // an empty block, the last
)

// part is what is remembered of a part.
type part struct {
	Text   string `json:"text"`   // SHA-256 of the stanzas, in hex
	Packed string `json:"packed"` // that of its bytes in Packages.gz, then in Packages.zst
	Gz     int    `json:"gz"`     // how many they are
	Zst    int    `json:"zst"`
}

// piece is a part on its way. Its memory is used again.
type piece struct {
	text, zst []byte
	gz        bytes.Buffer
	part      part
	packed    chan error
}

// writePackages writes the stanzas of the entries to packages, and packed to gz
// and zst.
func (c *collection) writePackages(ctx context.Context, entries []*entry, old *oldParts, packages, gz, zst io.Writer) (parts []part, _ error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// There is room for all pieces in each channel: nothing waits but for a free one.
	pieces := 2 * runtime.GOMAXPROCS(0)
	free, jobs, queue := make(chan *piece, pieces), make(chan *piece, pieces), make(chan *piece, pieces)
	for range pieces {
		free <- &piece{packed: make(chan error, 1)}
	}
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			var packer packer
			for p := range jobs {
				p.packed <- packer.pack(p, old)
			}
		})
	}
	wg.Go(func() {
		err := write(gz, []byte(gzipHeader))
		var crc, size uint32
		for p := range queue { // in the order of the stanzas
			err = errors.Join(err, <-p.packed)
			if err == nil {
				err = errors.Join(write(packages, p.text), write(gz, p.gz.Bytes()), write(zst, p.zst))
			}
			if err != nil {
				cancel(err)
			}
			crc, size = crc32.Update(crc, crc32.IEEETable, p.text), size+uint32(len(p.text))
			parts = append(parts, p.part)
			free <- p
		}
		end := binary.LittleEndian.AppendUint32([]byte(gzipEnd), crc)
		if err := write(gz, binary.LittleEndian.AppendUint32(end, size)); err != nil {
			cancel(err)
		}
	})
	err := c.divide(ctx, entries, free, func(p *piece) {
		queue <- p
		jobs <- p
	})
	close(jobs)
	close(queue)
	wg.Wait()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return parts, err
}

func write(w io.Writer, b []byte) error {
	_, err := w.Write(b)
	return err
}

// divide gives the stanzas of the entries in parts: one at least, as a file of
// none could not be unpacked.
func (c *collection) divide(ctx context.Context, entries []*entry, free <-chan *piece, yield func(*piece)) error {
	var p *piece
	for i := 0; i < len(entries) || i == 0; i++ {
		if p == nil {
			select {
			case p = <-free:
				p.text = p.text[:0]
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		end := true
		if i < len(entries) {
			stanza, err := c.stanza(entries[i])
			if err != nil {
				return err
			}
			p.text = append(p.text, stanza...)
			end = i == len(entries)-1 || len(p.text) >= maxPart ||
				crc32.Checksum([]byte(entries[i].path), castagnoli)%partEnds == 0
		}
		if end {
			yield(p)
			p = nil
		}
	}
	return nil
}

// packer packs parts, one after the other.
type packer struct {
	gz  *flate.Writer
	zst *zstd.Encoder
}

// pack packs p.text, or takes over what it was packed to before.
func (k *packer) pack(p *piece, old *oldParts) (err error) {
	text := hexDigest(p.text)
	if old.read(text, p) {
		return nil
	}
	if k.gz == nil {
		if k.gz, err = flate.NewWriter(nil, 6); err != nil {
			return err
		}
		if k.zst, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(maxPart), zstd.WithLowerEncoderMem(true)); err != nil {
			return err
		}
	}
	// Both at once: most repositories have one part.
	var wg sync.WaitGroup
	wg.Go(func() { p.zst = k.zst.EncodeAll(p.text, p.zst[:0]) })
	p.gz.Reset()
	k.gz.Reset(&p.gz)
	_, err = k.gz.Write(p.text)
	err = errors.Join(err, k.gz.Flush())
	wg.Wait()
	if err != nil {
		return err
	}
	p.part = part{text, hexDigest(p.gz.Bytes(), p.zst), p.gz.Len(), len(p.zst)}
	return nil
}

func hexDigest(texts ...[]byte) string {
	h := sha256.New()
	for _, text := range texts {
		_, _ = h.Write(text) // never fails
	}
	return hex.EncodeToString(h.Sum(nil))
}

// oldParts are the parts of the published index.
type oldParts struct {
	gz, zst *os.File // closed where there are none
	known   map[string]oldPart
}

type oldPart struct {
	part
	gzAt, zstAt int64
}

// openParts finds the parts of the published index. What cannot be found is
// packed anew.
func (r *Repo) openParts(st saved) *oldParts {
	o := &oldParts{known: make(map[string]oldPart)}
	var err, err2 error
	o.gz, err = openRegular(r.path(byHash(st.Files["Packages.gz"].SHA256)))
	o.zst, err2 = openRegular(r.path(byHash(st.Files["Packages.zst"].SHA256)))
	if err != nil || err2 != nil {
		return o
	}
	gzAt, zstAt := int64(len(gzipHeader)), int64(0)
	for _, p := range st.Parts {
		o.known[p.Text] = oldPart{p, gzAt, zstAt}
		gzAt += int64(p.Gz)
		zstAt += int64(p.Zst)
	}
	return o
}

func (o *oldParts) close() {
	_, _ = o.gz.Close(), o.zst.Close() // read only; nil is an error that matters as little
}

// read gives p what the part with that digest was packed to, if it is there
// unharmed.
func (o *oldParts) read(text string, p *piece) bool {
	old, ok := o.known[text]
	if !ok || old.Gz < 0 || old.Zst < 0 || old.Gz > 2*maxPart || old.Zst > 2*maxPart {
		return false
	}
	p.gz.Reset()
	_, err := p.gz.ReadFrom(io.NewSectionReader(o.gz, old.gzAt, int64(old.Gz)))
	p.zst = append(p.zst[:0], make([]byte, old.Zst)...)
	_, err2 := o.zst.ReadAt(p.zst, old.zstAt)
	p.part = old.part
	return err == nil && (err2 == nil || errors.Is(err2, io.EOF)) && hexDigest(p.gz.Bytes(), p.zst) == old.Packed
}
