package compile

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/program"
	"github.com/criserver/criserver/ociruntime/rlimit"
)

// Filter is a compiled seccomp filter.
type Filter struct {
	Code  []byte // struct sock_filter, one after another
	Flags uint64 // SECCOMP_FILTER_FLAG_*
}

// Process is what a start and an exec have in common.
type Process struct {
	Spec    *specs.Process
	Keyring string        // id that names the session keyring; "": keep pause's
	Seccomp *Filter       // nil: none
	Tasks   []program.FD  // v1: the leaf's tasks file in each hierarchy
	Stdio   [3]program.FD // with a terminal all three are its slave
	// CapLast is the last capability that the kernel knows; CapPermitted those that pause has: others are left out.
	CapLast      int
	CapPermitted uint64
	UserNS       bool // pause lives in a user namespace
	// Rlimits and OOMScoreAdj are for what Spec does not name, where pause has more than its children are to inherit.
	Rlimits     []specs.POSIXRlimit
	OOMScoreAdj *int
	Executable  string // path; "": what Spec.Args names, looked for in PATH
}

type process struct {
	Process
	b    *program.Builder
	sync *program.FD // where to wait for hooks before it is confined; nil: there are none
}

// prepare emits what must happen in the minimal mount namespace.
func (p process) prepare() error {
	for _, fd := range p.Tasks {
		p.b.Call("enter the cgroup", unix.SYS_WRITE, fd, program.String("0"), 1)
	}
	if adj := cmp.Or(p.Spec.OOMScoreAdj, p.OOMScoreAdj); adj != nil {
		p.oomScore(*adj)
	}
	if err := p.priorities(); err != nil {
		return err
	}
	if l := p.Spec.ApparmorProfile; l != "" {
		p.writeFile("set AppArmor profile "+l, ProcDir+"/thread-self/attr/apparmor/exec", "exec "+l)
	}
	if l := p.Spec.SelinuxLabel; l != "" {
		p.writeFile("set SELinux label "+l, ProcDir+"/thread-self/attr/exec", l)
		p.writeFile("set SELinux keyring label "+l, ProcDir+"/thread-self/attr/keycreate", l)
	}
	return nil
}

