package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/store/layer"
)

const (
	rootFiles   = 8000
	rootProgram = "usr/bin/large" // criserver itself
	manyLayers  = 60
)

// Targets of issue 5: a root of EROFS layers / one of directories, and a start from many layers / from one.
const (
	rootTarget       = 1.1
	manyLayersTarget = 1.3
)

// Laps of a root. Before a cold one the kernel's caches are dropped.
const (
	lapColdFind  = "find, cold"
	lapWarmFind  = "find, warm"
	lapColdRead  = "read all files, cold"
	lapWarmRead  = "read all files, warm"
	lapColdStart = "start of a large program, cold"
	lapWarmStart = "start of a large program, warm"
	inCPU        = ", CPU"
	lapMake      = "CreateContainer + StartContainer"
)

// measureRoots compares a root of an EROFS layer with one of a directory.
func measureRoots(ctx context.Context, b *bench) error {
	archive, err := b.rootArchive()
	if err != nil {
		return err
	}
	var everybody []contender
	for _, format := range []layer.Format{layer.EROFS, layer.Overlay} {
		root, err := b.layerRoot(ctx, format, archive)
		if err != nil {
			return err
		}
		everybody = append(everybody, contender{"root of " + string(format), func(context.Context) ([]lap, error) { return useRoot(root) }})
	}
	r, err := inTurns(ctx, max(b.rounds(7), 2), 0, everybody)
	if err != nil {
		return err
	}
	heading(fmt.Sprintf("A root of %d files and a program of %d MB, ms", rootFiles, b.programSize()>>20))
	printTimes(r, nil)
	for _, l := range []string{lapColdFind, lapWarmFind, lapWarmFind + inCPU, lapColdRead, lapWarmRead, lapWarmRead + inCPU, lapColdStart, lapWarmStart} {
		b.compare("root of EROFS / of directories: "+l, r.find(everybody[0].name, l), r.find(everybody[1].name, l), rootTarget)
	}
	return nil
}

func (b *bench) programSize() int64 {
	st, err := os.Stat(b.criserver)
	if err != nil {
		return 0
	}
	return st.Size()
}

// rootArchive has many files and a large program, at the end as an archive's last file.
func (b *bench) rootArchive() ([]byte, error) {
	files, err := manyFiles(rootFiles, 99)
	if err != nil {
		return nil, err
	}
	program, err := os.ReadFile(b.criserver)
	if err != nil {
		return nil, err
	}
	return appendFile(files, rootProgram, program)
}

// layerRoot keeps the archive as one layer in a store of its own and builds a root on it, from a store that was opened
// anew: a layer that was unpacked a moment ago would still be mounted without directio.
func (b *bench) layerRoot(ctx context.Context, format layer.Format, archive []byte) (*os.File, error) {
	dir, err := b.mkdir("root-" + string(format))
	if err != nil {
		return nil, err
	}
	id := digest.FromBytes(archive)
	fill := func(s *layer.Store) error {
		w, err := s.Begin(ctx)
		if err == nil {
			_, err = w.ReadFrom(bytes.NewReader(archive))
		}
		if err == nil {
			_, err = w.Commit(id)
		}
		if err == nil {
			err = s.Sync(ctx)
		}
		return err
	}
	config := layer.Config{Root: dir, Format: format}
	s, err := layer.Open(config)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(fill(s), s.Close()); err != nil {
		return nil, err
	}
	if s, err = layer.Open(config); err != nil {
		return nil, err
	}
	b.later(s.Close)
	root, err := s.Root(ctx, "bench", []digest.Digest{id}, layer.RootOptions{})
	if err != nil {
		return nil, err
	}
	b.later(func() error { return errors.Join(root.Close(), s.RemoveRoot("bench")) })
	return root, nil
}

