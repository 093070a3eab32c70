package stats

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Network is the traffic of a network namespace since it was made.
type Network struct {
	At         time.Time
	Interfaces []Interface // without loopback, as the kernel lists them
}

// Interface is the traffic of one network device.
type Interface struct {
	Name              string // as the pod's own: what is not UTF-8 in it, which no answer could carry, is replaced
	Receive, Transmit Traffic
}

// Traffic is in one direction.
type Traffic struct {
	Bytes, Packets, Errors, Dropped uint64
}

// Main is the index of the device that is the pod's own before all others: eth0, else the first; -1 if there is none.
func (n *Network) Main() int {
	for i := range n.Interfaces {
		if n.Interfaces[i].Name == "eth0" {
			return i
		}
	}
	return min(0, len(n.Interfaces)-1)
}

// ReadNetwork reads the traffic of the namespace that the process is in: three system calls, no socket and no change of
// namespaces. The caller makes sure, after it, that the process was not another one by then.
func ReadNetwork(pid int) (Network, error) {
	n := Network{At: time.Now()}
	path := "/proc/" + strconv.Itoa(pid) + "/net/dev"
	text, err := readWhole(path)
	if err != nil {
		return Network{}, fmt.Errorf("read %s: %w", path, err)
	}
	if n.Interfaces, err = parseNetDev(text); err != nil {
		return Network{}, fmt.Errorf("read %s: %w", path, err)
	}
	return n, nil
}

// readWhole reads a file of /proc, which gives at most a page at a time.
func readWhole(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	text := make([]byte, 0, 2<<10)
	for {
		if len(text) == cap(text) {
			text = append(text, make([]byte, len(text))...)[:len(text)]
		}
		n, err := unix.Read(fd, text[len(text):cap(text)])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return text, err
		}
		text = text[:len(text)+n]
	}
}

// Columns of /proc/net/dev after the name.
const (
	receiveColumn  = 0
	transmitColumn = 8
	columns        = 16
)

// parseNetDev reads the lines of devices, which begin with "name:".
func parseNetDev(text []byte) ([]Interface, error) {
	var all []Interface
	for line := range bytes.Lines(text) {
		name, rest, found := bytes.Cut(line, []byte{':'})
		if !found { // the two lines of headings have none
			continue
		}
		name = bytes.TrimSpace(name)
		if string(name) == "lo" {
			continue
		}
		var values [columns]uint64
		i := 0
		for field := range bytes.FieldsSeq(rest) {
			n, err := strconv.ParseUint(string(field), 10, 64)
			if err != nil || i == columns {
				return nil, fmt.Errorf("unexpected line %.128q", line)
			}
			values[i] = n
			i++
		}
		if i < columns {
			return nil, fmt.Errorf("short line %.128q", line)
		}
		traffic := func(from int) Traffic {
			return Traffic{Bytes: values[from], Packets: values[from+1], Errors: values[from+2], Dropped: values[from+3]}
		}
		all = append(all, Interface{Name: strings.ToValidUTF8(string(name), "\uFFFD"), Receive: traffic(receiveColumn), Transmit: traffic(transmitColumn)})
	}
	return all, nil
}
