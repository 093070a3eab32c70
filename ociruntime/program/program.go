package program

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Layout of pause/src/program.h.
const (
	magic      = 0x31475250
	headerSize = 32
	instrSize  = 64
	relocSize  = 16

	// MaxSize is the largest encoded Program that pause takes, in bytes.
	MaxSize  = 4 << 20
	maxInstr = 8192
	maxSlots = 2048
	maxFDs   = 1024

	flagExecs = 1

	instrExec    = 1
	instrNonzero = 2
	instrZero    = 4
	instrAgain   = 8

	relocBlob  = 0
	relocFD    = 1
	relocSlot  = 2
	relocPause = 3

	whereWord64 = 6
	whereWord32 = 7

	anyError = 0xffff
)

// FD is the index of a descriptor that travels with the Program.
type FD int

// Slot keeps the result of a call for later ones.
type Slot int

// Pause stands for a pidfd of pause itself.
type Pause struct{}

// Bytes is an argument that points at a copy of these bytes.
type Bytes []byte

// String is an argument that points at a NUL-terminated string.
type String string

// Strings is an argument that points at a NULL-terminated vector of strings, as execve takes it.
type Strings []string

// Struct is an argument that points at Data, in which the words at the given offsets are replaced by descriptors or results.
type Struct struct {
	Data  []byte
	Words []Word
}

// Word replaces part of a Struct. Value may be FD, Slot, Pause (4 bytes) or Bytes, String, Struct (8 bytes, an address).
type Word struct {
	Offset int
	Value  any
}

type instr struct {
	nr        uint32
	flags     uint16
	dst       uint16
	err, err2 uint16
	errSkip   int // label + 1, or 0
	okSkip    int
	args      [6]uint64
	what      string
	source    []any // the arguments as they were given, for Text
}

// meaning is what the failure of an instruction with errno says, instead of what it is for.
type meaning struct {
	instr int
	errno unix.Errno
	what  string
}

type reloc struct {
	instr uint32
	kind  uint16
	where uint16
	at    uint32
	value uint32
}

// Program is a finished list of calls. It is immutable.
type Program struct {
	instrs []instr
	relocs []reloc
	blob   []byte
	slots  int
	fds    int
	execs  bool
	labels []int // instruction index of each label
	means  []meaning
}

// Builder collects calls. The first fault is kept and returned by Build.
type Builder struct {
	p       Program
	strings map[string]uint32 // blob offsets of strings that were used already
	fault   error
}

// Call is one instruction under construction; its methods say what becomes of the result.
type Call struct {
	b *Builder
	i int
}

// Label is a place to which a call may skip; only forward.
type Label int

// New returns an empty Builder.
func New() *Builder {
	return &Builder{strings: make(map[string]uint32)}
}

// Grow makes room for about so many calls, which an empty Builder would get to by copying several times.
func (b *Builder) Grow(calls int) *Builder {
	b.p.instrs = slices.Grow(b.p.instrs, calls)
	b.p.relocs = slices.Grow(b.p.relocs, 2*calls)
	b.p.blob = slices.Grow(b.p.blob, 40*calls)
	return b
}

func (b *Builder) fail(format string, args ...any) {
	if b.fault == nil {
		b.fault = fmt.Errorf(format, args...)
	}
}

// Call appends a system call. what says in a few words what it is for ("mount proc on /proc"). Arguments are
// integers, FD, Slot, Pause, String, Strings, Bytes, Struct or nil (a null pointer).
func (b *Builder) Call(what string, nr uintptr, args ...any) Call {
	if len(args) > 6 {
		b.fail("%s: %d arguments", what, len(args))
		args = args[:6]
	}
	i := len(b.p.instrs)
	in := instr{nr: uint32(nr), what: what, source: args}
	for n, a := range args {
		in.args[n] = b.argument(i, n, a)
	}
	b.p.instrs = append(b.p.instrs, in)
	return Call{b, i}
}

// argument returns the value of an argument, or records the relocation that makes it.
func (b *Builder) argument(i, n int, a any) uint64 {
	switch v := a.(type) {
	case nil:
		return 0
	case int:
		return uint64(v)
	case int64:
		return uint64(v)
	case uint32:
		return uint64(v)
	case uint64:
		return v
	case uintptr:
		return uint64(v)
	case FD:
		b.use(v)
		b.reloc(i, relocFD, n, 0, uint32(v))
	case Slot:
		b.reloc(i, relocSlot, n, 0, uint32(v))
	case Pause:
		b.reloc(i, relocPause, n, 0, 0)
	case String:
		b.reloc(i, relocBlob, n, 0, b.str(string(v)))
	case Bytes:
		b.reloc(i, relocBlob, n, 0, b.data(v))
	case Strings:
		b.reloc(i, relocBlob, n, 0, b.vector(i, v))
	case Struct:
		b.reloc(i, relocBlob, n, 0, b.structure(i, v))
	default:
		b.fail("argument %d of instruction %d is a %T", n, i, a)
	}
	return 0
}

