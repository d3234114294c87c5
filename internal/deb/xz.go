package deb

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"hash/crc64"
	"sync"
)

// The parts of an .xz file around its LZMA2 data
// (https://tukaani.org/xz/xz-file-format.txt).
const (
	xzMagic      = "\xfd7zXZ\x00"
	xzEnd        = "YZ"
	xzHeaderSize = 12 // of the header and of the footer
	xzCRC32      = 1
	xzCRC64      = 4
	xzLZMA2      = 0x21
)

var crc64Table = crc64.MakeTable(crc64.ECMA)

// unxz returns what an .xz file unpacks to, in dst as far as there is room: one
// as dpkg-deb writes it, of one stream and LZMA2 alone, with CRC-32 or CRC-64,
// and of no more than maxUnpacked bytes. Of any other file, a damaged one among them,
// it says no more than that, and a full decoder has to tell what it is. What it
// does return has passed all checksums.
//
// It is there for its speed: next to the digests, unpacking control.tars is what
// takes time in reading a pool, and decoders that take a stream piece by piece
// need a third more.
func unxz(dst, src []byte) (_ []byte, ok bool) {
	le := binary.LittleEndian
	if len(src) < 2*xzHeaderSize {
		return nil, false
	}
	header, footer := src[:xzHeaderSize], src[len(src)-xzHeaderSize:]
	if string(header[:6]) != xzMagic || crc32.ChecksumIEEE(header[6:8]) != le.Uint32(header[8:]) ||
		string(footer[10:]) != xzEnd || crc32.ChecksumIEEE(footer[4:10]) != le.Uint32(footer) ||
		!bytes.Equal(header[6:8], footer[8:10]) || header[6] != 0 {
		return nil, false
	}
	src = src[xzHeaderSize : len(src)-xzHeaderSize]
	indexSize := (int64(le.Uint32(footer[4:])) + 1) * 4
	if indexSize > int64(len(src)) {
		return nil, false
	}
	src, index := src[:len(src)-int(indexSize)], src[len(src)-int(indexSize):]

	d := lzmaDecoders.Get().(*lzmaDecoder)
	defer lzmaDecoders.Put(d)
	dst = dst[:0]
	var records []byte
	blocks := uint64(0)
	for ; len(src) > 0; blocks++ {
		start := len(dst)
		var size int // of the block, without the padding
		if dst, size, ok = d.block(dst, src, header[7], maxUnpacked); !ok {
			return nil, false
		}
		records = binary.AppendUvarint(records, uint64(size))
		records = binary.AppendUvarint(records, uint64(len(dst)-start))
		src = src[min(len(src), (size+3)/4*4):]
	}
	want := append(binary.AppendUvarint([]byte{0}, blocks), records...)
	want = append(want, make([]byte, -len(want)&3)...)
	want = le.AppendUint32(want, crc32.ChecksumIEEE(want))
	return dst, bytes.Equal(index, want)
}

// block appends what the block at the beginning of src unpacks to, and returns
// the size of the block from its header to its check.
func (d *lzmaDecoder) block(dst, src []byte, check byte, limit int) (_ []byte, size int, ok bool) {
	headerSize := (int(src[0]) + 1) * 4
	if src[0] == 0 || len(src) < headerSize {
		return nil, 0, false
	}
	header := src[:headerSize-4]
	if crc32.ChecksumIEEE(header) != binary.LittleEndian.Uint32(src[headerSize-4:]) {
		return nil, 0, false
	}
	const packedSize, unpackedSize = 0x40, 0x80
	flags, rest := header[1], header[2:]
	if flags&^(packedSize|unpackedSize) != 0 { // more than one filter, or what is to come
		return nil, 0, false
	}
	announced := func(flag byte) (int64, bool) {
		if flags&flag == 0 {
			return -1, true
		}
		v, n := binary.Uvarint(rest)
		if n <= 0 || int64(v) < 0 {
			return 0, false
		}
		rest = rest[n:]
		return int64(v), true
	}
	packed, ok1 := announced(packedSize)
	unpacked, ok2 := announced(unpackedSize)
	if !ok1 || !ok2 || len(rest) < 3 || rest[0] != xzLZMA2 || rest[1] != 1 || rest[2] > 40 ||
		len(bytes.Trim(rest[3:], "\x00")) > 0 {
		return nil, 0, false
	}
	dict := uint64(2|rest[2]&1) << (rest[2]/2 + 11)
	if dict > maxDict {
		return nil, 0, false
	}

	start := len(dst)
	data := src[headerSize:]
	dst, n, ok := d.lzma2(dst, data, dict, limit)
	if !ok || packed >= 0 && packed != int64(n) || unpacked >= 0 && unpacked != int64(len(dst)-start) {
		return nil, 0, false
	}
	padded := (n + 3) / 4 * 4
	var sum []byte
	switch check {
	case xzCRC32:
		sum = binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(dst[start:]))
	case xzCRC64:
		sum = binary.LittleEndian.AppendUint64(nil, crc64.Checksum(dst[start:], crc64Table))
	default:
		return nil, 0, false
	}
	if len(data) < padded+len(sum) || len(bytes.Trim(data[n:padded], "\x00")) > 0 || !bytes.Equal(data[padded:padded+len(sum)], sum) {
		return nil, 0, false
	}
	return dst, headerSize + n + len(sum), true
}

