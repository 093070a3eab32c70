package erofs

import "hash/maphash"

const slabBits = 10

// slab is an array that grows without ever copying what it holds.
type slab[T any] struct {
	blocks []*[1 << slabBits]T
	n      uint32
}

func (s *slab[T]) at(i uint32) *T { return &s.blocks[i>>slabBits][i&(1<<slabBits-1)] }

// add appends the zero value and gives its index.
func (s *slab[T]) add() uint32 {
	if s.n>>slabBits == uint32(len(s.blocks)) {
		s.blocks = append(s.blocks, new([1 << slabBits]T))
	}
	s.n++
	return s.n - 1
}

const (
	arenaBits  = 16
	arenaBlock = 1 << arenaBits // longer than any string that is put
)

// arena keeps strings in large blocks; an address is a block's number and the offset in it.
type arena struct {
	blocks [][]byte
}

// put copies s, which is shorter than arenaBlock. There is room for 4 GiB; the limit of text is below that.
func (a *arena) put(s string) (addr uint32) {
	last := len(a.blocks) - 1
	if last < 0 || len(a.blocks[last])+len(s) > arenaBlock {
		last++
		a.blocks = append(a.blocks, make([]byte, 0, arenaBlock))
	}
	off := len(a.blocks[last])
	a.blocks[last] = append(a.blocks[last], s...)
	return uint32(last)<<arenaBits | uint32(off)
}

func (a *arena) get(addr uint32, n int) []byte {
	off := int(addr & (arenaBlock - 1))
	return a.blocks[addr>>arenaBits][off : off+n]
}

// table finds a dirent by directory and name: open addressing over the dirents' numbers, seeded against chosen
// collisions. Nothing is ever taken out.
type table struct {
	seed  maphash.Seed
	slots []uint32 // number of a dirent + 1; 0 is free
	used  int
}

func (t *table) hash(parent uint32, name []byte) uint32 {
	h := maphash.Bytes(t.seed, name) ^ uint64(parent)*0x9e3779b97f4a7c15
	h ^= h >> 29
	return uint32((h * 0xbf58476d1ce4e5b9) >> 32)
}