func (b *Builder) reloc(i, kind, where int, at, value uint32) {
	b.p.relocs = append(b.p.relocs, reloc{uint32(i), uint16(kind), uint16(where), at, value})
}

func (b *Builder) use(fd FD) {
	switch {
	case fd < 0:
		b.fail("descriptor %d is none", fd)
	case fd >= maxFDs:
		b.fail("program of %d descriptors or more, at most %d are possible (each mount has one)", fd+1, maxFDs)
	}
	b.p.fds = max(b.p.fds, int(fd)+1)
}

// data appends bytes to the blob, 8-byte aligned.
func (b *Builder) data(v []byte) uint32 {
	for len(b.p.blob)%8 != 0 {
		b.p.blob = append(b.p.blob, 0)
	}
	at := uint32(len(b.p.blob))
	b.p.blob = append(b.p.blob, v...)
	return at
}

func (b *Builder) str(s string) uint32 {
	if at, ok := b.strings[s]; ok {
		return at
	}
	for n := range len(s) {
		if s[n] == 0 {
			b.fail("string %q contains a NUL byte", s)
		}
	}
	at := uint32(len(b.p.blob))
	b.p.blob = append(append(b.p.blob, s...), 0)
	b.strings[s] = at
	return at
}

func (b *Builder) vector(i int, v Strings) uint32 {
	addrs := make([]uint32, len(v))
	for n, s := range v {
		addrs[n] = b.str(s)
	}
	at := b.data(make([]byte, 8*(len(v)+1)))
	for n, a := range addrs {
		b.reloc(i, relocBlob, whereWord64, at+uint32(8*n), a)
	}
	return at
}

func (b *Builder) structure(i int, v Struct) uint32 {
	values := make([]uint32, len(v.Words))
	for n, w := range v.Words {
		switch x := w.Value.(type) {
		case FD:
			b.use(x)
			values[n] = uint32(x)
		case Slot:
			values[n] = uint32(x)
		case Pause:
		case Bytes:
			values[n] = b.data(x)
		case String:
			values[n] = b.str(string(x))
		case Struct:
			values[n] = b.structure(i, x)
		default:
			b.fail("word at offset %d of instruction %d is a %T", w.Offset, i, x)
		}
	}
	at := b.data(v.Data)
	for n, w := range v.Words {
		kind, where := relocFD, whereWord32
		switch w.Value.(type) {
		case Slot:
			kind = relocSlot
		case Pause:
			kind = relocPause
		case Bytes, String, Struct:
			kind, where = relocBlob, whereWord64
		}
		b.reloc(i, kind, where, at+uint32(w.Offset), values[n])
	}
	return at
}

// NewSlot returns a place for a result. Several calls may keep into it; the last that succeeded counts.
func (b *Builder) NewSlot() Slot {
	s := Slot(b.p.slots)
	b.p.slots++
	return s
}

// NewLabel returns a label that is not placed yet.
func (b *Builder) NewLabel() Label {
	b.p.labels = append(b.p.labels, -1)
	return Label(len(b.p.labels) - 1)
}

// Place puts a label before the next call.
func (b *Builder) Place(l Label) { b.p.labels[l] = len(b.p.instrs) }

// Keep stores the result in a new slot.
func (c Call) Keep() Slot {
	s := c.b.NewSlot()
	c.In(s)
	return s
}

// In stores the result in s.
func (c Call) In(s Slot) Call {
	c.b.p.instrs[c.i].dst = uint16(s) + 1
	return c
}

// Tolerate goes on with the next instruction when the call fails with one of at most two errnos.
func (c Call) Tolerate(errnos ...unix.Errno) Call {
	in := &c.b.p.instrs[c.i]
	if len(errnos) == 0 || len(errnos) > 2 {
		c.b.fail("%s: %d tolerated errors", in.what, len(errnos))
		return c
	}
	in.err = uint16(errnos[0])
	if len(errnos) == 2 {
		in.err2 = uint16(errnos[1])
	}
	return c
}

// TolerateAll goes on with the next instruction when the call fails.
func (c Call) TolerateAll() Call {
	c.b.p.instrs[c.i].err = anyError
	return c
}

// ElseTo skips to l after a tolerated error.
func (c Call) ElseTo(l Label) Call {
	c.b.p.instrs[c.i].errSkip = int(l) + 1
	return c
}

// ThenTo skips to l after success.
func (c Call) ThenTo(l Label) Call {
	c.b.p.instrs[c.i].okSkip = int(l) + 1
	return c
}

// Nonzero makes a result of 0 a failure: the other side of a synchronising read is gone.
func (c Call) Nonzero() Call {
	c.b.p.instrs[c.i].flags |= instrNonzero
	return c
}

// Zero makes a result other than 0 a failure: a poll found that pause is gone.
func (c Call) Zero() Call {
	c.b.p.instrs[c.i].flags |= instrZero
	return c
}

