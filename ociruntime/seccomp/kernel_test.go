package seccomp

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const childVariable = "CRISERVER_SECCOMP_CHILD"

func TestMain(m *testing.M) {
	if which := os.Getenv(childVariable); which != "" {
		child(which)
		return
	}
	os.Exit(m.Run())
}

var kernelPolicies = map[string]*specs.LinuxSeccomp{
	"default": DefaultProfile(nil),
	"kill": {DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
		{Names: []string{"acct"}, Action: specs.ActKillProcess},
	}},
}

// child installs a filter on its only used thread and prints the errnos of some calls.
func child(which string) {
	runtime.LockOSThread()
	f, err := Compile(kernelPolicies[which])
	if err != nil {
		fmt.Println(err)
		os.Exit(3)
	}
	prog := unix.SockFprog{Len: uint16(f.Len()), Filter: (*unix.SockFilter)(unsafe.Pointer(&f.Code[0]))}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		fmt.Println(err)
		os.Exit(3)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(f.Flags), uintptr(unsafe.Pointer(&prog))); e != 0 {
		fmt.Println("load:", e)
		os.Exit(3)
	}
	try := func(name string, nr uintptr, args ...uintptr) {
		args = append(args, 0, 0, 0)
		_, _, e := unix.RawSyscall(nr, args[0], args[1], args[2])
		fmt.Printf("%s=%s ", name, unix.ErrnoName(e))
	}
	try("getpid", unix.SYS_GETPID)
	try("acct", unix.SYS_ACCT)
	try("clone3", unix.SYS_CLONE3)
	try("clone_newuser", unix.SYS_CLONE, unix.CLONE_NEWUSER)
	try("personality", unix.SYS_PERSONALITY, 0xffffffff)
	try("personality_bad", unix.SYS_PERSONALITY, 0x10)
	try("vsock", unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM)
	try("alg", unix.SYS_SOCKET, unix.AF_ALG, unix.SOCK_SEQPACKET)
	try("alg_high_bits", unix.SYS_SOCKET, 1<<32|unix.AF_ALG, unix.SOCK_SEQPACKET)
	try("inet", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM)
	try("future", 1000)
	os.Exit(0)
}

func runChild(t *testing.T, which string) (string, *exec.ExitError) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childVariable+"="+which)
	out, err := cmd.Output()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if err != nil && !ok {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out)), exit
}

func TestKernelTakesTheDefaultFilter(t *testing.T) {
	got, exit := runChild(t, "default")
	want := "getpid= acct=EPERM clone3=ENOSYS clone_newuser=EPERM personality= personality_bad=EPERM " +
		"vsock=EPERM alg=EPERM alg_high_bits=EPERM inet= future=ENOSYS"
	if exit != nil || got != want {
		t.Errorf("child said %q (%v), want %q", got, exit, want)
	}
}

func TestKernelKills(t *testing.T) {
	got, exit := runChild(t, "kill")
	if exit == nil {
		t.Fatalf("child survived: %q", got)
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() || status.Signal() != unix.SIGSYS || got != "getpid=" {
		t.Errorf("child said %q and ended with %v, want getpid= and SIGSYS", got, exit)
	}
}
