package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/command"
	"github.com/criserver/criserver/test/metrictest"
)

// Plugins made of a few lines of shell, for what real ones do only on bad days. $0.log gets a line a call.
const pluginHead = `#!/bin/sh
in=$(cat)
echo "$CNI_COMMAND netns=$CNI_NETNS args=$CNI_ARGS if=$CNI_IFNAME in=$in" >> "$0.log"
`

const (
	goodPlugin = pluginHead + `
[ "$CNI_COMMAND" = ADD ] || exit 0
echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"address":"fd00::5/64","interface":0},{"address":"10.1.2.3/24","interface":0}]}'`
	failAdd   = pluginHead + `[ "$CNI_COMMAND" = ADD ] || exit 0; echo '{"code":11,"msg":"no luck","details":"try later"}'; exit 1`
	failBoth  = pluginHead + `echo "bad $CNI_COMMAND day" >&2; exit 3`
	failDel   = pluginHead + `[ "$CNI_COMMAND" = DEL ] && exit 4; echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24"}]}'`
	hang      = pluginHead + `exec sleep 1000`
	hangAdd   = pluginHead + `[ "$CNI_COMMAND" = ADD ] || exit 0; echo waiting >&2; sleep 1000 & echo $! > "$0.child"; wait`
	noAddress = pluginHead + `[ "$CNI_COMMAND" = ADD ] || exit 0; echo '{"cniVersion":"1.0.0"}'`
	nullIP    = pluginHead + `[ "$CNI_COMMAND" = ADD ] || exit 0; echo '{"cniVersion":"1.0.0","ips":[null]}'`
	garbage   = pluginHead + `echo this is not JSON`
	leavesOne = pluginHead + `[ "$CNI_COMMAND" = ADD ] || exit 0; sleep 1000 & echo $! > "$0.child"; echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24"}]}'`
)

// shellNetwork is a Network of one configuration whose plugins, named in order, are the given scripts; an empty script
// is a plugin that does not exist.
func shellNetwork(t *testing.T, change func(*Config), plugins ...string) (*Network, string) {
	t.Helper()
	bin, conf := t.TempDir(), t.TempDir()
	var list []map[string]any
	for i, script := range plugins {
		name := "p" + strconv.Itoa(i)
		list = append(list, map[string]any{"type": name, "capabilities": map[string]bool{
			"portMappings": true, "bandwidth": true, "dns": true, "cgroupPath": true, "io.kubernetes.cri.pod-annotations": true}})
		if script != "" {
			writeFile(t, filepath.Join(bin, name), script, 0o755)
		}
	}
	data, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": "shell", "plugins": list})
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(conf, "10-shell.conflist"), string(data), 0o644)
	c := Config{ConfDir: conf, BinDirs: []string{filepath.Join(bin, "absent"), bin}, PluginTimeout: 20 * time.Second}
	if change != nil {
		change(&c)
	}
	return openNetwork(t, c), bin
}

func writeFile(t testing.TB, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

func calls(t *testing.T, bin, plugin string) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(bin, plugin+".log"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var verbs []string
	for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
		verb, _, _ := strings.Cut(line, " ")
		verbs = append(verbs, verb)
	}
	return verbs
}

var somePod = Attachment{ContainerID: "c1", NetNS: "/run/netns/cri-none", PodNamespace: "ns", PodName: "pod", PodUID: "uid-1"}

