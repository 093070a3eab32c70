package crash

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const markPrefix = "/criserver-crash-mark/"

// Marker is the path that stands for a mark.
func Marker(name string) string { return markPrefix + name }

// Step is the directory after one change, or at the beginning.
type Step struct {
	Op    string // what changed it: "rename /tmp/x/layers/sha256-…"
	Marks []string

	live, safe *tree
	named      int // the step at which names were synced last
}

// Has says whether the program had put up a mark.
func (s *Step) Has(mark string) bool {
	for _, m := range s.Marks {
		if m == mark {
			return true
		}
	}
	return false
}

// Record runs cmd to its end and returns the steps, the state before included. What is there before is taken for safe. The
// program calls Watch first of all. each is called after each step, while the program stands still; nil: nothing is.
func Record(dir string, cmd *exec.Cmd, each func(at int, s *Step) error) ([]Step, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	r, err := newRecorder(dir, each)
	if err != nil {
		return nil, err
	}
	runtime.LockOSThread() // only the thread that began a trace may go on with it
	defer runtime.UnlockOSThread()
	err = r.run(cmd)
	if err != nil && cmd.Process != nil {
		_ = cmd.Process.Kill() // it may have ended
	}
	return r.steps, err
}

// recorder traces one program.
type recorder struct {
	dir     string
	each    func(at int, s *Step) error
	reader  treeReader
	steps   []Step
	threads map[int]bool // true: has been seen to stop
	inside  int          // the thread that makes change; 0: none
	change  change
	waiting []change // of threads that stand before one
}

// change is a call that a thread is about to make.
type change struct {
	call
	tid, fd int
	op      string
}

func newRecorder(dir string, each func(int, *Step) error) (*recorder, error) {
	r := &recorder{dir: dir, each: each, threads: map[int]bool{}}
	first, err := r.reader.read(dir)
	if err != nil {
		return nil, err
	}
	r.steps = []Step{{Op: "the beginning", live: first, safe: first}}
	return r, nil
}

func (r *recorder) run(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	var ws unix.WaitStatus
	pid := cmd.Process.Pid
	if _, err := unix.Wait4(pid, &ws, unix.WALL, nil); err != nil {
		return fmt.Errorf("wait for the traced program: %w", err)
	}
	const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK |
		unix.PTRACE_O_TRACESECCOMP | unix.PTRACE_O_EXITKILL
	if err := unix.PtraceSetOptions(pid, options); err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	r.threads[pid] = true
	if err := unix.PtraceCont(pid, 0); err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	for len(r.threads) > 0 {
		tid, err := unix.Wait4(-1, &ws, unix.WALL|unix.WNOTHREAD, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.ECHILD) {
			break
		}
		if err != nil {
			return fmt.Errorf("wait for the traced program: %w", err)
		}
		if ws.Exited() || ws.Signaled() {
			delete(r.threads, tid)
			if tid == pid && (ws.Signaled() || ws.ExitStatus() != 0) {
				return fmt.Errorf("the traced program ended: status %d, signal %v", ws.ExitStatus(), ws.Signal())
			}
			if tid == r.inside {
				r.inside = 0
				err = r.next()
			}
		} else {
			err = r.stopped(tid, ws)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) { // else the thread was killed meanwhile
			return err
		}
	}
	return nil
}

// stopped handles one stop of a thread.
func (r *recorder) stopped(tid int, ws unix.WaitStatus) error {
	signal := ws.StopSignal()
	known := r.threads[tid]
	r.threads[tid] = true
	switch {
	case signal == unix.SIGTRAP|0x80:
		return r.end(tid)
	case signal == unix.SIGTRAP && ws.TrapCause() == unix.PTRACE_EVENT_SECCOMP:
		return r.begin(tid)
	case signal == unix.SIGTRAP && ws.TrapCause() > 0, signal == unix.SIGSTOP && !known: // a thread was begun
		signal = 0
	}
	if tid == r.inside { // a signal came in the middle of the call
		return unix.PtraceSyscall(tid, int(signal))
	}
	return unix.PtraceCont(tid, int(signal))
}

// syscallInfo is the kernel's struct ptrace_syscall_info.
type syscallInfo struct {
	op   uint8
	_    [3]byte
	arch uint32
	ip   uint64
	sp   uint64
	nr   uint64 // at the end of a call: its result
	args [6]uint64
	_    [24]byte
}

const ptraceGetSyscallInfo = 0x420e

