package compile

import (
	"encoding/binary"
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/program"
)

// Container is all that the first process of a container needs.
type Container struct {
	Process
	Root         program.FD // detached mount of the root file system
	RootReadonly bool
	RootShared   uint64    // propagation of the root (MS_SHARED, MS_SLAVE), 0: private
	Mounts       []Mount   // parents first
	Anteroom     *Anteroom // nil: no mount comes from there
	Masked       []string
	Covers       *program.FD // a detached directory with EmptyDir and NullFile, which masked paths show; nil: those that all share
	Readonly     []string
	CgroupNS     bool                     // a cgroup namespace whose root is the leaf
	Console      bool                     // the terminal also appears as /dev/console
	Hooks        *Hooks                   // nil: none
	Sysctls      map[string]string        // of the pod's namespaces; dotted or slashed names
	MemoryPolicy *specs.LinuxMemoryPolicy // nil: the kernel's
	Personality  *specs.LinuxPersonality  // nil: the kernel's
}

// execCalls is about what an exec comes to: half of it are capabilities to drop.
const execCalls = 80

// Start compiles the first process of a container.
func Start(c Container) (*program.Program, error) {
	b := program.New().Grow(execCalls + 12*len(c.Mounts) + 4*len(c.Readonly) + 6*len(c.Masked))
	p := process{Process: c.Process, b: b}
	if err := p.prepare(); err != nil {
		return nil, err
	}
	if err := c.own(b); err != nil {
		return nil, err
	}
	if c.CgroupNS {
		b.Call("create the cgroup namespace", unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	}
	t := tree{b: b, root: c.Root, target: b.NewSlot(), parent: b.NewSlot()}
	if c.Covers != nil {
		t.ownCovers(*c.Covers)
	}
	if c.Anteroom != nil {
		wait(b, c.Anteroom.Sync, "what attaches volumes")
	}
	if c.Hooks != nil {
		t.attachRoot("attach a copy of the host's mounts", c.Hooks.Host)
	} else {
		t.attachRoot("attach the root", c.Root)
	}
	t.attachAll(c.Mounts, c.Anteroom)
	if c.Console {
		console := b.Call("mount the terminal on /dev/console", unix.SYS_OPEN_TREE, c.Stdio[0], program.String(""), cloneFlags|emptyPath).Keep()
		t.attach("mount the terminal on /dev/console", console, "/dev/console", true)
	}
	for _, path := range c.Readonly {
		t.readonly(path)
	}
	for _, path := range c.Masked {
		t.mask(path)
	}
	if c.Hooks != nil {
		t.enterHost(c.Hooks)
		wait(b, c.Hooks.Sync, "hooks of the creation")
		if c.Hooks.Confine {
			p.sync = &c.Hooks.Sync
		}
	}
	if c.RootReadonly {
		t.setattr("make the root read-only", c.Root, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}
	t.pivotTo(c.Root, "the root")
	if c.RootShared != 0 { // pivot_root refuses a shared one
		t.setattr("set propagation of the root", c.Root, false, unix.MountAttr{Propagation: c.RootShared})
	}
	if err := p.finish(); err != nil {
		return nil, err
	}
	return b.Build()
}

// Exec compiles an additional process. target is a pidfd of the container's first process.
func Exec(p Process, target program.FD) (*program.Program, error) {
	b := program.New().Grow(execCalls)
	e := process{Process: p, b: b}
	if err := e.prepare(); err != nil {
		return nil, err
	}
	b.Call("enter the container's namespaces", unix.SYS_SETNS, target, unix.CLONE_NEWNS|unix.CLONE_NEWCGROUP)
	if err := e.finish(); err != nil {
		return nil, err
	}
	return b.Build()
}

// Boot describes how a pause becomes the holder of its pod's namespaces.
type Boot struct {
	Tasks    []program.FD // v1: its leaf's tasks files
	UserNS   *program.FD  // it gets a user namespace; a byte read from here says that the mappings are written
	Unshare  int          // CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWUTS
	Hostname string       // "": unchanged
	Sysctls  map[string]string
	Loopback bool // bring lo up, in a new network namespace
}

// Compile makes the Program that pause runs in itself.
func (boot Boot) Compile() (*program.Program, error) {
	b := program.New()
	for _, fd := range boot.Tasks {
		b.Call("enter the cgroup", unix.SYS_WRITE, fd, program.String("0"), 1)
	}
	if boot.UserNS != nil {
		b.Call("create the user namespace", unix.SYS_UNSHARE, unix.CLONE_NEWUSER)
		b.Call("tell that the user namespace is there", unix.SYS_WRITE, *boot.UserNS, program.String("u"), 1)
		b.Call("wait for the id mappings", unix.SYS_READ, *boot.UserNS, program.Bytes(make([]byte, 8)), 1).Nonzero()
		b.Call("drop groups", unix.SYS_SETGROUPS, 0, nil)
		b.Call("become root of the user namespace", unix.SYS_SETRESGID, 0, 0, 0)
		b.Call("become root of the user namespace", unix.SYS_SETRESUID, 0, 0, 0)
	}
	if boot.Unshare != 0 {
		b.Call("create the pod's namespaces", unix.SYS_UNSHARE, boot.Unshare)
	}
	if boot.Hostname != "" {
		b.Call("set hostname "+boot.Hostname, unix.SYS_SETHOSTNAME, program.String(boot.Hostname), len(boot.Hostname))
	}
	if boot.Loopback {
		loopbackUp(b)
	}
	setSysctls(b, boot.Sysctls)
	return b.Build()
}

// own sets what containers seldom ask for.
func (c Container) own(b *program.Builder) error {
	setSysctls(b, c.Sysctls)
	if c.MemoryPolicy != nil {
		if err := setMemoryPolicy(b, c.MemoryPolicy); err != nil {
			return err
		}
	}
	if c.Personality != nil {
		return setPersonality(b, c.Personality)
	}
	return nil
}

func setSysctls(b *program.Builder, all map[string]string) {
	for _, key := range slices.Sorted(maps.Keys(all)) {
		writeFile(b, "set sysctl "+key+" to "+all[key], ProcDir+"/sys/"+sysctlPath(key), all[key])
	}
}

// sysctlPath translates both spellings of a key; in the one with slashes a dot is part of a name.
func sysctlPath(key string) string {
	if strings.Contains(key, "/") {
		return key
	}
	return strings.ReplaceAll(key, ".", "/")
}

func loopbackUp(b *program.Builder) {
	const what = "bring the loopback interface up"
	ifreq := make([]byte, 40)
	copy(ifreq, "lo")
	binary.NativeEndian.PutUint16(ifreq[unix.IFNAMSIZ:], unix.IFF_UP|unix.IFF_RUNNING)
	s := b.Call(what, unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0).Keep()
	b.Call(what, unix.SYS_IOCTL, s, unix.SIOCSIFFLAGS, program.Bytes(ifreq))
	b.Call(what, unix.SYS_CLOSE, s)
}
