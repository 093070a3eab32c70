package reset

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// disk is the guest's fourth, after root, modules and payload.
const disk = "/dev/vdd"

// cut is one reset: of which file system, under what, and when.
type cut struct {
	fs    string // ext4 or xfs
	store string // images.store
	eager bool   // the kernel writes at once what is dirty; otherwise only what somebody syncs
	at    moment
}

func (c cut) name() string {
	kernel := "lazy"
	if c.eager {
		kernel = "eager"
	}
	return fmt.Sprintf("%s_%s_%s_%s", c.fs, c.store, kernel, c.at)
}

// A series of the same file system and store goes on with the same disk.
var cuts = []cut{
	{"xfs", "erofs", false, pulled},
	{"xfs", "erofs", true, fetched(5)},
	{"xfs", "erofs", false, durable},
	{"ext4", "overlay", true, pulled},
	{"ext4", "overlay", false, written(2)},
	{"ext4", "overlay", false, durable},
	{"ext4", "erofs", false, fetched(3)},
	{"ext4", "erofs", true, fetched(8)},
	{"ext4", "erofs", false, written(3)},
	{"ext4", "erofs", false, written(12)},
	{"ext4", "erofs", false, durable},
	{"ext4", "erofs", false, removed},
}

// boots is how often the guest was reset.
func boots(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`\bvm\.boot=(\d+)`).FindSubmatch(text)
	if _, err := os.Stat(disk); err != nil || found == nil {
		t.Skip("resets the machine: go run ./hack/vm test reset")
	}
	n, err := strconv.Atoi(string(found[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// After each reset an image is perfect or absent, as it was promised; the others are untouched, all that is on the disk belongs
// to an image, and the image can be pulled.
func TestReset(t *testing.T) {
	boot := boots(t)
	reg := serveImages(t)
	if boot > 0 {
		c := cuts[boot-1]
		t.Run(c.name(), func(t *testing.T) { look(t, c, reg) })
	}
	if boot == len(cuts) || t.Failed() {
		return
	}
	if next := cuts[boot]; boot == 0 || next.fs != cuts[boot-1].fs || next.store != cuts[boot-1].store {
		t.Run(fmt.Sprintf("first_on_%s_%s", next.fs, next.store), func(t *testing.T) { begin(t, next, reg) })
	}
	if t.Failed() {
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("#!/bin/sh\nexec %s -test.run '^TestCut$' -test.timeout 10m\n", self)
	if err := os.WriteFile("/run/reset", []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
}

// TestCut makes the cut of this boot, on the criserver that TestReset left, and does not come back.
func TestCut(t *testing.T) {
	c := cuts[boots(t)]
	reg := serveImages(t)
	n := connect(t)
	n.idle(t, reg.kept.ref) // a pod that writes, which is lost
	kernelWrites(t, c.fs, c.eager)
	c.at.reset(t, n, reg)
	t.Fatalf("%s has passed without a reset", c.at)
}

// baseline is what a disk with the images that nothing cuts is, as it was before the first cut.
type baseline struct {
	Kept, Other, Cut string // what containers find in the images
	Without, With    int64  // bytes of the disk that are used, without the image that is cut and with it
}

func baselinePath() string { return filepath.Join(mountPoint, "baseline") }

// begin makes a disk anew, with two of the images.
func begin(t *testing.T, c cut, reg *images) {
	makeDisk(t, c.fs)
	n := start(t, c.store)
	n.pull(t, reg.kept.ref)
	n.pull(t, reg.other.ref)
	n.pull(t, reg.cut.ref)
	b := baseline{Kept: n.files(t, reg.kept.ref), Other: n.files(t, reg.other.ref), Cut: n.files(t, reg.cut.ref)}
	n.waitDurable(t)
	b.With = used(t)
	n.remove(t, reg.cut.ref)
	b.Without = used(t)
	if b.With-b.Without < reg.cut.own {
		t.Fatalf("the image takes %d bytes of the disk, and its layers have %d", b.With-b.Without, reg.cut.own)
	}
	text, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(baselinePath(), text, 0o600); err != nil {
		t.Fatal(err)
	}
	syncDisk(t)
}

// look starts criserver on what a cut has left, and leaves things as they were before it.
func look(t *testing.T, c cut, reg *images) {
	mountDisk(t, c.fs)
	text, err := os.ReadFile(baselinePath())
	if err != nil {
		t.Fatal(err)
	}
	var b baseline
	if err := json.Unmarshal(text, &b); err != nil {
		t.Fatal(err)
	}
	n := start(t, c.store)
	n.removePods(t)
	there := n.has(t, reg.cut.ref)
	t.Logf("the image is there: %v", there)
	if want := c.at.promise; want != either && (want == present) != there {
		t.Errorf("after a reset %s the image is there: %v", c.at, there)
	}
	n.verify(t)
	same := func(what string, want, got string) {
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s image (-before +after):\n%s", what, diff)
		}
	}
	same("kept", b.Kept, n.files(t, reg.kept.ref))
	same("other", b.Other, n.files(t, reg.other.ref))
	if there {
		same("cut", b.Cut, n.files(t, reg.cut.ref))
		n.accounted(t, b.With)
	} else {
		n.accounted(t, b.Without)
	}
	n.pull(t, reg.cut.ref)
	same("newly pulled", b.Cut, n.files(t, reg.cut.ref))
	n.verify(t)
	n.waitDurable(t)
	n.accounted(t, b.With)
	n.remove(t, reg.cut.ref)
	n.accounted(t, b.Without)
	syncDisk(t)
}