// lzma2 appends what the LZMA2 data at the beginning of src unpacks to, and
// returns the size of the data: chunks, each with a header that tells its size
// packed and unpacked.
func (d *lzmaDecoder) lzma2(dst, src []byte, dict uint64, limit int) (_ []byte, size int, ok bool) {
	const (
		end, copyNewDict, copied = 0, 1, 2 // control bytes
		packed                   = 0x80    // this bit: LZMA
		newState, newProps       = 0xa0, 0xc0
		newDict                  = 0xe0
	)
	needDict, needProps := true, true
	base := len(dst)
	for pos := 0; pos < len(src); {
		control, head := src[pos], src[pos:]
		if control == end {
			return dst, pos + 1, true
		}
		if len(head) < 6 {
			break
		}
		if control >= newDict || control == copyNewDict {
			base = len(dst)
			needDict, needProps = false, true
		}
		if needDict || control > copied && control < packed {
			break
		}
		unpacked := int(binary.BigEndian.Uint16(head[1:])) + 1
		if control < packed {
			if pos += 3 + unpacked; pos > len(src) || len(dst)+unpacked > limit {
				break
			}
			dst = append(dst, head[3:3+unpacked]...)
			continue
		}
		unpacked += int(control&0x1f) << 16
		n := int(binary.BigEndian.Uint16(head[3:])) + 1
		pos += 5
		if control >= newProps {
			pos++
			if needProps = !d.properties(head[5]); needProps {
				break
			}
		}
		if needProps || len(dst)+unpacked > limit || pos+n > len(src) {
			break
		}
		if control >= newState {
			d.reset()
		}
		at := len(dst)
		dst = append(dst, make([]byte, unpacked)...)
		if !d.chunk(dst, at, base, src[pos:pos+n], dict) {
			break
		}
		pos += n
	}
	return nil, 0, false
}

var lzmaDecoders = sync.Pool{New: func() any { return new(lzmaDecoder) }}

// The numbers of the LZMA specification.
const (
	lzmaStates    = 12
	lzmaLiterals  = 7       // states below come after a literal
	lzmaPositions = 16      // at most
	lzmaTop       = 1 << 24 // the range is kept above
	lzmaBits      = 11      // of a probability
	lzmaMove      = 5
	lzmaMinMatch  = 2
)

// prob is the probability of a bit to be 0, of 2048.
type prob = uint16

// lzmaDecoder is the state that lasts from one chunk to the next.
type lzmaDecoder struct {
	lc, lpMask, posMask uint // properties
	state               uint
	rep                 [4]uint // distances of the last matches, less one

	isMatch, isRep0Long           [lzmaStates][lzmaPositions]prob
	isRep, isRep0, isRep1, isRep2 [lzmaStates]prob
	slot                          [4][64]prob
	special                       [128]prob
	align                         [16]prob
	matchLength, repLength        lengthProbs
	literal                       [16][0x300]prob
}

type lengthProbs struct {
	choice, choice2 prob
	low, mid        [lzmaPositions][8]prob
	high            [256]prob
}

func (d *lzmaDecoder) properties(b byte) bool {
	lc, lp, pb := uint(b)%9, uint(b)/9%5, uint(b)/45
	d.lc, d.lpMask, d.posMask = lc, 1<<lp-1, 1<<pb-1
	return pb <= 4 && lc+lp <= 4
}

