package cgroup

import (
	"strings"
	"testing"
)

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"populated 1\nfrozen 0\n", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "1\n22\n0\n", "max\n", "9223372036854771712\n", "-1\n", "", "\n",
		"41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw",
		`32 31 0:29 / /sys/fs/cgroup/cpu\040x rw,relatime shared:4 - cgroup cgroup rw,cpu,name=systemd`,
		"populated 99999999999999999999", "populated", " - cgroup  ",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if n, err := parseKeyed(text, "populated"); err == nil && n != 0 && !strings.Contains(text, "populated ") {
			t.Errorf("populated %d in %q", n, text)
		}
		if n, err := parseBytes(text); err == nil && (n < 0 || n > unlimited) {
			t.Errorf("%q is %d bytes", text, n)
		}
		pids, err := parsePIDs(text)
		for _, pid := range pids {
			if pid <= 0 || err != nil {
				t.Errorf("pids of %q: %v, %v", text, pids, err)
			}
		}
		if m, ok := parseMount(text); ok {
			if m.root == "" || m.point == "" || !strings.HasPrefix(m.fstype, "cgroup") {
				t.Errorf("mount of %q: %+v", text, m)
			}
			for _, c := range m.controllers() {
				if !strings.Contains(text, c) {
					t.Errorf("controller %q in %q", c, text)
				}
			}
		}
		for _, h := range mounted(text) {
			if h.MountPoint == "" || (h.Unified && h.Controllers != nil) {
				t.Errorf("hierarchy of %q: %+v", text, h)
			}
		}
	})
}

func FuzzPaths(f *testing.F) {
	for _, seed := range []string{"", "/", "/kubepods/burstable/podX", "a", "/a/../b", "//a//", "/a/./b", "kubepods-pod1.slice", "-.slice", "/a.slice/a-b.slice"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, parent string) {
		if dir, err := cleanParent(parent); err == nil {
			if strings.HasPrefix(dir, "/") || strings.HasSuffix(dir, "/") || strings.Contains("/"+dir+"/", "/../") || strings.Contains("/"+dir+"/", "/./") ||
				strings.Contains(dir, "//") {
				t.Errorf("%q became %q", parent, dir)
			}
		}
		if unit, path, err := expandSlice(parent); err == nil {
			if !strings.HasSuffix(unit, ".slice") || !strings.HasPrefix(path, "/") {
				t.Errorf("%q became %q at %q", parent, unit, path)
			}
			if _, err := cleanParent(path); err != nil {
				t.Errorf("%q: %v", parent, err)
			}
		}
	})
}

func TestParseMount(t *testing.T) {
	m, ok := parseMount(`32 31 0:29 / /sys/fs/cgroup/cpu\040x rw,relatime shared:4 master:1 - cgroup cgroup rw,cpu,cpuacct,xattr,name=systemd`)
	if !ok || m.root != "/" || m.point != "/sys/fs/cgroup/cpu x" || strings.Join(m.controllers(), "+") != "cpu+cpuacct+name=systemd" {
		t.Errorf("%+v, %v, %v", m, ok, m.controllers())
	}
	list := mounted(strings.Join([]string{
		"32 31 0:29 /docker/x /mnt/a rw - cgroup cgroup rw,cpu", // a subtree
		"33 31 0:29 / /c/cpu rw - cgroup cgroup rw,cpu",
		"34 31 0:29 / /other/cpu rw - cgroup cgroup rw,cpu", // the same again
		"35 31 0:30 / /c/unified rw - cgroup2 cgroup2 rw",
		"36 31 0:31 / / rw - ext4 /dev/vda rw",
		"",
	}, "\n"))
	if len(list) != 2 || list[0].MountPoint != "/c/cpu" || list[1].MountPoint != "/c/unified" || !list[1].Unified {
		t.Errorf("%+v", list)
	}
}

// A VPN that mounts net_cls for itself does not make a host hybrid.
func TestUnifiedModeIsCgroup2Alone(t *testing.T) {
	list := mounted("40 31 0:33 / /opt/vpn/net_cls rw - cgroup net_cls rw,net_cls\n35 31 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
	if len(list) != 1 || list[0].MountPoint != "/sys/fs/cgroup" || !list[0].Unified {
		t.Errorf("%+v", list)
	}
}
