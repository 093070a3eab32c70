package pause

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Layout of src/protocol.h.
const (
	protocolMagic   = 0x31455350
	protocolVersion = 1
	maxMessage      = 1024
	maxFDs          = 200
	nameSize        = 96
	exitWritten     = 0x54495845
)

type messageType uint16

const (
	msgHello messageType = iota + 1
	msgFDs
	msgBoot
	msgAdd
	msgStart
	msgReopen
	msgResize
	msgRemove
	msgKeep
	msgDrop
	msgList
	msgReexec
	msgAttach
	msgDetach
	msgEndStdin
)

const (
	msgOK messageType = iota + 32
	msgFailed
	msgWelcome
	msgStarted
	msgExited
	msgTask
	msgKept
	msgAttached
	msgDetached
)

// Descriptors that a pause is born with.
const (
	FDControl  = 3
	FDListener = 4
	FDExits    = 5
)

// ExitRecordSize is the size of one record of the exits file in bytes.
const ExitRecordSize = 64

type header struct {
	Magic   uint32
	Version uint16
	Type    messageType
	ID      uint32
	Size    uint32
}

const headerSize = 16

type name [nameSize]byte

func makeName(s string) (name, error) {
	var n name
	if len(s) == 0 || len(s) >= nameSize || bytes.IndexByte([]byte(s), 0) >= 0 {
		return n, fmt.Errorf("name %q: want 1 to %d bytes without NUL", s, nameSize-1)
	}
	copy(n[:], s)
	return n, nil
}

func (n name) String() string {
	if i := bytes.IndexByte(n[:], 0); i >= 0 {
		return string(n[:i])
	}
	return string(n[:])
}

type helloBody struct {
	Min, Max uint16
	_        uint32
}

type welcomeBody struct {
	PID, MaxTasks, MaxKept, ExitSlots uint32
	Build                             [32]byte
}

type addBody struct {
	Task     uint64
	Name     name
	FDs      uint32
	ExitSlot uint32
	LineMax  uint32
	Flags    uint32
}

type startBody struct {
	Task       uint64
	CloneFlags uint64
	Flags      uint32
	_          uint32
}

type taskBody struct{ Task uint64 }

type resizeBody struct {
	Task       uint64
	Rows, Cols uint16
	_          uint32
}

type nameBody struct{ Name name }

type attachBody struct {
	Task, Client uint64
	FDs, Flags   uint32
}

type detachBody struct{ Client uint64 }

type detachedBody struct{ Lost uint64 }

type failedBody struct {
	Stage, Index uint32
	Errno        int32
	_            uint32
}

type startedBody struct {
	PID int32
	_   uint32
}

type exitRecord struct {
	Task, TimeNS, OOMKills, Dropped uint64
	Status                          int32
	Flags, Written                  uint32
	_                               [5]uint32
}

type listedTask struct {
	Task                 uint64
	Name                 name
	State                uint32
	PID                  int32
	FDs, Flags           uint32
	Record               exitRecord
	LogBytes, LogDropped uint64
}

// encode returns a packet. body may be nil.
func encode(t messageType, id uint32, body any) []byte {
	buf := make([]byte, headerSize, 64)
	if body != nil {
		var err error
		if buf, err = binary.Append(buf, binary.NativeEndian, body); err != nil {
			panic(err) // a body type of this file is not of fixed size
		}
	}
	binary.NativeEndian.PutUint32(buf[0:], protocolMagic)
	binary.NativeEndian.PutUint16(buf[4:], protocolVersion)
	binary.NativeEndian.PutUint16(buf[6:], uint16(t))
	binary.NativeEndian.PutUint32(buf[8:], id)
	binary.NativeEndian.PutUint32(buf[12:], uint32(len(buf)-headerSize))
	return buf
}

// decodeHeader checks a packet and returns its header and body.
func decodeHeader(packet []byte) (header, []byte, error) {
	var h header
	if len(packet) < headerSize {
		return h, nil, fmt.Errorf("packet of %d bytes from pause", len(packet))
	}
	h.Magic = binary.NativeEndian.Uint32(packet[0:])
	h.Version = binary.NativeEndian.Uint16(packet[4:])
	h.Type = messageType(binary.NativeEndian.Uint16(packet[6:]))
	h.ID = binary.NativeEndian.Uint32(packet[8:])
	h.Size = binary.NativeEndian.Uint32(packet[12:])
	if h.Magic != protocolMagic {
		return h, nil, fmt.Errorf("packet from pause begins with %#x, want %#x", h.Magic, uint32(protocolMagic))
	}
	if int64(h.Size) != int64(len(packet)-headerSize) {
		return h, nil, fmt.Errorf("packet from pause says %d bytes of body, has %d", h.Size, len(packet)-headerSize)
	}
	return h, packet[headerSize:], nil
}

// decodeBody fills v from body; bytes that an older pause did not send read as zero, those of a newer one are ignored.
func decodeBody(body []byte, v any) error {
	if want := binary.Size(v); len(body) < want {
		body = append(bytes.Clone(body), make([]byte, want-len(body))...)
	}
	_, err := binary.Decode(body, binary.NativeEndian, v)
	return err
}

// Exit is the end of a process as pause recorded it.
type Exit struct {
	Task      uint64
	Status    unix.WaitStatus
	At        time.Time
	OOMKills  uint64 // of the container's leaf
	Dropped   uint64 // log bytes that could not be written
	Populated bool   // processes of the leaf were still dying
	LogBehind bool   // the log had not taken everything yet
}

const (
	exitPopulated = 1
	exitLogBehind = 2
)

func (r exitRecord) exit() Exit {
	return Exit{
		Task:      r.Task,
		Status:    unix.WaitStatus(r.Status),
		At:        time.Unix(0, int64(r.TimeNS)),
		OOMKills:  r.OOMKills,
		Dropped:   r.Dropped,
		Populated: r.Flags&exitPopulated != 0,
		LogBehind: r.Flags&exitLogBehind != 0,
	}
}

// ParseExits reads the exits file of a pod whose pause may be gone: the records that were written, in order of their slots.
func ParseExits(data []byte) map[int]Exit {
	exits := make(map[int]Exit)
	for slot := 0; (slot+1)*ExitRecordSize <= len(data); slot++ {
		var r exitRecord
		if err := decodeBody(data[slot*ExitRecordSize:(slot+1)*ExitRecordSize], &r); err == nil && r.Written == exitWritten && r.Task != 0 {
			exits[slot] = r.exit()
		}
	}
	return exits
}
