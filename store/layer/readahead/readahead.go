package readahead

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	kernelKiB = 128  // what a mount has from the kernel (VM_READAHEAD_PAGES)
	mostKiB   = 1024 // what a mount is given at most
)

// Disk is what lies below the mounts. The zero value asks the kernel.
type Disk struct {
	sys string // where sysfs is; "" is /sys

	mounting sync.Mutex // held from the look before a mount to the look after it
}

// Mount calls mount, which makes one EROFS mount from files in dir, and gives that the read-ahead of dir's disk if it can.
// The error is mount's.
func (d *Disk) Mount(dir string, mount func() error) error {
	want, ok := d.of(dir)
	want = min(want, mostKiB)
	if !ok || want == kernelKiB {
		return mount()
	}
	d.mounting.Lock()
	defer d.mounting.Unlock()
	before := map[string]bool{}
	for _, name := range d.mounts() {
		before[name] = true
	}
	if err := mount(); err != nil {
		return err
	}
	var made []string
	for _, name := range d.mounts() {
		if !before[name] {
			made = append(made, name)
		}
	}
	if len(made) == 1 {
		_ = os.WriteFile(d.bdi(made[0]), []byte(strconv.Itoa(want)), 0) // without it the mount is only slower
	}
	return nil
}

// of gives the read-ahead of the block device under the file system of dir, in KiB.
func (d *Disk) of(dir string) (kib int, ok bool) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, false
	}
	dev := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	for _, path := range []string{
		d.bdi(dev),
		d.root() + "/dev/block/" + dev + "/../queue/read_ahead_kb", // a partition's disk; .. of what the link leads to
	} {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		kib, err = strconv.Atoi(strings.TrimSpace(string(text)))
		return kib, err == nil
	}
	return 0, false
}

// mounts names the BDIs of all EROFS mounts from files.
func (d *Disk) mounts() []string {
	dir, err := os.Open(d.root() + "/class/bdi")
	if err != nil {
		return nil
	}
	defer func() { _ = dir.Close() }() // read from only
	all, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	var names []string
	for _, name := range all {
		if strings.HasPrefix(name, "erofs-") {
			names = append(names, name)
		}
	}
	return names
}

func (d *Disk) bdi(name string) string { return d.root() + "/class/bdi/" + name + "/read_ahead_kb" }

func (d *Disk) root() string {
	if d.sys == "" {
		return "/sys"
	}
	return d.sys
}
