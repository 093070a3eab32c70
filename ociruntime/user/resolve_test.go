package user

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	passwd = `# users
root:x:0:0:root:/root:/bin/sh
+::::::
app:x:1000:1001:App:/home/app:/bin/sh
1005:x:0:0:trap:/trap:/bin/sh
bad:x:one:1::/:
nohome:x:7:7
relative:x:8:8::tmp:
short
app:x:5:5:shadowed:/no:/bin/sh
big:x:4294967294:4294967294::/big:
`
	group = `root:x:0:root
app:x:1001:
wheel:x:10:root,app
audio:x:29:other,app,app
audio2:x:29:app
apple:x:30:apple
badgid:x:ten:app
short
1001:x:77:
`
)

// tree makes a root with these files; empty names are left out.
func tree(t testing.TB, passwd, group string) *os.File {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"passwd": passwd, "group": group} {
		if content == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "etc", name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return open(t, dir)
}

func open(t testing.TB, dir string) *os.File {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), dir)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestResolve(t *testing.T) {
	root := tree(t, passwd, group)
	appUser := User{UID: 1000, GID: 1001, Additional: []uint32{1001, 10, 29}, Name: "app", Home: "/home/app"}
	for _, c := range []struct {
		name string
		req  Request
		want User
	}{
		{"nobody said", Request{}, User{Additional: []uint32{0, 10}, Name: "root", Home: "/root"}},
		{"name", Request{User: "app"}, appUser},
		{"number in passwd", Request{User: "1000"}, appUser},
		{"name and group", Request{User: "app:wheel"}, User{UID: 1000, GID: 10, Additional: []uint32{10, 29}, Name: "app", Home: "/home/app"}},
		{"name and number", Request{User: "app:5"}, User{UID: 1000, GID: 5, Additional: []uint32{5, 10, 29}, Name: "app", Home: "/home/app"}},
		{"empty group", Request{User: "app:"}, appUser},
		{"empty user", Request{User: ":wheel"}, User{GID: 10, Additional: []uint32{10, 0}, Name: "root", Home: "/root"}},
		{"number elsewhere", Request{User: "4242"}, User{UID: 4242, Additional: []uint32{0}, Home: "/"}},
		{"numbers elsewhere", Request{User: "4242:4343"}, User{UID: 4242, GID: 4343, Additional: []uint32{4343}, Home: "/"}},
		{"name made of digits", Request{User: "1005"}, User{Name: "1005", Additional: []uint32{0}, Home: "/trap"}},
		{"group made of digits", Request{User: "app:1001"}, appUser},
		{"exact number", Request{User: "app", UID: new(uint32(1005))}, User{UID: 1005, Additional: []uint32{0}, Home: "/"}},
		{"exact number drops group", Request{User: "app:wheel", UID: new(uint32(1000))}, appUser},
		{"exact group", Request{User: "app:wheel", GID: new(uint32(3))}, User{UID: 1000, GID: 3, Additional: []uint32{3, 10, 29}, Name: "app", Home: "/home/app"}},
		{"merge", Request{User: "app", Groups: []uint32{50000, 29, 7}}, User{UID: 1000, GID: 1001, Additional: []uint32{1001, 10, 29, 50000, 7}, Name: "app", Home: "/home/app"}},
		{"strict", Request{User: "app", Groups: []uint32{50000}, Strict: true}, User{UID: 1000, GID: 1001, Additional: []uint32{1001, 50000}, Name: "app", Home: "/home/app"}},
		{"no home", Request{User: "nohome"}, User{UID: 7, GID: 7, Additional: []uint32{7}, Name: "nohome", Home: "/"}},
		{"relative home", Request{User: "relative"}, User{UID: 8, GID: 8, Additional: []uint32{8}, Name: "relative", Home: "/"}},
		{"largest", Request{User: "big"}, User{UID: 4294967294, GID: 4294967294, Additional: []uint32{4294967294}, Name: "big", Home: "/big"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Resolve(root, c.req)
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v, %v; want %+v", got, err, c.want)
			}
		})
	}
}

