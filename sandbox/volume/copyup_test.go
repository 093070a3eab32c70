package volume

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCopyUp(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to give files away")
	}
	image, out := t.TempDir(), t.TempDir()
	must(t, os.MkdirAll(image+"/var/data/sub", 0o755))
	must(t, os.WriteFile(image+"/var/data/file", []byte("content"), 0o600))
	must(t, os.WriteFile(image+"/var/data/sub/suid", nil, 0o755))
	must(t, os.Chown(image+"/var/data/file", 1000, 1001))
	must(t, os.Chmod(image+"/var/data/sub/suid", 0o755|os.ModeSetuid))
	must(t, os.Chmod(image+"/var/data", 0o777|os.ModeSticky))
	must(t, os.Symlink("/etc/shadow", image+"/var/data/link"))
	must(t, os.Link(image+"/var/data/file", image+"/var/data/sub/again"))
	must(t, unix.Setxattr(image+"/var/data/sub/suid", "user.note", []byte("kept"), 0))
	must(t, unix.Setxattr(image+"/var/data/sub", "trusted.note", []byte("too"), 0))
	must(t, unix.Mkfifo(image+"/var/data/fifo", 0o600))
	must(t, os.Symlink("/var/data", image+"/absolute"))
	must(t, os.Symlink("../../../../../../../../etc", image+"/escape"))
	must(t, os.WriteFile(image+"/plain", nil, 0o600))
	root, err := os.Open(image)
	must(t, err)
	defer func() { _ = root.Close() }()
	for i, test := range []struct {
		src   string
		files int
	}{
		{"/var/data", 3}, {"/absolute", 3}, // the fifo is left out
		{"/nothing/there", 0}, {"/plain", 0}, {"/escape", 0},
	} {
		dst := filepath.Join(out, string(rune('a'+i)))
		must(t, CopyUp(t.Context(), root, test.src, dst))
		entries, err := os.ReadDir(dst)
		must(t, err)
		want(t, "entries of "+test.src, len(entries), test.files)
	}
	var st unix.Stat_t
	must(t, unix.Lstat(out+"/b/file", &st))
	want(t, "owner", [2]uint32{st.Uid, st.Gid}, [2]uint32{1000, 1001})
	want(t, "mode", st.Mode&0o7777, uint32(0o600))
	must(t, unix.Lstat(out+"/b/sub/suid", &st))
	want(t, "setuid", st.Mode&0o7777, uint32(0o4755))
	must(t, unix.Lstat(out+"/b", &st))
	want(t, "mode of the volume", st.Mode&0o7777, uint32(0o1777))
	value := make([]byte, 16)
	n, err := unix.Getxattr(out+"/b/sub/suid", "user.note", value)
	must(t, err)
	want(t, "attribute of a file", string(value[:n]), "kept")
	n, err = unix.Getxattr(out+"/b/sub", "trusted.note", value)
	must(t, err)
	want(t, "attribute of a directory", string(value[:n]), "too")
	must(t, unix.Lstat(out+"/b/sub/again", &st))
	want(t, "names of the linked file", st.Nlink, uint64(2))
	link, err := os.Readlink(out + "/b/link")
	must(t, err)
	want(t, "link", link, "/etc/shadow")
}

// A volume whose files have no extended attributes needs no room for any.
func TestCopyUpIsSmall(t *testing.T) {
	image, out := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(image+"/file", make([]byte, 1<<20), 0o600))
	if n, _ := unix.Listxattr(image+"/file", nil); n > 0 {
		t.Skip("all files have some here, as with SELinux")
	}
	root, err := os.Open(image)
	must(t, err)
	defer func() { _ = root.Close() }()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	must(t, CopyUp(t.Context(), root, "/", out+"/copy"))
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 64<<10 {
		t.Errorf("%d bytes were allocated", took)
	}
}