// oomScore writes the process' own score. In a user namespace the file belongs to the process only while it is dumpable.
// A score that is lower than a criserver without CAP_SYS_RESOURCE may give becomes the lowest that it may, which is what
// pause has.
func (p process) oomScore(adj int) {
	what := "set oom_score_adj " + strconv.Itoa(adj)
	if p.UserNS {
		p.b.Call(what, unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
	}
	fd := p.b.Call(what, unix.SYS_OPENAT, unix.AT_FDCWD, program.String(ProcDir+"/self/oom_score_adj"), unix.O_WRONLY|unix.O_CLOEXEC, 0).Keep()
	p.b.Call(what, unix.SYS_WRITE, fd, program.String(strconv.Itoa(adj)), len(strconv.Itoa(adj))).Tolerate(unix.EACCES)
	p.b.Call(what, unix.SYS_CLOSE, fd)
	if p.UserNS {
		p.b.Call(what, unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	}
}

func (p process) writeFile(what, name, value string) { writeFile(p.b, what, name, value) }

func writeFile(b *program.Builder, what, name, value string) {
	fd := b.Call(what, unix.SYS_OPENAT, unix.AT_FDCWD, program.String(name), unix.O_WRONLY|unix.O_CLOEXEC, 0).Keep()
	b.Call(what, unix.SYS_WRITE, fd, program.String(value), len(value))
	b.Call(what, unix.SYS_CLOSE, fd)
}

// finish emits everything from inside the container's root to execve.
func (p process) finish() error {
	p.session()
	if err := p.limits(); err != nil {
		return err
	}
	caps, err := p.capabilities()
	if err != nil {
		return err
	}
	p.dropBounding(caps.bounding)
	p.enterAsUser(caps)
	if p.sync != nil {
		wait(p.b, *p.sync, "hooks of the start")
	}
	p.b.Call("ask to die with pause", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, int(unix.SIGKILL), 0, 0, 0)
	p.b.Call("see that pause lives", unix.SYS_PPOLL, program.Struct{Data: pollFD(), Words: []program.Word{{Offset: 0, Value: program.Pause{}}}}, 1, program.Bytes(make([]byte, 16)), nil, 0).Zero()
	p.confine(caps)
	return p.execute()
}

func pollFD() []byte {
	data := make([]byte, 8)
	binary.NativeEndian.PutUint16(data[4:], unix.POLLIN)
	return data
}

func (p process) session() {
	p.b.Call("start a session", unix.SYS_SETSID)
	if p.Spec.Terminal {
		p.b.Call("take the terminal", unix.SYS_IOCTL, p.Stdio[0], unix.TIOCSCTTY, 0)
	}
	for i, fd := range p.Stdio {
		p.b.Call("set descriptor "+strconv.Itoa(i), unix.SYS_DUP3, fd, i, 0)
	}
	if p.Keyring != "" {
		const joinSession, setPerm, perm = 1, 5, 0x3f1b0000 // possessor all; user view, read, search, link
		end := p.b.NewLabel()
		key := p.b.NewSlot()
		p.b.Call("join the session keyring", unix.SYS_KEYCTL, joinSession, program.String("_ses."+p.Keyring)).In(key).Tolerate(unix.ENOSYS).ElseTo(end)
		p.b.Call("set permissions of the session keyring", unix.SYS_KEYCTL, setPerm, key, perm).Tolerate(unix.EACCES)
		p.b.Place(end)
	}
	if u := p.Spec.User.Umask; u != nil {
		p.b.Call("set umask", unix.SYS_UMASK, *u)
	}
}

func (p process) limits() error {
	for _, r := range p.Spec.Rlimits {
		if _, ok := rlimit.Number(r.Type); !ok {
			return fmt.Errorf("process.rlimits: unknown type %q", r.Type)
		}
		p.setLimit(r)
	}
	for _, r := range p.Rlimits {
		named := slices.ContainsFunc(p.Spec.Rlimits, func(s specs.POSIXRlimit) bool { return s.Type == r.Type })
		if !named {
			p.setLimit(r).Tolerate(unix.EPERM) // pause has less: an earlier criserver could not give it more
		}
	}
	return nil
}

func (p process) setLimit(r specs.POSIXRlimit) program.Call {
	number, _ := rlimit.Number(r.Type) // limits has looked
	value := binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, r.Soft), r.Hard)
	return p.b.Call(fmt.Sprintf("set %s to %d:%d", r.Type, r.Soft, r.Hard), unix.SYS_PRLIMIT64, 0, number, program.Bytes(value), nil)
}

// capSets are the five sets of a process as bits.
type capSets struct {
	bounding, effective, permitted, inheritable, ambient uint64
}

func (p process) capabilities() (capSets, error) {
	c := p.Spec.Capabilities
	if c == nil {
		c = &specs.LinuxCapabilities{}
	}
	var sets capSets
	for _, s := range []struct {
		bits  *uint64
		names []string
	}{{&sets.bounding, c.Bounding}, {&sets.effective, c.Effective}, {&sets.permitted, c.Permitted}, {&sets.inheritable, c.Inheritable}, {&sets.ambient, c.Ambient}} {
		for _, name := range s.names {
			bit, err := capBit(name)
			if err != nil {
				return sets, err
			}
			if bit <= p.CapLast && p.CapPermitted&(1<<bit) != 0 {
				*s.bits |= 1 << bit
			}
		}
	}
	sets.permitted |= sets.effective
	return sets, nil
}

var capBits = func() map[string]int {
	bits := make(map[string]int)
	for _, c := range capability.ListKnown() {
		bits["CAP_"+strings.ToUpper(c.String())] = int(c)
	}
	return bits
}()

func capBit(name string) (int, error) {
	if bit, ok := capBits[name]; ok {
		return bit, nil
	}
	return 0, fmt.Errorf("process.capabilities: unknown capability %q", name)
}

func (p process) dropBounding(keep uint64) {
	for bit := 0; bit <= p.CapLast; bit++ {
		if keep&(1<<bit) == 0 {
			p.b.Call("drop capability "+strconv.Itoa(bit)+" from the bounding set", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, bit, 0, 0, 0)
		}
	}
}

// enterAsUser changes to the working directory and to the user. A directory that root may not enter (a network
// file system that squashes root) is entered as the user.
func (p process) enterAsUser(caps capSets) {
	cwd := p.Spec.Cwd
	if cwd == "" {
		cwd = "/"
	}
	what := "enter working directory " + cwd
	entered, end := p.b.NewLabel(), p.b.NewLabel()
	p.b.Call(what, unix.SYS_CHDIR, program.String(cwd)).Tolerate(unix.EACCES).ThenTo(entered)
	p.become(caps)
	p.b.Call(what, unix.SYS_CHDIR, program.String(cwd)).ThenTo(end)
	p.b.Place(entered)
	p.become(caps)
	p.b.Place(end)
}

