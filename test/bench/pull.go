package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The image that is pulled is made of what lies on this machine: a Go toolchain and a Debian root.
const (
	pulledFiles   = 42_000
	pulledLayers  = 7
	pulledMaxFile = 1 << 20 // bytes; larger files are left out, so that there are many small ones
)

var pulledDirs = []string{"/usr/local/go", "/usr/share", "/usr/lib", "/usr/include", "/usr/bin", "/etc"}

// Targets of pulling.
const (
	pullTarget   = 0.25 // of the better peer
	floorTarget  = 1.2  // of inflating and hashing
	removeTarget = 0.1
	pullMemory   = 64 << 20 // bytes above idle
)

const (
	lapPull   = "PullImage"
	lapServe  = "registry" + lapDaemonCPU // while it serves PullImage
	lapRemove = "RemoveImage"
)

// pullPart is what the part knows of one daemon.
type pullPart struct {
	*daemon
	registry int   // process
	idle     int64 // bytes resident before the first pull
	peak     int64 // most above that
	freed    int64 // bytes free when RemoveImage returned, of what the pull took, summed over rounds
	took     int64
	shared   time.Duration // of five images at once
	sent     float64       // bytes sent for them, of the bytes of their layers
}

// measurePull pulls an image of many small files with all daemons, beside the work that no pull can do without.
func measurePull(ctx context.Context, b *bench) error {
	files := pulledFiles
	if b.quick {
		files /= 10
	}
	m, err := pulledImage(files)
	if err != nil {
		return err
	}
	addr, registry, err := b.startRegistry()
	if err != nil {
		return err
	}
	if err := m.push(ctx, addr, "root", "v1"); err != nil {
		return err
	}
	sharing := newSharing(m)
	sharingAddr, err := sharing.serve(b)
	if err != nil {
		return err
	}
	b.insecure = []string{addr, sharingAddr}
	all, err := b.daemons(ctx)
	if err != nil {
		return err
	}
	floor := &unpacking{several: m}
	everybody := []contender{{"inflate and hash on all cores", timed(floor.inflateAll)}}
	var parts []*pullPart
	for _, d := range all {
		p := &pullPart{daemon: d, registry: registry}
		parts = append(parts, p)
		everybody = append(everybody, contender{d.name, func(ctx context.Context) ([]lap, error) { return p.pullAndRemove(ctx, addr+"/root:v1") }})
	}
	r, err := inTurns(ctx, max(b.rounds(3), 2), 0, everybody)
	if err != nil {
		return err
	}
	for _, p := range parts {
		if err := p.pullShared(ctx, sharing, sharingAddr); err != nil {
			return err
		}
	}
	heading(fmt.Sprintf("Pulling %d files in %d gzip layers, %d MB packed, %d MB plain, from docker-registry on loopback, ms", files, pulledLayers, m.packed()>>20, m.plain>>20))
	printTimes(r, nil)
	b.reportPull(r, parts)
	if err := printPullStages(ctx, parts); err != nil {
		return err
	}
	return b.measureEntries(ctx, parts[0])
}

