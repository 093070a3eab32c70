package ociruntime

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/mount"
	"github.com/criserver/criserver/ociruntime/program"
	"github.com/criserver/criserver/ociruntime/selinux"
)

// openStdio makes the container's standard streams: pipes or a terminal whose other ends go to pause.
func (s *start) openStdio() error {
	if len(s.c.stdio) == len(s.stdio) {
		for i, f := range s.c.stdio {
			s.stdio[i] = s.give(f)
		}
		return nil
	}
	if path := s.c.record.LogPath; path != "" {
		f, err := openLog(path)
		if err != nil {
			return err
		}
		s.owned = append(s.owned, f)
		s.add.Log = f
	}
	if s.c.record.Process.Terminal {
		return s.openTerminal()
	}
	uid := s.c.pod.config.UserNS.uid(s.c.record.Process.User.UID)
	for i, end := range []**os.File{&s.add.Stdout, &s.add.Stderr} {
		r, w, err := s.pipe(uid)
		if err != nil {
			return err
		}
		s.owned = append(s.owned, r)
		*end = r
		s.stdio[i+1] = s.own(w)
	}
	return s.openStdin(uid)
}

func (s *start) openStdin(uid uint32) error {
	if !s.c.record.Stdin {
		null, err := os.Open("/dev/null")
		if err != nil {
			return err
		}
		s.stdio[0] = s.own(null)
		return nil
	}
	r, w, err := s.pipe(uid)
	if err != nil {
		return err
	}
	s.owned = append(s.owned, w)
	s.add.Stdin = w
	s.stdio[0] = s.own(r)
	return nil
}

// pipe makes a pipe that belongs to a user, who may so reopen /dev/stdout.
func (s *start) pipe(uid uint32) (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("pipe: %w", err)
	}
	r, w = os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe")
	if err := s.c.label(w); err != nil {
		closeFiles([]*os.File{r, w})
		return nil, nil, err
	}
	if uid != 0 {
		if err := unix.Fchown(fds[1], int(uid), -1); err != nil {
			closeFiles([]*os.File{r, w})
			return nil, nil, fmt.Errorf("give the pipe to user %d: %w", uid, err)
		}
	}
	return r, w, nil
}

// label lets the container use streams that were made outside of it.
func (c *Container) label(streams ...*os.File) error {
	for _, f := range streams {
		if f == nil || c.record.Label == "" {
			continue
		}
		if err := selinux.SetFile(f, c.record.Label); err != nil {
			return err
		}
	}
	return nil
}

// ttyGroup is the group that owns terminals.
const ttyGroup = 5

// openDevpts makes the container's devpts; its terminal, if it has one, is opened before it is attached.
func (s *start) openDevpts(o mount.Options) (*os.File, error) {
	if s.devpts != nil {
		return s.devpts, nil
	}
	f, err := mount.New("devpts", "devpts", labelled(o, s.c.record.Label))
	if err != nil {
		return nil, err
	}
	s.owned = append(s.owned, f)
	if err := errors.Join(s.chown(f, ""), s.chown(f, "ptmx")); err != nil {
		return nil, err
	}
	s.devpts = f
	return f, nil
}

func (s *start) openTerminal() error {
	options := mount.ParseOptions([]string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", fmt.Sprintf("gid=%d", s.c.pod.config.UserNS.gid(ttyGroup))})
	for _, m := range s.spec.Mounts {
		if m.Type == "devpts" {
			options = s.devptsOptions(m.Options)
		}
	}
	pts, err := s.openDevpts(options)
	if err != nil {
		return err
	}
	fd, err := unix.Openat(int(pts.Fd()), "ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open ptmx: %w", err)
	}
	master := os.NewFile(uintptr(fd), "ptmx")
	s.owned = append(s.owned, master)
	slave, err := s.c.slave(fd)
	if err != nil {
		return fmt.Errorf("open terminal: %w", err)
	}
	s.add.TTY = master
	tty := s.own(slave)
	s.stdio = [3]program.FD{tty, tty, tty}
	return s.resize(fd)
}

// resize gives the terminal the size that the spec asks for.
func (s *start) resize(master int) error {
	box := s.c.record.Process.ConsoleSize
	if box == nil {
		return nil
	}
	size := unix.Winsize{Row: uint16(box.Height), Col: uint16(box.Width)}
	if err := unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &size); err != nil {
		return fmt.Errorf("set the terminal's size: %w", err)
	}
	return nil
}

func (m *IDMap) uid(id uint32) uint32 {
	if m == nil {
		return id
	}
	return hostID(m.UIDs, id)
}

func (m *IDMap) gid(id uint32) uint32 {
	if m == nil {
		return id
	}
	return hostID(m.GIDs, id)
}
