package critest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A container can write to its root what container.writable_limit says, and statistics tell to the byte what it has written.
// Each kind of file system has an error of its own for more.
func TestWritableLimit(t *testing.T) {
	for _, row := range []struct {
		size, failure string
		mkfs          []string
	}{
		{"96M", "Disk quota exceeded", []string{"mkfs.ext4", "-q", "-m", "0", "-O", "quota,project", "-E", "quotatype=prjquota,lazy_itable_init=0,nodiscard"}},
		{"400M", "No space left on device", []string{"mkfs.xfs", "-q"}}, // XFS makes none smaller than 300 MB
	} {
		t.Run(strings.TrimPrefix(row.mkfs[0], "mkfs."), func(t *testing.T) {
			const limit = 8 << 20
			d := makeOnDisk(t, storeAuto, row.size, "loop,prjquota", row.mkfs...)
			d.configure(t, "[container]\n", fmt.Sprintf("[container]\nwritable_limit = %d\n", limit))
			if err := d.start(); err != nil {
				t.Fatal(err)
			}
			check(t, d)
			pull(t, d, suite.busybox)
			p := runPod(t, d)
			testWritableLimit(t, p.start(t, idle), p.start(t, idle), limit, row.failure)
			p.remove(t)
			runPod(t, d).prints(t, "", "dd if=/dev/zero of=/data bs=1M count=6 2>/dev/null") // counted by a project that others had
		})
	}
}

func testWritableLimit(t *testing.T, c, other *container, limit uint64, failure string) {
	fresh := c.wantWritten(t)
	if fresh.bytes > 256<<10 {
		t.Errorf("a new container has written %d bytes", fresh.bytes)
	}
	c.exec(t, "mkdir /d && dd if=/dev/zero of=/d/data bs=1M count=3 2>/dev/null; ln /d/data /d/name; sync")
	if now := c.wantWritten(t); now.bytes-fresh.bytes < 3<<20 || now.inodes-fresh.inodes != 2 {
		t.Errorf("a directory and a file of 3 MiB have made %+v of %+v", now, fresh)
	}
	if out := c.exec(t, "dd if=/dev/zero of=/more bs=64k 2>&1; sync"); !strings.Contains(out, failure) {
		t.Errorf("the container could write more than %d bytes: %q", limit, out)
	}
	if now := c.wantWritten(t); now.bytes > limit || now.bytes < limit-256<<10 {
		t.Errorf("%d of %d bytes could be written", now.bytes, limit)
	}
	other.exec(t, "dd if=/dev/zero of=/data bs=1M count=6 2>/dev/null")

	d := c.p.d
	if err := errors.Join(d.kill(), d.start()); err != nil {
		t.Fatal(err)
	}
	c.exec(t, "rm /more")
	if now := c.wantWritten(t); now.bytes-fresh.bytes < 3<<20 || now.bytes > 4<<20 {
		t.Errorf("after a restart and a removal %d bytes are left of %d", now.bytes, fresh.bytes+3<<20)
	}
	if out := c.exec(t, "dd if=/dev/zero of=/more bs=64k 2>&1; true"); !strings.Contains(out, failure) {
		t.Errorf("after a restart the container could write more than %d bytes: %q", limit, out)
	}
	c.stop(t, 0)
	c.remove(t)
}

// written is what a container has in its writable layer.
type written struct{ bytes, inodes uint64 }

// wantWritten wants the statistics to be what a walk through the directories finds.
func (c *container) wantWritten(t *testing.T) written {
	t.Helper()
	found := c.walk(t)
	l := c.stats(t).GetWritableLayer()
	if told := (written{l.GetUsedBytes().GetValue(), l.GetInodesUsed().GetValue()}); told != found || l.GetTimestamp() <= 0 {
		t.Errorf("statistics tell %+v, there are %+v", told, found)
	}
	return found
}

// walk counts what is in the writable directory of the container, that of overlay's own included.
func (c *container) walk(t *testing.T) (sum written) {
	t.Helper()
	seen := map[uint64]bool{}
	for _, dir := range []string{"upper", "work"} {
		err := filepath.WalkDir(filepath.Join(c.p.d.root(), "layers", "containers", c.id, dir), func(path string, _ fs.DirEntry, err error) error {
			var st unix.Stat_t
			if err := errors.Join(err, unix.Lstat(path, &st)); err != nil || seen[st.Ino] {
				return err
			}
			seen[st.Ino] = true
			sum.bytes += uint64(st.Blocks) * 512
			sum.inodes++
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return sum
}

// configure changes the configuration of a daemon that does not run.
func (d *daemon) configure(t *testing.T, old, changed string) {
	t.Helper()
	text, err := os.ReadFile(d.config())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), old) {
		t.Fatalf("%q is not in the configuration", old)
	}
	write(t, d.config(), strings.Replace(string(text), old, changed, 1))
}
