package erofs

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/criserver/criserver/store/layer/tarstream"
)

// file is a growing file in memory.
type file struct{ b []byte }

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p); need > len(f.b) {
		f.b = append(f.b, make([]byte, need-len(f.b))...)
	}
	return copy(f.b[off:], p), nil
}

func (f *file) Truncate(size int64) error {
	if int(size) < len(f.b) {
		f.b = f.b[:size]
	}
	f.b = append(f.b, make([]byte, int(size)-len(f.b))...)
	return nil
}

// node is a file of an image as the checker found it.
type node struct {
	nid      uint64
	mode     uint16
	uid, gid uint32
	mtime    int64
	nsec     uint32
	nlink    uint32
	rdev     uint32
	content  string // of a file or a link
	xattrs   map[string]string
	seen     uint32 // names found
	subdirs  uint32
}

// checker reads an image as strictly as it can: everything that the kernel or fsck would stumble over is an error.
type checker struct {
	meta, data []byte
	nodes      map[uint64]*node
	paths      map[string]*node
	epoch      int64
	epochNsec  uint32
	problems   []string
}

func (c *checker) bad(format string, args ...any) {
	c.problems = append(c.problems, fmt.Sprintf(format, args...))
}

// check reads the image whole; paths of the result begin with "/".
func check(meta, data []byte) (map[string]*node, error) {
	c := &checker{meta: meta, data: data, nodes: map[uint64]*node{}, paths: map[string]*node{}}
	if len(meta)%4096 != 0 || len(data)%4096 != 0 || len(meta) < 8192 {
		return nil, fmt.Errorf("sizes %d and %d", len(meta), len(data))
	}
	sb := bytes.Clone(meta[1024:4096])
	sum := le.Uint32(sb[4:])
	clear(sb[4:8])
	if got := ^crc32.Checksum(sb, crc32.MakeTable(crc32.Castagnoli)); got != sum || le.Uint32(sb) != 0xe0f5e1e2 {
		return nil, fmt.Errorf("superblock checksum %x, want %x", sum, got)
	}
	c.epoch, c.epochNsec = int64(le.Uint64(sb[24:])), le.Uint32(sb[32:])
	if got := int(le.Uint32(sb[36:])); got*4096 != len(meta) {
		c.bad("metadata has %d blocks, superblock says %d", len(meta)/4096, got)
	}
	if got := int(le.Uint32(meta[int(le.Uint16(sb[88:]))*128+64:])); got*4096 != len(data) {
		c.bad("data has %d blocks, slot says %d", len(data)/4096, got)
	}
	root := uint64(le.Uint16(sb[14:]))
	c.walk("/", root, root)
	if got := le.Uint64(sb[16:]); got != uint64(len(c.nodes)) {
		c.bad("superblock says %d inodes, found %d", got, len(c.nodes))
	}
	for nid, n := range c.nodes {
		want := n.seen
		if n.mode&modeFmt == modeDir {
			want = 2 + n.subdirs
		}
		if n.nlink != want {
			c.bad("inode %d has nlink %d, want %d", nid, n.nlink, want)
		}
	}
	if c.problems != nil {
		return nil, fmt.Errorf("image is damaged: %s", strings.Join(c.problems, "; "))
	}
	return c.paths, nil
}

func (c *checker) walk(path string, nid, parent uint64) {
	n := c.inode(nid)
	n.seen++
	c.paths[path] = n
	if n.mode&modeFmt != modeDir {
		return
	}
	if n.seen > 1 {
		c.bad("directory %s has two names", path)
		return
	}
	last, dots := "", 0
	for off := 0; off < len(n.content); off += 4096 {
		block := n.content[off:min(off+4096, len(n.content))]
		c.names(block, func(name string, child uint64, kind byte) {
			if name <= last && last != "" {
				c.bad("%s: %q after %q", path, name, last)
			}
			last = name
			switch name {
			case ".", "..":
				dots++
				if want := map[string]uint64{".": nid, "..": parent}[name]; child != want {
					c.bad("%s: %s is inode %d, want %d", path, name, child, want)
				}
				return
			}
			c.walk(strings.TrimSuffix(path, "/")+"/"+name, child, nid)
			m := c.nodes[child].mode & modeFmt
			if m == modeDir {
				n.subdirs++
			}
			if fileTypes[m] != kind {
				c.bad("%s/%s: type %d for mode %o", path, name, kind, m)
			}
		})
	}
	if dots != 2 {
		c.bad("%s has %d dots", path, dots)
	}
	n.content = ""
}

