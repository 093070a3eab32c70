package pause_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/program"
	"github.com/criserver/criserver/pause"
)

// Message numbers of src/protocol.h that the fuzz targets must know.
const (
	protocolMagic = 0x31455350
	headerSize    = 16
	typeHello     = 1
	typeBoot      = 3
	typeAdd       = 4
	typeStart     = 5
	typeReopen    = 6
	typeResize    = 7
	typeRemove    = 8
	typeKeep      = 9
	typeDrop      = 10
	typeList      = 11
	typeReexec    = 12
	typeAttach    = 13
	typeDetach    = 14
	typeEndStdin  = 15
	typeWelcome   = 34
)

func message(kind uint16, id uint32, body ...any) []byte {
	var b bytes.Buffer
	for _, v := range body {
		if err := binary.Write(&b, nativeEndian, v); err != nil {
			panic(err)
		}
	}
	head := make([]byte, headerSize, headerSize+b.Len())
	nativeEndian.PutUint32(head, protocolMagic)
	nativeEndian.PutUint16(head[4:], 1)
	nativeEndian.PutUint16(head[6:], kind)
	nativeEndian.PutUint32(head[8:], id)
	nativeEndian.PutUint32(head[12:], uint32(b.Len()))
	return append(head, b.Bytes()...)
}

func taskName(s string) [96]byte {
	var n [96]byte
	copy(n[:], s)
	return n
}

// script is the fuzz input: packets, each with a length and a number that says which descriptors go with it.
func script(packets ...[]byte) []byte {
	var b []byte
	for i, p := range packets {
		b = append(b, byte(len(p)), byte(len(p)>>8), byte(i))
		b = append(b, p...)
	}
	return b
}

func unscript(b []byte, each func(packet []byte, choice byte)) {
	for range 32 {
		if len(b) < 3 {
			return
		}
		n := min(int(b[0])|int(b[1])<<8, len(b)-3)
		each(b[3:3+n], b[2])
		b = b[3+n:]
	}
}

// harmless makes every system call of a Program one that does not exist, or getpid: what is fuzzed runs as root.
func harmless(b []byte) []byte {
	for at := 32; at+64 <= len(b); at += 64 {
		nr := uint32(unix.SYS_GETPID)
		if b[at]&1 == 0 {
			nr = 100000
		}
		nativeEndian.PutUint32(b[at:], nr)
	}
	return b
}

// FuzzPause throws packets and Programs at a pause, which must neither die nor stop answering.
func FuzzPause(f *testing.F) {
	b := program.New()
	b.Call("a", unix.SYS_GETPID).Keep()
	b.Call("b", unix.SYS_FCHDIR, program.FD(0)).TolerateAll()
	execute(b, "/nonexistent", program.Strings{"x", "y"}, nil)
	built, err := b.Build()
	if err != nil {
		f.Fatal(err)
	}
	prog := built.Encode()
	hello := message(typeHello, 1, uint16(1), uint16(1), uint32(0))
	add := message(typeAdd, 2, uint64(1), taskName("a"), uint32(7), uint32(0), uint32(0), uint32(0))
	startExec := message(typeStart, 3, uint64(9), uint64(0), uint32(1), uint32(0))
	f.Add(prog, script(hello, startExec))
	f.Add(prog, script(hello, add, message(typeStart, 3, uint64(1), uint64(unix.CLONE_NEWPID), uint32(0), uint32(0)), message(typeRemove, 4, uint64(1))))
	f.Add(prog, script(hello, add, message(typeReopen, 5, uint64(1)), message(typeResize, 6, uint64(1), uint16(3), uint16(4), uint32(0)), message(typeList, 7)))
	f.Add(prog, script(hello, message(typeKeep, 8, taskName("k")), message(typeList, 9), message(typeDrop, 10, taskName("k")), message(typeReexec, 11)))
	f.Add(prog, script(hello, message(typeBoot, 12), message(2, 13), message(typeStart, 13, uint64(7), uint64(0), uint32(9), uint32(0)), message(typeStart, 14, uint64(8), uint64(0), uint32(6), uint32(0))))
	attach := message(typeAttach, 3, uint64(1), uint64(5), uint32(3), uint32(1))
	f.Add(prog, script(hello, add, attach, attach, message(typeDetach, 4, uint64(5)), message(typeEndStdin, 5, uint64(1)), message(typeRemove, 6, uint64(1))))
	f.Fuzz(func(t *testing.T, prog, packets []byte) {
		if os.Getuid() != 0 {
			t.Skip("needs root")
		}
		p := startPause(t, binaries["pause-asan"]) // of its own, so that a failure comes again
		throw(t, p, harmless(prog), packets)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		conn, err := pause.Dial(ctx, filepath.Join(p.dir, "pause.sock"))
		if err != nil {
			t.Fatalf("pause does not answer: %v\n%s", err, p.stderr)
		}
		_ = conn.Close()
	})
}

