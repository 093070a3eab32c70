package cni

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A Network logs each change of what is in force; changed is told of it, so that tests wait without polling.
type changed chan struct{}

func (c changed) Enabled(context.Context, slog.Level) bool { return true }
func (c changed) WithAttrs([]slog.Attr) slog.Handler       { return c }
func (c changed) WithGroup(string) slog.Handler            { return c }
func (c changed) Handle(context.Context, slog.Record) error {
	select {
	case c <- struct{}{}:
	default:
	}
	return nil
}

// watched opens a Network on dir that looks by itself only after rescan, and returns how to wait for a Status.
func watched(t *testing.T, dir string, rescan time.Duration, def *DefaultNetwork) (*Network, func(what string, ok func(Status) bool)) {
	t.Helper()
	bin := t.TempDir()
	for _, name := range []string{"p0", "bridge", "portmap", "host-local"} {
		writeFile(t, filepath.Join(bin, name), goodPlugin, 0o755)
	}
	news := make(changed, 100)
	n, err := New(Config{ConfDir: dir, BinDirs: []string{bin}, Default: def, Rescan: rescan, Log: slog.New(news)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n, func(what string, ok func(Status) bool) {
		t.Helper()
		late := time.After(time.Minute)
		for !ok(n.Status()) {
			select {
			case <-news:
			case <-late:
				t.Fatalf("%s: the status still is %+v", what, n.Status())
			}
		}
	}
}

func conflist(name string) string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[{"type":"p0"}]}`, name)
}

func inForce(network string) func(Status) bool {
	return func(s Status) bool { return s.Ready && s.Network == network && s.Message == "" }
}

func notReady(because string) func(Status) bool {
	return func(s Status) bool {
		return !s.Ready && s.Reason == ReasonNotReady && strings.Contains(s.Message, because)
	}
}

// replaceFile as installers do: written beside, renamed over.
func replaceFile(t *testing.T, path, content string) {
	t.Helper()
	writeFile(t, path+".tmp", content, 0o644)
	rename(t, path+".tmp", path)
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
}

// onlyEvents: a look by the clock would come too late for the test.
const onlyEvents = time.Hour

func TestConfigurationIsNoticed(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "cni", "net.d")
	file := filepath.Join(dir, "10-a.conflist")
	_, wait := watched(t, dir, onlyEvents, nil)
	wait("no directory", notReady("no network configuration in "+dir))
	mkdir(t, filepath.Dir(dir))
	mkdir(t, dir)
	wait("empty directory", notReady("no network configuration in "+dir))
	replaceFile(t, file, conflist("one"))
	wait("first file, two directories later", inForce("one"))
	replaceFile(t, file, conflist("two"))
	wait("file replaced", inForce("two"))
	writeFile(t, file, conflist("three"), 0o644)
	wait("file written in place", inForce("three"))
	writeFile(t, filepath.Join(dir, "05-b.conf"), `{"cniVersion":"0.3.1","name":"single","type":"p0"}`, 0o644)
	wait("a file that sorts before", inForce("single"))
	writeFile(t, filepath.Join(dir, "00-ignored.txt"), "x", 0o644)
	if err := os.Remove(filepath.Join(dir, "05-b.conf")); err != nil {
		t.Fatal(err)
	}
	wait("it is gone", inForce("three"))

	fresh := filepath.Join(base, "fresh")
	mkdir(t, fresh)
	writeFile(t, filepath.Join(fresh, "10-a.conflist"), conflist("four"), 0o644)
	if err := unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE); err != nil {
		t.Fatal(err)
	}
	wait("directory exchanged", inForce("four"))
	replaceFile(t, file, conflist("five"))
	wait("file in the new directory", inForce("five"))
	rename(t, dir, dir+".old")
	rename(t, fresh, dir)
	wait("directory moved away, another moved in", inForce("three"))
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	wait("directory removed", notReady("no network configuration"))
}

func TestReplacedAncestorIsFoundByLooking(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "a", "b", "net.d")
	mkdir(t, dir)
	writeFile(t, filepath.Join(dir, "1.conflist"), conflist("old"), 0o644)
	other := filepath.Join(base, "x", "b", "net.d")
	mkdir(t, other)
	writeFile(t, filepath.Join(other, "1.conflist"), conflist("new"), 0o644)
	_, wait := watched(t, dir, 20*time.Millisecond, nil)
	wait("at first", inForce("old"))
	rename(t, filepath.Join(base, "a"), filepath.Join(base, "z"))
	rename(t, filepath.Join(base, "x"), filepath.Join(base, "a"))
	wait("two levels above were replaced", inForce("new"))
}

func TestLastGoodConfigurationStays(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "10-a.conflist")
	n, wait := watched(t, dir, onlyEvents, nil)
	replaceFile(t, file, `{"name": "broken`)
	wait("broken from the start", notReady(file+": "))
	if _, err := n.Plan(somePod); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("Plan: %v, want the file named", err)
	}
	replaceFile(t, file, conflist("good"))
	wait("mended", inForce("good"))
	for what, content := range map[string]string{
		"not JSON":     `{"name":"broken`,
		"empty":        ``,
		"no name":      `{"cniVersion":"1.0.0","plugins":[{"type":"p0"}]}`,
		"no plugins":   `{"cniVersion":"1.0.0","name":"x","plugins":[]}`,
		"no type":      `{"cniVersion":"1.0.0","name":"x","plugins":[{"a":"b"}]}`,
		"future":       `{"cniVersion":"9.0.0","name":"x","plugins":[{"type":"p0"}]}`,
		"evil name":    `{"cniVersion":"1.0.0","name":"../x","plugins":[{"type":"p0"}]}`,
		"wrong type":   `[]`,
		"far too long": `{"name":"` + strings.Repeat("x", maxConfFile) + `"}`,
	} {
		replaceFile(t, file, content)
		wait(what, func(s Status) bool {
			return s.Ready && s.Network == "good" && strings.Contains(s.Message, "stays in force: "+file)
		})
		if _, err := n.Plan(somePod); err != nil {
			t.Errorf("%s: Plan: %v", what, err)
		}
		replaceFile(t, file, conflist("good"))
		wait("mended after "+what, inForce("good"))
	}
}

