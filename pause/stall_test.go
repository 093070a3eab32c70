package pause_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/program"
	"github.com/criserver/criserver/pause"
)

// TestStalledDisk blocks the writer in a write, as a disk that does not answer does: the log is a pipe that
// nobody reads. Nothing else may wait, no container may hang on its output, and all logs stay well formed.
func TestStalledDisk(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		diskOut, disk := pipe(t)
		stalled := p.addWith(1, func(k *pause.Container) { _ = k.Log.Close(); k.Log = disk })
		const lines = 200000
		p.run(stalled, fmt.Sprintf("seq 1 %d; exit 11", lines)) // far more than all pipes hold
		eventually(t, "the writer stalls", func() bool {        // it has filled the pipe that is its disk
			n, err := unix.IoctlGetInt(int(diskOut.Fd()), unix.TIOCINQ)
			must(t, err)
			return n >= 60<<10
		})
		beside := p.add(2)
		p.run(beside, fmt.Sprintf("seq 1 %d; exit 12", lines))

		quiet := p.add(3)
		p.run(quiet, "exit 13")
		if e := p.exit(3); e.Status.ExitStatus() != 13 {
			t.Errorf("a container beside: %+v", e)
		}
		_, exit := p.exec(50, plain, func(b *program.Builder) { shell(b, "exit 14") })
		if exit.Status.ExitStatus() != 14 {
			t.Errorf("exec: %+v", exit)
		}
		f, err := os.OpenFile(p.dir+"/new", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		must(t, err)
		defer func() { _ = f.Close() }()
		wantError(t, p.conn.ReopenLog(deadline(t), 1, f), pause.StageRequest, unix.ETIMEDOUT)

		for task, code := range map[uint64]int{1: 11, 2: 12} {
			e := p.exit(task)
			if e.Status.ExitStatus() != code || !e.LogBehind {
				t.Errorf("task %d ended with %+v, want code %d and a log that is behind", task, e, code)
			}
		}
		if data := readWhole(t, p.dir+"/new"); data != "" {
			t.Errorf("the log went on in a file that was refused: %.100q", data)
		}

		// The disk answers again.
		records := make(chan []record, 1)
		go func() { records <- readRecords(t, diskOut) }()
		must(t, p.conn.Remove(deadline(t), 1)) // closes the log
		_ = disk.Close()
		checkGaps(t, <-records, lines)
		must(t, p.conn.Remove(deadline(t), 2))
		eventually(t, "the other log closed", func() bool { return !slices.Contains(openPaths(t, p.cmd.Process.Pid), beside.log) })
		checkGaps(t, readLog(t, beside.log), lines)
	})
}

func readRecords(t *testing.T, f *os.File) []record {
	var records []record
	in := bufio.NewReaderSize(f, 1<<16)
	for {
		line, err := in.ReadString('\n')
		if err == io.EOF && line == "" {
			return records
		}
		r, bad := parseRecord(line)
		if bad != nil {
			t.Errorf("%v: %.100q", bad, line)
			return records
		}
		records = append(records, r)
	}
}

// checkGaps wants whole lines of seq in order, and every missing byte told in the log.
func checkGaps(t *testing.T, records []record, lines int) {
	t.Helper()
	var told, want, got, last int
	for i := 1; i <= lines; i++ {
		want += len(fmt.Sprint(i)) + 1
	}
	for _, r := range records {
		var n int
		if _, err := fmt.Sscanf(r.content, "pause: %d bytes dropped", &n); err == nil {
			told += n
			continue
		}
		if _, err := fmt.Sscan(r.content, &n); err != nil || fmt.Sprint(n) != r.content || n <= last || r.partial {
			t.Fatalf("record %+v after line %d", r, last)
		}
		last = n
		got += len(r.content) + 1
	}
	if got+told != want || told == 0 {
		t.Errorf("%d bytes written, %d logged, %d told as dropped", want, got, told)
	}
}