// throw sends the packets with descriptors that can do no harm.
func throw(t *testing.T, p *pod, prog, packets []byte) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: filepath.Join(p.dir, "pause.sock"), Net: "unixpacket"})
	must(t, err)
	defer func() { _ = conn.Close() }()
	must(t, conn.SetDeadline(time.Now().Add(5*time.Second)))
	memfd, err := pause.Seal(prog)
	must(t, err)
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	must(t, err)
	r, w, err := os.Pipe()
	must(t, err)
	defer func() {
		for _, f := range []*os.File{memfd, null, r, w} {
			_ = f.Close()
		}
	}()
	_, err = conn.Write(message(typeHello, 0, uint16(1), uint16(1), uint32(0)))
	must(t, err)
	others := []int{int(null.Fd()), int(r.Fd()), int(w.Fd())}
	unscript(packets, func(packet []byte, choice byte) {
		var fds []int
		if choice&64 == 0 && len(packet) >= headerSize { // a header that is right lets the body be looked at
			packet = message(uint16(packet[6]%16), uint32(choice), packet[headerSize:])
		}
		if len(packet) >= 8 && (packet[6] == typeStart || packet[6] == typeBoot) {
			fds = append(fds, int(memfd.Fd())) // nothing else ever reads what is in it
		}
		for i := range int(choice % 8) {
			fds = append(fds, others[i%3])
		}
		if choice%32 == 31 {
			for range 190 {
				fds = append(fds, others[0])
			}
		}
		_, _, err := conn.WriteMsgUnix(packet, unix.UnixRights(fds...), nil)
		if err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EMSGSIZE) && !errors.Is(err, unix.EINVAL) {
			t.Fatalf("send: %v\n%s", err, p.stderr)
		}
	})
	awaitAnswer(conn)
}

// awaitAnswer returns when pause has read everything, or has closed the connection because of an empty packet.
func awaitAnswer(conn *net.UnixConn) {
	const last = 0x7fffffff
	if _, err := conn.Write(message(typeHello, last, uint16(1), uint16(1), uint32(0))); err != nil {
		return
	}
	data, oob := make([]byte, 2048), make([]byte, 4096)
	for {
		n, oobn, _, _, err := conn.ReadMsgUnix(data, oob)
		if files, bad := unix.ParseSocketControlMessage(oob[:oobn]); bad == nil {
			for i := range files {
				fds, _ := unix.ParseUnixRights(&files[i])
				for _, fd := range fds {
					_ = unix.Close(fd)
				}
			}
		}
		if err != nil || n < headerSize || nativeEndian.Uint32(data[8:]) == last {
			return
		}
	}
}

// FuzzClient lets a lying pause answer: the client returns errors, keeps no descriptor and never hangs.
func FuzzClient(f *testing.F) {
	welcome := message(typeWelcome, 0, uint32(1), uint32(128), uint32(4096), uint32(256), [32]byte{'x'})
	ok := message(32, 1)
	record := make([]byte, 64)
	f.Add(script(ok, welcome, ok))
	f.Add(script(ok, welcome, message(37, 1, uint64(1), taskName("a"), uint32(2), int32(7), uint32(0), uint32(0), record, uint64(0), uint64(0)), message(38, 1, taskName("k")), ok))
	f.Add(script(ok, welcome, message(36, 0, record), message(33, 1, uint32(3), uint32(14), int32(1), uint32(0)), message(35, 2, int32(5), uint32(0))))
	f.Add(script(ok, welcome, ok, ok, message(39, 3), message(40, 4, uint64(7))))
	f.Fuzz(func(t *testing.T, packets []byte) {
		before := openFiles(t, os.Getpid())
		lie(t, packets)
		eventually(t, "all descriptors closed", func() bool { return openFiles(t, os.Getpid()) <= before })
	})
}

func lie(t *testing.T, packets []byte) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	must(t, err)
	null, err := os.Open("/dev/null")
	must(t, err)
	unscript(packets, func(packet []byte, choice byte) {
		fds := make([]int, choice%4)
		for i := range fds {
			fds[i] = int(null.Fd())
		}
		_ = unix.Sendmsg(pair[1], packet, unix.UnixRights(fds...), nil, 0) // a full socket ends the lie
	})
	must(t, null.Close())
	must(t, unix.Shutdown(pair[1], unix.SHUT_WR))
	defer func() { _ = unix.Close(pair[1]) }()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := newConn(ctx, os.NewFile(uintptr(pair[0]), "control"))
	if err != nil {
		return
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if _, err := conn.Next(); errors.Is(err, pause.ErrGone) {
				return
			}
		}
	}()
	if l, err := conn.List(ctx); err == nil {
		l.Close()
	}
	empty, err := pause.Seal(nil)
	must(t, err)
	if s, err := conn.Start(ctx, pause.Start{Task: 1, Program: empty}); err == nil {
		_ = s.PidFD.Close()
	}
	_ = empty.Close()
	if in, err := conn.Attach(ctx, pause.Attach{Task: 1, Client: 1, Stdin: true}); err == nil && in != nil {
		_ = in.Close()
	}
	_, _ = conn.Detach(ctx, 1) // only that it returns
	<-ended
	_ = conn.Close()
	if ctx.Err() != nil {
		t.Error("the client waited for a pause that was gone")
	}
}