func TestOperatorsConfigurationWinsOverDefault(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "net.d")
	n, wait := watched(t, dir, onlyEvents, &DefaultNetwork{DataDir: t.TempDir()})
	wait("without a file", inForce("criserver"))
	before, err := n.Plan(somePod)
	if err != nil {
		t.Fatal(err)
	}
	mkdir(t, dir)
	replaceFile(t, filepath.Join(dir, "10-a.conflist"), conflist("operator"))
	wait("the operator's file", inForce("operator"))
	after, err := n.Plan(somePod)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(before.ConfList), `"bridge":"cri0"`) || string(after.ConfList) != conflist("operator") {
		t.Errorf("planned with\n%s\nthen with\n%s", before.ConfList, after.ConfList)
	}
	if err := os.Remove(filepath.Join(dir, "10-a.conflist")); err != nil {
		t.Fatal(err)
	}
	if s := n.Status(); s.Network != "operator" && s.Network != "criserver" {
		t.Errorf("between two configurations: %+v", s)
	}
	wait("the operator's file is gone for good", inForce("criserver"))
}

func TestBrokenFileHidesDefault(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "10-a.conflist"), "{", 0o644)
	_, wait := watched(t, dir, onlyEvents, &DefaultNetwork{DataDir: t.TempDir()})
	wait("a broken file", notReady("10-a.conflist"))
}

func TestMissingPluginIsTold(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "10-a.conflist"), conflist("a"), 0o644)
	n, wait := watched(t, dir, 20*time.Millisecond, nil)
	wait("all there", inForce("a"))
	plugin := filepath.Join(n.conf.BinDirs[0], "p0")
	rename(t, plugin, plugin+".away")
	wait("plugin gone", notReady("plugin p0: not found in "+n.conf.BinDirs[0]))
	rename(t, plugin+".away", plugin)
	wait("plugin back", inForce("a"))
}

func TestMissingAddressPluginIsTold(t *testing.T) {
	n, wait := watched(t, t.TempDir(), 20*time.Millisecond, &DefaultNetwork{DataDir: t.TempDir()})
	wait("all there", inForce("criserver"))
	if err := os.Remove(filepath.Join(n.conf.BinDirs[0], "host-local")); err != nil {
		t.Fatal(err)
	}
	wait("host-local gone", notReady("plugin host-local: not found"))
}

