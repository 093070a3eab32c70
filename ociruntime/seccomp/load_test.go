package seccomp

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func write(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "profile.json")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const dockerStyle = `{
	"defaultAction": "SCMP_ACT_ERRNO",
	"defaultErrno": "EPERM",
	"archMap": [
		{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
		{"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
		{"architecture": "SCMP_ARCH_S390X", "subArchitectures": ["SCMP_ARCH_S390"]}
	],
	"syscalls": [
		{"names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "", "includes": {}, "excludes": {}},
		{"name": "ptrace", "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
		{"name": "bpf", "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "999.0"}},
		{"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
		{"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "errno": "ENOSYS", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
		{"names": ["bdflush"], "action": "SCMP_ACT_ERRNO", "errnoRet": "38"},
		{"names": ["s390_pci_mmio_read"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390", "s390x"]}},
		{"names": ["syslog"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["s390x"]}, "args": [{"index": 0, "value": 3, "valueTwo": 0, "op": "SCMP_CMP_EQ"}]}
	]
}`

func TestLoadDockerStyle(t *testing.T) {
	for _, c := range []struct {
		caps []string
		want string
	}{
		{nil, "read write ptrace clone3 bdflush syslog"},
		{[]string{"CAP_SYS_ADMIN"}, "read write ptrace mount bdflush syslog"},
	} {
		p, err := LoadProfile(write(t, dockerStyle), c.caps...)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, s := range p.Syscalls {
			names = append(names, s.Names...)
			if s.Names[0] == "clone3" || s.Names[0] == "bdflush" {
				if s.ErrnoRet == nil || *s.ErrnoRet != uint(unix.ENOSYS) {
					t.Errorf("errno of %v is %v, want ENOSYS", s.Names, s.ErrnoRet)
				}
			}
		}
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("with %v: %s, want %s", c.caps, got, c.want)
		}
		if want := DefaultProfile(nil).Architectures; len(p.Architectures) != len(want) || p.Architectures[0] != want[0] {
			t.Errorf("architectures %v, want those of this machine %v", p.Architectures, want)
		}
		if p.DefaultErrnoRet == nil || *p.DefaultErrnoRet != 1 {
			t.Errorf("default errno %v, want EPERM", p.DefaultErrnoRet)
		}
	}
}

func TestLoadOCIStyle(t *testing.T) {
	p, err := LoadProfile(write(t, `{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],"flags":["SECCOMP_FILTER_FLAG_LOG"],
		"syscalls":[{"names":["acct"],"action":"SCMP_ACT_ERRNO","errnoRet":5}]}`))
	want := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64}, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog},
		Syscalls: []specs.LinuxSyscall{{Names: []string{"acct"}, Action: specs.ActErrno, ErrnoRet: new(uint(5))}}}
	if err != nil || !reflect.DeepEqual(p, want) {
		t.Errorf("got %+v, %v; want %+v", p, err, want)
	}
}

func TestLoadRefuses(t *testing.T) {
	for _, c := range []struct{ name, content, want string }{
		{"empty", ``, "EOF"},
		{"syntax", "{\n\"defaultAction\" 1}", "line 2: invalid character"},
		{"trailing", `{"defaultAction":"SCMP_ACT_ALLOW"}{}`, "content after the end"},
		{"unknown field", `{"defaultAction":"SCMP_ACT_ALLOW","syscals":[]}`, `unknown field "syscals"`},
		{"kind", "{\"defaultAction\":\"SCMP_ACT_ALLOW\",\n\"syscalls\":[{\"names\":\"read\"}]}", "line 2: syscalls.names: string instead of []string"},
		{"no default", `{}`, "defaultAction: missing"},
		{"action", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"DENY"}]}`, `syscalls[0].action: unknown value "DENY"`},
		{"action of a rule for elsewhere", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"DENY","includes":{"arches":["none"]}}]}`, `syscalls[0].action: unknown value "DENY"`},
		{"errno", `{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","errno":"EWHAT"}]}`, `syscalls[0].errno: unknown name "EWHAT"`},
		{"errnoRet", `{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","errnoRet":-1}]}`, "errnoRet: -1 instead of"},
		{"kernel", `{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"new"}}]}`, `syscalls[0].includes.minKernel: "new"`},
		{"name and names", `{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"name":"a","names":["read"],"action":"SCMP_ACT_ALLOW"}]}`, "syscalls[0].name: not together"},
		{"archMap", `{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_ARM"],"archMap":[{"architecture":"SCMP_ARCH_ARM"}]}`, "architectures: not together"},
		{"large", `{"defaultAction":"` + strings.Repeat("A", maxProfile) + `"}`, "larger than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := write(t, c.content)
			_, err := LoadProfile(path)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v, want one with the file's name and %q", err, c.want)
			}
		})
	}
}

func TestLoadRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{fifo: "not a regular file", dir: "not a regular file", filepath.Join(dir, "none"): "no such file"} {
		if _, err := LoadProfile(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", path, err, want)
		}
	}
}

func FuzzParseProfile(f *testing.F) {
	f.Add([]byte(dockerStyle))
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := parseProfile(data, nil); err == nil {
			if _, err := compile(p); err != nil {
				t.Errorf("accepted profile does not compile: %v", err)
			}
		}
	})
}
