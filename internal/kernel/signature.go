package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A signed module is the ELF file, the signature (PKCS#7, DER), struct module_signature, and this line
// (Linux: include/linux/module_signature.h). The struct has 12 bytes, of which the last four are the
// length of the signature, in network byte order.
const (
	signatureMagic = "~Module signature appended~\n"
	trailerSize    = 12
)

// TrimSignature returns a decompressed module file without the signature appended to it, and whether
// there was one. The result shares its memory with the argument. More than one signature, as signing
// twice leaves them, are all taken off, up to maxSignatures.
func TrimSignature(module []byte) ([]byte, bool, error) {
	size, err := unsignedSize(bytes.NewReader(module), int64(len(module)))
	if err != nil {
		return nil, false, err
	}
	return module[:size], size != int64(len(module)), nil
}

// maxSignatures bounds how many signatures may follow each other.
const maxSignatures = 16

// unsignedSize returns how many of the first size bytes stand before the appended signatures.
func unsignedSize(r io.ReaderAt, size int64) (int64, error) {
	const tail = trailerSize + int64(len(signatureMagic))
	for n := 0; size >= tail; n++ {
		b := make([]byte, tail)
		if _, err := r.ReadAt(b, size-tail); err != nil {
			return 0, err
		}
		if string(b[trailerSize:]) != signatureMagic {
			break
		}
		if n == maxSignatures {
			return 0, fmt.Errorf("more than %d module signatures", maxSignatures)
		}
		length := int64(binary.BigEndian.Uint32(b[trailerSize-4:]))
		if length > size-tail {
			return 0, fmt.Errorf("module signature of %d bytes in a file of %d", length, size)
		}
		size -= tail + length
	}
	return size, nil
}

// AppendedSignature is what stands behind a module that has a signature: the signature, PKCS#7 in DER, what
// tells its kind and length, and the line at the end.
func AppendedSignature(pkcs7 []byte) []byte {
	const idPKCS7 = 2
	out := append(bytes.Clone(pkcs7), 0, 0, idPKCS7, 0, 0, 0, 0, 0)
	out = binary.BigEndian.AppendUint32(out, uint32(len(pkcs7)))
	return append(out, signatureMagic...)
}

// ParseSignature returns the PKCS#7 signature in what stands behind a module: exactly one in the form that
// AppendedSignature makes, which is the only one that kernels take.
func ParseSignature(appended []byte) ([]byte, error) {
	length := len(appended) - trailerSize - len(signatureMagic)
	if length < 0 || !bytes.Equal(AppendedSignature(appended[:length]), appended) {
		return nil, errors.New("what is appended to the module is not one signature in PKCS#7")
	}
	return appended[:length], nil
}
