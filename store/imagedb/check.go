package imagedb

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
)

// bbolt's file format: pages, of which 0 and 1 are meta pages written in turn. Little endian on every machine that
// criserver runs on. Offsets are in bytes.
const (
	pageHeader = 16 // id u64, flags u16, count u16, overflow u32
	elemSize   = 16 // branch: pos u32, ksize u32, pgid u64; leaf: flags u32, pos u32, ksize u32, vsize u32
	bucketSize = 16 // root pgid u64, sequence u64; an inline page follows if root is 0

	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagFreelist = 0x10
	leafBucket   = 0x01 // flag of a leaf element whose value is a bucket

	metaMagic   = 0xED0CDAED
	metaVersion = 2
	metaSize    = 64 // the checksum, over what precedes it, is the last 8 bytes

	noFreelist = ^uint64(0)
	maxDepth   = 64      // of pages and buckets together; ours is 3
	maxFile    = 1 << 30 // bytes; some thousand images take a few megabytes
)

var le = binary.LittleEndian

var errUnordered = errors.New("keys are not in order")

// checker walks a database file in memory, trusting no number in it.
type checker struct {
	data     []byte
	pageSize uint64
	pages    uint64 // high-water mark: all page numbers are below it
	used     map[uint64]bool
}

// check says whether bbolt can open the file at path without meeting a page that is out of bounds, of the wrong kind,
// used twice, or both used and free. An absent file is fs.ErrNotExist, an empty one is fine.
func check(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return fmt.Errorf("not a file of at most %d bytes", maxFile)
	}
	data, err := os.ReadFile(path)
	if err != nil || len(data) == 0 {
		return err
	}
	return checkData(data)
}

func checkData(data []byte) error {
	c := &checker{data: data, pageSize: uint64(os.Getpagesize()), used: map[uint64]bool{0: true, 1: true}}
	meta, err := c.meta()
	if err != nil {
		return err
	}
	root, freelist := le.Uint64(meta[16:]), le.Uint64(meta[32:])
	if c.pages = le.Uint64(meta[40:]); c.pages > uint64(len(data))/c.pageSize {
		return fmt.Errorf("file is truncated: %d bytes of %d pages", len(data), c.pages)
	}
	if err := c.tree(root, 0, limits{}); err != nil {
		return err
	}
	return c.freelist(freelist)
}

// meta returns the newer of the two meta pages. Both must be whole: bbolt would go on with one, but the other is torn
// only while a transaction is being written, and then its state is the older one, which is what bbolt opens too.
func (c *checker) meta() ([]byte, error) {
	var newest []byte
	for i := range uint64(2) {
		off := i * c.pageSize
		if off+pageHeader+metaSize > uint64(len(c.data)) {
			return nil, errors.New("file is too short for its meta pages")
		}
		m := c.data[off+pageHeader:][:metaSize]
		sum := fnv.New64a()
		_, _ = sum.Write(m[:metaSize-8]) // never fails
		valid := le.Uint32(m) == metaMagic && le.Uint32(m[4:]) == metaVersion && sum.Sum64() == le.Uint64(m[metaSize-8:])
		if valid && uint64(le.Uint32(m[8:])) == c.pageSize && (newest == nil || le.Uint64(m[48:]) > le.Uint64(newest[48:])) {
			newest = m
		}
	}
	if newest == nil {
		return nil, errors.New("no valid meta page")
	}
	return newest, nil
}

// claim returns the bytes of a page with its overflow and marks it as used.
func (c *checker) claim(id uint64) ([]byte, error) {
	if id < 2 || id >= c.pages {
		return nil, fmt.Errorf("page %d is outside of 2..%d", id, c.pages)
	}
	p := c.data[id*c.pageSize:]
	n := uint64(le.Uint32(p[12:])) + 1
	if le.Uint64(p) != id || n > c.pages-id {
		return nil, fmt.Errorf("page %d has a wrong header", id)
	}
	for i := id; i < id+n; i++ {
		if c.used[i] {
			return nil, fmt.Errorf("page %d is used twice", i)
		}
		c.used[i] = true
	}
	return p[:n*c.pageSize], nil
}

// limits are the keys that a page may hold: the first is exactly low, since bbolt finds a page's entry in its parent by
// the page's own first key, and all are below high. nil is no limit.
type limits struct{ low, high []byte }

