package registry

import (
	"archive/tar"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Busybox is the machine's static busybox as bin/busybox, with links to it under all its names.
func Busybox(t testing.TB) []File {
	t.Helper()
	path := BusyboxPath(t)
	binary, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	names, err := exec.Command(path, "--list").Output()
	if err != nil {
		t.Fatalf("busybox --list: %v", err)
	}
	files := []File{{Header: tar.Header{Name: "bin/busybox", Mode: 0o755}, Body: string(binary)}}
	for name := range strings.Lines(string(names)) {
		if name = strings.TrimSpace(name); name != "busybox" {
			files = append(files, File{Header: tar.Header{Name: "bin/" + name, Linkname: "busybox", Typeflag: tar.TypeSymlink, Mode: 0o777}})
		}
	}
	return files
}

// BusyboxPath is where the machine's static busybox lies. A machine without one skips the test.
func BusyboxPath(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("busybox-static is not installed")
	}
	return path
}