func TestAddFails(t *testing.T) {
	for _, tc := range []struct {
		name    string
		plugins []string
		want    []string // parts of the error
		owed    bool     // DEL failed too
		dels    string   // calls of the first plugin
	}{
		{name: "CNI error", plugins: []string{goodPlugin, failAdd},
			want: []string{"plugin p1: ADD failed: no luck; try later (code 11)"}, dels: "ADD DEL"},
		{name: "exit code and stderr, DEL too", plugins: []string{failBoth},
			want: []string{"plugin p0: ADD failed: exit status 3", `"bad ADD day"`, "undo it: plugin p0: DEL failed", `"bad DEL day"`},
			owed: true, dels: "ADD DEL"},
		{name: "a later DEL fails, the earlier plugin keeps its address", plugins: []string{goodPlugin, failBoth},
			want: []string{"plugin p1: ADD failed", "undo it: plugin p1: DEL failed"}, owed: true, dels: "ADD"},
		{name: "missing", plugins: []string{goodPlugin, ""},
			want: []string{"plugin p1: not found in ", "(wanted for ADD)", "undo it: plugin p1: not found"}, owed: true, dels: "ADD"},
		{name: "no address", plugins: []string{noAddress},
			want: []string{"network shell: the plugins gave the pod no address"}, dels: "ADD DEL"},
		{name: "null address", plugins: []string{nullIP}, want: []string{"plugin p0: answer to ADD: null in the list"}, dels: "ADD DEL"},
		{name: "garbage", plugins: []string{garbage},
			want: []string{"plugin p0: answer to ADD: "}, dels: "ADD DEL"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, bin := shellNetwork(t, nil, tc.plugins...)
			debt, err := n.Plan(somePod)
			if err != nil {
				t.Fatal(err)
			}
			_, err = n.Add(context.Background(), debt)
			var failed *AddError
			if !errors.As(err, &failed) {
				t.Fatalf("ADD: %v, want an AddError", err)
			}
			for _, part := range tc.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not say %q", err, part)
				}
			}
			if owed := failed.Undo != nil; owed != tc.owed {
				t.Errorf("owed %v, want %v: %v", owed, tc.owed, failed.Undo)
			}
			if got := strings.Join(calls(t, bin, "p0"), " "); got != tc.dels {
				t.Errorf("calls of the first plugin: %q, want %q", got, tc.dels)
			}
		})
	}
}

func TestHangingPluginIsBounded(t *testing.T) {
	n, _ := shellNetwork(t, func(c *Config) { c.PluginTimeout = 300 * time.Millisecond }, hang)
	debt, err := n.Plan(somePod)
	if err != nil {
		t.Fatal(err)
	}
	_, err = n.Add(context.Background(), debt)
	var failed *AddError
	if !errors.As(err, &failed) || failed.Undo == nil {
		t.Fatalf("ADD: %v, want an AddError that owes a DEL", err)
	}
	after := regexp.MustCompile(`^plugin p0: no answer to ADD after [\d.]+s \(killed\).*; undo it: plugin p0: no answer to DEL after [\d.]+s \(killed\)`)
	if !after.MatchString(err.Error()) {
		t.Errorf("ADD: %v, want %s", err, after)
	}
}

// The caller may give up too. The plugin is killed with its children, and what it began is undone on a context of its own.
func TestCallerGivesUp(t *testing.T) {
	for _, tc := range []struct {
		name  string
		cause error
		want  string
	}{
		{"deadline", context.DeadlineExceeded, `^plugin p0: no answer to ADD after [\d.]+s \(killed\); it wrote "waiting"$`},
		{"cancelled", context.Canceled, `^plugin p0: ADD given up after [\d.]+s \(killed\): context canceled; it wrote "waiting"$`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, bin := shellNetwork(t, nil, hangAdd)
			fifo := filepath.Join(bin, "p0.child")
			if err := unix.Mkfifo(fifo, 0o600); err != nil {
				t.Fatal(err)
			}
			debt, err := n.Plan(somePod)
			if err != nil {
				t.Fatal(err)
			}
			ctx, giveUp := context.WithCancelCause(t.Context())
			child := make(chan string, 1)
			go func() {
				pid, _ := os.ReadFile(fifo) // once the plugin runs
				child <- strings.TrimSpace(string(pid))
				giveUp(tc.cause)
			}()
			_, err = n.Add(ctx, debt)
			if err == nil || !regexp.MustCompile(tc.want).MatchString(err.Error()) {
				t.Errorf("ADD: %v, want %s", err, tc.want)
			}
			pid, err := strconv.Atoi(<-child)
			if err != nil {
				t.Fatal(err)
			}
			waitGone(t, pid)
			if got := strings.Join(calls(t, bin, "p0"), " "); got != "ADD DEL" {
				t.Errorf("calls %q, want a DEL after the ADD", got)
			}
		})
	}
}