func TestPluginsInFolderBecomePartOfTheList(t *testing.T) {
	dir := t.TempDir()
	mkdir(t, filepath.Join(dir, "net"))
	writeFile(t, filepath.Join(dir, "net", "1.conf"), `{"type":"p1"}`, 0o644)
	writeFile(t, filepath.Join(dir, "1.conflist"), `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"p0"}]}`, 0o644)
	list, _, err := loadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	again, err := parseList(list.Bytes) // as DEL does
	if err != nil || len(again.Plugins) != 2 || again.Plugins[1].Network.Type != "p1" {
		t.Errorf("the bytes hold %d plugins, %v; want both: %s", len(again.Plugins), err, list.Bytes)
	}
}

const statusPlugin = pluginHead + `
case $CNI_COMMAND in
STATUS) [ -e "$0.sick" ] && { echo '{"code":50,"msg":"agent is away"}'; exit 1; }; [ -e "$0.hang" ] && sleep 1000;;
ADD) echo '{"cniVersion":"1.1.0","ips":[{"address":"10.1.2.3/24"}]}';;
esac
exit 0`

func TestPluginsOwnStatus(t *testing.T) {
	for _, tc := range []struct{ name, marker, want string }{
		{"sick", ".sick", "plugin p0: STATUS failed: agent is away (code 50)"},
		{"hangs", ".hang", "plugin p0: no answer to STATUS after "},
		{"well", ".other", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, bin := shellNetwork(t, func(c *Config) {
				if tc.marker == ".hang" {
					c.PluginTimeout = 300 * time.Millisecond
				}
			}, statusPlugin)
			replaceFile(t, filepath.Join(n.conf.ConfDir, "10-shell.conflist"),
				`{"cniVersion":"1.1.0","name":"shell","plugins":[{"type":"p0"}]}`)
			n.reload()
			writeFile(t, filepath.Join(bin, "p0"+tc.marker), "", 0o644)
			if s := n.Status(); !notReady("have not answered STATUS yet")(s) {
				t.Errorf("before the first answer: %+v", s)
			}
			n.probe.running.Wait()
			if s := n.Status(); s.Ready != (tc.want == "") || !strings.Contains(s.Message, tc.want) {
				t.Errorf("after the answer: %+v, want %q", s, tc.want)
			}
		})
	}
}

func TestGCVerb(t *testing.T) {
	n, bin := shellNetwork(t, nil, goodPlugin, goodPlugin)
	live := []Attached{{ContainerID: "c1"}, {ContainerID: "c2", IfName: "net1"}}
	if err := n.GC(context.Background(), live); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "p0.log")); err == nil {
		t.Error("GC was called on a configuration of CNI 1.0")
	}
	replaceFile(t, filepath.Join(n.conf.ConfDir, "10-shell.conflist"),
		`{"cniVersion":"1.1.0","name":"shell","plugins":[{"type":"p0"},{"type":"p1"},{"type":"absent"}]}`)
	n.reload()
	if err := n.GC(context.Background(), live); err == nil || !strings.Contains(err.Error(), "plugin absent: not found") {
		t.Errorf("GC: %v", err)
	}
	for _, plugin := range []string{"p0", "p1"} {
		data, _ := os.ReadFile(filepath.Join(bin, plugin+".log"))
		want := `"cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"},{"containerID":"c2","ifname":"net1"}]`
		if !strings.HasPrefix(string(data), "GC ") || !strings.Contains(string(data), want) {
			t.Errorf("%s was given %s, want %s", plugin, data, want)
		}
	}
}

// A watcher that answers its own reading with more reading was a defect of a peer.
func TestWatcherIsIdle(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "net.d")
	mkdir(t, dir)
	looks := make(chan struct{}, 1000)
	w, err := startWatcher(dir, onlyEvents, func() time.Duration {
		_, _, _ = loadDir(dir)
		signature(dir)
		looks <- struct{}{}
		return 0
	})
	if err != nil {
		t.Fatal(err)
	}
	<-looks
	writeFile(t, filepath.Join(filepath.Dir(dir), "a-neighbour"), "x", 0o644)
	writeFile(t, filepath.Join(dir, "1.conflist"), conflist("a"), 0o644)
	<-looks
	for range 100 {
		runtime.Gosched()
		_, _, _ = loadDir(dir)
	}
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	if more := len(looks); more > 3 { // one write is up to two events, each of which may be one look
		t.Errorf("%d more looks after one write", more)
	}
}
