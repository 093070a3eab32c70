package ociruntime

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// rescorePasses is how often new processes are looked for: a fork takes the score that its parent has at that moment.
const rescorePasses = 5

// rescore gives another OOM score to the processes of the container that still have the one that they were given.
func (c *Container) rescore(from, to int) error {
	for range rescorePasses {
		changed, err := c.rescoreOnce(from, to)
		if err != nil {
			return fmt.Errorf("set oom_score_adj %d: %w", to, err)
		}
		if !changed {
			return nil
		}
	}
	return nil
}

// rescoreOnce says whether it has changed a score. A file is opened before the process is looked for once more: if it can
// be written after that, the number was this process' all the time.
func (c *Container) rescoreOnce(from, to int) (changed bool, err error) {
	files := map[int]*os.File{}
	defer func() {
		for _, f := range files {
			_ = f.Close() // of procfs: nothing to lose
		}
	}()
	pids, err := c.group.Processes()
	for _, pid := range pids {
		if f, err := os.OpenFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), os.O_RDWR, 0); err == nil {
			files[pid] = f
		}
	}
	if err == nil {
		pids, err = c.group.Processes()
	}
	if err != nil {
		return false, err
	}
	for _, pid := range pids {
		did, err := rescoreProcess(files[pid], from, to)
		if err != nil {
			return changed, err
		}
		changed = changed || did
	}
	return changed, nil
}

// rescoreProcess says whether it has changed the score. A process that is gone, or was not there before (f is nil), has none.
func rescoreProcess(f *os.File, from, to int) (bool, error) {
	if f == nil {
		return false, nil
	}
	var text [16]byte
	n, _ := f.ReadAt(text[:], 0)
	if now, bad := strconv.Atoi(strings.TrimSpace(string(text[:n]))); n == 0 || bad != nil || now != from {
		return false, nil
	}
	_, err := f.WriteAt([]byte(strconv.Itoa(to)), 0)
	switch {
	case errors.Is(err, unix.ESRCH):
		return false, nil
	case errors.Is(err, unix.EACCES): // lower than a criserver without CAP_SYS_RESOURCE may give, as at a start
		return false, nil
	}
	return err == nil, err
}
