package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lockName is the file in the root and state directory that a running criserver holds a lock on.
const lockName = "criserver.lock"

// lockDirs takes the locks of a node's directories, always in this order: of two that start at once, one gets both.
func lockDirs(c Config) (unlock func() error, err error) {
	root, err := lockDir("root", c.Root)
	if err != nil {
		return nil, err
	}
	state, err := lockDir("state", c.State)
	if err != nil {
		_ = root.Close()
		return nil, err
	}
	return func() error { return errors.Join(state.Close(), root.Close()) }, nil
}

// lockDir makes dir, if need be, and takes its lock. Closing the file gives the lock back, and so does the end of the
// process, however it comes. The file stays: removing it would let two instances hold locks on different files.
func lockDir(what, dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make %s directory: %w", what, err)
	}
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock of %s directory: %w", what, err)
	}
	if err := lockWithin(f, lockBound); err != nil {
		defer func() { _ = f.Close() }()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s directory %s is in use by the criserver with pid %s (it holds a lock on %s)", what, dir, holder(f), path)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if err := writePid(f); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("write pid to %s: %w", path, err)
	}
	return f, nil
}

// lockBound is how long a lock may be held by a process that is about to die: a child that a criserver forked just before
// it was killed, and that has not executed its program yet, holds the lock of its parent.
const lockBound = 2 * time.Second

// lockWithin takes the lock of f, or fails with EWOULDBLOCK after bound.
func lockWithin(f *os.File, bound time.Duration) error {
	for over := time.Now().Add(bound); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(over) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// holder reads who wrote its pid to the lock last.
func holder(f *os.File) string {
	text, err := io.ReadAll(io.LimitReader(f, 32))
	if pid := strings.TrimSpace(string(text)); err == nil && pid != "" {
		return pid
	}
	return "unknown"
}

func writePid(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}
