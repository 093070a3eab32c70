package pause

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Stage says how far a request got before it failed.
type Stage uint32

// Stages of a failed request, as in src/protocol.h.
const (
	StageRequest Stage = iota // the message itself
	StageClone                // making the process
	StageProgram              // checking the Program
	StageInstr                // executing it
	StageKilled               // the child died before execve
)

// Error is pause's answer to a request that failed. It unwraps to its Errno, except in StageKilled.
type Error struct {
	Stage  Stage
	Index  int        // instruction, in StageProgram and StageInstr
	Errno  unix.Errno // 0 in StageKilled
	Status unix.WaitStatus
}

func (e *Error) Error() string {
	switch e.Stage {
	case StageClone:
		return fmt.Sprintf("create the process: %v", e.Errno)
	case StageProgram:
		return fmt.Sprintf("program is malformed at instruction %d: %v", e.Index, e.Errno)
	case StageInstr:
		return fmt.Sprintf("instruction %d: %v", e.Index, e.Errno)
	case StageKilled:
		if e.Status.Signaled() {
			return fmt.Sprintf("killed by signal %d (%v) at instruction %d, before execve", e.Status.Signal(), e.Status.Signal(), e.Index)
		}
		return fmt.Sprintf("exited with status %d at instruction %d, before execve", e.Status.ExitStatus(), e.Index)
	default:
		return fmt.Sprintf("refused by pause: %v", e.Errno)
	}
}

// Unwrap makes errors.Is(err, unix.ENOENT) work.
func (e *Error) Unwrap() error {
	if e.Stage == StageKilled {
		return nil
	}
	return e.Errno
}

func failure(body []byte) error {
	var b failedBody
	if err := decodeBody(body, &b); err != nil {
		return err
	}
	e := &Error{Stage: Stage(b.Stage), Index: int(b.Index)}
	if e.Stage == StageKilled {
		e.Status = unix.WaitStatus(b.Errno)
	} else {
		e.Errno = unix.Errno(b.Errno)
	}
	return e
}

// Boot makes pause run a Program in itself, once, before everything else.
func (c *Conn) Boot(ctx context.Context, program *os.File, files []*os.File) error {
	_, err := c.request(ctx, msgBoot, nil, append([]*os.File{program}, files...))
	return err
}

// Container is what pause must know of a container before it is started. Files that are nil are absent.
type Container struct {
	Task     uint64 // chosen by the caller, unique in the pod, not 0
	Name     string // container id
	ExitSlot int    // record of the exits file
	LineMax  int    // bytes of content a log record may have; 0: 16 KiB

	Log            *os.File
	Stdout, Stderr *os.File // read ends
	TTY            *os.File // pty master, instead of Stdout and Stderr
	Stdin          *os.File // write end

	// Of the container's cgroup leaf.
	Events, Kill, Freezer, Procs, OOM *os.File
}

// Add registers a container.
func (c *Conn) Add(ctx context.Context, k Container) error {
	n, err := makeName(k.Name)
	if err != nil {
		return err
	}
	body := addBody{Task: k.Task, Name: n, ExitSlot: uint32(k.ExitSlot), LineMax: uint32(k.LineMax)}
	var files []*os.File
	for bit, f := range []*os.File{k.Log, k.Stdout, k.Stderr, k.TTY, k.Stdin, k.Events, k.Kill, k.Freezer, k.Procs, k.OOM} {
		if f != nil {
			body.FDs |= 1 << bit
			files = append(files, f)
		}
	}
	_, err = c.request(ctx, msgAdd, body, files)
	return err
}

// Start describes a process to be born.
type Start struct {
	Task       uint64
	Exec       bool     // an additional process: nothing of it is kept after its exit was reported
	Reaper     bool     // PID 1 of a new pid namespace that only reaps; no Program
	CloneFlags uint64   // CLONE_NEW* only
	Cgroup     *os.File // cgroup2 directory to be born in; nil: pause's own
	Join       *os.File // pidfd of a process whose pid namespace it joins; nil: none

	Program *os.File   // sealed, see Seal
	Files   []*os.File // that the Program refers to

	// Late is told the result of a start that returned the error of its ctx, in a goroutine that ends with it or with
	// the connection. It owns the PidFD. nil: nobody wants to know.
	Late func(Started, error)
}

// Started is a process that runs.
type Started struct {
	PID   int // in criserver's pid namespace; 0 when pause cannot see it
	PidFD *os.File
}

const (
	startExec = 1 << iota
	startCgroup
	startJoin
	startReaper
)

// Start runs a Program in a new process and returns when its execve has succeeded. Failures are *Error.
// When ctx ends first the process may still come to life: s.Late is told, and its exit is reported by Next.
func (c *Conn) Start(ctx context.Context, s Start) (Started, error) {
	if s.Late == nil {
		return started(c.request(ctx, msgStart, s.body(), s.files()))
	}
	_, w, err := c.ask(ctx, msgStart, s.body(), s.files())
	if err != nil {
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			go s.Late(Started{}, err)
		}
		return Started{}, err
	}
	select {
	case <-w.done:
		return started(w.answers())
	case <-ctx.Done():
	}
	go func() {
		<-w.done
		s.Late(started(w.answers()))
	}()
	return Started{}, fmt.Errorf("wait for pause: %w", ctx.Err())
}

