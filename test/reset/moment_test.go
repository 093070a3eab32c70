package reset

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// promise is what is known of the image after a reset.
type promise int

const (
	either promise = iota
	absent
	present
)

// moment is when the machine is reset, and what that promises. reset comes back only if the moment has passed without one.
type moment struct {
	name    string
	promise promise
	reset   func(*testing.T, *node, *images)
}

func (m moment) String() string { return m.name }

// fetched is when the registry has sent so many eighths of the image's own layers.
func fetched(eighths int64) moment {
	m := moment{name: fmt.Sprintf("fetched_%d_of_8", eighths), promise: absent, reset: func(t *testing.T, n *node, reg *images) {
		reg.resetAt(eighths * reg.cut.own / 8)
		n.pull(t, reg.cut.ref)
		n.waitDurable(t)
	}}
	if eighths == 8 {
		m.promise = either
	}
	return m
}

// written is when the disk has finished so many writes since the pull began, or when all is durable if it takes fewer.
func written(writes int) moment {
	return moment{name: fmt.Sprintf("written_%d", writes), reset: func(t *testing.T, n *node, reg *images) {
		go func(end int) {
			for diskWrites() < end {
			}
			resetMachine()
		}(diskWrites() + writes)
		n.pull(t, reg.cut.ref)
		n.waitDurable(t)
		resetMachine()
	}}
}

var (
	pulled = moment{name: "pulled", reset: func(t *testing.T, n *node, reg *images) { // PullImage has answered
		n.pull(t, reg.cut.ref)
		resetMachine()
	}}
	durable = moment{name: "durable", promise: present, reset: func(t *testing.T, n *node, reg *images) { // all layers are called so
		n.pull(t, reg.cut.ref)
		n.waitDurable(t)
		resetMachine()
	}}
	removed = moment{name: "removed", promise: absent, reset: func(t *testing.T, n *node, reg *images) { // RemoveImage has answered
		n.pull(t, reg.cut.ref)
		n.waitDurable(t)
		n.remove(t, reg.cut.ref)
		resetMachine()
	}}
)

// resetMachine does not come back.
func resetMachine() {
	if err := os.WriteFile("/proc/sysrq-trigger", []byte("b"), 0); err != nil {
		panic(err)
	}
	select {}
}

// diskWrites counts the requests that the disk has finished, see the kernel's Documentation/block/stat.rst.
func diskWrites() int {
	text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(disk), "stat"))
	if err != nil {
		panic(err)
	}
	n, err := strconv.Atoi(strings.Fields(string(text))[4])
	if err != nil {
		panic(err)
	}
	return n
}