// Again repeats the call while it fails with EAGAIN, as openat2 does when a ".." met a mount or rename elsewhere.
func (c Call) Again() Call {
	c.b.p.instrs[c.i].flags |= instrAgain
	return c
}

// Means says what has failed when the call fails with errno, where neither its purpose nor the errno's own text do.
func (c Call) Means(errno unix.Errno, what string) Call {
	c.b.p.means = append(c.b.p.means, meaning{c.i, errno, what})
	return c
}

// ExecAll appends an execve candidate for each path; when a file does not exist or may not be executed the next one is
// tried. They share one argument vector and environment. It returns the last one, which fails with ENOENT if none is there.
func (b *Builder) ExecAll(paths []string, argv, env Strings) Call {
	if len(paths) == 0 {
		b.fail("nothing to execute")
		return b.Call("execute nothing", unix.SYS_EXECVE)
	}
	first := len(b.p.instrs)
	argvAt, envAt := b.vector(first, argv), b.vector(first, env)
	for _, path := range paths {
		i := len(b.p.instrs)
		b.p.instrs = append(b.p.instrs, instr{nr: unix.SYS_EXECVE, flags: instrExec, what: "execute " + path, source: []any{String(path), argv, env}})
		b.reloc(i, relocBlob, 0, 0, b.str(path))
		b.reloc(i, relocBlob, 1, 0, argvAt)
		b.reloc(i, relocBlob, 2, 0, envAt)
	}
	b.p.execs = true
	return Call{b: b, i: len(b.p.instrs) - 1}
}

// Build returns the Program, or the first fault that was made.
func (b *Builder) Build() (*Program, error) {
	p := &b.p
	switch {
	case b.fault != nil:
		return nil, b.fault
	case len(p.instrs) > maxInstr:
		return nil, fmt.Errorf("program of %d instructions, at most %d are possible", len(p.instrs), maxInstr)
	case p.slots > maxSlots:
		return nil, fmt.Errorf("program of %d results, at most %d are possible", p.slots, maxSlots)
	}
	for i, in := range p.instrs {
		for _, l := range []int{in.errSkip, in.okSkip} {
			if l != 0 && (p.labels[l-1] <= i || p.labels[l-1]-i-1 > 0xffff) {
				return nil, fmt.Errorf("%s (instruction %d): skips to instruction %d", in.what, i, p.labels[l-1])
			}
		}
	}
	slices.SortStableFunc(p.relocs, func(a, c reloc) int { return int(a.instr) - int(c.instr) })
	if size := p.size(); size > MaxSize {
		return nil, fmt.Errorf("program of %d bytes, at most %d are possible (arguments and environment count)", size, MaxSize)
	}
	return p, nil
}

func (p *Program) size() int {
	return headerSize + len(p.instrs)*instrSize + len(p.relocs)*relocSize + len(p.blob)
}

// FDs is the number of descriptors that must travel with the Program.
func (p *Program) FDs() int { return p.fds }

// Len is the number of instructions.
func (p *Program) Len() int { return len(p.instrs) }

// Encode returns the wire form.
func (p *Program) Encode() []byte {
	ne := binary.NativeEndian
	out := make([]byte, 0, p.size())
	flags := uint32(0)
	if p.execs {
		flags = flagExecs
	}
	for _, v := range []uint32{magic, uint32(p.size()), uint32(len(p.instrs)), uint32(len(p.relocs)), uint32(len(p.blob)), uint32(p.slots), uint32(p.fds), flags} {
		out = ne.AppendUint32(out, v)
	}
	for i, in := range p.instrs {
		out = ne.AppendUint32(out, in.nr)
		for _, v := range []uint16{in.flags, in.dst, in.err, in.err2, p.skip(i, in.errSkip), p.skip(i, in.okSkip)} {
			out = ne.AppendUint16(out, v)
		}
		for _, a := range in.args {
			out = ne.AppendUint64(out, a)
		}
	}
	for _, r := range p.relocs {
		out = ne.AppendUint32(out, r.instr)
		out = ne.AppendUint16(out, r.kind)
		out = ne.AppendUint16(out, r.where)
		out = ne.AppendUint32(out, r.at)
		out = ne.AppendUint32(out, r.value)
	}
	return append(out, p.blob...)
}

func (p *Program) skip(i, label int) uint16 {
	if label == 0 {
		return 0
	}
	return uint16(p.labels[label-1] - i - 1)
}

// Describe says what instruction i is for.
func (p *Program) Describe(i int) string {
	if i < 0 || i >= len(p.instrs) {
		return fmt.Sprintf("instruction %d of %d", i, len(p.instrs))
	}
	return p.instrs[i].what
}

// Explain says what has failed if instruction i failed with errno.
func (p *Program) Explain(i int, errno unix.Errno) string {
	for _, m := range p.means {
		if m.instr == i && m.errno == errno {
			return m.what
		}
	}
	return p.Describe(i)
}
