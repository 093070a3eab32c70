package seccomp

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
)

// Filter is a compiled policy. It is shared: nobody changes it.
type Filter struct {
	Code  []byte // struct sock_filter, one after another, 8 bytes each
	Flags uint64 // SECCOMP_FILTER_FLAG_*, for seccomp(SECCOMP_SET_MODE_FILTER)
}

// Len is the number of instructions.
func (f *Filter) Len() int { return len(f.Code) / sizeofInstruction }

const (
	maxInstructions   = 4096 // BPF_MAXINSNS
	sizeofInstruction = 8
)

// Compile makes the filter of a policy, or returns the one that it made for an equal policy before.
// The error names the field at fault.
func Compile(p *specs.LinuxSeccomp) (*Filter, error) {
	encoded, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode policy: %w", err)
	}
	key := sha256.Sum256(encoded)
	if f := cache.get(key); f != nil {
		return f, nil
	}
	f, err := compile(p)
	if err != nil {
		return nil, err
	}
	cache.put(key, f)
	return f, nil
}

func compile(p *specs.LinuxSeccomp) (*Filter, error) {
	parsed, err := parse(p)
	if err != nil {
		return nil, err
	}
	flags, err := filterFlags(p)
	if err != nil {
		return nil, err
	}
	if p.ListenerPath != "" {
		return nil, fmt.Errorf("listenerPath: notifications are not supported")
	}
	listed, err := selectABIs(p.Architectures)
	if err != nil {
		return nil, err
	}
	program := parsed.program(listed)
	if len(program) > maxInstructions {
		return nil, fmt.Errorf("policy needs %d instructions; the kernel takes %d", len(program), maxInstructions)
	}
	code, err := encode(program)
	if err != nil {
		return nil, err
	}
	return &Filter{Code: code, Flags: flags}, nil
}

// selectABIs returns the native ABI and those listed that this kernel could meet.
func selectABIs(names []specs.Arch) ([]*abi, error) {
	for i, name := range names {
		if !strings.HasPrefix(string(name), "SCMP_ARCH_") {
			return nil, fmt.Errorf("architectures[%d]: unknown value %q", i, name)
		}
	}
	listed := []*abi{abis[0]}
	for _, a := range abis[1:] {
		if slices.Contains(names, a.name) {
			listed = append(listed, a)
		}
	}
	return listed, nil
}

func encode(program []bpf.Instruction) ([]byte, error) {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return nil, fmt.Errorf("assemble filter: %w", err)
	}
	code := make([]byte, 0, len(raw)*sizeofInstruction)
	for _, i := range raw {
		code = binary.NativeEndian.AppendUint16(code, i.Op)
		code = append(code, i.Jt, i.Jf)
		code = binary.NativeEndian.AppendUint32(code, i.K)
	}
	return code, nil
}

// filters keeps the filters made last; a node has few different ones.
type filters struct {
	mu    sync.Mutex
	byKey map[[sha256.Size]byte]*Filter
	order [][sha256.Size]byte // the one used longest ago first
}

const maxCached = 64

var cache = filters{byKey: make(map[[sha256.Size]byte]*Filter)}

func (c *filters) get(key [sha256.Size]byte) *Filter {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.byKey[key]
	if f != nil {
		c.touch(key)
	}
	return f
}

func (c *filters) put(key [sha256.Size]byte, f *Filter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.byKey[key] = f
	c.touch(key)
	if len(c.order) > maxCached {
		delete(c.byKey, c.order[0])
		c.order = slices.Delete(c.order, 0, 1)
	}
}

func (c *filters) touch(key [sha256.Size]byte) {
	if i := slices.Index(c.order, key); i >= 0 {
		c.order = slices.Delete(c.order, i, i+1)
	}
	c.order = append(c.order, key)
}
