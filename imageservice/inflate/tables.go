package inflate

import "math/bits"

// An entry of a table says in its lowest byte how many bits it uses, extra ones included, in the four above how many of
// these are the code's, and in the upper half what it stands for: a byte, the least length or distance, or where a second
// table is. The bits between are flags.
const (
	isLiteral = 1 << 31
	isOther   = 1 << 15 // neither literal nor length nor distance: one of the following
	isTable   = 1 << 14 // the rest of the code is looked up in another table; the four bits are its size
	isEnd     = 1 << 13 // of the block
	// an entry that is none of them stands for nothing
)

// Sizes of codes.
const (
	maxCode      = 15 // bits
	literalBits  = 11 // of the first table
	distanceBits = 8
	orderBits    = 7
	literals     = 288
	distances    = 32
	maxLiterals  = 286 // that a block may define
	maxDistances = 30
	orders       = 19
	endOfBlock   = 256
)

// tables are the codes of a block. Their sizes are powers of two that all codes fit into: with first tables of 11 and 8 bits
// they need 2342 and 402 entries at most.
type tables struct {
	literal  [4096]uint32
	distance [512]uint32
}

var lengthBase = [...]uint16{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258}
var lengthExtra = [...]uint8{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}

// literalEntries, distanceEntries and orderEntries are what symbols mean.
var literalEntries, distanceEntries, orderEntries = entries()

func entries() (literal [literals]uint32, distance [distances]uint32, order [orders]uint32) {
	for i := range literal {
		switch {
		case i < endOfBlock:
			literal[i] = isLiteral | uint32(i)<<16
		case i == endOfBlock:
			literal[i] = isOther | isEnd
		case i-endOfBlock <= len(lengthBase):
			literal[i] = uint32(lengthBase[i-endOfBlock-1])<<16 | uint32(lengthExtra[i-endOfBlock-1])
		default:
			literal[i] = isOther
		}
	}
	base := uint32(1)
	for i := range distance {
		extra := uint32(max(0, i/2-1))
		distance[i] = base<<16 | extra
		if base += 1 << extra; i >= maxDistances {
			distance[i] = isOther
		}
	}
	for i := range order {
		order[i] = uint32(i) << 16
	}
	return literal, distance, order
}

func (t *tables) setFixed() {
	var lengths [literals]uint8
	for i := range lengths {
		switch {
		case i < 144, i >= 280:
			lengths[i] = 8
		case i < 256:
			lengths[i] = 9
		default:
			lengths[i] = 7
		}
	}
	build(t.literal[:], lengths[:], literalEntries[:], literalBits)
	for i := range distances {
		lengths[i] = 5
	}
	build(t.distance[:], lengths[:distances], distanceEntries[:], distanceBits)
}

// build makes the tables of a code whose symbols have these lengths, 0 for those without one. It says whether there is such a
// code: one that uses all bits, or one of a single bit of which one value is not used, or none.
func build(table []uint32, lengths []uint8, entries []uint32, root int) bool {
	var count [maxCode + 1]int
	for _, l := range lengths {
		count[l]++
	}
	used := len(lengths) - count[0]
	count[0] = 0
	free := 1
	for _, c := range count[1:] {
		if free = 2*free - c; free < 0 {
			return false
		}
	}
	if free > 0 {
		if used > 1 || used == 1 && count[1] == 0 {
			return false
		}
		for i := range table[:1<<root] {
			table[i] = isOther
		}
	}
	var sorted [literals]uint16
	sortSymbols(&sorted, lengths, &count)
	b := builder{table: table, entries: entries, root: root, rest: sorted[:used]}
	for l := 1; l <= root; l++ {
		b.short(l, count[l])
	}
	b.long(&count)
	return true
}