// admit says whether key, following previous (nil: none), may stand in the page.
func (l limits) admit(previous, key []byte) bool {
	if previous == nil && l.low != nil && !bytes.Equal(l.low, key) {
		return false
	}
	return bytes.Compare(previous, key) < 0 && (l.high == nil || bytes.Compare(key, l.high) < 0)
}

func (c *checker) tree(id uint64, depth int, within limits) error {
	if depth > maxDepth {
		return errors.New("pages are nested too deeply")
	}
	p, err := c.claim(id)
	if err != nil {
		return err
	}
	if err := c.page(p, depth, within); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

func (c *checker) page(p []byte, depth int, within limits) error {
	flags, count := le.Uint16(p[8:]), uint64(le.Uint16(p[10:]))
	if pageHeader+count*elemSize > uint64(len(p)) {
		return fmt.Errorf("%d elements do not fit", count)
	}
	switch {
	case flags == flagBranch && count > 0:
		return c.branch(p, count, depth, within)
	case flags == flagLeaf:
		return c.leaf(p, count, depth, within)
	}
	return fmt.Errorf("%d elements with flags %#x", count, flags)
}

func (c *checker) branch(p []byte, count uint64, depth int, within limits) error {
	keys, previous := make([][]byte, count), []byte(nil)
	for i := range count {
		off := pageHeader + i*elemSize
		key, _, err := slice(p, off+uint64(le.Uint32(p[off:])), le.Uint32(p[off+4:]), 0)
		if err != nil {
			return err
		}
		if !within.admit(previous, key) {
			return errUnordered
		}
		keys[i], previous = key, key
	}
	for i := range count {
		child := limits{low: keys[i], high: within.high}
		if i+1 < count {
			child.high = keys[i+1]
		}
		if err := c.tree(le.Uint64(p[pageHeader+i*elemSize+8:]), depth+1, child); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) leaf(p []byte, count uint64, depth int, within limits) error {
	var previous []byte
	for i := range count {
		off := pageHeader + i*elemSize
		e := p[off:][:elemSize]
		key, value, err := slice(p, off+uint64(le.Uint32(e[4:])), le.Uint32(e[8:]), le.Uint32(e[12:]))
		if err != nil {
			return err
		}
		if !within.admit(previous, key) {
			return errUnordered
		}
		previous = key
		switch le.Uint32(e) {
		case 0:
		case leafBucket:
			if err := c.bucket(value, depth); err != nil {
				return err
			}
		default:
			return errors.New("unknown flags of an element")
		}
	}
	return nil
}

func (c *checker) bucket(value []byte, depth int) error {
	if len(value) < bucketSize {
		return errors.New("bucket is too short")
	}
	if root := le.Uint64(value); root != 0 {
		return c.tree(root, depth+1, limits{})
	}
	inline := value[bucketSize:]
	if len(inline) < pageHeader || le.Uint64(inline) != 0 || le.Uint32(inline[12:]) != 0 || depth >= maxDepth {
		return errors.New("inline page has a wrong header")
	}
	return c.page(inline, depth+1, limits{})
}

// slice cuts a key and the value behind it out of a page.
func slice(p []byte, pos uint64, ksize, vsize uint32) (key, value []byte, err error) {
	k, v := uint64(ksize), uint64(vsize)
	if pos+k+v > uint64(len(p)) {
		return nil, nil, errors.New("element reaches beyond its page")
	}
	return p[pos : pos+k], p[pos+k : pos+k+v], nil
}

// freelist checks that every page is either used or free, never both and never neither.
func (c *checker) freelist(id uint64) error {
	if id == noFreelist {
		return nil
	}
	p, err := c.claim(id)
	if err != nil {
		return fmt.Errorf("list of free pages: %w", err)
	}
	count, ids := uint64(le.Uint16(p[10:])), p[pageHeader:]
	if count == 0xFFFF { // the true count did not fit: it is the first entry
		count, ids = le.Uint64(ids), ids[8:]
	}
	if le.Uint16(p[8:]) != flagFreelist || count > uint64(len(ids))/8 {
		return errors.New("list of free pages is damaged")
	}
	previous := uint64(1)
	for i := range count {
		free := le.Uint64(ids[i*8:])
		if free <= previous || free >= c.pages || c.used[free] {
			return fmt.Errorf("page %d cannot be free", free)
		}
		c.used[free], previous = true, free
	}
	if lost := c.pages - uint64(len(c.used)); lost != 0 {
		return fmt.Errorf("%d pages are neither used nor free", lost)
	}
	return nil
}