// printPullStages says where all pulls of this program, and of the build beside it, were.
func printPullStages(ctx context.Context, parts []*pullPart) error {
	for _, p := range parts {
		if p.name != ours && p.name != peerOther {
			continue
		}
		stages, err := p.operations(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		printStages("that pulls and removes, "+p.name, stages)
	}
	return nil
}

// reportPull prints what the times do not say, and compares.
func (b *bench) reportPull(r results, parts []*pullPart) {
	fmt.Println()
	t := table{header: []string{"", "memory above idle at the peak, MiB", "space free when RemoveImage returns", "five images that share layers at once", "bytes sent for them"}}
	for _, p := range parts {
		t.add(p.name, mebibytes(p.peak), fmt.Sprintf("%.1f %%", 100*float64(p.freed)/float64(max(p.took, 1))), ms(p.shared)+" ms", fmt.Sprintf("%.2fx", p.sent))
	}
	t.print()
	own := parts[0]
	b.compareDaemons("PullImage of many small files", r, lapPull, pullTarget)
	b.compare("PullImage of many small files / inflate and hash on all cores", r.find(ours, lapPull), r.find("inflate and hash on all cores", lapWall), floorTarget)
	b.compare("PullImage of many small files / inflate and hash on all cores, CPU time", r.find(ours, lapPull+lapDaemonCPU), r.find("inflate and hash on all cores", lapCPU), floorTarget)
	b.compareDaemons("RemoveImage of it", r, lapRemove, removeTarget)
	b.ratio("space not free when RemoveImage returns", fmt.Sprintf("%.1f %%", 100-100*float64(own.freed)/float64(max(own.took, 1))), "", 1-float64(own.freed)/float64(max(own.took, 1)), 0.02)
	b.ratio("memory of a pull above idle", mebibytes(own.peak)+" MiB", "target 64 MiB", float64(own.peak)/pullMemory, 1)
	b.ratio("five images that share layers at once: bytes sent / bytes of their layers", fmt.Sprintf("%.2f", own.sent), "1", own.sent, 1.001)
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f", float64(n)/(1<<20)) }

// packed is the size of all layers as they are sent.
func (m *image) packed() (sum int64) {
	for _, l := range m.layers {
		sum += l.Size
	}
	return sum
}

// pulledImage makes the image.
func pulledImage(wanted int) (*image, error) {
	layers := make([]bytes.Buffer, pulledLayers)
	writers := make([]*tar.Writer, pulledLayers)
	for i := range writers {
		writers[i] = tar.NewWriter(&layers[i])
	}
	files := 0
	for _, root := range pulledDirs {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || files >= wanted {
				return nil // as much as can be read
			}
			added, err := addEntry(writers[files*pulledLayers/wanted], path, d)
			if added {
				files++
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	if files < wanted {
		return nil, fmt.Errorf("only %d files are below %v", files, pulledDirs)
	}
	var archives [][]byte
	for i, w := range writers {
		if err := w.Close(); err != nil {
			return nil, err
		}
		archives = append(archives, layers[i].Bytes())
	}
	return newImage(ocispec.ImageConfig{}, archives...)
}

// addEntry adds a directory, link or small file of this machine; added says that it is a file.
func addEntry(w *tar.Writer, path string, d fs.DirEntry) (added bool, err error) {
	info, err := d.Info()
	if err != nil || info.Size() > pulledMaxFile || info.Mode()&^(fs.ModePerm|fs.ModeDir|fs.ModeSymlink|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0 {
		return false, nil //nolint:nilerr // what is gone meanwhile is left out
	}
	target, content := "", []byte(nil)
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		target, err = os.Readlink(path)
	case info.Mode().IsRegular():
		content, err = os.ReadFile(path)
	}
	if err != nil {
		return false, nil //nolint:nilerr // likewise
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return false, err
	}
	if h.Name = strings.TrimPrefix(path, "/"); info.IsDir() {
		h.Name += "/"
	}
	if info.Mode().IsRegular() {
		h.Size = int64(len(content))
	}
	if err := w.WriteHeader(h); err != nil {
		return false, err
	}
	_, err = w.Write(content)
	return info.Mode().IsRegular(), err
}

// pullAndRemove pulls an image and removes it, and looks at memory and disk around that.
func (p *pullPart) pullAndRemove(ctx context.Context, ref string) ([]lap, error) {
	if err := p.beforePull(); err != nil {
		return nil, err
	}
	before, err := p.free()
	if err != nil {
		return nil, err
	}
	spec := &cri.ImageSpec{Image: ref}
	own, served := p.cpuTime(), cpuTimeOf(p.registry)
	l := startLaps()
	if _, err := p.images.PullImage(ctx, &cri.PullImageRequest{Image: spec}); err != nil {
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	l.step(lapPull)
	l.all = append(l.all, lap{lapPull + lapDaemonCPU, p.cpuTime() - own}, lap{lapServe, cpuTimeOf(p.registry) - served})
	if err := p.afterPull(); err != nil {
		return nil, err
	}
	full, err := p.free()
	if err != nil {
		return nil, err
	}
	l.last = time.Now()
	if _, err := p.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: spec}); err != nil {
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	l.step(lapRemove)
	var st unix.Statfs_t
	if err := unix.Statfs(p.dir, &st); err != nil {
		return nil, err
	}
	p.freed += int64(st.Bfree)*st.Bsize - full
	p.took += before - full
	return l.all, nil
}

// free is the space on the daemon's file system once everything that was written has its blocks.
func (p *pullPart) free() (int64, error) {
	dir, err := os.Open(p.dir)
	if err != nil {
		return 0, err
	}
	err = unix.Syncfs(int(dir.Fd()))
	var st unix.Statfs_t
	if err == nil {
		err = unix.Statfs(p.dir, &st)
	}
	return int64(st.Bfree) * st.Bsize, errors.Join(err, dir.Close())
}

// beforePull forgets the peak of the daemon's memory; the first time it also notes what it has when it is idle.
func (p *pullPart) beforePull() error {
	proc := fmt.Sprintf("/proc/%d/", p.cmd.Process.Pid)
	if err := os.WriteFile(proc+"clear_refs", []byte("5"), 0); err != nil {
		return err
	}
	if p.idle > 0 {
		return nil
	}
	var err error
	p.idle, err = kibibytes(proc+"status", "VmRSS")
	return err
}

func (p *pullPart) afterPull() error {
	most, err := kibibytes(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid), "VmHWM")
	p.peak = max(p.peak, most-p.idle)
	return err
}

// kibibytes reads a field of a file in /proc that has the unit kB, in bytes.
func kibibytes(path, name string) (int64, error) {
	n, err := strconv.ParseInt(strings.TrimSuffix(field(path, name), " kB"), 10, 64)
	return n << 10, err
}