// become changes user and groups; all capabilities stay, because the seccomp filter may need one.
func (p process) become(caps capSets) {
	u := p.Spec.User
	var groups []byte
	for _, g := range u.AdditionalGids {
		groups = binary.NativeEndian.AppendUint32(groups, g)
	}
	p.b.Call("set supplementary groups", unix.SYS_SETGROUPS, len(u.AdditionalGids), program.Bytes(groups))
	p.b.Call(fmt.Sprintf("become group %d", u.GID), unix.SYS_SETRESGID, u.GID, u.GID, u.GID)
	p.b.Call("keep capabilities", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
	p.b.Call(fmt.Sprintf("become user %d", u.UID), unix.SYS_SETRESUID, u.UID, u.UID, u.UID)
	if u.UID != 0 && p.Seccomp != nil && !p.Spec.NoNewPrivileges {
		all := p.CapPermitted & (1<<(p.CapLast+1) - 1)
		p.capset("regain capabilities for the filter", all, all, 0)
	}
}

func (p process) capset(what string, effective, permitted, inheritable uint64) {
	const version3 = 0x20080522
	header := binary.NativeEndian.AppendUint32(nil, version3)
	header = binary.NativeEndian.AppendUint32(header, 0)
	var data []byte
	for _, shift := range []uint{0, 32} {
		for _, set := range []uint64{effective, permitted, inheritable} {
			data = binary.NativeEndian.AppendUint32(data, uint32(set>>shift))
		}
	}
	p.b.Call(what, unix.SYS_CAPSET, program.Bytes(header), program.Bytes(data))
}

// confine installs the filter and takes the capabilities away. Without no_new_privs the filter needs
// CAP_SYS_ADMIN, so it comes first; with it, last.
func (p process) confine(caps capSets) {
	if p.Seccomp != nil && !p.Spec.NoNewPrivileges {
		p.filter()
	}
	p.capset("set capabilities", caps.effective, caps.permitted, caps.inheritable)
	for bit := 0; bit <= p.CapLast; bit++ {
		if caps.ambient&caps.permitted&caps.inheritable&(1<<bit) != 0 {
			p.b.Call("raise ambient capability "+strconv.Itoa(bit), unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, bit, 0, 0)
		}
	}
	if p.Spec.NoNewPrivileges {
		p.b.Call("set no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		if p.Seccomp != nil {
			p.filter()
		}
	}
}

func (p process) filter() {
	const setModeFilter = 1
	prog := make([]byte, 16)
	binary.NativeEndian.PutUint16(prog, uint16(len(p.Seccomp.Code)/8))
	p.b.Call("install the seccomp filter", unix.SYS_SECCOMP, setModeFilter, p.Seccomp.Flags,
		program.Struct{Data: prog, Words: []program.Word{{Offset: 8, Value: program.Bytes(p.Seccomp.Code)}}})
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// execute emits one execve for each place where the executable may be.
func (p process) execute() error {
	args := p.Spec.Args
	paths := []string{p.Executable}
	switch {
	case p.Executable != "":
	case len(args) == 0 || args[0] == "":
		return fmt.Errorf("process.args: no executable")
	default:
		paths = candidates(args[0], p.Spec.Env)
	}
	last := p.b.ExecAll(paths, program.Strings(args), program.Strings(p.Spec.Env))
	if len(paths) > 1 {
		last.Means(unix.ENOENT, fmt.Sprintf("find %s in PATH %.512s", args[0], search(p.Spec.Env)))
	}
	return nil
}

// search is the directories in which executables are looked for.
func search(env []string) string {
	dirs := defaultPath
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			dirs = v
		}
	}
	return dirs
}

func candidates(name string, env []string) []string {
	if strings.Contains(name, "/") {
		return []string{name}
	}
	var paths []string
	for dir := range strings.SplitSeq(search(env), ":") {
		if dir == "" {
			dir = "."
		}
		if c := path.Join(dir, name); dir == "." {
			paths = append(paths, "./"+name)
		} else {
			paths = append(paths, c)
		}
	}
	return paths
}
