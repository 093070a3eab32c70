package seccomp

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
)

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

var (
	testActions = []specs.LinuxSeccompAction{specs.ActAllow, specs.ActErrno, specs.ActKillProcess, specs.ActTrap, specs.ActLog, specs.ActTrace}
	testOps     = []specs.LinuxSeccompOperator{specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual,
		specs.OpGreaterThan, specs.OpMaskedEqual}
	testValues = []uint64{0, 1, 2, 3, 40, 0x20008, 0x7fffffff, 0x80000000, 0xffffffff, 1 << 32, 1<<32 | 1, 2<<32 | 40, 1<<63 | 1, 1<<64 - 1}
)

func randomPolicy(r *rand.Rand) *specs.LinuxSeccomp {
	p := &specs.LinuxSeccomp{DefaultAction: pick(r, testActions...)}
	if p.DefaultAction == specs.ActErrno && r.IntN(3) == 0 {
		p.DefaultErrnoRet = new(uint(r.IntN(4000)))
	}
	for _, a := range abis {
		if r.IntN(2) == 0 {
			p.Architectures = append(p.Architectures, a.name)
		}
	}
	pool := make([]string, 1+r.IntN(20)) // few names, so that rules meet
	for i := range pool {
		calls := pick(r, abis...).calls
		pool[i] = calls[r.IntN(len(calls))].name
	}
	pool = append(pool, "socket", "socketcall", "no_such_call")
	for range r.IntN(30) {
		p.Syscalls = append(p.Syscalls, randomRule(r, pool))
	}
	return p
}

func randomRule(r *rand.Rand, pool []string) specs.LinuxSyscall {
	s := specs.LinuxSyscall{Action: pick(r, testActions...)}
	if s.Action == specs.ActErrno && r.IntN(2) == 0 {
		s.ErrnoRet = new(uint(pick(r, 1, 38, 4095)))
	}
	for range 1 + r.IntN(4) {
		s.Names = append(s.Names, pick(r, pool...))
	}
	for range r.IntN(4) {
		s.Args = append(s.Args, specs.LinuxSeccompArg{Index: uint(r.IntN(6)), Value: pick(r, testValues...), ValueTwo: pick(r, testValues...), Op: pick(r, testOps...)})
	}
	return s
}

// interesting returns numbers at which something may change.
func interesting(a *abi, p *specs.LinuxSeccomp) []uint32 {
	numbers := []uint32{0, 1, 471, 472, 511, 512, 547, 548, 0xefffff, 0xf0001, 0xf0800, 0x3fffffff}
	for _, s := range p.Syscalls {
		for _, name := range s.Names {
			if nr, ok := a.number(name); ok {
				numbers = append(numbers, nr, nr+1)
				if nr > 0 {
					numbers = append(numbers, nr-1)
				}
			}
		}
	}
	return sorted(numbers)
}

func check(t *testing.T, p *specs.LinuxSeccomp, r *rand.Rand) {
	t.Helper()
	f, err := compile(p)
	if err != nil {
		t.Fatalf("compile %+v: %v", p, err)
	}
	run := machine(t, f)
	for _, a := range abis {
		for _, nr := range interesting(a, p) {
			for range 4 {
				e := event{arch: a, nr: a.offset + nr}
				for i := range e.args {
					e.args[i] = pick(r, testValues...)
				}
				if got, want := run(e), oracle(t, p, e); got != want {
					t.Fatalf("%s number %d args %x: filter says %#x, policy %#x\npolicy: %+v", a.name, nr, e.args, got, want, p)
				}
			}
		}
	}
}

func TestRandomPolicies(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		check(t, randomPolicy(r), r)
	}
}

func FuzzCompile(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		r := rand.New(rand.NewPCG(a, b))
		check(t, randomPolicy(r), r)
	})
}

func TestDefaultProfileMeansWhatItSays(t *testing.T) {
	all := make([]string, 0, len(byCapability))
	for _, c := range byCapability {
		all = append(all, c.capability)
	}
	for _, caps := range [][]string{nil, {"CAP_SYS_ADMIN"}, all} {
		check(t, DefaultProfile(caps), rand.New(rand.NewPCG(7, 7)))
	}
}

// A large policy makes the jumps of the tree longer than an instruction can hold.
func TestLongJumps(t *testing.T) {
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{abis[len(abis)-1].name}}
	for i, c := range abis[0].calls[:150] {
		args := []specs.LinuxSeccompArg{{Index: 0, Value: uint64(i)<<32 | 7, Op: specs.OpLessEqual}, {Index: 3, Value: uint64(i), Op: specs.OpEqualTo}}
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{c.name}, Action: specs.ActErrno, ErrnoRet: new(uint(i + 2)), Args: args})
	}
	f, err := compile(p)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(instructions(t, f), func(i bpf.Instruction) bool { _, ok := i.(bpf.Jump); return ok }) {
		t.Fatal("no long jump in the filter: the policy is too small for this test")
	}
	check(t, p, rand.New(rand.NewPCG(3, 3)))
}

