package user

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime/mount"
)

const (
	passwdFile = "/etc/passwd"
	groupFile  = "/etc/group"
)

// lines calls each with the lines of a file inside root until it wants no more. A missing file has none.
func lines(root *os.File, name string, each func(line string) (more bool, err error)) error {
	f, err := openInside(root, name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %s of the image: %w", name, err)
	}
	defer f.Close()
	if err := scan(f, each); err != nil {
		return fmt.Errorf("%s of the image: %w", name, err)
	}
	return nil
}

func scan(r io.Reader, each func(line string) (more bool, err error)) error {
	limited := &io.LimitedReader{R: r, N: MaxFile + 1}
	s := bufio.NewScanner(limited)
	s.Buffer(make([]byte, 0, 4096), MaxLine+1)
	number := 1
	for ; s.Scan(); number++ {
		line := strings.TrimSpace(s.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		more, err := each(line)
		if err != nil {
			return fmt.Errorf("line %d: %w", number, err)
		}
		if !more {
			return nil
		}
	}
	switch {
	case errors.Is(s.Err(), bufio.ErrTooLong):
		return fmt.Errorf("line %d: longer than %d bytes", number, MaxLine)
	case s.Err() != nil:
		return fmt.Errorf("line %d: %w", number, s.Err())
	case limited.N == 0:
		return fmt.Errorf("larger than %d bytes", MaxFile)
	}
	return nil
}

// openInside opens a regular file. It looks before it opens: opening a device can do things, opening a fifo waits.
func openInside(root *os.File, name string) (*os.File, error) {
	found, err := mount.OpenIn(root, name, unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(found.Fd()), &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errors.New("not a regular file")
	}
	return os.Open("/proc/self/fd/" + strconv.Itoa(int(found.Fd())))
}
