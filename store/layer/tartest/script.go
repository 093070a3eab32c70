package tartest

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strings"
	"time"
)

// Script makes an archive of a script with an entry a line: a letter for its type, then words; name, size or link
// target, extended attributes. Random bytes of an archive would hardly get past the checksums of its headers.
func Script(script string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, line := range strings.Split(script, "\n") {
		words := strings.Split(line, " ")
		if len(words) < 2 || words[0] == "" {
			continue
		}
		h := tar.Header{Typeflag: words[0][0], Name: words[1], Mode: int64(len(line)), Uid: len(words), Format: tar.FormatPAX,
			ModTime: time.Unix(int64(len(words[1])%2), 0), PAXRecords: map[string]string{}}
		if len(words) > 2 {
			h.Linkname = words[2]
			if h.Typeflag == tar.TypeReg {
				h.Linkname, h.Size = "", int64(len(words[2])*len(words[2]))
			}
		}
		for i := 4; i < len(words); i += 2 {
			h.PAXRecords["SCHILY.xattr."+words[i-1]] = words[i]
		}
		if w.WriteHeader(&h) == nil && h.Size > 0 {
			_, _ = w.Write(bytes.Repeat([]byte{'x'}, int(h.Size))) // a short archive is a case too
		}
	}
	_ = w.Close()
	return b.Bytes()
}

// Block is the unit of an archive in bytes.
const Block = 512

// Patch overwrites a part of an archive and makes the checksum right of the header that it is in, if it is one.
func Patch(stream []byte, off int, p []byte) []byte {
	b := bytes.Clone(stream)
	if off >= len(b) {
		return b
	}
	copy(b[off:], p)
	if at := off / Block * Block; at+Block <= len(b) {
		Sum(b[at : at+Block])
	}
	return b
}

// Sum writes the checksum of a header.
func Sum(header []byte) {
	sum := 0
	copy(header[148:156], "        ")
	for _, c := range header {
		sum += int(c)
	}
	copy(header[148:], fmt.Sprintf("%06o\x00 ", sum))
}

// Header is a ustar header with fields that package tar refuses to write; size is 12 bytes as they stand there.
func Header(name string, kind byte, size string) []byte {
	b := make([]byte, Block)
	copy(b, name)
	copy(b[100:], "0000644\x000000000\x000000000\x00")
	copy(b[124:136], size)
	copy(b[136:], "00000000000\x00")
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	Sum(b)
	return b
}

// PAX is an extended header (kind 'x') or a global one ('g') of records, each a key, "=" and a value.
func PAX(kind byte, records ...string) []byte {
	var body []byte
	for _, r := range records {
		n := len(r) + 3 // a space, a newline and one digit
		for len(fmt.Sprint(n))+len(r)+2 > n {
			n++
		}
		body = fmt.Appendf(body, "%d %s\n", n, r)
	}
	b := Header("pax", kind, fmt.Sprintf("%011o\x00", len(body)))
	b = append(b, body...)
	return append(b, make([]byte, -len(body)&(Block-1))...)
}