// sortSymbols orders the symbols that have codes by the lengths of these.
func sortSymbols(sorted *[literals]uint16, lengths []uint8, count *[maxCode + 1]int) {
	var next [maxCode + 2]int
	for l := 1; l <= maxCode; l++ {
		next[l+1] = next[l] + count[l]
	}
	for symbol, l := range lengths {
		if l > 0 {
			sorted[next[l]] = uint16(symbol)
			next[l]++
		}
	}
}

// builder fills a table, code after code.
type builder struct {
	table   []uint32
	entries []uint32
	root    int      // bits of the first table
	rest    []uint16 // symbols, by code
	code    uint     // the next one
}

// next gives the next code of l bits, the first one lowest, and what a table with its last bits has for it.
func (b *builder) next(l, last int) (code uint, entry uint32) {
	code = uint(bits.Reverse16(uint16(b.code)) >> (16 - l))
	entry = b.entries[b.rest[0]] + uint32(last)<<8 + uint32(last)
	b.rest = b.rest[1:]
	b.code++
	return code, entry
}

// short adds the codes of l bits, n of them, to the first table, which so far is one for codes of fewer bits.
func (b *builder) short(l, n int) {
	half := 1 << (l - 1)
	copy(b.table[half:2*half], b.table[:half])
	b.code <<= 1
	for range n {
		code, entry := b.next(l, l)
		b.table[code] = entry
	}
}

// long adds the codes that are longer than the first table's, each beginning in a table of its own.
func (b *builder) long(count *[maxCode + 1]int) {
	start, size, prefix := 1<<b.root, 0, -1
	for l := b.root + 1; l <= maxCode; l++ {
		b.code <<= 1
		for left := count[l]; left > 0; left-- {
			code, entry := b.next(l, l-b.root)
			if p := int(code & (1<<b.root - 1)); p != prefix {
				prefix = p
				start += size
				k := l - b.root
				for space := left; space < 1<<k; {
					k++
					space = 2*space + count[b.root+k]
				}
				size = 1 << k
				b.table[prefix] = isOther | isTable | uint32(start)<<16 | uint32(k)<<8 | uint32(b.root)
			}
			for i := int(code >> b.root); i < size; i += 1 << (l - b.root) {
				b.table[start+i] = entry
			}
		}
	}
}

// order is how a block lists the lengths of the code for its lengths.
var order = [orders]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// readCodes reads the codes that a block defines.
func (r *Reader) readCodes() error {
	nl, nd, no := int(r.take(5))+257, int(r.take(5))+1, int(r.take(4))+4
	if nl > maxLiterals || nd > maxDistances {
		return errCorrupt
	}
	var lengths [literals + distances]uint8
	for _, i := range order[:no] {
		lengths[i] = uint8(r.take(3))
	}
	if !build(r.codes.distance[:], lengths[:orders], orderEntries[:], orderBits) {
		return errCorrupt
	}
	clear(lengths[:orders])
	if !r.readLengths(lengths[:nl+nd]) {
		return errCorrupt
	}
	if !build(r.codes.literal[:], lengths[:nl], literalEntries[:], literalBits) ||
		!build(r.codes.distance[:], lengths[nl:nl+nd], distanceEntries[:], distanceBits) {
		return errCorrupt
	}
	return nil
}

// readLengths reads the lengths of codes by the code that distance has.
func (r *Reader) readLengths(lengths []uint8) bool {
	for i := 0; i < len(lengths); {
		_ = r.take(0) // so that the code is there
		e := r.codes.distance[r.bits&(1<<orderBits-1)]
		if e&isOther != 0 {
			return false
		}
		_ = r.take(uint(e & 0xff))
		symbol, value, times := e>>16, uint8(0), 1
		switch symbol {
		case 16:
			if i == 0 {
				return false
			}
			value, times = lengths[i-1], 3+int(r.take(2))
		case 17:
			times = 3 + int(r.take(3))
		case 18:
			times = 11 + int(r.take(7))
		default:
			value = uint8(symbol)
		}
		if times > len(lengths)-i {
			return false
		}
		for range times {
			lengths[i] = value
			i++
		}
	}
	return true
}
