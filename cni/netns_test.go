package cni

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func testNetNS(t testing.TB) *os.File {
	t.Helper()
	needHost(t)
	ns, err := newNetNS()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

func TestPinAndUnpin(t *testing.T) {
	ns, other := testNetNS(t), testNetNS(t)
	path := filepath.Join(t.TempDir(), "netns", "cri-1")
	for range 2 { // the second time nothing changes
		if err := PinNetNS(ns, path); err != nil {
			t.Fatal(err)
		}
	}
	if !IsNetNS(path) || !sameFile(path, fdPath(ns)) {
		t.Error("the namespace is not at its path")
	}
	if err := PinNetNS(other, path); err == nil || !strings.Contains(err.Error(), "another namespace is there") {
		t.Errorf("pin another one there: %v", err)
	}
	if err := unix.Mount(fdPath(other), path, "", unix.MS_BIND, ""); err != nil { // what a crash and a retry could stack
		t.Fatal(err)
	}
	for range 2 {
		if err := UnpinNetNS(path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("after unpinning: %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), path) {
		t.Errorf("mounts are left on %s, %v", path, err)
	}
}

func TestPinOverALeftFile(t *testing.T) {
	ns := testNetNS(t)
	path := filepath.Join(t.TempDir(), "cri-1")
	writeFile(t, path, "", 0o444) // unmounted but not removed: a crash in between
	if err := PinNetNS(ns, path); err != nil {
		t.Error(err)
	}
	if err := UnpinNetNS(path); err != nil {
		t.Error(err)
	}
}

func TestPinRefusals(t *testing.T) {
	ns := testNetNS(t)
	dir := t.TempDir()
	precious := filepath.Join(dir, "precious")
	writeFile(t, precious, "data", 0o644)
	link := filepath.Join(dir, "link")
	if err := os.Symlink(precious, link); err != nil {
		t.Fatal(err)
	}
	if err := PinNetNS(ns, link); err == nil {
		t.Error("a symbolic link was followed")
	}
	plain, err := os.Open(precious)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = plain.Close() }()
	if err := PinNetNS(plain, filepath.Join(dir, "cri-1")); err == nil {
		t.Error("something that is no namespace was pinned")
	}
	if _, err := os.Lstat(filepath.Join(dir, "cri-1")); err == nil {
		t.Error("a refused pin leaves a file")
	}
	for _, path := range []string{precious, link, dir} {
		if err := UnpinNetNS(path); err == nil {
			t.Errorf("%s was taken for a namespace file", path)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("unpin removed %s", path)
		}
	}
}

func TestUnpinWhileInUse(t *testing.T) {
	ns := testNetNS(t)
	path := filepath.Join(t.TempDir(), "cri-1")
	if err := PinNetNS(ns, path); err != nil {
		t.Fatal(err)
	}
	user, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = user.Close() }()
	if err := UnpinNetNS(path); err != nil {
		t.Errorf("while a process has it open: %v", err)
	}
}

func TestLoopbackUp(t *testing.T) {
	p := newPod(t) // sets lo up
	p.listen(80)
	for _, addr := range []string{"127.0.0.1:80", "[::1]:80"} {
		if said, err := hear(p.ns, addr); said != p.id || err != nil {
			t.Errorf("%s: heard %q, %v", addr, said, err)
		}
	}
	// The thread came back: the test host has no listener there.
	if _, err := hear(nil, "127.0.0.1:80"); err == nil {
		t.Error("a thread stayed in the pod's namespace")
	}
	plain, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = plain.Close() }()
	if err := SetLoopbackUp(plain); err == nil {
		t.Error("/dev/null was taken for a namespace")
	}
}

func BenchmarkSetLoopbackUp(b *testing.B) {
	ns := testNetNS(b)
	for b.Loop() {
		if err := SetLoopbackUp(ns); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPinUnpin(b *testing.B) {
	ns := testNetNS(b)
	path := filepath.Join(b.TempDir(), "cri-1")
	for b.Loop() {
		if err := PinNetNS(ns, path); err != nil {
			b.Fatal(err)
		}
		if err := UnpinNetNS(path); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAddDel(b *testing.B) {
	n, p := testNetwork(b), newPod(b)
	for b.Loop() {
		debt, err := n.Plan(p.attachment())
		if err != nil {
			b.Fatal(err)
		}
		result, err := n.Add(b.Context(), debt)
		if err != nil {
			b.Fatal(err)
		}
		debt.Result = result.Raw
		if err := n.Del(b.Context(), debt); err != nil {
			b.Fatal(err)
		}
	}
}
