package inflate

// decode decodes symbols until the block ends, the buffer is full or the input is used up. It is written for speed: one
// function, its state in local variables. After each refill there are at least 56 bits.
func (r *Reader) decode() error {
	in, out, t := r.in[:r.avail()], r.out, &r.codes
	bits, n, pos, o := r.bits, uint32(r.n), r.pos, r.o
	var err error
	for pos <= len(in)-16 && o < outputLimit { // two refills
		bits |= le.Uint64(in[pos:]) << (n & 63)
		pos += int(^n >> 3 & 7)
		n |= 56 // of n only six bits count
		e := t.literal[bits&(1<<literalBits-1)]
		if e&isLiteral != 0 { // up to three, which together use 33 bits; as a loop it takes 5 % longer
			bits >>= e & 63
			n -= e
			out[o] = byte(e >> 16)
			o++
			e = t.literal[bits&(1<<literalBits-1)]
			if e&isLiteral != 0 {
				bits >>= e & 63
				n -= e
				out[o] = byte(e >> 16)
				o++
				e = t.literal[bits&(1<<literalBits-1)]
				if e&isLiteral != 0 {
					bits >>= e & 63
					n -= e
					out[o] = byte(e >> 16)
					o++
					continue
				}
			}
		}
		saved := bits
		bits >>= e & 63
		n -= e
		if e&isOther != 0 {
			if e&isTable != 0 {
				e = t.literal[(e>>16+uint32(bits)&(1<<(e>>8&15)-1))&4095]
				saved = bits
				bits >>= e & 63
				n -= e
			}
			if e&isLiteral != 0 {
				out[o] = byte(e >> 16)
				o++
				continue
			}
			if e&isOther != 0 {
				r.block = noBlock
				if e&isEnd == 0 {
					err = errCorrupt
				}
				break
			}
		}
		length := int(e>>16) + int(saved&(1<<(e&63)-1)>>(e>>8&15))

		bits |= le.Uint64(in[pos:]) << (n & 63)
		pos += int(^n >> 3 & 7)
		n |= 56
		e = t.distance[bits&(1<<distanceBits-1)]
		if e&isOther != 0 {
			bits >>= e & 63
			n -= e
			if e&isTable == 0 {
				err = errCorrupt
				break
			}
			e = t.distance[(e>>16+uint32(bits)&(1<<(e>>8&15)-1))&511]
			if e&isOther != 0 {
				err = errCorrupt
				break
			}
		}
		distance := int(e>>16) + int(bits&(1<<(e&63)-1)>>(e>>8&15))
		bits >>= e & 63
		n -= e
		if distance > o-r.begin {
			err = errCorrupt
			break
		}
		copyMatch(out, o, distance, length)
		o += length
	}
	r.bits, r.n, r.pos, r.o = bits, uint(n&63), pos, o
	return err
}

// copyMatch repeats length bytes from distance before o at o. There is room behind them.
func copyMatch(out []byte, o, distance, length int) {
	from, end := o-distance, o+length
	switch {
	case distance >= length && length > 32:
		copy(out[o:end], out[from:])
	case distance >= 8:
		for ; o < end; o, from = o+8, from+8 {
			le.PutUint64(out[o:], le.Uint64(out[from:]))
		}
	case distance == 1:
		word := uint64(out[from]) * 0x0101010101010101
		for ; o < end; o += 8 {
			le.PutUint64(out[o:], word)
		}
	default:
		for ; o < end; o, from = o+1, from+1 {
			out[o] = out[from]
		}
	}
}
