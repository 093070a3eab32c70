package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// describeMachine says in markdown what was measured on, and with whom.
func describeMachine(b *bench) string {
	var out strings.Builder
	var u unix.Utsname
	_ = unix.Uname(&u)
	fmt.Fprintf(&out, "Measured %s.\n\n", time.Now().UTC().Format("2006-01-02 15:04 UTC"))
	fmt.Fprintf(&out, "- machine: %d x %s, %s of memory, load %s\n", runtime.NumCPU(), field("/proc/cpuinfo", "model name"),
		field("/proc/meminfo", "MemTotal"), strings.Join(strings.Fields(read("/proc/loadavg"))[:1], ""))
	fmt.Fprintf(&out, "- kernel: %s %s, cgroups %s\n", unix.ByteSliceToString(u.Sysname[:]), unix.ByteSliceToString(u.Release[:]), b.cgroups.Mode())
	fmt.Fprintf(&out, "- file system of the containers: %s\n", fileSystem(b.dir))
	fmt.Fprintf(&out, "- ours: %s, %s\n", firstLine(exec.Command(b.criserver, "version")), runtime.Version())
	for _, p := range b.peers {
		fmt.Fprintf(&out, "- peer: %s\n", p.version)
	}
	for _, p := range b.peerDaemons() {
		if path, err := exec.LookPath(p.path); err == nil {
			fmt.Fprintf(&out, "- peer: %s\n", firstLine(exec.Command(path, "--version")))
		} else {
			fmt.Fprintf(&out, "- not here: %s: %v\n", p.name, err)
		}
	}
	for _, m := range b.missing {
		fmt.Fprintf(&out, "- not here: %s\n", m)
	}
	return out.String()
}

func read(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return "? "
	}
	return string(data)
}

// field returns the value of the first line "name : value".
func field(path, name string) string {
	for line := range strings.Lines(read(path)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return "?"
}

func fileSystem(dir string) string {
	out, err := exec.Command("stat", "-f", "-c", "%T", dir).Output()
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(string(out))
}

func firstLine(cmd *exec.Cmd) string {
	out, err := cmd.CombinedOutput()
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if err != nil {
		return fmt.Sprintf("%s (%v)", line, err)
	}
	return line
}
