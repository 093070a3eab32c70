package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// process is one that a daemon is or has started.
type process struct {
	pid  int
	name string // its role: daemon, shim, conmon, sandbox, container
}

// processes finds the daemon, its shims (which name its socket) and all that is in its cgroup parent. containers are
// ids: what is in their leaves is the containers' own.
func (d *daemon) processes(containers []string) ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var all []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cgroups, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cgroup")) // empty if it is gone
		arguments, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		switch {
		case pid == d.cmd.Process.Pid:
			all = append(all, process{pid: pid, name: "daemon"})
		case isMonitor(arguments) && bytes.Contains(arguments, []byte(d.dir+"/")): // its cgroup is named after the container
			all = append(all, process{pid: pid, name: "conmon"})
		case bytes.Contains(cgroups, []byte(":"+d.parent+"/")):
			all = append(all, process{pid: pid, name: role(cgroups, containers)})
		case bytes.Contains(arguments, []byte(d.dir+"/")):
			all = append(all, process{pid: pid, name: "shim"})
		}
	}
	return all, nil
}

func isMonitor(arguments []byte) bool {
	program, _, _ := bytes.Cut(arguments, []byte{0})
	return bytes.HasSuffix(program, []byte("/conmon"))
}

func role(cgroups []byte, containers []string) string {
	for _, id := range containers {
		if bytes.Contains(cgroups, []byte(id)) {
			return "container"
		}
	}
	return "sandbox"
}

// pss is a process' share of memory: what it shares with n others counts by 1/n.
func pss(pid int) (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "Pss:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New(f.Name() + " has no Pss")
}