func (s *Start) body() startBody {
	body := startBody{Task: s.Task, CloneFlags: s.CloneFlags}
	for _, f := range []struct {
		set bool
		bit uint32
	}{{s.Exec, startExec}, {s.Reaper, startReaper}, {s.Cgroup != nil, startCgroup}, {s.Join != nil, startJoin}} {
		if f.set {
			body.Flags |= f.bit
		}
	}
	return body
}

// files are what goes with the message: the Program, the cgroup, the pidfd, then what the Program refers to.
func (s *Start) files() []*os.File {
	var files []*os.File
	for _, f := range []*os.File{s.Program, s.Cgroup, s.Join} {
		if f != nil {
			files = append(files, f)
		}
	}
	return append(files, s.Files...)
}

// started reads the answer to a start.
func started(packets []packet, err error) (Started, error) {
	if err != nil {
		return Started{}, err
	}
	p := packets[len(packets)-1]
	var b startedBody
	if err := decodeBody(p.body, &b); err != nil || p.header.Type != msgStarted || len(p.files) != 1 {
		p.close()
		return Started{}, fmt.Errorf("pause answered a start with message %d and %d descriptors: %v", p.header.Type, len(p.files), err)
	}
	return Started{PID: int(b.PID), PidFD: p.files[0]}, nil
}

// ReopenLog makes a container's log go on in f, from the next whole line.
func (c *Conn) ReopenLog(ctx context.Context, task uint64, f *os.File) error {
	_, err := c.request(ctx, msgReopen, taskBody{task}, []*os.File{f})
	return err
}

// Resize sets the window size of a container's terminal.
func (c *Conn) Resize(ctx context.Context, task uint64, rows, cols uint16) error {
	_, err := c.request(ctx, msgResize, resizeBody{Task: task, Rows: rows, Cols: cols}, nil)
	return err
}

// Remove makes pause forget a container that was never started or has exited; its exit slot is free again.
func (c *Conn) Remove(ctx context.Context, task uint64) error {
	_, err := c.request(ctx, msgRemove, taskBody{task}, nil)
	return err
}

// Keep makes pause keep descriptors under a name, in place of those it may have had.
func (c *Conn) Keep(ctx context.Context, s string, files []*os.File) error {
	n, err := makeName(s)
	if err != nil {
		return err
	}
	_, err = c.request(ctx, msgKeep, nameBody{n}, files)
	return err
}

// Drop makes pause close what it keeps under a name; a name that it does not know is no error.
func (c *Conn) Drop(ctx context.Context, s string) error {
	n, err := makeName(s)
	if err != nil {
		return err
	}
	_, err = c.request(ctx, msgDrop, nameBody{n}, nil)
	return err
}

// Reexec makes pause go on as another binary in place.
func (c *Conn) Reexec(ctx context.Context, binary *os.File) error {
	_, err := c.request(ctx, msgReexec, nil, []*os.File{binary})
	return err
}

// State of a container as pause sees it.
type State uint32

// States as in src/protocol.h.
const (
	Added State = iota + 1
	Running
	Exited
	Starting
)

// Task is one container of a Listing.
type Task struct {
	Task       uint64
	Name       string
	State      State
	PID        int
	PidFD      *os.File // nil unless Running
	Exit       Exit     // valid in Exited
	LogBytes   uint64   // written so far
	LogDropped uint64   // dropped so far
}

// Listing is all that pause holds. The files are the caller's.
type Listing struct {
	Tasks []Task
	Kept  map[string][]*os.File
}

// Close closes all descriptors of a listing.
func (l Listing) Close() {
	for _, t := range l.Tasks {
		if t.PidFD != nil {
			_ = t.PidFD.Close()
		}
	}
	for _, files := range l.Kept {
		for _, f := range files {
			_ = f.Close()
		}
	}
}

// List asks for everything that pause holds.
func (c *Conn) List(ctx context.Context) (Listing, error) {
	packets, err := c.request(ctx, msgList, nil, nil)
	if err != nil {
		return Listing{}, err
	}
	l := Listing{Kept: make(map[string][]*os.File)}
	for i, p := range packets {
		if err := l.add(p); err != nil {
			closeAll(packets[i:])
			l.Close()
			return Listing{}, err
		}
	}
	return l, nil
}

func (l *Listing) add(p packet) error {
	switch p.header.Type {
	case msgTask:
		var b listedTask
		if err := decodeBody(p.body, &b); err != nil {
			return err
		}
		t := Task{Task: b.Task, Name: b.Name.String(), State: State(b.State), PID: int(b.PID), Exit: b.Record.exit(), LogBytes: b.LogBytes, LogDropped: b.LogDropped}
		if len(p.files) > 1 || (t.State == Running) != (len(p.files) == 1) {
			return fmt.Errorf("listing of container %s in state %d carries %d descriptors", t.Name, t.State, len(p.files))
		}
		if len(p.files) == 1 {
			t.PidFD = p.files[0]
		}
		l.Tasks = append(l.Tasks, t)
	case msgKept:
		var b nameBody
		if err := decodeBody(p.body, &b); err != nil {
			return err
		}
		l.Kept[b.Name.String()] = append(l.Kept[b.Name.String()], p.files...)
	default:
		p.close()
	}
	return nil
}

// Seal puts an encoded Program into a sealed memfd, the form in which Boot and Start take it.
func Seal(program []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("program", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL { // MFD_NOEXEC_SEAL began with 6.3
		fd, err = unix.MemfdCreate("program", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "program")
	if _, err := unix.Write(fd, program); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("write program: %w", err)
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("seal program: %w", err)
	}
	return f, nil
}