func TestResolveErrors(t *testing.T) {
	long := strings.Repeat("m,", MaxLine/2+1)
	for _, c := range []struct {
		name, passwd, group, user, want string
		notFound                        bool
	}{
		{"unknown user", passwd, group, "nobody", `user "nobody" is not in /etc/passwd of the image`, true},
		{"no passwd", "", "", "nobody", `user "nobody" is not in /etc/passwd of the image`, true},
		{"unknown group", passwd, group, "app:none", `group "none" is not in /etc/group of the image`, true},
		{"malformed user", passwd, group, "bad", `/etc/passwd of the image: line 6: entry of "bad" is malformed`, false},
		{"malformed group", passwd, group, "app:badgid", `/etc/group of the image: line 7: entry of "badgid" is malformed`, false},
		{"too large a number", passwd, group, "4294967295", `user "4294967295" is not in`, true},
		{"negative", passwd, group, "-1", `user "-1" is not in`, true},
		{"long line", passwd, "g:x:1:" + long + "\n", "app", "/etc/group of the image: line 1: longer than", false},
		{"large file", strings.Repeat(strings.Repeat("#", 1<<16)+"\n", MaxFile>>16), group, "app", "/etc/passwd of the image: larger than", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Resolve(tree(t, c.passwd, c.group), Request{User: c.user})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want %q", err, c.want)
			}
			var missing *NotFoundError
			if errors.As(err, &missing) != c.notFound {
				t.Errorf("error %T, is a NotFoundError: %t", err, !c.notFound)
			}
		})
	}
}

func TestTooManyGroups(t *testing.T) {
	var b strings.Builder
	for i := range MaxGroups + 1 {
		b.WriteString("g:x:" + strconv.Itoa(i+2000) + ":app\n")
	}
	if _, err := Resolve(tree(t, passwd, b.String()), Request{User: "app"}); err == nil || !strings.Contains(err.Error(), "more than 65536 groups") {
		t.Errorf("error %v, want one about the number of groups", err)
	}
}

func TestNumericNeedsNoFiles(t *testing.T) {
	got, err := Resolve(open(t, t.TempDir()), Request{User: "12:34"})
	if want := (User{UID: 12, GID: 34, Additional: []uint32{34}, Home: "/"}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

func TestLinksStayInside(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(outside, []byte("app:x:0:0::/:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{outside, "../../../../../.." + outside, "/proc/self/environ"} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(dir, "etc/passwd")); err != nil {
			t.Fatal(err)
		}
		if u, err := Resolve(open(t, dir), Request{User: "app"}); err == nil {
			t.Errorf("link to %s was followed out of the root: %+v", target, u)
		}
	}
	dir := t.TempDir()
	for _, d := range []string{"etc", "usr"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "usr/passwd"), []byte("app:x:3:4::/:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/usr/passwd", filepath.Join(dir, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if u, err := Resolve(open(t, dir), Request{User: "app"}); err != nil || u.UID != 3 {
		t.Errorf("absolute link inside the root: %+v, %v; want user 3", u, err)
	}
}

func TestOnlyRegularFiles(t *testing.T) {
	kinds := map[string]func(path string) error{
		"fifo":      func(path string) error { return unix.Mkfifo(path, 0o644) },
		"directory": func(path string) error { return os.Mkdir(path, 0o755) },
		"socket":    func(path string) error { return unix.Mknod(path, unix.S_IFSOCK|0o644, 0) },
	}
	for kind, create := range kinds {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := create(filepath.Join(dir, "etc/passwd")); err != nil {
			t.Fatal(err)
		}
		if _, err := Resolve(open(t, dir), Request{User: "0"}); err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("%s: error %v, want not a regular file", kind, err)
		}
	}
}

func FuzzResolve(f *testing.F) {
	f.Add(passwd, group, "app:wheel")
	f.Add("a:x:4294967295:0", "", "a")
	f.Fuzz(func(t *testing.T, passwd, group, user string) {
		u, err := Resolve(tree(t, passwd, group), Request{User: user})
		if err != nil {
			return
		}
		if u.Home == "" || u.Home[0] != '/' || strings.ContainsAny(u.Home, "\x00\n") {
			t.Errorf("home %q", u.Home)
		}
		if len(u.Additional) == 0 || u.Additional[0] != u.GID {
			t.Errorf("groups %v do not begin with %d", u.Additional, u.GID)
		}
	})
}
