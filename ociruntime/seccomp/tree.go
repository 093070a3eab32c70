package seccomp

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data. Both architectures are little-endian: the low half of an argument comes first.
const (
	offsetNumber = 0
	offsetArch   = 4
	offsetArgs   = 16
)

func sorted(numbers []uint32) []uint32 {
	slices.Sort(numbers)
	return slices.Compact(numbers)
}

// assembler builds a filter from its end, so that every target is known when a jump is made: a label counts
// instructions from the end.
type assembler struct {
	reversed []bpf.Instruction
	returns  map[uint32]label
}

type label int

// here labels the instruction emitted last.
func (a *assembler) here() label { return label(len(a.reversed)) }

func (a *assembler) emit(i bpf.Instruction) label {
	a.reversed = append(a.reversed, i)
	return a.here()
}

// distance is the number of instructions that a jump made now skips to reach to.
func (a *assembler) distance(to label) int { return len(a.reversed) - int(to) }

const maxSkip = 255

// near returns a label for to that a conditional jump, made after up to two more instructions, can reach.
func (a *assembler) near(to label) label {
	if a.distance(to)+2 <= maxSkip {
		return to
	}
	return a.emit(bpf.Jump{Skip: uint32(a.distance(to))})
}

// verdict returns a label of an instruction that returns v.
func (a *assembler) verdict(v uint32) label {
	if l, ok := a.returns[v]; ok && a.distance(l)+2 <= maxSkip {
		return l
	}
	l := a.emit(bpf.RetConstant{Val: v})
	a.returns[v] = l
	return l
}

// enter makes the next instruction emitted continue at to.
func (a *assembler) enter(to label) {
	if to != a.here() {
		a.emit(bpf.Jump{Skip: uint32(a.distance(to))})
	}
}

// test compares the accumulator and continues at yes or no.
func (a *assembler) test(cond bpf.JumpTest, value uint32, yes, no label) label {
	no = a.near(no)
	yes = a.near(yes)
	return a.emit(bpf.JumpIf{Cond: cond, Val: value, SkipTrue: uint8(a.distance(yes)), SkipFalse: uint8(a.distance(no))})
}

// tree decides about the number in the accumulator.
func (a *assembler) tree(spans []span) label {
	if len(spans) == 1 {
		return a.leaf(spans[0].leaf)
	}
	half := len(spans) / 2
	right := a.tree(spans[half:])
	left := a.tree(spans[:half])
	return a.test(bpf.JumpGreaterOrEqual, spans[half].from, right, left)
}

func (a *assembler) leaf(l leaf) label {
	next := a.verdict(l.otherwise)
	for _, r := range slices.Backward(l.rules) {
		next = a.rule(r, l.narrow, next)
	}
	return next
}

func (a *assembler) rule(r rule, narrow bool, otherwise label) label {
	yes := a.verdict(r.verdict)
	for _, c := range slices.Backward(r.conditions) {
		yes = a.condition(c, narrow, yes, otherwise)
	}
	return yes
}

func (a *assembler) load(c condition, high uint32) label {
	return a.emit(bpf.LoadAbsolute{Off: offsetArgs + 8*c.index + 4*high, Size: 4})
}

func (a *assembler) condition(c condition, narrow bool, yes, no label) label {
	switch c.op {
	case specs.OpNotEqual:
		return a.equal(c, narrow, no, yes)
	case specs.OpMaskedEqual:
		return a.masked(c, narrow, yes, no)
	case specs.OpGreaterThan:
		return a.greater(c, bpf.JumpGreaterThan, narrow, yes, no)
	case specs.OpGreaterEqual:
		return a.greater(c, bpf.JumpGreaterOrEqual, narrow, yes, no)
	case specs.OpLessThan:
		return a.greater(c, bpf.JumpGreaterOrEqual, narrow, no, yes)
	case specs.OpLessEqual:
		return a.greater(c, bpf.JumpGreaterThan, narrow, no, yes)
	}
	return a.equal(c, narrow, yes, no)
}

func (a *assembler) equal(c condition, narrow bool, yes, no label) label {
	a.test(bpf.JumpEqual, uint32(c.value), yes, no)
	low := a.load(c, 0)
	if narrow {
		return low
	}
	a.test(bpf.JumpEqual, uint32(c.value>>32), low, no)
	return a.load(c, 1)
}

// greater decides by the low halves only if the high ones are equal.
func (a *assembler) greater(c condition, last bpf.JumpTest, narrow bool, yes, no label) label {
	a.test(last, uint32(c.value), yes, no)
	low := a.load(c, 0)
	if narrow {
		return low
	}
	equal := a.test(bpf.JumpEqual, uint32(c.value>>32), low, no)
	a.test(bpf.JumpGreaterThan, uint32(c.value>>32), yes, equal)
	return a.load(c, 1)
}

// masked leaves out a half of which no bit counts.
func (a *assembler) masked(c condition, narrow bool, yes, no label) label {
	if mask := uint32(c.mask); mask != 0 {
		yes = a.maskedHalf(c, 0, mask, uint32(c.value), yes, no)
	}
	if mask := uint32(c.mask >> 32); mask != 0 && !narrow {
		yes = a.maskedHalf(c, 1, mask, uint32(c.value>>32), yes, no)
	}
	return yes
}

func (a *assembler) maskedHalf(c condition, high, mask, value uint32, yes, no label) label {
	a.test(bpf.JumpEqual, value, yes, no)
	a.emit(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask})
	return a.load(c, high)
}

// program makes the whole filter of the listed ABIs.
func (p policy) program(listed []*abi) []bpf.Instruction {
	a := &assembler{returns: make(map[uint32]label)}
	next := a.verdict(unix.SECCOMP_RET_KILL_PROCESS)
	for i := len(listed) - 1; i >= 0; i-- {
		first := i
		for first > 0 && listed[first-1].audit == listed[i].audit {
			first--
		}
		a.enter(a.tree(p.joined(listed[first : i+1])))
		own := a.emit(bpf.LoadAbsolute{Off: offsetNumber, Size: 4})
		next = a.test(bpf.JumpEqual, listed[i].audit, own, next)
		i = first
	}
	a.emit(bpf.LoadAbsolute{Off: offsetArch, Size: 4})
	slices.Reverse(a.reversed)
	return a.reversed
}

// joined puts the ABIs that share an audit number one after another. Numbers between them kill, but for -1, which a
// tracer sets to skip a call.
func (p policy) joined(group []*abi) []span {
	second := abis[1]
	if second.audit != group[0].audit {
		return p.spans(group[0], maxNumber)
	}
	all := p.spans(group[0], second.offset-1)
	if len(group) > 1 {
		all = append(all, p.spans(second, maxNumber-1-second.offset)...)
	} else {
		all = append(all, span{second.offset, leaf{otherwise: unix.SECCOMP_RET_KILL_PROCESS}})
	}
	return append(all, span{maxNumber, leaf{otherwise: p.unknown()}})
}
