package stream

import (
	"os"

	"golang.org/x/sys/unix"
)

// SetSize sets the size of a terminal; its foreground processes are told if it is another one.
func SetSize(master *os.File, size Size) error {
	return control(master, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
}

// EndTerminalInput is what a user does to end the input of a terminal: the end-of-file character, twice if the last byte did
// not end a line, since the first one only hands that line over. A terminal that has no such character hears nothing.
func EndTerminalInput(master *os.File, last byte) {
	var eof byte
	canonical := false
	err := control(master, func(fd int) error {
		t, err := unix.IoctlGetTermios(fd, unix.TCGETS) // of a master: those of its slave
		if err == nil {
			eof, canonical = t.Cc[unix.VEOF], t.Lflag&unix.ICANON != 0
		}
		return err
	})
	if err != nil || eof == 0 {
		return
	}
	end := []byte{eof}
	if canonical && last != 0 && last != '\n' {
		end = append(end, eof)
	}
	_, _ = master.Write(end) // fails when nobody reads any more
}

func control(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	if err := raw.Control(func(fd uintptr) { result = do(int(fd)) }); err != nil {
		return err
	}
	return result
}
