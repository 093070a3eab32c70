package seccomp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxProfile bounds a profile file. The largest known ones have 30 KiB.
const maxProfile = 4 << 20

// LoadProfile reads the policy of SeccompProfile Localhost from a file in OCI form or in the form that Docker and
// CRI-O use, which adds archMap, includes and excludes; these are decided for the given capabilities of the container,
// this architecture and the running kernel. What is unknown is an error: a misspelt field would silently
// weaken the policy. Errors name the file and the field.
func LoadProfile(path string, capabilities ...string) (*specs.LinuxSeccomp, error) {
	data, err := readProfile(path)
	if err != nil {
		return nil, fmt.Errorf("read seccomp profile: %w", err)
	}
	p, err := parseProfile(data, capabilities)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile %s: %w", path, err)
	}
	return p, nil
}

func readProfile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxProfile+1))
	if err == nil && len(data) > maxProfile {
		err = fmt.Errorf("%s: larger than %d bytes", path, maxProfile)
	}
	return data, err
}

// profile is a file's content: the OCI form and what Docker added.
type profile struct {
	DefaultAction    specs.LinuxSeccompAction `json:"defaultAction"`
	DefaultErrno     string                   `json:"defaultErrno"`
	DefaultErrnoRet  *number                  `json:"defaultErrnoRet"`
	Architectures    []specs.Arch             `json:"architectures"`
	ArchMap          []archMap                `json:"archMap"`
	Flags            []specs.LinuxSeccompFlag `json:"flags"`
	ListenerPath     string                   `json:"listenerPath"`
	ListenerMetadata string                   `json:"listenerMetadata"`
	Syscalls         []profileCall            `json:"syscalls"`
}

type archMap struct {
	Arch     specs.Arch   `json:"architecture"`
	SubArchs []specs.Arch `json:"subArchitectures"`
}

type profileCall struct {
	Name     string                   `json:"name"`
	Names    []string                 `json:"names"`
	Action   specs.LinuxSeccompAction `json:"action"`
	Errno    string                   `json:"errno"`
	ErrnoRet *number                  `json:"errnoRet"`
	Args     []specs.LinuxSeccompArg  `json:"args"`
	Comment  string                   `json:"comment"`
	Includes conditions               `json:"includes"`
	Excludes conditions               `json:"excludes"`
}

func parseProfile(data []byte, capabilities []string) (*specs.LinuxSeccomp, error) {
	var in profile
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return nil, decodeError(data, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("content after the end of the profile")
	}
	out := &specs.LinuxSeccomp{DefaultAction: in.DefaultAction, Flags: in.Flags, ListenerPath: in.ListenerPath, ListenerMetadata: in.ListenerMetadata}
	var err error
	if out.DefaultErrnoRet, err = errnoOf(in.DefaultErrno, in.DefaultErrnoRet); err != nil {
		return nil, fmt.Errorf("defaultErrno%w", err)
	}
	if out.Architectures, err = in.architectures(); err != nil {
		return nil, err
	}
	where := thisHost(capabilities)
	for i, c := range in.Syscalls {
		s, wanted, err := c.translate(where)
		if err != nil {
			return nil, fmt.Errorf("syscalls[%d].%w", i, err)
		}
		if wanted {
			out.Syscalls = append(out.Syscalls, s)
		}
	}
	if _, err := compile(out); err != nil {
		return nil, err
	}
	return out, nil
}

// decodeError tells where in the file the fault is.
func decodeError(data []byte, err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	offset := int64(-1)
	switch {
	case errors.As(err, &syntax):
		offset = syntax.Offset
	case errors.As(err, &kind):
		offset = kind.Offset
		err = fmt.Errorf("%s: %s instead of %s", kind.Field, kind.Value, kind.Type)
	}
	if offset < 0 || offset > int64(len(data)) {
		return err
	}
	return fmt.Errorf("line %d: %w", 1+bytes.Count(data[:offset], []byte("\n")), err)
}

func (p profile) architectures() ([]specs.Arch, error) {
	if len(p.Architectures) > 0 && len(p.ArchMap) > 0 {
		return nil, fmt.Errorf("architectures: not together with archMap")
	}
	for _, m := range p.ArchMap {
		if m.Arch == abis[0].name {
			return append([]specs.Arch{m.Arch}, m.SubArchs...), nil
		}
	}
	return p.Architectures, nil
}

func (c profileCall) translate(where host) (specs.LinuxSyscall, bool, error) {
	s := specs.LinuxSyscall{Names: c.Names, Action: c.Action, Args: c.Args}
	if c.Name != "" {
		if len(c.Names) > 0 {
			return s, false, fmt.Errorf("name: not together with names")
		}
		s.Names = []string{c.Name}
	}
	var err error
	if s.ErrnoRet, err = errnoOf(c.Errno, c.ErrnoRet); err != nil {
		return s, false, fmt.Errorf("errno%w", err)
	}
	included, err := c.Includes.hold(where, true)
	if err != nil {
		return s, false, fmt.Errorf("includes.%w", err)
	}
	excluded, err := c.Excludes.hold(where, false)
	if err != nil {
		return s, false, fmt.Errorf("excludes.%w", err)
	}
	// A rule that does not apply here must be right all the same: it may apply on the next node.
	if _, err := parseEntry(s); err != nil {
		return s, false, err
	}
	return s, included && !excluded, nil
}

// errnoOf joins the two spellings of an errno; ret wins, as with Docker.
func errnoOf(name string, ret *number) (*uint, error) {
	if ret != nil {
		n := uint(*ret)
		return &n, nil
	}
	if name == "" {
		return nil, nil
	}
	n, ok := errnoByName(name)
	if !ok {
		return nil, fmt.Errorf(": unknown name %q", name)
	}
	return &n, nil
}

// conditions say where a rule applies.
type conditions struct {
	Caps      []string `json:"caps"`
	Arches    []string `json:"arches"`
	MinKernel string   `json:"minKernel"`
}

// hold tells whether a rule is included (all of them hold, absent ones too) or excluded (one of them holds).
func (c conditions) hold(where host, include bool) (bool, error) {
	var answers []bool
	if len(c.Caps) > 0 {
		has := func(name string) bool { return slices.Contains(where.capabilities, name) }
		if include {
			answers = append(answers, !slices.ContainsFunc(c.Caps, func(n string) bool { return !has(n) }))
		} else {
			answers = append(answers, slices.ContainsFunc(c.Caps, has))
		}
	}
	if len(c.Arches) > 0 {
		answers = append(answers, slices.Contains(c.Arches, where.arch))
	}
	if c.MinKernel != "" {
		least, err := parseVersion(c.MinKernel)
		if err != nil {
			return false, fmt.Errorf("minKernel: %w", err)
		}
		answers = append(answers, !where.kernel.less(least))
	}
	if include {
		return !slices.Contains(answers, false), nil
	}
	return slices.Contains(answers, true), nil
}
