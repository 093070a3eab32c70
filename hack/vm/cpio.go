package main

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// archive writes what the kernel takes as an initrd: a cpio archive in the "newc" format. Its first error is that of end.
type archive struct {
	w    io.Writer
	err  error
	last int // inode number
}

// File types of cpio.
const (
	modeDir  = 0o040000
	modeFile = 0o100000
)

func (a *archive) add(name string, mode int, body []byte) {
	a.last++
	const magic, uid, gid, links, modified, device = "070701", 0, 0, 1, 0, 0
	header := fmt.Sprintf("%s%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", magic, a.last, mode, uid, gid, links, modified,
		len(body), device, device, device, device, len(name)+1, 0)
	a.write([]byte(header + name + "\x00"))
	a.pad(len(header) + len(name) + 1)
	a.write(body)
	a.pad(len(body))
}

func (a *archive) end() error {
	a.add("TRAILER!!!", 0, nil)
	return a.err
}

func (a *archive) pad(n int) { a.write(make([]byte, -n&3)) }

func (a *archive) write(p []byte) {
	if a.err == nil {
		_, a.err = a.w.Write(p)
	}
}

// closeAfter closes a file that was written and returns the first error.
func closeAfter(f *os.File, err error) error { return errors.Join(err, f.Close()) }
