package pause_test

import (
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/program"
	"github.com/criserver/criserver/pause"
)

// feed writes data to a container's stdout in pieces and ends both streams without a process.
func feed(t *testing.T, f *os.File, data string, piece func() int) {
	t.Helper()
	for len(data) > 0 {
		n := min(piece(), len(data))
		_, err := f.WriteString(data[:n])
		must(t, err)
		data = data[n:]
	}
}

func TestLogLines(t *testing.T) {
	long := strings.Repeat("x", 40000)
	binaryData := make([]byte, 50000)
	random := rand.New(rand.NewSource(1))
	random.Read(binaryData)
	tests := []struct {
		name, output string
		max          int
		records      int // 0: not counted
		partial      int
	}{
		{name: "lines", output: "a\nb\n\nc\n", records: 4},
		{name: "unterminated", output: "a\nb", records: 2, partial: 1},
		{name: "nothing", output: ""},
		{name: "exactly the limit", output: strings.Repeat("y", 16384) + "\n", records: 1},
		{name: "one more", output: strings.Repeat("y", 16385) + "\n", records: 2, partial: 1},
		{name: "long", output: long + "\nshort\n", records: 4, partial: 2},
		{name: "long unterminated", output: long, records: 3, partial: 3},
		{name: "small limit", output: "0123456789abc\nxy\n", max: 5, records: 4, partial: 2},
		{name: "great limit", output: strings.Repeat("z", 65536) + "\n", max: 65536, records: 1},
		{name: "binary", output: string(binaryData)},
		{name: "newlines", output: strings.Repeat("\n", 100000), records: 100000},
	}
	pieces := map[string]func() int{
		"whole": func() int { return 1 << 20 },
		"odd":   func() int { return 1 + random.Intn(9000) },
	}
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		task := uint64(0)
		for how, piece := range pieces {
			for _, tt := range tests {
				task++
				before := time.Now().Truncate(0)
				c := p.addWith(task, func(k *pause.Container) { k.LineMax = tt.max })
				feed(t, c.stdout, tt.output, piece)
				p.run(c, "exit 0")
				if e := p.exit(task); e.LogBehind || e.Dropped != 0 {
					t.Errorf("%s: %+v", tt.name, e)
				}
				records := readLog(t, c.log)
				want := tt.output
				if len(want) > 0 && strings.HasSuffix(want, "\n") != strings.HasSuffix(text(records, "stdout"), "\n") {
					t.Errorf("%s, %s: the end of the output differs", tt.name, how)
				}
				if got := text(records, "stdout"); got != want {
					t.Errorf("%s, %s: %d bytes logged of %d, difference at %d", tt.name, how, len(got), len(want), firstDifference(got, want))
				}
				partial := 0
				for _, r := range records {
					if r.partial {
						partial++
					}
					if r.at.Before(before) || r.at.After(time.Now()) {
						t.Errorf("%s: logged at %v, now is %v", tt.name, r.at, time.Now())
					}
				}
				if tt.records > 0 && (len(records) != tt.records || partial != tt.partial) {
					t.Errorf("%s, %s: %d records, %d partial, want %d and %d", tt.name, how, len(records), partial, tt.records, tt.partial)
				}
			}
		}
		l, err := p.conn.List(deadline(t))
		must(t, err)
		defer l.Close()
		for _, k := range l.Tasks {
			info, err := os.Stat(filepath.Join(p.dir, fmt.Sprintf("%d.log", k.Task)))
			must(t, err)
			if k.State != pause.Exited || int64(k.LogBytes) != info.Size() || k.LogDropped != 0 {
				t.Errorf("%s: state %d, %d bytes of log, %d dropped; the file has %d", k.Name, k.State, k.LogBytes, k.LogDropped, info.Size())
			}
		}
	})
}

// TestLogOrder writes many lines from two streams of several containers at once.
func TestLogOrder(t *testing.T) {
	lines := 1000000
	if testing.Short() {
		lines = 50000
	}
	eachBinary(t, func(t *testing.T, binary string) {
		if strings.HasSuffix(binary, "asan") {
			lines /= 10
		}
		p := startPause(t, binary)
		const containers = 3
		for task := uint64(1); task <= containers; task++ {
			p.run(p.add(task), fmt.Sprintf("seq 1 %d & seq 1 1000 >&2; wait", lines/containers))
		}
		for task := uint64(1); task <= containers; task++ {
			p.exit(task)
			records := readLog(t, filepath.Join(p.dir, fmt.Sprintf("%d.log", task)))
			checkSequence(t, text(records, "stdout"), lines/containers, "")
			checkSequence(t, text(records, "stderr"), 1000, "")
			for i := 1; i < len(records); i++ {
				if records[i].at.Before(records[i-1].at) {
					t.Fatalf("record %d is older than the one before", i)
				}
			}
		}
	})
}

