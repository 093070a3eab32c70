package seccomp

import (
	"fmt"
	"math"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	maxArgs   = 6
	maxNumber = math.MaxUint32
	// maxConditional is far beyond what a filter can hold, and bounds the work on a profile that multiplies names by conditions.
	maxConditional = 1 << 16
)

// condition is one comparison of an argument.
type condition struct {
	index       uint32
	op          specs.LinuxSeccompOperator
	value, mask uint64 // mask is used by OpMaskedEqual only
}

// rule is a set of conditions that must all hold, and what is returned then.
type rule struct {
	conditions []condition
	verdict    uint32
}

// leaf is all that is decided about one number: rules in order, then a verdict.
type leaf struct {
	rules     []rule
	otherwise uint32
	narrow    bool
}

// key is equal for leaves that decide alike.
func (l leaf) key() string {
	var b strings.Builder
	for _, r := range l.rules {
		fmt.Fprintf(&b, "%v:%x;", r.conditions, r.verdict)
	}
	if len(l.rules) > 0 {
		fmt.Fprintf(&b, "%t", l.narrow)
	}
	fmt.Fprintf(&b, "else %x", l.otherwise)
	return b.String()
}

// policy is a checked specs.LinuxSeccomp.
type policy struct {
	otherwise uint32
	entries   []entry
}

type entry struct {
	names   []string
	verdict uint32
	// alternatives are the sets of conditions of which one must hold; a single empty set holds always.
	alternatives [][]condition
}

func parse(p *specs.LinuxSeccomp) (policy, error) {
	if p == nil || p.DefaultAction == "" {
		return policy{}, fmt.Errorf("defaultAction: missing")
	}
	otherwise, fault := verdict(p.DefaultAction, p.DefaultErrnoRet)
	if fault != nil {
		fault.field = "default" + strings.ToUpper(fault.field[:1]) + fault.field[1:]
		return policy{}, fault
	}
	parsed := policy{otherwise: otherwise}
	conditional := 0
	for i, s := range p.Syscalls {
		e, err := parseEntry(s)
		if err != nil {
			return policy{}, fmt.Errorf("syscalls[%d].%w", i, err)
		}
		parsed.entries = append(parsed.entries, e)
		if !e.unconditional() {
			conditional += len(e.names) * len(e.alternatives)
		}
		if conditional > maxConditional {
			return policy{}, fmt.Errorf("syscalls[%d]: more than %d rules with conditions up to here", i, maxConditional)
		}
	}
	return parsed, nil
}

func parseEntry(s specs.LinuxSyscall) (entry, error) {
	e := entry{names: s.Names}
	if len(s.Names) == 0 {
		return e, fmt.Errorf("names: empty")
	}
	v, fault := verdict(s.Action, s.ErrnoRet)
	if fault != nil {
		return e, fault
	}
	e.verdict = v
	var uses [maxArgs]int
	repeated := false
	all := make([]condition, 0, len(s.Args))
	for i, a := range s.Args {
		c, err := parseArg(a)
		if err != nil {
			return e, fmt.Errorf("args[%d].%w", i, err)
		}
		uses[c.index]++
		repeated = repeated || uses[c.index] > 1
		all = append(all, c)
	}
	if !repeated {
		e.alternatives = [][]condition{all}
		return e, nil
	}
	for _, c := range all {
		e.alternatives = append(e.alternatives, []condition{c})
	}
	return e, nil
}

func parseArg(a specs.LinuxSeccompArg) (condition, error) {
	if a.Index >= maxArgs {
		return condition{}, fmt.Errorf("index: %d is above %d", a.Index, maxArgs-1)
	}
	c := condition{index: uint32(a.Index), op: a.Op, value: a.Value}
	switch a.Op {
	case specs.OpMaskedEqual:
		c.mask, c.value = a.Value, a.ValueTwo&a.Value
	case specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan:
	default:
		return c, fmt.Errorf("op: unknown value %q", a.Op)
	}
	return c, nil
}

// decisions are the leaves of one ABI by number, without offset.
type decisions struct {
	byNumber map[uint32]leaf
	newest   uint32 // largest number that the policy names, old ones aside
}

func (p policy) decide(a *abi) decisions {
	d := decisions{byNumber: make(map[uint32]leaf)}
	final := make(map[uint32]bool) // numbers with an unconditional rule
	for _, e := range p.entries {
		for _, name := range e.names {
			if nr, ok := a.number(name); ok {
				p.add(d, final, a, nr, e)
				if !a.old(nr) {
					d.newest = max(d.newest, nr)
				}
			}
			if h, ok := a.multiplexed[name]; ok && e.unconditional() {
				nr, _ := a.number(h.behind)
				p.add(d, final, a, nr, entry{verdict: e.verdict, alternatives: [][]condition{{{op: specs.OpEqualTo, value: h.number}}}})
			}
		}
	}
	return d
}

func (e entry) unconditional() bool { return len(e.alternatives) == 1 && len(e.alternatives[0]) == 0 }

func (p policy) add(d decisions, final map[uint32]bool, a *abi, nr uint32, e entry) {
	if final[nr] || e.verdict == p.otherwise {
		return
	}
	l := leaf{otherwise: p.otherwise, narrow: a.narrow, rules: d.byNumber[nr].rules}
	if e.unconditional() {
		final[nr] = true
		d.byNumber[nr] = leaf{otherwise: e.verdict}
		return
	}
	for _, set := range e.alternatives {
		l.rules = append(l.rules, rule{conditions: set, verdict: e.verdict})
	}
	d.byNumber[nr] = l
}

// unknown is the verdict on numbers above the newest that the policy names.
func (p policy) unknown() uint32 {
	if p.otherwise&unix.SECCOMP_RET_ACTION_FULL == unix.SECCOMP_RET_ERRNO {
		return unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	}
	return p.otherwise
}

// span is a range of numbers that begins at from and ends before the next one.
type span struct {
	from uint32
	leaf leaf
}

// spans lists what an ABI decides about its numbers 0 to last, without offset.
func (p policy) spans(a *abi, last uint32) []span {
	d := p.decide(a)
	var all []span
	previous := ""
	put := func(nr uint32, l leaf) {
		if k := l.key(); k != previous {
			all = append(all, span{a.offset + nr, l})
			previous = k
		}
	}
	gap := func(nr uint32) leaf {
		if nr > d.newest && !a.old(nr) {
			return leaf{otherwise: p.unknown()}
		}
		return leaf{otherwise: p.otherwise}
	}
	marks := make([]uint32, 0, 2*len(d.byNumber)+4)
	marks = append(marks, 0, d.newest+1, a.legacy[0], a.legacy[1])
	for nr := range d.byNumber {
		marks = append(marks, nr, nr+1)
	}
	for _, nr := range sorted(marks) {
		if nr > last {
			break
		}
		if l, ok := d.byNumber[nr]; ok {
			put(nr, l)
		} else {
			put(nr, gap(nr))
		}
	}
	return all
}
