package mount

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestParseOptions(t *testing.T) {
	for _, tt := range []struct {
		options string
		want    Options
	}{
		{"", Options{}},
		{"rbind,ro,rprivate", Options{Bind: true, RecBind: true, Attr: Attr{Set: unix.MOUNT_ATTR_RDONLY}, Propagation: unix.MS_PRIVATE, RecProp: true}},
		{"bind,rro", Options{Bind: true, Recursive: Attr{Set: unix.MOUNT_ATTR_RDONLY}}},
		{"ro,rw", Options{Attr: Attr{Clear: unix.MOUNT_ATTR_RDONLY}}},
		{"noatime,relatime", Options{Attr: Attr{Clear: unix.MOUNT_ATTR__ATIME}}},
		{"strictatime,noatime", Options{Attr: Attr{Set: unix.MOUNT_ATTR_NOATIME, Clear: unix.MOUNT_ATTR__ATIME}}},
		{"size=64k,mode=755,nosuid", Options{Data: []string{"size=64k", "mode=755"}, Attr: Attr{Set: unix.MOUNT_ATTR_NOSUID}}},
		{"bind,idmap,slave", Options{Bind: true, IDMap: true, Propagation: unix.MS_SLAVE}},
		{"ridmap", Options{IDMap: true, RecIDMap: true}},
		{"defaults", Options{}},
	} {
		if d := cmp.Diff(tt.want, ParseOptions(strings.Split(tt.options, ","))); d != "" {
			t.Errorf("%q:\n%s", tt.options, d)
		}
	}
	if err := ParseOptions([]string{"bind", "size=3"}).Validate(); err == nil || !strings.Contains(err.Error(), `"size=3"`) {
		t.Errorf("a size of a bind mount: %v", err)
	}
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := OpenSource(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// Paths of a container stay inside its root, whatever links its image has.
func TestInside(t *testing.T) {
	dir := t.TempDir()
	for name, target := range map[string]string{"abs": "/etc", "up": "../../../../etc", "loop": "loop", "magic": "/proc/self/root"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	root := open(t, dir)
	for _, p := range []string{"abs/passwd", "/abs/passwd", "up/passwd", "../../../etc/passwd"} {
		if f, err := OpenIn(root, p, unix.O_PATH, 0); !errors.Is(err, unix.ENOENT) {
			_ = f.Close()
			t.Errorf("open %s: %v, want ENOENT", p, err)
		}
	}
	if _, err := OpenIn(root, "loop", unix.O_PATH, 0); !errors.Is(err, unix.ELOOP) {
		t.Errorf("open loop: %v", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := MkdirIn(root, "/abs/deep/er", 0o755, Owner{})
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if _, err := os.Stat(filepath.Join(dir, "etc/deep/er")); err != nil {
		t.Errorf("made outside: %v", err)
	}
	if _, err := MkdirIn(root, "missing/../x", 0o755, Owner{}); err != nil {
		t.Errorf("mkdir with ..: %v", err)
	}
	if _, err := MkdirIn(root, "loop/x", 0o755, Owner{}); !errors.Is(err, unix.ELOOP) {
		t.Errorf("mkdir below a loop: %v", err)
	}
}

// Detached mounts have their attributes at once, and the host's mount table never shows them.
func TestDetached(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	clone, err := Bind(open(t, dir), ParseOptions([]string{"rbind", "ro", "nosuid", "rprivate"}), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer clone.Close()
	if err := unix.Mkdirat(int(clone.Fd()), "x", 0o755); !errors.Is(err, unix.EROFS) {
		t.Errorf("mkdir in a read-only clone: %v", err)
	}
	tmpfs, err := New("tmpfs", "", ParseOptions([]string{"size=64k", "mode=700", "noexec"}))
	if err != nil {
		t.Fatal(err)
	}
	defer tmpfs.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(tmpfs.Fd()), &st); err != nil || st.Blocks*uint64(st.Bsize) != 64<<10 || st.Flags&unix.ST_NOEXEC == 0 {
		t.Errorf("tmpfs of %d blocks with flags %#x: %v", st.Blocks, st.Flags, err)
	}
	after, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(before), string(after)); d != "" {
		t.Errorf("the mount table changed:\n%s", d)
	}
}

func TestNewErrors(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	for _, tt := range []struct{ fstype, option, want string }{
		{"nofs", "", "fsopen nofs: no such device"},
		{"tmpfs", "size=banana", `tmpfs: set option "size=banana": invalid argument (e tmpfs: Bad value for 'size')`},
		{"tmpfs", "unknown", `tmpfs: set option "unknown": invalid argument (e tmpfs: Unknown parameter 'unknown')`},
	} {
		_, err := New(tt.fstype, "", ParseOptions([]string{tt.option}))
		if err == nil || err.Error() != tt.want {
			t.Errorf("New(%s, %q): %v, want %q", tt.fstype, tt.option, err, tt.want)
		}
	}
	if _, err := Bind(open(t, t.TempDir()), Options{IDMap: true}, nil); err == nil || !strings.Contains(err.Error(), "without a user namespace") {
		t.Errorf("idmapped bind without a namespace: %v", err)
	}
}

// SharedSource is asked in a mount namespace of its own, whose propagation the test may change.
func TestSharedSource(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	failed := make(chan string, 1)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with its namespace
		failed <- sharedSource(dir)
	}()
	if s := <-failed; s != "" {
		t.Error(s)
	}
}

func sharedSource(dir string) string {
	if unix.Gettid() == unix.Getpid() { // the main thread must stay where it is
		failed := make(chan string)
		go func() {
			runtime.LockOSThread()
			failed <- sharedSource(dir)
		}()
		defer runtime.UnlockOSThread()
		return <-failed
	}
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return err.Error()
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err.Error()
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		return err.Error()
	}
	for _, tt := range []struct {
		flags         uintptr
		shared, slave bool
	}{{unix.MS_PRIVATE, false, false}, {unix.MS_SHARED, true, false}} {
		if err := unix.Mount("", dir, "", tt.flags, ""); err != nil {
			return err.Error()
		}
		f, err := OpenSource(dir)
		if err != nil {
			return err.Error()
		}
		shared, slave, err := SharedSource(f)
		_ = f.Close()
		if err != nil || shared != tt.shared || slave != tt.slave {
			return "a mount is not seen as it is"
		}
	}
	return ""
}

// Links that lead nowhere are no obstacle: what they lead to is made, inside the root.
func TestDanglingLinks(t *testing.T) {
	file, dir := func() bool { return true }, func() bool { return false }
	for _, tt := range []struct {
		name  string
		links map[string]string
		make  string // by MkdirIn; "": by Undangle of path
		path  string
		kind  func() bool
		want  []string // directories that are there afterwards
		not   []string
		err   error
	}{
		{name: "mkdir", links: map[string]string{"run": "/var/run"}, make: "run/a/b", want: []string{"var/run/a/b"}},
		{name: "mkdir, upwards", links: map[string]string{"l": "../../../x/y"}, make: "l/a", want: []string{"x/y/a"}},
		{name: "mkdir, chain", links: map[string]string{"a": "b", "b": "c/d"}, make: "a/e", want: []string{"c/d/e"}},
		{name: "mkdir, link to itself through another", links: map[string]string{"a": "b/x", "b": "a/x"}, make: "a/e", err: unix.ELOOP},
		{name: "on the way", links: map[string]string{"run": "/var/run"}, path: "/run/secrets/x", kind: dir, want: []string{"var/run"}, not: []string{"var/run/secrets"}},
		{name: "a file", links: map[string]string{"resolv.conf": "run/resolve/stub"}, path: "/resolv.conf", kind: file, want: []string{"run/resolve"}, not: []string{"run/resolve/stub"}},
		{name: "a file, chain", links: map[string]string{"f": "g", "g": "d/h"}, path: "f", kind: file, want: []string{"d"}, not: []string{"d/h"}},
		{name: "a directory", links: map[string]string{"d": "/x/y"}, path: "d", kind: dir, want: []string{"x/y"}},
		{name: "nothing dangles", links: map[string]string{}, path: "a/b", kind: dir, not: []string{"a"}},
		{name: "a loop", links: map[string]string{"a": "a"}, path: "a/b", kind: dir},
	} {
		t.Run(tt.name, func(t *testing.T) {
			at := t.TempDir()
			for name, target := range tt.links {
				if err := os.Symlink(target, filepath.Join(at, name)); err != nil {
					t.Fatal(err)
				}
			}
			root := open(t, at)
			var err error
			if tt.make != "" {
				var f *os.File
				if f, err = MkdirIn(root, tt.make, 0o755, Owner{}); err == nil {
					_ = f.Close()
				}
			} else {
				err = Undangle(root, tt.path, tt.kind, Owner{})
			}
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			for _, p := range tt.want {
				if st, err := os.Lstat(filepath.Join(at, p)); err != nil || !st.IsDir() {
					t.Errorf("%s: %v", p, err)
				}
			}
			for _, p := range tt.not {
				if _, err := os.Lstat(filepath.Join(at, p)); err == nil {
					t.Errorf("%s was made", p)
				}
			}
		})
	}
}