// No ADD of an earlier life may race with the DEL of the next.
func TestPluginEndsWithUs(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "pid")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "plugin")
	writeFile(t, path, "#!/bin/sh\necho $$ > "+fifo+"; exec sleep 1000", 0o755)
	us := exec.Command("/proc/self/exe")
	us.Env = append(os.Environ(), runPluginEnv+"="+path)
	if err := us.Start(); err != nil {
		t.Fatal(err)
	}
	pid := childOf(t, fifo)
	if err := us.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = us.Wait()
	waitGone(t, pid)
}

func TestPluginThatLeavesAProcessBehind(t *testing.T) {
	n, bin := shellNetwork(t, nil, leavesOne)
	debt, err := n.Plan(somePod)
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if _, err := n.Add(context.Background(), debt); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > command.Linger+time.Minute {
		t.Errorf("waited %s for a process that only holds stdout", took)
	}
	pid := childOf(t, filepath.Join(bin, "p0.child"))
	if unix.Kill(pid, 0) != nil {
		t.Error("the process of a plugin that succeeded was killed")
	}
	_ = unix.Kill(pid, unix.SIGKILL)
}

func childOf(t *testing.T, path string) int {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// waitGone waits until a process that is no child of ours has ended.
func waitGone(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // gone already
	}
	defer func() { _ = unix.Close(fd) }()
	ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
	if ready != 1 || err != nil {
		t.Errorf("process %d lives on: %v", pid, err)
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

func TestDelTellsThePluginThatFails(t *testing.T) {
	n, bin := shellNetwork(t, nil, goodPlugin, failDel)
	debt, _ := n.Plan(somePod)
	if _, err := n.Add(context.Background(), debt); err != nil {
		t.Fatal(err)
	}
	if err := n.Del(context.Background(), debt); err == nil || !strings.Contains(err.Error(), "plugin p1: DEL failed: exit status 4") {
		t.Errorf("DEL: %v", err)
	}
	if err := os.Remove(filepath.Join(bin, "p1")); err != nil {
		t.Fatal(err)
	}
	if err := n.Del(context.Background(), debt); err == nil || !strings.Contains(err.Error(), "plugin p1: not found in ") {
		t.Errorf("DEL without the plugin: %v", err)
	}
	writeFile(t, filepath.Join(bin, "p1"), goodPlugin, 0o755)
	if err := n.Del(context.Background(), debt); err != nil {
		t.Errorf("DEL after the plugin came back: %v", err)
	}
}

// What plugins are given, word for word, is an interface of ours.
func TestWhatPluginsAreGiven(t *testing.T) {
	n, bin := shellNetwork(t, nil, goodPlugin)
	a := somePod
	a.PortMappings = []PortMapping{{HostPort: 80, ContainerPort: 8080, Protocol: "UDP", HostIP: "10.0.0.1"},
		{HostPort: -1, ContainerPort: 1}, {HostPort: 443, ContainerPort: 8443}}
	a.Annotations = map[string]string{IngressBandwidth: "10M", EgressBandwidth: "1.5Gi"}
	a.DNS = DNS{Servers: []string{"10.0.0.10"}, Searches: []string{"a.b"}, Options: []string{"ndots:5"}}
	a.CgroupPath = "/kubepods/pod1"
	debt, err := n.Plan(a)
	if err != nil {
		t.Fatal(err)
	}
	result, err := n.Add(context.Background(), debt)
	if err != nil {
		t.Fatal(err)
	}
	if result.IPs[0].String() != "10.1.2.3" || result.IPs[1].String() != "fd00::5" {
		t.Errorf("addresses %v: IPv4 must be first", result.IPs)
	}
	debt.Result = result.Raw
	for _, verb := range []func(context.Context, Debt) error{n.Check, n.Del} {
		if err := verb(context.Background(), debt); err != nil {
			t.Fatal(err)
		}
	}
	caps := `"capabilities":{"bandwidth":true,"cgroupPath":true,"dns":true,"io.kubernetes.cri.pod-annotations":true,"portMappings":true},"cniVersion":"1.0.0","name":"shell",`
	prev := `"prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"address":"fd00::5/64","interface":0},{"address":"10.1.2.3/24","interface":0}]},`
	given := `"runtimeConfig":{"bandwidth":{"ingressRate":10000000,"ingressBurst":4294967295,"egressRate":1610612736,"egressBurst":4294967295},` +
		`"cgroupPath":"/kubepods/pod1","dns":{"servers":["10.0.0.10"],"searches":["a.b"],"options":["ndots:5"]},` +
		`"io.kubernetes.cri.pod-annotations":{"kubernetes.io/egress-bandwidth":"1.5Gi","kubernetes.io/ingress-bandwidth":"10M"},` +
		`"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"udp","hostIP":"10.0.0.1"},{"hostPort":443,"containerPort":8443,"protocol":"tcp"}]},"type":"p0"}`
	args := " args=IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=pod;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=uid-1 if=eth0 in={"
	want := "ADD netns=/run/netns/cri-none" + args + caps + given + "\n" +
		"CHECK netns=/run/netns/cri-none" + args + caps + prev + given + "\n" +
		"DEL netns=" + args + caps + prev + given + "\n" // no namespace is there
	got, err := os.ReadFile(filepath.Join(bin, "p0.log"))
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("plugins were given:\n%s\nwant:\n%s", got, want)
	}
}

func TestBusyPluginIsTriedAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "true") // a binary: a script is never busy
	binary, err := exec.LookPath("true")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, string(data), 0o755)
	writer, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	closed := time.AfterFunc(150*time.Millisecond, func() { _ = writer.Close() })
	defer closed.Stop()
	e := &pluginExec{bound: 10 * time.Second}
	if _, err := e.ExecPlugin(context.Background(), path, nil, []string{"CNI_COMMAND=ADD"}); err != nil {
		t.Error(err)
	}
}

func TestOutputIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "noisy")
	writeFile(t, path, "#!/bin/sh\nhead -c 100000 /dev/zero | tr '\\0' x >&2; exit 1", 0o755)
	e := &pluginExec{bound: 10 * time.Second}
	_, err := e.ExecPlugin(context.Background(), path, nil, []string{"CNI_COMMAND=ADD"})
	if err == nil || len(err.Error()) > maxStderr+200 || !strings.HasSuffix(err.Error(), `xxxx..."`) {
		t.Errorf("%.100v", err)
	}
	writeFile(t, path, "#!/bin/sh\nhead -c 5000000 /dev/zero", 0o755)
	for verb, want := range map[string]string{"ADD": "plugin noisy: answer to ADD: more than 4194304 bytes", "DEL": "<nil>"} {
		if _, err := e.ExecPlugin(context.Background(), path, nil, []string{"CNI_COMMAND=" + verb}); fmt.Sprint(err) != want {
			t.Errorf("%s: %v, want %s", verb, err, want)
		}
	}
}

// What plugins were asked is counted by what came of it: an ADD that fails is followed by a DEL.
func TestOperationsAreCounted(t *testing.T) {
	const operations, times = "criserver_network_operations_total ", "criserver_network_operation_seconds "
	for _, tc := range []struct {
		plugin string
		want   map[string]float64
	}{
		{goodPlugin, map[string]float64{operations + "ADD ok": 1, operations + "DEL ok": 1, operations + "ADD failed": 0, operations + "DEL failed": 0, times + "ADD": 1, times + "DEL": 1}},
		{failAdd, map[string]float64{operations + "ADD failed": 1, operations + "DEL ok": 2, times + "ADD": 1, times + "DEL": 2}},
		{failBoth, map[string]float64{operations + "ADD failed": 1, operations + "DEL failed": 2, operations + "CHECK failed": 0, operations + "GC failed": 0}},
	} {
		n, _ := shellNetwork(t, nil, tc.plugin)
		debt, err := n.Plan(somePod)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = n.Add(t.Context(), debt)
		_ = n.Del(t.Context(), debt)
		got := metrictest.Values(t, n.Metrics()...)
		for name, want := range tc.want {
			if got[name] != want {
				t.Errorf("%s: %v, want %v; there are %v", name, got[name], want, got)
			}
		}
	}
}