func fill(probs []prob) {
	for i := range probs {
		probs[i] = 1 << (lzmaBits - 1)
	}
}

func (d *lzmaDecoder) reset() {
	d.state, d.rep = 0, [4]uint{}
	for i := range lzmaStates {
		fill(d.isMatch[i][:])
		fill(d.isRep0Long[i][:])
	}
	for _, p := range [][]prob{d.isRep[:], d.isRep0[:], d.isRep1[:], d.isRep2[:], d.special[:], d.align[:]} {
		fill(p)
	}
	for i := range d.slot {
		fill(d.slot[i][:])
	}
	for _, l := range []*lengthProbs{&d.matchLength, &d.repLength} {
		l.choice, l.choice2 = 1<<(lzmaBits-1), 1<<(lzmaBits-1)
		for i := range lzmaPositions {
			fill(l.low[i][:])
			fill(l.mid[i][:])
		}
		fill(l.high[:])
	}
	for i := range (d.lpMask + 1) << d.lc {
		fill(d.literal[i][:])
	}
}

// chunk unpacks LZMA data to dst[at:]. Matches reach back to dst[base], and no
// further than dict.
func (d *lzmaDecoder) chunk(dst []byte, at, base int, src []byte, dict uint64) bool {
	if len(src) < 5 || src[0] != 0 {
		return false
	}
	r := rangeDecoder{src[5:], 1<<32 - 1, binary.BigEndian.Uint32(src[1:])}
	state := d.state
	for at < len(dst) {
		posState := uint(at-base) & d.posMask
		var b uint
		if r, b = r.bit(&d.isMatch[state][posState]); b == 0 {
			last := uint(0)
			if at > base {
				last = uint(dst[at-1])
			}
			probs := &d.literal[(uint(at-base)&d.lpMask)<<d.lc+last>>(8-d.lc)]
			if state < lzmaLiterals {
				r, dst[at] = r.literal(probs)
			} else {
				r, dst[at] = r.matchedLiteral(probs, dst[at-1-int(d.rep[0])])
			}
			at++
			state = afterLiteral[state]
			continue
		}
		after := uint(0) // 3 when the symbol before was no literal
		if state >= lzmaLiterals {
			after = 3
		}
		length := uint(1)
		if r, b = r.bit(&d.isRep[state]); b == 0 {
			r, length = r.length(&d.matchLength, posState)
			d.rep[3], d.rep[2], d.rep[1] = d.rep[2], d.rep[1], d.rep[0]
			r, d.rep[0] = d.distance(r, length)
			state = 7 + after
		} else {
			r, b = d.repeated(r, state, posState)
			if b != 0 {
				r, length = r.length(&d.repLength, posState)
				state = 8 + min(after, 3)
			} else {
				state = 9 + min(after, 2)
			}
		}
		back := d.rep[0] + 1
		if back > uint(at-base) || uint64(back) > dict || length > uint(len(dst)-at) {
			return false
		}
		// What is copied may overlap what it is copied from.
		for end := at + int(length); at < end; {
			at += copy(dst[at:end], dst[at-int(back):at])
		}
	}
	d.state = state
	r = r.normalize()
	return r.code == 0 && len(r.in) == 0
}

// afterLiteral is the state that follows another one with a literal.
var afterLiteral = [lzmaStates]uint{0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 4, 5}

// repeated chooses one of the last distances; 0 says that the match has one byte.
func (d *lzmaDecoder) repeated(r rangeDecoder, state, posState uint) (rangeDecoder, uint) {
	r, b := r.bit(&d.isRep0[state])
	if b == 0 {
		return r.bit(&d.isRep0Long[state][posState])
	}
	i := 1
	if r, b = r.bit(&d.isRep1[state]); b != 0 {
		r, b = r.bit(&d.isRep2[state])
		i = 2 + int(b)
	}
	dist := d.rep[i]
	copy(d.rep[1:i+1], d.rep[:i])
	d.rep[0] = dist
	return r, 1
}

// rangeDecoder reads bits. It is handed on by value, and so stays in registers.
// Beyond the end of the input it reads zeros: the checksum tells.
type rangeDecoder struct {
	in          []byte
	width, code uint32
}

