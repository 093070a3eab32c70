package blockio

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestQuantity(t *testing.T) {
	for text, want := range map[string]uint64{"": 0, "0": 0, "5": 5, "50M": 50e6, "10k": 10000, "64Mi": 64 << 20, "1.5k": 1500, "1.0001k": 1001,
		"2Ki": 2048, "1E": 1e18, "15Ei": 15 << 60} {
		if got, err := quantity(text); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"x", "-1", "5 M", "5MM", "5i", "5K", "5ki", "1e3", "0x5", "M", ".", "1.2.3", "99999999999E", "16Ei", "5m"} {
		if got, err := quantity(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
}

func TestClass(t *testing.T) {
	pod := map[string]string{"blockio.resources.beta.kubernetes.io/pod": "p", "blockio.resources.beta.kubernetes.io/container.a": "c"}
	for _, row := range []struct {
		name      string
		container map[string]string
		want      string
	}{{"a", nil, "c"}, {"b", nil, "p"}, {"a", map[string]string{ContainerAnnotation: "x"}, "x"}, {"a", map[string]string{ContainerAnnotation: ""}, ""}} {
		if got := Class(row.name, row.container, pod); got != row.want {
			t.Errorf("%s with %v: %q, want %q", row.name, row.container, got, row.want)
		}
	}
	if got := Class("a", nil, nil); got != "" {
		t.Errorf("without annotations: %q", got)
	}
}

// disks makes device nodes, which need no device to be behind them.
func disks(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, minor := range map[string]uint32{"sda": 1, "sdb": 2} {
		if err := unix.Mknod(filepath.Join(dir, name), unix.S_IFBLK|0o600, int(unix.Mkdev(500, minor))); err != nil {
			t.Skipf("make device nodes: %v", err)
		}
	}
	for link, to := range map[string]string{"by-id": "sdb", "dangling": "sdz"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "sdc"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestLimits(t *testing.T) {
	dir := disks(t)
	classes, err := parse([]byte(strings.ReplaceAll(`
Classes:
  none: []
  all:
    - Weight: 80
    - Devices: ['DIR/sd[a-z]']
      Weight: 50
      ThrottleReadBps: 50M
      ThrottleWriteBps: 10Mi
      ThrottleReadIOPS: 10k
      ThrottleWriteIOPS: 5
    - Devices: ['DIR/by-*', 'DIR/nvme*', DIR/dangling]
      Weight: "400"
      ThrottleReadBps: "0"
`, "DIR", dir)))
	if err != nil {
		t.Fatal(err)
	}
	limits, unmatched, err := classes.Limits("all")
	if err != nil {
		t.Fatal(err)
	}
	want := `{"weight":80,"weightDevice":[{"major":500,"minor":1,"weight":50},{"major":500,"minor":2,"weight":400}],` +
		`"throttleReadBpsDevice":[{"major":500,"minor":1,"rate":50000000},{"major":500,"minor":2,"rate":0}],` +
		`"throttleWriteBpsDevice":[{"major":500,"minor":1,"rate":10485760},{"major":500,"minor":2,"rate":10485760}],` +
		`"throttleReadIOPSDevice":[{"major":500,"minor":1,"rate":10000},{"major":500,"minor":2,"rate":10000}],` +
		`"throttleWriteIOPSDevice":[{"major":500,"minor":1,"rate":5},{"major":500,"minor":2,"rate":5}]}`
	if got := text(t, limits); got != want {
		t.Errorf("limits\ngot  %s\nwant %s", got, want)
	}
	if len(unmatched) != 2 {
		t.Errorf("unmatched: %q", unmatched)
	}
	if limits, _, err := classes.Limits("none"); err != nil || text(t, limits) != "{}" {
		t.Errorf("a class without entries: %v, %v", limits, err)
	}
	if _, _, err := classes.Limits("other"); err == nil || !strings.Contains(err.Error(), `"other": there are all, none`) {
		t.Errorf("a class that is not there: %v", err)
	}
}

func text(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestFileThatIsNotRight(t *testing.T) {
	for file, want := range map[string]string{
		"Classes: [x]":                         "cannot unmarshal",
		"Klasses: {}":                          "Klasses not found",
		"Classes: {a: [{Weight: 5}]}":          "class a, entry 0: weight 5 is not between 10 and 1000",
		"Classes: {a: [{Weight: heavy}]}":      `class a, entry 0: "heavy" is not a quantity`,
		"Classes: {a: [{ThrottleReadBps: 5}]}": "class a, entry 0: rate 5 needs Devices",
		"Classes: {a: [{Devices: [/dev/x], ThrottleReadIOPS: fast}]}": `"fast" is not a quantity`,
		"Classes: {a: [{Devises: [/dev/x]}]}":                         "Devises not found",
	} {
		if _, err := parse([]byte(file)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", file, err, want)
		}
	}
	if c, err := parse(nil); err != nil || len(c) != 0 {
		t.Errorf("an empty file: %v, %v", c, err)
	}
	if _, err := Read(filepath.Join(t.TempDir(), "x")); err == nil || !strings.HasPrefix(err.Error(), "read classes of block I/O: open ") {
		t.Errorf("no file: %v", err)
	}
	c, err := parse([]byte("Classes: {a: [{Devices: ['/dev/[']}]}"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Limits("a"); err == nil || !strings.Contains(err.Error(), "syntax error in pattern") {
		t.Errorf("bad pattern: %v", err)
	}
}
