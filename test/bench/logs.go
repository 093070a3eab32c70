package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/ociruntime/mount"
)

const (
	logLine   = 100       // bytes, newline included
	logChunk  = 100 << 20 // bytes of the file that the container prints again and again
	logRepeat = 10
)

// measureLogs lets a container print 1 GB of lines as fast as it can. Its source and its log are in memory, so that pause
// is measured and no disk.
func measureLogs(ctx context.Context, b *bench) error {
	e, err := b.newEmbedded(ctx, "logs")
	if err != nil {
		return err
	}
	dir, err := b.linesInMemory()
	if err != nil {
		return err
	}
	repeat := logRepeat
	if b.quick {
		repeat = 1
	}
	heading(fmt.Sprintf("%d MB of %d-byte lines into a log file in memory", repeat*logChunk>>20, logLine))
	t := table{header: []string{"", "s", "MB/s", "s of CPU of pause"}}
	for range b.rounds(3) {
		took, cpu, err := e.printLines(ctx, dir, repeat)
		if err != nil {
			return err
		}
		rate := megabytes(repeat, took)
		t.add(ours, fmt.Sprintf("%.2f", took.Seconds()), fmt.Sprintf("%.0f", rate), fmt.Sprintf("%.2f", cpu.Seconds()))
	}
	t.print()
	return b.logsOverCRI(ctx, dir, repeat)
}

// logTarget is the better peer's rate / ours.
const logTarget = 1 / 1.3

// logsOverCRI lets each daemon log the same lines of a container that it was asked for.
func (b *bench) logsOverCRI(ctx context.Context, dir string, repeat int) error {
	all, err := b.daemons(ctx)
	if err != nil {
		return err
	}
	heading(fmt.Sprintf("CRI: %d-byte lines of a container into a log file in memory", logLine))
	t := table{header: []string{"", "MB", "s", "MB/s"}}
	rates := map[string]float64{}
	for range b.rounds(3) {
		for _, d := range all {
			n := repeat
			if d.name == peerContainerd {
				n = 1 // it takes its time
			}
			took, err := d.printLines(ctx, dir, n)
			if err != nil {
				return fmt.Errorf("%s: %w", d.name, err)
			}
			rate := megabytes(n, took)
			rates[d.name] = max(rates[d.name], rate)
			t.add(d.name, fmt.Sprint(n*logChunk/1e6), fmt.Sprintf("%.2f", took.Seconds()), fmt.Sprintf("%.0f", rate))
		}
	}
	t.print()
	b.compareRates(ours, "stdout into the log file, best of three", "MB/s", rates, logTarget)
	return nil
}

// megabytes is a rate in MB/s.
func megabytes(repeat int, took time.Duration) float64 {
	return float64(repeat*logChunk) / 1e6 / took.Seconds()
}

// repeatLines is a command that prints the file of lines some times.
func repeatLines(repeat int) []string {
	return []string{"sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do cat /tmp/lines; i=$((i+1)); done", repeat)}
}

// printLines returns how long a container ran that printed the file of lines, and removes its pod.
func (d *daemon) printLines(ctx context.Context, dir string, repeat int) (took time.Duration, err error) {
	p, err := d.newPod(onHost)
	if err != nil {
		return 0, err
	}
	p.config.LogDirectory = dir
	if err := p.run(ctx); err != nil {
		return 0, err
	}
	defer func() {
		clean, cancel := cleanContext()
		defer cancel()
		err = errors.Join(err, p.remove(clean))
	}()
	config := p.containerConfig(repeatLines(repeat)...)
	config.Mounts = append(config.Mounts, &cri.Mount{ContainerPath: "/tmp", HostPath: dir, Readonly: true})
	if err := p.create(ctx, config); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := p.start(ctx); err != nil {
		return 0, err
	}
	log := filepath.Join(dir, config.GetLogPath())
	for {
		s, err := d.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: p.container})
		if err != nil {
			return 0, err
		}
		if s.GetStatus().GetState() == cri.ContainerState_CONTAINER_EXITED {
			took := time.Since(began)
			return took, errors.Join(checkLog(log, repeat*logChunk/logLine), os.Remove(log))
		}
		if err := wait(ctx, 10*time.Millisecond); err != nil {
			return 0, err
		}
	}
}

// linesInMemory makes a tmpfs with a file of lines, for this part.
func (b *bench) linesInMemory() (string, error) {
	dir, err := b.mkdir("memory")
	if err != nil {
		return "", err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4g"); err != nil {
		return "", fmt.Errorf("mount tmpfs: %w", err)
	}
	b.later(func() error { return unix.Unmount(dir, unix.MNT_DETACH) })
	line := append(bytes.Repeat([]byte("x"), logLine-1), '\n')
	return dir, os.WriteFile(filepath.Join(dir, "lines"), bytes.Repeat(line, logChunk/logLine), 0o644)
}

// printLines returns how long the container ran, and what CPU time pause used meanwhile.
func (e *embedded) printLines(ctx context.Context, dir string, repeat int) (took, cpu time.Duration, err error) {
	source, err := mount.OpenSource(e.bundle.root)
	if err != nil {
		return 0, 0, err
	}
	defer source.Close()
	root, err := mount.Bind(source, mount.Options{RecBind: true, Propagation: unix.MS_PRIVATE}, nil)
	if err != nil {
		return 0, 0, err
	}
	spec := e.bundle.spec(repeatLines(repeat)...)
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/tmp", Type: "bind", Source: dir, Options: []string{"rbind", "rprivate", "ro"}})
	log := filepath.Join(dir, "log")
	c, err := e.pod.Create(ctx, ociruntime.ContainerConfig{ID: randomID(), Spec: spec, Root: root, LogPath: log})
	if err != nil {
		return 0, 0, err
	}
	before, err := processCPU(e.pod.Pid())
	if err != nil {
		return 0, 0, errors.Join(err, end(c))
	}
	began := time.Now()
	if err := c.Start(ctx); err != nil {
		return 0, 0, errors.Join(err, end(c))
	}
	select {
	case <-c.Exited():
	case <-ctx.Done():
		return 0, 0, errors.Join(ctx.Err(), end(c))
	}
	took = time.Since(began)
	after, err := processCPU(e.pod.Pid())
	err = errors.Join(err, checkLog(log, repeat*logChunk/logLine), end(c), os.Remove(log))
	return took, after - before, err
}

// checkLog sees that nothing is missing: the log has as many lines as were printed, all of the same length.
func checkLog(path string, lines int) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if got := info.Size(); got < int64(lines*(logLine+len("2006-01-02T15:04:05Z stdout F "))) {
		return fmt.Errorf("log of %d lines has only %d bytes", lines, got)
	}
	return nil
}

// processCPU is what a process has used so far, to a hundredth of a second.
func processCPU(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	user, err := strconv.Atoi(fields[11])
	if err != nil {
		return 0, err
	}
	system, err := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond, err
}
