package pause_test

import (
	"fmt"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/program"
	"github.com/criserver/criserver/pause"
)

// TestKeep leaves descriptors with pause and takes them back over a new connection.
func TestKeep(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		before := openFiles(t, p.cmd.Process.Pid)
		files := make([]*os.File, 450)
		for i := range files {
			f, err := os.CreateTemp(p.dir, "kept")
			must(t, err)
			defer func() { _ = f.Close() }()
			_, err = fmt.Fprint(f, i)
			must(t, err)
			files[i] = f
		}
		must(t, p.conn.Keep(deadline(t), "many", files))
		must(t, p.conn.Keep(deadline(t), "one", files[7:8]))
		must(t, p.conn.Keep(deadline(t), "one", files[8:9])) // replaces
		must(t, p.conn.Keep(deadline(t), "dropped", files[9:10]))
		must(t, p.conn.Drop(deadline(t), "dropped"))
		must(t, p.conn.Drop(deadline(t), "never kept"))

		p.reconnect()
		l, err := p.conn.List(deadline(t))
		must(t, err)
		defer l.Close()
		if len(l.Kept) != 2 || len(l.Kept["many"]) != len(files) || len(l.Kept["one"]) != 1 {
			t.Fatalf("kept %d names, %d and %d descriptors", len(l.Kept), len(l.Kept["many"]), len(l.Kept["one"]))
		}
		check := func(f *os.File, want int) {
			data := make([]byte, 16)
			n, err := f.ReadAt(data, 0)
			if err != io.EOF || string(data[:n]) != fmt.Sprint(want) {
				t.Errorf("descriptor %d came back as %q (%v)", want, data[:n], err)
			}
		}
		for i, f := range l.Kept["many"] {
			check(f, i)
		}
		check(l.Kept["one"][0], 8)
		must(t, p.conn.Drop(deadline(t), "many"))
		must(t, p.conn.Drop(deadline(t), "one"))
		eventually(t, "all closed", func() bool { return openFiles(t, p.cmd.Process.Pid) == before })
	})
}

// TestKeepLimits meets every bound of the tables.
func TestKeepLimits(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		hello := p.conn.Hello()
		null, err := os.Open("/dev/null")
		must(t, err)
		defer func() { _ = null.Close() }()
		for i := range 256 {
			must(t, p.conn.Keep(deadline(t), fmt.Sprint(i), nil))
		}
		wantError(t, p.conn.Keep(deadline(t), "one more", nil), pause.StageRequest, unix.ENOSPC)
		many := make([]*os.File, 512)
		for i := range many {
			many[i] = null
		}
		for i := range hello.MaxKept / len(many) {
			must(t, p.conn.Keep(deadline(t), fmt.Sprint(i), many))
		}
		var files int
		eventually(t, "only kept descriptors open", func() bool {
			files = openFiles(t, p.cmd.Process.Pid)
			return files < hello.MaxKept+32
		})
		wantError(t, p.conn.Keep(deadline(t), "100", many[:1]), pause.StageRequest, unix.ENOSPC)
		must(t, p.conn.Keep(deadline(t), "0", many)) // in place of as many
		eventually(t, "descriptors refused or replaced closed", func() bool { return openFiles(t, p.cmd.Process.Pid) == files })
		l, err := p.conn.List(deadline(t)) // far more than a socket buffer holds
		must(t, err)
		kept := 0
		for _, f := range l.Kept {
			kept += len(f)
		}
		l.Close()
		if kept != hello.MaxKept || len(l.Kept) != 256 {
			t.Errorf("%d descriptors of %d names listed", kept, len(l.Kept))
		}
	})
}

// TestTakeover replaces a connection that is still there, and finds everything.
func TestTakeover(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		c := p.add(1)
		first := p.run(c, "exec sleep 1000")
		p.add(2)
		old := p.conn
		p.reconnect()
		if _, err := old.List(deadline(t)); err == nil {
			t.Error("the old connection still answers")
		}
		l, err := p.conn.List(deadline(t))
		must(t, err)
		defer l.Close()
		if len(l.Tasks) != 2 || l.Tasks[0].State != pause.Running || l.Tasks[0].PID != first.PID || l.Tasks[1].State != pause.Added {
			t.Fatalf("listing %+v", l.Tasks)
		}
		must(t, unix.PidfdSendSignal(int(l.Tasks[0].PidFD.Fd()), unix.SIGKILL, nil, 0))
		if e := p.exit(1); e.Status.Signal() != unix.SIGKILL {
			t.Errorf("exit %+v", e)
		}
	})
}

