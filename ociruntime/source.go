package ociruntime

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/mount"
	"github.com/criserver/criserver/ociruntime/program"
	"github.com/criserver/criserver/pause"
)

// sourceBound is how long a file system may take to open what is to be bound.
const sourceBound = 30 * time.Second

// openSource opens a path of the host. Where the file system is one that may never answer, a child of pause does it,
// which is left to die: criserver waits no longer than ctx and sourceBound.
func (p *Pod) openSource(ctx context.Context, path string) (*os.File, error) {
	crosses, some, err := p.runtime.foreign.Crosses(path)
	if err != nil {
		return nil, err
	}
	if !crosses {
		f, err := mount.OpenPlain(path)
		if !errors.Is(err, unix.ELOOP) {
			return f, err
		}
		if !some {
			return mount.OpenSource(path)
		}
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, p.runtime.sourceBound)
	defer cancel()
	f, err := p.openAside(ctx, path)
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil, fmt.Errorf("open volume %s: no answer after %s: the file system does not answer: %w", path, time.Since(began).Round(time.Second), err)
	}
	return f, err
}

func (p *Pod) openAside(ctx context.Context, path string) (*os.File, error) {
	if p.config.UserNS != nil { // from where pause may not enter the host's mount namespace
		return openInThread(ctx, path)
	}
	host, err := os.Open("/proc/thread-self/ns/mnt")
	if err != nil {
		return nil, err
	}
	defer host.Close()
	ours, theirs, err := socketPair("volume")
	if err != nil {
		return nil, err
	}
	defer closeFiles([]*os.File{ours, theirs})
	prog, err := opener(path, p.runtime.sourceBound)
	if err != nil {
		return nil, err
	}
	sealed, err := pause.Seal(prog.Encode())
	if err != nil {
		return nil, err
	}
	defer sealed.Close()
	started, err := p.conn.Start(ctx, pause.Start{Task: p.runtime.newTask(), Exec: true, Program: sealed, Files: []*os.File{host, theirs}})
	var refused *pause.Error
	switch {
	case errors.As(err, &refused) && refused.Stage == pause.StageInstr && refused.Index == openerOpens:
		return nil, &os.PathError{Op: "open", Path: path, Err: refused.Errno}
	case err != nil:
		return nil, explain(prog, err)
	}
	_ = started.PidFD.Close()
	return receiveFile(ours, path) // it was sent before the start was answered
}

// openerOpens is the instruction of opener that opens.
const openerOpens = 2

// opener compiles a process that opens a path of the host and sends the descriptor back. A timer ends it, also while it
// waits for a file system.
func opener(path string, bound time.Duration) (*program.Program, error) {
	b := program.New()
	timer := make([]byte, 32) // struct itimerval
	binary.NativeEndian.PutUint64(timer[16:], uint64(bound/time.Second)+1)
	b.Call("limit the time for opening volumes", unix.SYS_SETITIMER, unix.ITIMER_REAL, program.Bytes(timer), nil)
	b.Call("enter the host's mount namespace", unix.SYS_SETNS, program.FD(0), unix.CLONE_NEWNS)
	fd := b.Call("open volume "+path, unix.SYS_OPENAT, unix.AT_FDCWD, program.String(path), unix.O_PATH|unix.O_CLOEXEC, 0).Keep()
	rights := make([]byte, 24) // struct cmsghdr and one descriptor
	binary.NativeEndian.PutUint64(rights, 20)
	binary.NativeEndian.PutUint32(rights[8:], unix.SOL_SOCKET)
	binary.NativeEndian.PutUint32(rights[12:], unix.SCM_RIGHTS)
	message := make([]byte, 56) // struct msghdr
	binary.NativeEndian.PutUint64(message[40:], uint64(len(rights)))
	b.Call("hand over volume "+path, unix.SYS_SENDMSG, program.FD(1), program.Struct{Data: message, Words: []program.Word{
		{Offset: 32, Value: program.Struct{Data: rights, Words: []program.Word{{Offset: 16, Value: fd}}}},
	}}, unix.MSG_DONTWAIT)
	return b.Build()
}

func receiveFile(from *os.File, name string) (*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(from.Fd()), nil, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return nil, fmt.Errorf("receive volume %s: %w", name, err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err == nil && len(messages) != 1 {
		err = fmt.Errorf("%d control messages", len(messages))
	}
	if err != nil {
		return nil, fmt.Errorf("receive volume %s: %w", name, err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, fmt.Errorf("receive volume %s: %w", name, err)
	}
	return os.NewFile(uintptr(fds[0]), name), nil
}

// openInThread costs a thread for as long as the file system does not answer.
func openInThread(ctx context.Context, path string) (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	opened := make(chan result, 1)
	go func() {
		f, err := mount.OpenSource(path)
		opened <- result{f, err}
	}()
	select {
	case r := <-opened:
		return r.f, r.err
	case <-ctx.Done():
	}
	go func() { closeFiles([]*os.File{(<-opened).f}) }()
	return nil, ctx.Err()
}
