package pause_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// stateRecord is a record of src/state.h.
func stateRecord(kind uint32, body ...any) []byte {
	var b bytes.Buffer
	for _, v := range body {
		if err := binary.Write(&b, nativeEndian, v); err != nil {
			panic(err)
		}
	}
	head := nativeEndian.AppendUint32(nil, kind)
	return append(nativeEndian.AppendUint32(head, uint32(b.Len())), b.Bytes()...)
}

func stateFile(t *testing.T, parts ...[]byte) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("state", unix.MFD_CLOEXEC)
	must(t, err)
	f := os.NewFile(uintptr(fd), "state")
	t.Cleanup(func() { _ = f.Close() })
	_, err = f.Write(bytes.Join(parts, nil))
	must(t, err)
	return f
}

var stateHead = []byte{'P', 'S', 'T', '1', 1, 0, 0, 0}

// TestStateOfNeighbours reads a state whose records have grown, and that has unknown ones.
func TestStateOfNeighbours(t *testing.T) {
	eachBinary(t, func(t *testing.T, binary string) {
		pod := []any{int32(3), uint32(0), uint32(0), uint32(0), uint32(0), uint32(1), uint64(1000), uint64(0), uint64(77)}
		state := stateFile(t, stateHead,
			stateRecord(1, pod...),
			stateRecord(99, []byte("unknown")),
			stateRecord(4, taskName("kept"), int32(0), int32(1)),
			stateRecord(5, taskName("kept"), int32(2)),
			stateRecord(0))
		p, ours := spawn(t, binary, state)
		conn, err := newConn(deadline(t), ours)
		must(t, err)
		p.follow(conn)
		l, err := conn.List(deadline(t))
		must(t, err)
		defer l.Close()
		if len(l.Tasks) != 0 || len(l.Kept) != 1 || len(l.Kept["kept"]) != 3 {
			t.Errorf("listing %+v", l)
		}
	})
}

// TestStateMalformed ends pause, in order, with what can not be read.
func TestStateMalformed(t *testing.T) {
	pod := stateRecord(1, int32(3))
	tests := map[string][][]byte{
		"empty":            {},
		"head":             {stateHead[:7]},
		"magic":            {[]byte("PST2\x01\x00\x00\x00"), stateRecord(0)},
		"version":          {[]byte("PST1\x02\x00\x00\x00"), stateRecord(0)},
		"no end":           {stateHead, pod},
		"cut":              {stateHead, pod[:len(pod)-1]},
		"size":             {stateHead, {1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}},
		"task":             {stateHead, pod, stateRecord(2, uint64(1), uint32(0), uint32(77)), stateRecord(0)},
		"bytes of nothing": {stateHead, pod, stateRecord(3, uint64(1), uint32(0), uint32(0), []byte("x")), stateRecord(0)},
		"name":             {stateHead, pod, stateRecord(4, bytes.Repeat([]byte("x"), 96)), stateRecord(0)},
		"short name":       {stateHead, pod, stateRecord(4, bytes.Repeat([]byte("x"), 95)), stateRecord(0)},
	}
	eachBinary(t, func(t *testing.T, binary string) {
		for name, parts := range tests {
			p, ours := spawn(t, binary, stateFile(t, parts...))
			p.ended = true
			_ = ours.Close()
			<-p.exited
			if code := p.cmd.ProcessState.ExitCode(); code != 3 {
				t.Errorf("%s: %v, want exit status 3\n%s", name, p.cmd.ProcessState, p.stderr)
			}
		}
	})
}