func TestRefusedPolicies(t *testing.T) {
	rule := func(change func(*specs.LinuxSyscall)) *specs.LinuxSeccomp {
		s := specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Op: specs.OpEqualTo}}}
		change(&s)
		return &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{s}}
	}
	huge := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	for i := range uint64(2000) {
		huge.Syscalls = append(huge.Syscalls, allow("read", specs.LinuxSeccompArg{Index: uint(i % 6), Value: i << 20, Op: specs.OpEqualTo}))
	}
	many := rule(func(s *specs.LinuxSyscall) {
		s.Names = slices.Repeat([]string{"read"}, 1<<10)
		s.Args = slices.Repeat(s.Args, 1<<10)
	})
	for _, c := range []struct {
		name, want string
		policy     *specs.LinuxSeccomp
	}{
		{"nil", "defaultAction: missing", nil},
		{"no default", "defaultAction: missing", &specs.LinuxSeccomp{}},
		{"default", `defaultAction: unknown value "NO"`, &specs.LinuxSeccomp{DefaultAction: "NO"}},
		{"default errno", "defaultErrnoRet: SCMP_ACT_ALLOW returns no errno", &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, DefaultErrnoRet: new(uint(1))}},
		{"action", `syscalls[0].action: unknown value "NO"`, rule(func(s *specs.LinuxSyscall) { s.Action = "NO" })},
		{"notify", "syscalls[0].action: SCMP_ACT_NOTIFY is not supported", rule(func(s *specs.LinuxSyscall) { s.Action = specs.ActNotify })},
		{"errno", "syscalls[0].errnoRet: 4096 is above 4095", rule(func(s *specs.LinuxSyscall) { s.ErrnoRet = new(uint(4096)) })},
		{"names", "syscalls[0].names: empty", rule(func(s *specs.LinuxSyscall) { s.Names = nil })},
		{"index", "syscalls[0].args[0].index: 6 is above 5", rule(func(s *specs.LinuxSyscall) { s.Args[0].Index = 6 })},
		{"operator", `syscalls[0].args[0].op: unknown value "<"`, rule(func(s *specs.LinuxSyscall) { s.Args[0].Op = "<" })},
		{"architecture", `architectures[0]: unknown value "x86"`, &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{"x86"}}},
		{"flag", `flags[0]: unknown value "F"`, &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"F"}}},
		{"listener flag", "flags[0]: SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs", &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}}},
		{"listener", "listenerPath: ", &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/run/x"}},
		{"multiplied", "syscalls[0]: more than 65536 rules", many},
		{"too large", "the kernel takes 4096", huge},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := Compile(c.policy); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestFlags(t *testing.T) {
	for _, c := range []struct {
		flags []specs.LinuxSeccompFlag
		want  uint64
	}{
		{nil, 4},
		{[]specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_TSYNC"}, 0},
		{[]specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow}, 6},
	} {
		f, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: c.flags})
		if err != nil || f.Flags != c.want {
			t.Errorf("%v: flags %v, error %v; want %d", c.flags, f, err, c.want)
		}
	}
}

func TestCacheIsSharedAndBounded(t *testing.T) {
	first, err := Compile(DefaultProfile(nil))
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint(3 * maxCached) {
		if _, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: new(i)}); err != nil {
			t.Fatal(err)
		}
		if again, _ := Compile(DefaultProfile(nil)); again != first {
			t.Fatalf("after %d others the used filter was made again", i)
		}
	}
	if n := len(cache.byKey); n != maxCached || len(cache.order) != n {
		t.Errorf("cache holds %d filters in an order of %d, want %d", n, len(cache.order), maxCached)
	}
}

func TestGoldenDisassembly(t *testing.T) {
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{abis[len(abis)-1].name}, Syscalls: []specs.LinuxSyscall{
		allow("read write openat close exit_group"),
		allow("clone", specs.LinuxSeccompArg{Value: newNamespaces, Op: specs.OpMaskedEqual}),
		allow("personality", specs.LinuxSeccompArg{Value: 8, Op: specs.OpEqualTo}),
	}}
	f, err := Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for i, in := range instructions(t, f) {
		fmt.Fprintf(&b, "%3d  %s\n", i, in)
	}
	file := filepath.Join("testdata", "small."+strings.ToLower(string(abis[0].name))+".golden")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("filter changed (UPDATE_GOLDEN=1 rewrites %s):\n%s", file, b.String())
	}
}

func BenchmarkCompileDefaultProfile(b *testing.B) {
	p := DefaultProfile(nil)
	var f *Filter
	for b.Loop() {
		var err error
		if f, err = compile(p); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(f.Len()), "instructions")
}

func BenchmarkCachedDefaultProfile(b *testing.B) {
	for b.Loop() {
		if _, err := Compile(DefaultProfile(nil)); err != nil {
			b.Fatal(err)
		}
	}
}