// TestReopenUnderLoad rotates the log of a busy container: the pieces make the whole.
func TestReopenUnderLoad(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		const lines = 300000
		c := p.add(1)
		p.run(c, fmt.Sprintf("seq 1 %d", lines))
		var whole strings.Builder
		for i := range 40 {
			moved := fmt.Sprintf("%s.%d", c.log, i)
			must(t, os.Rename(c.log, moved))
			f, err := os.OpenFile(c.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
			must(t, err)
			must(t, p.conn.ReopenLog(deadline(t), 1, f))
			_ = f.Close()
			whole.WriteString(text(readLog(t, moved), "stdout")) // nothing is added once the answer is here
			runtime.Gosched()
		}
		if e := p.exit(1); e.Dropped != 0 {
			t.Errorf("exit %+v", e)
		}
		whole.WriteString(text(readLog(t, c.log), "stdout"))
		checkSequence(t, whole.String(), lines, "")
		f, err := os.OpenFile(c.log+".late", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		must(t, err)
		defer func() { _ = f.Close() }()
		must(t, p.conn.ReopenLog(deadline(t), 1, f)) // also valid after the exit
		wantError(t, p.conn.ReopenLog(deadline(t), 77, f), pause.StageRequest, unix.ENOENT)
	})
}

// TestLogDescendant does not wait for a process that holds the pipe when the container has ended.
func TestLogDescendant(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		c := p.add(1)
		keep, err := unix.FcntlInt(c.stdout.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		must(t, err)
		other := os.NewFile(uintptr(keep), "stdout")
		defer func() { _ = other.Close() }()
		p.run(c, "printf 'half a line'")
		p.exit(1)
		if got := text(readLog(t, c.log), "stdout"); got != "half a line" {
			t.Errorf("log has %q when the exit is told", got)
		}
		_, err = other.WriteString("late\n")
		must(t, err)
		eventually(t, "the late line", func() bool { return text(readLog(t, c.log), "stdout") == "half a linelate\n" })
		must(t, p.conn.Remove(deadline(t), 1))
	})
}

// TestFullDisk fills a file system, and makes room again.
func TestFullDisk(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		dir := smallDisk(t, 256<<10)
		path := filepath.Join(dir, "log")
		log, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		must(t, err)
		c := p.addWith(1, func(k *pause.Container) { _ = k.Log.Close(); k.Log = log })
		other := p.add(2)
		goOn, release := pipe(t)
		b := program.New()
		stdio(b, 0, 1)
		b.Call("stdin", unix.SYS_DUP3, program.FD(2), 0, 0)
		shell(b, "seq 1 300000; echo written >&2; read x; echo after; exit 4")
		p.mustStart(pause.Start{Task: 1}, b, c.stdout, c.stderr, goOn)
		_ = c.stdout.Close()
		_ = c.stderr.Close()
		p.run(other, "seq 1 1000")
		p.exit(2) // not in the way
		eventually(t, "all output taken", func() bool {
			l, err := p.conn.List(deadline(t))
			must(t, err)
			defer l.Close()
			return l.Tasks[0].LogDropped > 1<<20
		})
		first := readWhole(t, path)
		must(t, unix.Mount("", dir, "", unix.MS_REMOUNT, "size=64m"))
		awaitIdle(t) // the failing file is tried again after a while
		_, err = release.WriteString("x\n")
		must(t, err)
		exit := p.exit(1)
		data := readWhole(t, path)
		records := parseLog(t, data)
		if !strings.HasPrefix(data, first) {
			t.Error("the beginning of the log changed")
		}
		var told, kept uint64
		for _, r := range records {
			var n uint64
			if _, err := fmt.Sscanf(r.content, "pause: %d bytes dropped", &n); err == nil {
				told += n
				continue
			}
			kept += uint64(len(r.content)) + 1
		}
		var written uint64
		for i := 1; i <= 300000; i++ {
			written += uint64(len(fmt.Sprint(i))) + 1
		}
		written += uint64(len("written\nafter\n"))
		if told != exit.Dropped || told+kept != written || exit.Status.ExitStatus() != 4 {
			t.Errorf("%d bytes written, %d kept, %d told as dropped; exit %+v", written, kept, told, exit)
		}
		if last := records[len(records)-1].content; last != "after" {
			t.Errorf("the log ends with %q", last)
		}
	})
}

func readWhole(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	return string(data)
}

// smallDisk mounts a tmpfs of size bytes on a directory of the test.
func smallDisk(t *testing.T, size int) string {
	t.Helper()
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}