func (r rangeDecoder) normalize() rangeDecoder {
	if r.width < lzmaTop {
		r.width <<= 8
		r.code <<= 8
		if len(r.in) > 0 {
			r.code |= uint32(r.in[0])
			r.in = r.in[1:]
		}
	}
	return r
}

// bit reads a bit of probability p.
func (r rangeDecoder) bit(p *prob) (rangeDecoder, uint) {
	r = r.normalize()
	bound := (r.width >> lzmaBits) * uint32(*p)
	if r.code < bound {
		r.width = bound
		*p += (1<<lzmaBits - *p) >> lzmaMove
		return r, 0
	}
	r.width -= bound
	r.code -= bound
	*p -= *p >> lzmaMove
	return r, 1
}

// tree reads a number below len(probs), a power of two, from its highest bit on.
func (r rangeDecoder) tree(probs []prob) (rangeDecoder, uint) {
	i := uint(1)
	for i < uint(len(probs)) {
		var b uint
		r, b = r.bit(&probs[i])
		i = i<<1 | b
	}
	return r, i - uint(len(probs))
}

// reverse reads a number of so many bits, from its lowest bit on.
func (r rangeDecoder) reverse(probs []prob, bits uint) (rangeDecoder, uint) {
	i, v := uint(1), uint(0)
	for n := range bits {
		var b uint
		r, b = r.bit(&probs[i])
		i = i<<1 | b
		v |= b << n
	}
	return r, v
}

// direct reads a number of so many bits that are 0 or 1 equally often.
func (r rangeDecoder) direct(bits uint) (rangeDecoder, uint) {
	v := uint(0)
	for range bits {
		r = r.normalize()
		r.width >>= 1
		b := uint(0)
		if r.code >= r.width {
			r.code -= r.width
			b = 1
		}
		v = v<<1 | b
	}
	return r, v
}

func (r rangeDecoder) length(l *lengthProbs, posState uint) (rangeDecoder, uint) {
	r, b := r.bit(&l.choice)
	if b == 0 {
		r, b = r.tree(l.low[posState][:])
		return r, lzmaMinMatch + b
	}
	if r, b = r.bit(&l.choice2); b == 0 {
		r, b = r.tree(l.mid[posState][:])
		return r, lzmaMinMatch + 8 + b
	}
	r, b = r.tree(l.high[:])
	return r, lzmaMinMatch + 16 + b
}

// distance reads the distance of a match of the given length, less one.
func (d *lzmaDecoder) distance(r rangeDecoder, length uint) (rangeDecoder, uint) {
	r, slot := r.tree(d.slot[min(length-lzmaMinMatch, 3)][:])
	if slot < 4 {
		return r, slot
	}
	bits := slot>>1 - 1
	dist := (2 | slot&1) << bits
	var low uint
	if slot < 14 {
		r, low = r.reverse(d.special[dist-slot:], bits)
		return r, dist + low
	}
	r, low = r.direct(bits - 4)
	dist += low << 4
	r, low = r.reverse(d.align[:], 4)
	return r, dist + low
}

// literal reads a byte, where most of the time goes. It is tree without a branch
// that depends on a bit: half of them would be mispredicted.
func (r rangeDecoder) literal(probs *[0x300]prob) (rangeDecoder, byte) {
	i := uint32(1)
	for i < 0x100 {
		r = r.normalize()
		p := uint32(probs[i&0xff])
		bound := (r.width >> lzmaBits) * p
		one := uint32(int64(uint64(bound)-uint64(r.code)-1) >> 63) // all ones for a 1
		probs[i&0xff] = prob(p - uint32(int32(p-(1<<lzmaBits-1<<lzmaMove+1)&^one)>>lzmaMove))
		r.code -= bound & one
		r.width = bound + (r.width-2*bound)&one
		i = i<<1 - one
	}
	return r, byte(i)
}

// matchedLiteral reads a byte after a match: one that is unlike that which would
// have continued it.
func (r rangeDecoder) matchedLiteral(probs *[0x300]prob, match byte) (rangeDecoder, byte) {
	i, m, offset := uint(1), uint(match), uint(0x100)
	for i < 0x100 {
		m <<= 1
		same := m & offset
		var b uint
		r, b = r.bit(&probs[offset+same+i])
		i = i<<1 | b
		if b != 0 {
			offset &= same
		} else {
			offset &^= same
		}
	}
	return r, byte(i)
}