func (c *checker) names(block string, f func(name string, nid uint64, kind byte)) {
	b := []byte(block)
	first := int(le.Uint16(b[8:]))
	if first%12 != 0 || first == 0 || first > len(b) {
		c.bad("first name at %d of %d", first, len(b))
		return
	}
	for i := 0; i < first; i += 12 {
		start, end := int(le.Uint16(b[i+8:])), len(b)
		if i+12 < first {
			end = int(le.Uint16(b[i+20:]))
		}
		if start > end || end > len(b) {
			c.bad("name from %d to %d of %d", start, end, len(b))
			return
		}
		name := string(b[start:end])
		if i+12 == first {
			name = strings.TrimRight(name, "\x00")
		}
		if name == "" || strings.ContainsAny(name, "/\x00") || len(name) > 255 {
			c.bad("name %q", name)
		}
		f(name, le.Uint64(b[i:]), b[i+10])
	}
}

func (c *checker) inode(nid uint64) *node {
	if n := c.nodes[nid]; n != nil {
		return n
	}
	b := c.meta[nid*32:]
	n := &node{nid: nid, mode: le.Uint16(b[4:]), xattrs: map[string]string{}}
	c.nodes[nid] = n
	format, u, head := le.Uint16(b), le.Uint32(b[16:]), 32
	size := uint64(le.Uint32(b[8:]))
	if format&1 == 0 {
		n.nlink, n.uid, n.gid = uint32(le.Uint16(b[6:])), uint32(le.Uint16(b[24:])), uint32(le.Uint16(b[26:]))
		n.mtime, n.nsec = c.epoch, c.epochNsec
	} else {
		head = 64
		size = le.Uint64(b[8:])
		n.uid, n.gid, n.mtime = le.Uint32(b[24:]), le.Uint32(b[28:]), int64(le.Uint64(b[32:]))
		n.nsec, n.nlink = le.Uint32(b[40:]), le.Uint32(b[44:])
	}
	if count := int(le.Uint16(b[2:])); count > 0 {
		length := 12 + 4*(count-1)
		for _, a := range decodeXattrs(string(b[head : head+length])) {
			n.xattrs[a.Name] = a.Value
		}
		head += length
	}
	at := int(nid)*32 + head
	switch n.mode & modeFmt {
	case modeChar, modeBlock:
		n.rdev = u
	case modeFifo:
	default:
		n.content = c.content(nid, format>>1&7, u, at, size)
	}
	return n
}

func (c *checker) content(nid uint64, layout uint16, u uint32, at int, size uint64) string {
	switch layout {
	case layoutChunk:
		at = (at + 7) &^ 7
		if u&chunkIndexes == 0 || size > 4096<<(u&31) || c.meta[at+2] != 1 {
			c.bad("inode %d: chunk format %x, device %d for %d bytes", nid, u, c.meta[at+2], size)
			return ""
		}
		start := uint64(le.Uint32(c.meta[at+4:])) * 4096
		for _, b := range c.data[start+size : (start+size+4095)&^4095] {
			if b != 0 {
				c.bad("inode %d: padding is not zero", nid)
			}
		}
		return string(c.data[start : start+size])
	case layoutInline:
		full, tail := size&^4095, int(size&4095)
		if at/4096 != (at+tail-1)/4096 {
			c.bad("inode %d: inline data from %d to %d crosses a block", nid, at, at+tail)
		}
		return string(c.meta[uint64(u)*4096:][:full]) + string(c.meta[at:at+tail])
	}
	return string(c.meta[uint64(u)*4096:][:size])
}

// build makes an image of a tar stream in memory.
func build(stream []byte, l tarstream.Limits) (meta, data *file, err error) {
	meta, data = &file{}, &file{}
	w := NewWriter(meta, data, l)
	defer w.Abort()
	if err := w.Unpack(tarstream.NewReader(ctx, bytes.NewReader(stream), l)); err != nil {
		return nil, nil, err
	}
	_, err = w.Finish([16]byte{1, 2, 3})
	return meta, data, err
}
