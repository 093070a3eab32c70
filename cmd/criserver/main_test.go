package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// beCriserver makes the test binary criserver itself.
const beCriserver = "CRISERVER_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(beCriserver) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// installed puts criserver into dir and returns how to call it there.
// wrapper, if any, is what starts it.
func installed(t *testing.T, dir string, wrapper ...string) func(args ...string) (out string, code int) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "criserver")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(self, path); err != nil {
		t.Fatal(err)
	}
	return func(args ...string) (string, int) {
		t.Helper()
		line := slices.Concat(wrapper, []string{path}, args)
		cmd := exec.Command(line[0], line[1:]...)
		cmd.Env = append(os.Environ(), beCriserver+"=1")
		out, err := cmd.CombinedOutput()
		if exit := (&exec.ExitError{}); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
}

func TestCommandLine(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(file, []byte("[cni]\nbin_dir = ['/x']\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	criserver := installed(t, filepath.Join(dir, "bin"))
	for _, test := range []struct {
		name string
		args []string
		want string // regular expression
		code int
	}{
		{"version", []string{"version"}, `^criserver \S+, CRI v1, go\S+ linux/`, 0},
		{"config", []string{"config", "--root", "/some/where"}, `(?m)^# Directory of what outlives a reboot.*\nroot = '/some/where'$`, 0},
		{"unknown key", []string{"serve", "--config", file}, `config.toml:2: unknown key "cni.bin_dir" \(did you mean "cni.bin_dirs"\?\)`, 1},
		{"unknown flag", []string{"serve", "--rot", "/x"}, `unknown flag: --rot`, 1},
		{"unknown command", []string{"serv"}, `(?s)unknown command "serv".*serve`, 1},
		{"argument", []string{"serve", "/x"}, `unknown command "/x"`, 1},
		{"check", []string{"check", "--root", filepath.Join(dir, "root")}, `(?m)^missing +pause binary +no executable pause binary at ` + regexp.QuoteMeta(dir), 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			out, code := criserver(test.args...)
			if code != test.code || !regexp.MustCompile(test.want).MatchString(out) {
				t.Errorf("exit code %d, want %d, and something like %s in:\n%s", code, test.code, test.want, out)
			}
		})
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("commands that only look have made %v, error %v", entries, err)
	}
}

// What comes with criserver is found beside it and in libexec.
func TestCompanionsAreFound(t *testing.T) {
	for _, place := range []string{"bin", "libexec/criserver"} {
		t.Run(place, func(t *testing.T) {
			dir, err := filepath.EvalSymlinks(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			criserver := installed(t, filepath.Join(dir, "bin"))
			pause := filepath.Join(dir, place, "pause")
			if err := os.MkdirAll(filepath.Join(dir, place, "cni"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(pause, nil, 0o755); err != nil {
				t.Fatal(err)
			}
			out, _ := criserver("check", "--cni-bin-dir", "/absent", "--cni-conf-dir", "/absent")
			for _, want := range []string{`ok +pause binary +` + regexp.QuoteMeta(pause), `pod network +plugin bridge: not found in /absent, .*` + regexp.QuoteMeta(filepath.Join(dir, place, "cni"))} {
				if !regexp.MustCompile(want).MatchString(strings.ReplaceAll(out, "/bin/../", "/")) {
					t.Errorf("check says nothing like %s:\n%s", want, out)
				}
			}
		})
	}
}

func TestCheckPropagation(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mount namespaces need root")
	}
	for propagation, want := range map[string]string{"private": `(?m)^degraded +mount propagation +/ is not a shared mount;`, "shared": `(?m)^ok +mount propagation `} {
		criserver := installed(t, t.TempDir(), "unshare", "--mount", "sh", "-c", "mount --make-r"+propagation+` / && exec "$@"`, "sh")
		if out, _ := criserver("check"); !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("%s: nothing like %s in:\n%s", propagation, want, out)
		}
	}
}
