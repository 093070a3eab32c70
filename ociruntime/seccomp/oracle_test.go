package seccomp

import (
	"encoding/binary"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// event is what the kernel shows a filter of one system call.
type event struct {
	arch *abi
	nr   uint32 // with the offset of its ABI
	args [6]uint64
}

// oracle evaluates a policy rule by rule, in the plainest way.
func oracle(t testing.TB, p *specs.LinuxSeccomp, e event) uint32 {
	t.Helper()
	native := e.arch == abis[0]
	if !native && !slices.Contains(p.Architectures, e.arch.name) {
		return unix.SECCOMP_RET_KILL_PROCESS
	}
	otherwise := ret(p.DefaultAction, p.DefaultErrnoRet)
	nr := e.nr - e.arch.offset
	var newest uint32
	var first, conditional *uint32 // verdicts of the first unconditional and the first matching conditional rule
	named := false
	for _, s := range p.Syscalls {
		v := ret(s.Action, s.ErrnoRet)
		for _, name := range s.Names {
			i := slices.IndexFunc(e.arch.calls, func(c call) bool { return c.name == name })
			hit, args := false, s.Args
			if i >= 0 {
				if !e.arch.old(e.arch.calls[i].nr) {
					newest = max(newest, e.arch.calls[i].nr)
				}
				hit = e.arch.calls[i].nr == nr
			}
			if h, ok := e.arch.multiplexed[name]; ok && len(s.Args) == 0 && !hit {
				if behind, _ := e.arch.number(h.behind); behind == nr {
					hit, args = true, []specs.LinuxSeccompArg{{Value: h.number, Op: specs.OpEqualTo}}
				}
			}
			if !hit || v == otherwise {
				continue
			}
			named = true
			if len(args) == 0 && first == nil {
				first = &v
			}
			if len(args) > 0 && conditional == nil && matches(args, e) {
				conditional = &v
			}
		}
	}
	switch {
	case first != nil:
		return *first
	case conditional != nil:
		return *conditional
	case !named && nr > newest && !e.arch.old(nr) && p.DefaultAction == specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	}
	return otherwise
}

func ret(action specs.LinuxSeccompAction, errno *uint) uint32 {
	v := actions[action]
	if errno != nil {
		return v | uint32(*errno)
	}
	if action == specs.ActErrno || action == specs.ActTrace {
		v |= uint32(unix.EPERM)
	}
	return v
}

func matches(args []specs.LinuxSeccompArg, e event) bool {
	seen, repeated := make(map[uint]bool), false
	for _, a := range args {
		repeated = repeated || seen[a.Index]
		seen[a.Index] = true
	}
	one := func(a specs.LinuxSeccompArg) bool {
		arg, v, w := e.args[a.Index], a.Value, a.ValueTwo
		if e.arch.narrow {
			arg, v, w = uint64(uint32(arg)), uint64(uint32(v)), uint64(uint32(w))
		}
		switch a.Op {
		case specs.OpEqualTo:
			return arg == v
		case specs.OpNotEqual:
			return arg != v
		case specs.OpLessThan:
			return arg < v
		case specs.OpLessEqual:
			return arg <= v
		case specs.OpGreaterEqual:
			return arg >= v
		case specs.OpGreaterThan:
			return arg > v
		}
		return arg&v == w&v
	}
	if repeated {
		return slices.ContainsFunc(args, one)
	}
	return !slices.ContainsFunc(args, func(a specs.LinuxSeccompArg) bool { return !one(a) })
}

func instructions(t testing.TB, f *Filter) []bpf.Instruction {
	t.Helper()
	var all []bpf.Instruction
	for c := range slices.Chunk(f.Code, sizeofInstruction) {
		raw := bpf.RawInstruction{Op: binary.NativeEndian.Uint16(c), Jt: c[2], Jf: c[3], K: binary.NativeEndian.Uint32(c[4:])}
		i := raw.Disassemble()
		if i == bpf.Instruction(raw) {
			t.Fatalf("instruction %d: not BPF: %+v", len(all), raw)
		}
		all = append(all, i)
	}
	return all
}

// machine runs a filter. The packet filter's virtual machine reads words in network order, so they are laid out in it.
func machine(t testing.TB, f *Filter) func(event) uint32 {
	t.Helper()
	vm, err := bpf.NewVM(instructions(t, f))
	if err != nil {
		t.Fatalf("filter is not valid: %v", err)
	}
	return func(e event) uint32 {
		data := binary.BigEndian.AppendUint32(nil, e.nr)
		data = binary.BigEndian.AppendUint32(data, e.arch.audit)
		data = append(data, make([]byte, 8)...)
		for _, a := range e.args {
			data = binary.BigEndian.AppendUint32(data, uint32(a))
			data = binary.BigEndian.AppendUint32(data, uint32(a>>32))
		}
		v, err := vm.Run(data)
		if err != nil {
			t.Fatalf("run filter: %v", err)
		}
		return uint32(v)
	}
}