func readCall(tid int) (info syscallInfo, err error) {
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, ptraceGetSyscallInfo, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 {
		return info, errno
	}
	return info, nil
}

// begin handles a thread that stands before one of calls or lookCalls.
func (r *recorder) begin(tid int) error {
	info, err := readCall(tid)
	if err != nil {
		return err
	}
	if c, ok := r.changes(tid, &info); ok {
		r.waiting = append(r.waiting, c)
		return r.next()
	}
	r.mark(tid, &info)
	return unix.PtraceCont(tid, 0)
}

// end handles a thread that has made its change.
func (r *recorder) end(tid int) error {
	info, err := readCall(tid)
	if err == nil && int64(info.nr) >= 0 {
		err = r.step(r.change)
	}
	r.inside = 0
	return errors.Join(err, unix.PtraceCont(tid, 0), r.next())
}

// next lets the next thread make its change, if none is at it.
func (r *recorder) next() error {
	if r.inside != 0 || len(r.waiting) == 0 {
		return nil
	}
	r.change = r.waiting[0]
	r.waiting = r.waiting[1:]
	r.inside = r.change.tid
	err := unix.PtraceSyscall(r.inside, 0)
	if errors.Is(err, unix.ESRCH) {
		r.inside = 0
		return r.next()
	}
	return err
}

func (r *recorder) mark(tid int, info *syscallInfo) {
	arg, ok := lookCalls[info.nr]
	if !ok {
		return
	}
	if name, ok := strings.CutPrefix(text(tid, info.args[arg]), markPrefix); ok {
		last := r.steps[len(r.steps)-1]
		last.Marks = append(append([]string{}, last.Marks...), name)
		last.Op = "mark " + name
		r.steps = append(r.steps, last)
	}
}

// changes says whether the call may change the directory.
func (r *recorder) changes(tid int, info *syscallInfo) (c change, ok bool) {
	c = change{tid: tid, fd: -1}
	c.call, ok = calls[info.nr]
	if !ok || info.nr == unix.SYS_OPENAT && info.args[2]&(unix.O_CREAT|unix.O_TRUNC) == 0 {
		return c, false
	}
	at := ""
	if c.call.fd >= 0 && int32(info.args[c.call.fd]) >= 0 {
		c.fd = int(int32(info.args[c.call.fd]))
		at, _ = os.Readlink(fdPath(tid, c.fd)) // a wrong descriptor makes the call fail
	}
	if c.path < 0 {
		c.op = c.name + " " + at
		return c, c.call.fd < 0 || strings.HasPrefix(at, r.dir)
	}
	c.op = c.name + " " + filepath.Join(at, text(tid, info.args[c.path]))
	return c, true
}

// step reads the directory after a change.
func (r *recorder) step(c change) error {
	last := r.steps[len(r.steps)-1]
	live, err := r.reader.read(r.dir)
	if err != nil {
		return err
	}
	s := Step{Op: c.op, Marks: last.Marks, live: live, safe: last.safe, named: last.named}
	switch c.sync {
	case syncAll:
		s.safe, s.named = live, len(r.steps)
	case syncFile:
		var st unix.Stat_t
		if err := unix.Stat(fdPath(c.tid, c.fd), &st); err != nil {
			return fmt.Errorf("%s: %w", c.op, err)
		}
		if id, ok := r.reader.ids[st.Ino]; ok {
			s.safe = last.safe.with(id, live.nodes[id])
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				s.named = len(r.steps)
			}
		}
	}
	if s.safe == last.safe && live.equal(last.live) {
		return nil // it was elsewhere
	}
	r.steps = append(r.steps, s)
	if r.each != nil {
		return r.each(len(r.steps)-1, &s)
	}
	return nil
}

func fdPath(tid, fd int) string { return fmt.Sprintf("/proc/%d/fd/%d", tid, fd) }

// text reads a path from the memory of a stopped thread.
func text(tid int, addr uint64) string {
	var buf [1024]byte
	local := []unix.Iovec{{Base: &buf[0]}}
	local[0].SetLen(len(buf))
	length := min(len(buf), os.Getpagesize()-int(addr)%os.Getpagesize()) // what follows may not be mapped
	for range 2 {
		n, err := unix.ProcessVMReadv(tid, local, []unix.RemoteIovec{{Base: uintptr(addr), Len: length}}, 0)
		if err != nil {
			return ""
		}
		if s, _, ok := strings.Cut(string(buf[:n]), "\x00"); ok {
			return s
		}
		length = len(buf)
	}
	return ""
}
