package stats

import (
	"errors"
	"strconv"

	"golang.org/x/sys/unix"
)

// Processes is what is found out about the processes of a container one by one.
type Processes struct {
	Count       uint64
	Descriptors uint64
	Sockets     uint64 // of the descriptors, or of the first mostLinks of them
	MaxFiles    uint64 // soft limit of open files of the first process; 0: not known
}

// mostLinks bounds of how many descriptors of a container the kind is looked at, which takes about a microsecond each.
const mostLinks = 1 << 16

// countProcesses looks at every process. One that ends meanwhile counts with what was seen of it; that its number may be
// another's by then does no harm to a gauge.
func countProcesses(pids []int) Processes {
	p := Processes{Count: uint64(len(pids))}
	for _, pid := range pids {
		p.descriptors(pid)
	}
	return p
}

// withLimit adds MaxFiles.
func (p Processes) withLimit(first int) *Processes {
	var limit unix.Rlimit
	if first > 0 && unix.Prlimit(first, unix.RLIMIT_NOFILE, nil, &limit) == nil {
		p.MaxFiles = limit.Cur
	}
	return &p
}

// descriptors counts those of one process, of which links tell the kind: "socket:[123]".
func (p *Processes) descriptors(pid int) {
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var entries [2 << 10]byte
	var names [len(entries) / shortestEntry]string
	var link [8]byte
	for {
		n, err := unix.ReadDirent(fd, entries[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		_, _, all := unix.ParseDirent(entries[:n], -1, names[:0])
		for _, name := range all {
			if p.Descriptors++; p.Descriptors > mostLinks {
				continue
			}
			n, err := unix.Readlinkat(fd, name, link[:])
			if err == nil && string(link[:n]) == "socket:[" {
				p.Sockets++
			}
		}
	}
}

// shortestEntry is the length of the shortest entry of a directory.
const shortestEntry = 24