// useRoot does with a root what containers do.
func useRoot(root *os.File) ([]lap, error) {
	dir := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), root.Fd())
	steps := []struct {
		name string
		cold bool
		cpu  bool // this process works, and waits for nothing
		do   func() error
	}{
		{lapColdFind, true, false, func() error { return find(dir, nil) }},
		{lapColdRead, true, false, func() error { return find(dir, readFile) }},
		{lapWarmFind, false, true, func() error { return find(dir, nil) }},
		{lapWarmRead, false, true, func() error { return find(dir, readFile) }},
		{lapColdStart, true, false, func() error { return runProgram(dir) }},
		{lapWarmStart, false, false, func() error { return runProgram(dir) }},
	}
	l := startLaps()
	for _, s := range steps {
		if s.cold {
			if err := dropCaches(); err != nil {
				return nil, err
			}
		}
		l.step("")
		cpu := cpuTime()
		if err := s.do(); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		l.step(s.name)
		if s.cpu {
			l.all = append(l.all, lap{s.name + inCPU, cpuTime() - cpu})
		}
	}
	var all []lap
	for _, one := range l.all {
		if one.name != "" {
			all = append(all, one)
		}
	}
	return all, nil
}

// find looks at every file below dir, and calls do for regular ones unless it is nil.
func find(dir string, do func(path string) error) error {
	files := 0
	err := filepath.WalkDir(dir+"/", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			return err
		}
		files++
		if do == nil {
			return nil
		}
		return do(path)
	})
	if err == nil && files != rootFiles+1 {
		err = fmt.Errorf("%d files instead of %d", files, rootFiles+1)
	}
	return err
}

func readFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}) // read(2), whatever else a file can do
	return errors.Join(err, f.Close())
}

func runProgram(dir string) error {
	return exec.Command(filepath.Join(dir, rootProgram), "version").Run()
}

// dropCaches lets the kernel forget what it has read.
func dropCaches() error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// measureManyLayers starts containers from an image of many layers and from one with the same files in one layer.
func measureManyLayers(ctx context.Context, b *bench) error {
	one, err := busyboxImage()
	if err != nil {
		return err
	}
	d, err := b.startCriserver(ctx, ours, b.criserver, "cni", one)
	if err != nil {
		return err
	}
	archives := [][]byte{one.archive}
	for i := range manyLayers - 1 {
		a, err := appendFile(nil, fmt.Sprintf("etc/layer-%d", i), []byte("x\n"))
		if err != nil {
			return err
		}
		archives = append(archives, a)
	}
	many, err := newImage(ocispec.ImageConfig{Cmd: []string{"sleep", "1000000"}, Env: []string{"PATH=/bin"}}, archives...)
	if err != nil {
		return err
	}
	ref, err := many.serve(b)
	if err != nil {
		return err
	}
	if _, err := d.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
		return err
	}
	deep := *d
	deep.image = ref
	everybody := []contender{{fmt.Sprintf("image of %d layers", manyLayers), deep.makeContainer}, {"image of one layer", d.makeContainer}}
	r, err := inTurns(ctx, b.rounds(100), 0, everybody)
	if err != nil {
		return err
	}
	heading("CRI: start of a container from many layers and from one, ms")
	printTimes(r, nil)
	b.compare(fmt.Sprintf("start from %d layers / from one", manyLayers), r.find(everybody[0].name, lapMake), r.find(everybody[1].name, lapMake), manyLayersTarget)
	return nil
}

// makeContainer creates and starts a container in a pod that does not count.
func (d *daemon) makeContainer(ctx context.Context) ([]lap, error) {
	p, err := d.newPod(onHost)
	if err != nil {
		return nil, err
	}
	l := &laps{}
	err = p.run(ctx)
	if err == nil {
		l = startLaps()
		err = p.create(ctx, p.containerConfig())
		l.step("CreateContainer")
	}
	if err == nil {
		err = p.start(ctx)
		l.step(lapCRIStart)
		l.total(lapMake)
	}
	clean, cancel := cleanContext()
	defer cancel()
	return l.all, errors.Join(err, p.remove(clean))
}
