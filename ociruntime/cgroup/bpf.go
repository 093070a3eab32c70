package cgroup

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// deviceProgram compiles rules to an eBPF program of type BPF_PROG_TYPE_CGROUP_DEVICE. The last rule that is about a
// device decides; without any, it is denied. containerd/cgroups' generator is not used: it takes an access as covered
// when one of its bits is, so that a rule "r" would let O_RDWR through, and it crashes on rules without numbers.
func deviceProgram(rules []specs.LinuxDeviceCgroup) (asm.Instructions, error) {
	program := asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word), // struct bpf_cgroup_dev_ctx: access << 16 | type, major, minor
		asm.Mov.Reg32(asm.R3, asm.R2),
		asm.And.Imm32(asm.R2, 0xffff), // R2: type
		asm.RSh.Imm32(asm.R3, 16),     // R3: access
		asm.LoadMem(asm.R4, asm.R1, 4, asm.Word),
		asm.LoadMem(asm.R5, asm.R1, 8, asm.Word),
	}
	for i := len(rules) - 1; i >= 0; i-- {
		r := rules[i]
		if err := checkRule(r); err != nil {
			return nil, fmt.Errorf("device rule %d: %w", i, err)
		}
		block := ruleProgram(r, fmt.Sprintf("before-%d", i))
		if i < len(rules)-1 {
			block[0] = block[0].WithSymbol(fmt.Sprintf("before-%d", i+1))
		}
		program = append(program, block...)
		if everyDevice(r) { // the verifier refuses what cannot be reached
			return program, nil
		}
	}
	deny := asm.Mov.Imm32(asm.R0, 0).WithSymbol("before-0")
	return append(program, deny, asm.Return()), nil
}

// ruleProgram jumps to next unless the rule covers the access.
func ruleProgram(r specs.LinuxDeviceCgroup, next string) asm.Instructions {
	program := asm.Instructions{asm.Mov.Reg32(asm.R1, asm.R3)} // also carries the symbol of rules that compare nothing
	switch r.Type {
	case "c":
		program = append(program, asm.JNE.Imm(asm.R2, unix.BPF_DEVCG_DEV_CHAR, next))
	case "b":
		program = append(program, asm.JNE.Imm(asm.R2, unix.BPF_DEVCG_DEV_BLOCK, next))
	}
	if bits := accessBits(r); bits != unix.BPF_DEVCG_ACC_MKNOD|unix.BPF_DEVCG_ACC_READ|unix.BPF_DEVCG_ACC_WRITE {
		if r.Allow { // all that is asked for must be allowed
			program = append(program, asm.And.Imm32(asm.R1, ^bits), asm.JNE.Imm(asm.R1, 0, next))
		} else { // one denied bit is enough
			program = append(program, asm.And.Imm32(asm.R1, bits), asm.JEq.Imm(asm.R1, 0, next))
		}
	}
	if orStar(r.Major) != "*" {
		program = append(program, asm.JNE.Imm(asm.R4, int32(*r.Major), next))
	}
	if orStar(r.Minor) != "*" {
		program = append(program, asm.JNE.Imm(asm.R5, int32(*r.Minor), next))
	}
	verdict := int32(0)
	if r.Allow {
		verdict = 1
	}
	return append(program, asm.Mov.Imm32(asm.R0, verdict), asm.Return())
}

func accessBits(r specs.LinuxDeviceCgroup) int32 {
	bits := int32(0)
	for _, c := range access(r) {
		bits |= map[rune]int32{'m': unix.BPF_DEVCG_ACC_MKNOD, 'r': unix.BPF_DEVCG_ACC_READ, 'w': unix.BPF_DEVCG_ACC_WRITE}[c]
	}
	return bits
}

// attachDeviceFilter attaches the program of rules to a cgroup2 directory, in place of an earlier one: there is no
// moment without a filter. The kernel drops it with the directory.
func attachDeviceFilter(h *hierarchy, dir string, rules []specs.LinuxDeviceCgroup, fresh bool) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("set device rules on %s: %w", h.abs(dir), err)
		}
	}()
	instructions, err := deviceProgram(rules)
	if err != nil {
		return err
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "cri_devices", Type: ebpf.CGroupDevice, Instructions: instructions, License: "Apache"})
	if err != nil {
		return fmt.Errorf("load filter: %w", err)
	}
	defer program.Close()
	fd, err := h.openFD(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	options := link.RawAttachProgramOptions{Target: fd, Program: program, Attach: ebpf.AttachCGroupDevice, Flags: unix.BPF_F_ALLOW_MULTI}
	if fresh {
		return link.RawAttachProgram(options)
	}
	return replaceFilter(options)
}

// replaceFilter attaches by options, replacing the only program that is attached now, if any.
func replaceFilter(options link.RawAttachProgramOptions) error {
	now, err := link.QueryPrograms(link.QueryOptions{Target: options.Target, Attach: options.Attach})
	if err != nil {
		return fmt.Errorf("query filter: %w", err)
	}
	switch len(now.Programs) {
	case 0:
		return link.RawAttachProgram(options)
	case 1:
	default:
		return errors.New("somebody else has attached filters too")
	}
	old, err := ebpf.NewProgramFromID(now.Programs[0].ID)
	if err != nil {
		return fmt.Errorf("open attached filter: %w", err)
	}
	defer old.Close()
	options.Anchor = link.ReplaceProgram(old)
	return link.RawAttachProgram(options)
}
