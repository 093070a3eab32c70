package cgroup

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// TestMain is also the program that TestPlacementFromUserNamespace runs as root of a user namespace.
func TestMain(m *testing.M) {
	if os.Getenv("CGROUP_TEST_INSIDE") != "" {
		inside()
		return
	}
	os.Exit(m.Run())
}

// inside tries to have a child born in the group of descriptor 3, then writes itself into those of 4 and following.
func inside() {
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: 3}
	err := cmd.Run()
	fmt.Println("clone refused:", errors.Is(err, syscall.EACCES), err)
	for fd := 4; ; fd++ {
		if _, err := syscall.Write(fd, []byte("0")); errors.Is(err, syscall.EBADF) {
			break
		} else if err != nil {
			fmt.Println("write:", err)
		}
	}
	text, err := os.ReadFile("/proc/self/cgroup")
	fmt.Println(string(text), err)
}

func TestPlacementFromUserNamespace(t *testing.T) {
	hs := host(t)
	g := create(t, hs, nil)
	p, err := g.Placement()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.Dir == nil {
		t.Skip("no cgroup2")
	}
	w, err := g.PlacementByWrite()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if w.Dir != nil || len(w.Tasks) != len(hs.List()) {
		t.Errorf("PlacementByWrite gave Dir %v and %d files", w.Dir, len(w.Tasks))
	}
	b, err := g.PlacementOfBorn()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if b.Dir != nil || len(b.Tasks) != len(hs.List())-1 {
		t.Errorf("PlacementOfBorn gave Dir %v and %d files", b.Dir, len(b.Tasks))
	}
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 200000, Size: 65536}}
	cmd := exec.Command(testBinary(t))
	cmd.Env = append(os.Environ(), "CGROUP_TEST_INSIDE=1")
	cmd.ExtraFiles = append([]*os.File{p.Dir}, w.Tasks...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids,
		Credential: &syscall.Credential{}, GidMappingsEnableSetgroups: true}
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("no user namespace: %v", err)
	}
	if !strings.Contains(string(out), "clone refused: true") {
		t.Errorf("CLONE_INTO_CGROUP from inside is allowed: %s", out)
	}
	// v1's tasks took one thread only, which need not be the one that reads /proc/self/cgroup; cgroup.procs took all.
	if strings.Contains(string(out), "write:") || !strings.Contains(string(out), "0::"+g.Path()+"\n") {
		t.Errorf("writes from inside: %s", out)
	}
}

// testBinary copies the running test to where a user without rights can reach it.
func testBinary(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "cgroup-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	program, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = errors.Join(os.Chmod(dir, 0o755), os.WriteFile(dir+"/test", program, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir + "/test"
}