// TestExitWithoutConnection records exits while nobody listens, and tells them to whoever comes.
func TestExitWithoutConnection(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		c := p.add(1)
		in, release := pipe(t)
		b := program.New()
		stdio(b, 0, 1)
		b.Call("stdin", unix.SYS_DUP3, program.FD(2), 0, 0)
		shell(b, "read x; exit 9")
		p.mustStart(pause.Start{Task: 1}, b, c.stdout, c.stderr, in)
		must(t, p.conn.Close())
		_, err := release.WriteString("x\n") // pause sees the end of the connection before that of the process
		must(t, err)
		eventually(t, "the record", func() bool {
			data := readWhole(t, p.dir+"/exits")
			e, ok := pause.ParseExits([]byte(data))[1]
			return ok && e.Status.ExitStatus() == 9
		})
		p.reconnect()
		l, err := p.conn.List(deadline(t))
		must(t, err)
		defer l.Close()
		if len(l.Tasks) != 1 || l.Tasks[0].State != pause.Exited || l.Tasks[0].Exit.Status.ExitStatus() != 9 {
			t.Fatalf("listing %+v", l.Tasks)
		}
		p.exit(1)
		must(t, p.conn.Remove(deadline(t), 1))
		if e := pause.ParseExits([]byte(readWhole(t, p.dir+"/exits"))); len(e) != 0 {
			t.Errorf("records after the removal: %v", e)
		}
		wantError(t, p.conn.Remove(deadline(t), 1), pause.StageRequest, unix.ENOENT)
	})
}

// TestRegistration refuses what cannot be.
func TestRegistration(t *testing.T) {
	tests := []struct {
		name   string
		change func(*pause.Container)
		errno  unix.Errno
	}{
		{name: "task 0", errno: unix.EINVAL, change: func(k *pause.Container) { k.Task = 0 }},
		{name: "task twice", errno: unix.EEXIST, change: func(k *pause.Container) { k.Task = 1; k.ExitSlot = 5 }},
		{name: "slot twice", errno: unix.EBUSY, change: func(k *pause.Container) { k.ExitSlot = 1 }},
		{name: "slot outside", errno: unix.ERANGE, change: func(k *pause.Container) { k.ExitSlot = exitSlots }},
		{name: "line too long", errno: unix.EINVAL, change: func(k *pause.Container) { k.LineMax = 65537 }},
		{name: "terminal and pipe", errno: unix.EINVAL, change: func(k *pause.Container) { k.TTY = k.Stdout }},
	}
	eachBinary(t, func(t *testing.T, binary string) {
		p := startPause(t, binary)
		p.add(1)
		before := openFiles(t, p.cmd.Process.Pid)
		for _, tt := range tests {
			r, w := pipe(t)
			k := pause.Container{Task: 2, Name: "two", ExitSlot: 2, Stdout: r, Stderr: w}
			tt.change(&k)
			err := p.conn.Add(deadline(t), k)
			if e, ok := err.(*pause.Error); !ok || e.Errno != tt.errno {
				t.Errorf("%s: %v, want %v", tt.name, err, tt.errno)
			}
		}
		eventually(t, "descriptors of refused requests closed", func() bool { return openFiles(t, p.cmd.Process.Pid) == before })
		for task := uint64(2); task <= uint64(p.conn.Hello().MaxTasks); task++ {
			p.add(task)
		}
		err := p.conn.Add(deadline(t), pause.Container{Task: 200, Name: "one more", ExitSlot: 200})
		wantError(t, err, pause.StageRequest, unix.ENOSPC)
		must(t, p.conn.Remove(deadline(t), 5))
		eventually(t, "a free place", func() bool {
			return p.conn.Add(deadline(t), pause.Container{Task: 200, Name: "one more", ExitSlot: 200}) == nil
		})
	})
}
