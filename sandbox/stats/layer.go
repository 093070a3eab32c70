package stats

import (
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A Layer remembers what the writable layer of one container held when it was last visited. The zero value has not been visited.
type Layer struct {
	usage   atomic.Pointer[LayerUsage]
	removed atomic.Bool
	due     time.Time // of the next visit; only Walk's
}

// LayerUsage is what a directory holds, itself included.
type LayerUsage struct {
	At     time.Time
	Bytes  uint64 // that are allocated
	Inodes uint64
}

// Usage is not ok before the first visit.
func (l *Layer) Usage() (u LayerUsage, ok bool) {
	if p := l.usage.Load(); p != nil {
		return *p, true
	}
	return LayerUsage{}, false
}

// Remove ends visits; the directory is about to be removed.
func (l *Layer) Remove() { l.removed.Store(true) }

// Target is a Layer and its directory.
type Target struct {
	Layer *Layer
	Dir   string
}

// Bounds of Walk.
const (
	idleShare   = 19                   // times what a piece of work took, it rests
	pieceOfWork = 5 * time.Millisecond // then rest
	visitShare  = 100                  // times what a visit worked, until the next to the same layer
	waiting     = 1 << 16              // directories that are remembered to be visited
	batch       = 256                  // entries that are read at once
)

// Walk visits the layers that list gives, each at most every period, until ctx ends.
func Walk(ctx context.Context, period time.Duration, list func() []Target) {
	runtime.LockOSThread() // and never unlocked: the thread, which is not like others, ends with the goroutine
	yieldIO()
	for ctx.Err() == nil {
		next := time.Now().Add(period)
		for _, t := range list() {
			if !t.Layer.due.After(time.Now()) && !t.Layer.removed.Load() {
				worked := t.Layer.Visit(ctx, t.Dir)
				t.Layer.due = time.Now().Add(max(period, visitShare*worked))
			}
			if t.Layer.due.Before(next) {
				next = t.Layer.due
			}
		}
		timer := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// yieldIO lets the I/O of everybody else go before that of this thread. Its processor time is not made less: a Go thread that
// waits for its turn keeps the others waiting.
func yieldIO() {
	const whoProcess, bestEffort, lowest = 1, 2 << 13, 7
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, 0, bestEffort|lowest)
}

// Visit counts what is in dir, with rests, and returns how long it has worked. What cannot be counted keeps the usage that is known.
func (l *Layer) Visit(ctx context.Context, dir string) (worked time.Duration) {
	runtime.LockOSThread() // whose work is measured
	defer runtime.UnlockOSThread()
	at := time.Now()
	root, err := os.Open(dir)
	if err != nil {
		return 0
	}
	defer root.Close()
	v := visit{layer: l, root: root, piece: beginPiece()}
	if v.tree(ctx) {
		l.usage.Store(&LayerUsage{At: at, Bytes: uint64(v.bytes + 0.5), Inodes: uint64(v.inodes + 0.5)})
	}
	return v.worked + v.piece.work()
}

// piece is what is done between two rests.
type piece struct {
	began time.Time
	cpu   time.Duration // of the thread until then
	read  int64         // blocks that disks had given to the thread until then
}

func beginPiece() piece {
	p := piece{began: time.Now()}
	p.cpu, p.read = threadUse()
	return p
}

// work is how long the piece has taken so far: processor time, or all time if something came from a disk. What the thread waits
// for a processor on a busy machine is no work.
func (p *piece) work() time.Duration {
	took := time.Since(p.began)
	if took < pieceOfWork {
		return took
	}
	if cpu, read := threadUse(); read == p.read {
		return cpu - p.cpu
	}
	return took
}

func threadUse() (cpu time.Duration, read int64) {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_THREAD, &u) // has no way to fail
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), u.Inblock
}

// visit is one count. It remembers no inodes: a file with n names counts for 1/n at each of them. A tree in which more than
// `waiting` directories wait at once, or paths are too long to be opened, is counted in part.
type visit struct {
	layer   *Layer
	root    *os.File
	pending []string // paths below root
	bytes   float64
	inodes  float64
	piece   piece
	worked  time.Duration // in pieces before
}

// tree counts everything; false if the visit is to end before.
func (v *visit) tree(ctx context.Context) bool {
	var st unix.Stat_t
	if err := unix.Fstat(int(v.root.Fd()), &st); err != nil {
		return false
	}
	v.add(&st)
	v.pending = []string{"."}
	for len(v.pending) > 0 {
		last := len(v.pending) - 1
		path := v.pending[last]
		v.pending = v.pending[:last]
		if !v.directory(ctx, path) {
			return false
		}
	}
	return true
}

// directory counts the entries of a directory; false if the visit is to end.
func (v *visit) directory(ctx context.Context, path string) bool {
	fd, err := unix.Openat2(int(v.root.Fd()), path, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOATIME,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV})
	if err != nil {
		return true // it was moved or removed meanwhile
	}
	dir := os.NewFile(uintptr(fd), path)
	defer dir.Close()
	for {
		entries, err := dir.ReadDir(batch)
		for _, e := range entries {
			var st unix.Stat_t
			if unix.Fstatat(fd, e.Name(), &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
				continue
			}
			v.add(&st)
			if st.Mode&unix.S_IFMT == unix.S_IFDIR && len(v.pending) < waiting {
				v.pending = append(v.pending, path+"/"+e.Name())
			}
		}
		if err != nil {
			return errors.Is(err, io.EOF) || !v.layer.removed.Load()
		}
		if !v.rest(ctx) {
			return false
		}
	}
}

func (v *visit) add(st *unix.Stat_t) {
	names := 1.0
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		names = max(float64(st.Nlink), 1)
	}
	v.bytes += float64(st.Blocks) * 512 / names
	v.inodes += 1 / names
}

// rest rests if a piece of work is done; false if the visit is to end.
func (v *visit) rest(ctx context.Context) bool {
	if v.layer.removed.Load() || ctx.Err() != nil {
		return false
	}
	worked := v.piece.work()
	if worked < pieceOfWork {
		return true
	}
	v.worked += worked
	timer := time.NewTimer(idleShare * worked)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	}
	v.piece = beginPiece()
	return true
}
