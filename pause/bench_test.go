package pause_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/program"
	"github.com/criserver/criserver/pause"
)

// BenchmarkStart measures a request of 150 instructions until pause answers that execve has succeeded.
func BenchmarkStart(b *testing.B) {
	prog := program.New()
	dir := prog.Call("open /", unix.SYS_OPENAT, unix.AT_FDCWD, program.String("/"), unix.O_PATH, 0).Keep()
	for range 148 {
		prog.Call("fchdir", unix.SYS_FCHDIR, dir)
	}
	benchmarkExec(b, prog, pause.Start{CloneFlags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}, false)
}

// BenchmarkExec measures exec of true in a container's pid namespace until execve has succeeded.
func BenchmarkExec(b *testing.B) { benchmarkExec(b, program.New(), pause.Start{}, true) }

func benchmarkExec(b *testing.B, prog *program.Builder, s pause.Start, join bool) {
	p := startPause(b, binaries["pause"])
	if join {
		s.Join = benchContainer(b, p)
	}
	execute(prog, "/bin/true", program.Strings{"true"}, nil)
	s.Program = seal(b, prog)
	defer func() { _ = s.Program.Close() }()
	s.Exec = true
	var starts, exits []time.Duration
	for b.Loop() {
		s.Task++
		s.Task = max(s.Task, 100)
		begin := time.Now()
		started, err := p.conn.Start(b.Context(), s)
		must(b, err)
		starts = append(starts, time.Since(begin))
		p.exit(s.Task)
		exits = append(exits, time.Since(begin))
		_ = started.PidFD.Close()
	}
	report(b, starts, "execve")
	report(b, exits, "exit")
}

func report(b *testing.B, d []time.Duration, what string) {
	slices.Sort(d)
	b.ReportMetric(float64(d[len(d)/2].Microseconds()), "us-to-"+what+"-p50")
	b.ReportMetric(float64(d[len(d)*99/100].Microseconds()), "us-to-"+what+"-p99")
}

func benchContainer(b *testing.B, p *pod) *os.File {
	c := p.add(1)
	prog := program.New()
	stdio(prog, 0, 1)
	shell(prog, "exec sleep 10000")
	return p.mustStart(pause.Start{Task: 1, CloneFlags: unix.CLONE_NEWPID}, prog, c.stdout, c.stderr).PidFD
}

// BenchmarkLog measures how fast the writer takes lines of 100 bytes.
func BenchmarkLog(b *testing.B) {
	p := startPause(b, binaries["pause"])
	dir := b.TempDir()
	must(b, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2g"))
	defer func() { must(b, unix.Unmount(dir, unix.MNT_DETACH)) }()
	log, err := os.OpenFile(dir+"/log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	must(b, err)
	c := p.addWith(1, func(k *pause.Container) {
		_ = k.Log.Close()
		k.Log = log
		_, err := unix.FcntlInt(k.Stdout.Fd(), unix.F_SETPIPE_SZ, 1<<20)
		must(b, err)
	})
	reader, err := os.OpenFile(dir+"/log", os.O_RDWR, 0)
	must(b, err)
	defer func() { _ = reader.Close() }()
	line := strings.Repeat("0123456789", 9) + "012345678\n"
	block := []byte(strings.Repeat(line, 2600))
	b.SetBytes(int64(len(block)))
	written := 0
	begin := cpu(b, p.cmd.Process.Pid)
	for b.Loop() {
		_, err := c.stdout.Write(block)
		must(b, err)
		written += len(block)
		if written%(256<<20) < len(block) {
			must(b, reader.Truncate(0))
		}
	}
	used := cpu(b, p.cmd.Process.Pid) - begin
	b.ReportMetric(float64(written)/(1<<20)/used.Seconds(), "MiB/cpu-s")
}

// cpu is what a process has used.
func cpu(b *testing.B, pid int) time.Duration {
	b.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(b, err)
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')'):]))
	var user, system int
	_, err = fmt.Sscan(fields[12]+" "+fields[13], &user, &system)
	must(b, err)
	return time.Duration(user+system) * 10 * time.Millisecond
}
