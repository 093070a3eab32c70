package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// ErrNotRunning says that no criserver listens on the socket.
var ErrNotRunning = errors.New("criserver does not run, or is still starting")

// Call asks the criserver that listens on socket and decodes its answer into result. file, if any, goes with the request and
// stays the caller's. progress is called for each line of it.
func Call(ctx context.Context, socket, call string, args any, file *os.File, progress func(Progress), result any) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("%w (socket %s)", ErrNotRunning, socket)
	}
	if err != nil {
		return fmt.Errorf("ask criserver: %w", err)
	}
	defer func() { _ = conn.Close() }() // nothing is left to be told
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := send(conn.(*net.UnixConn), call, args, file); err != nil {
		return fmt.Errorf("ask criserver: %w", err)
	}
	in := bufio.NewReader(conn)
	for {
		line, err := in.ReadBytes('\n')
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return fmt.Errorf("criserver went away before it answered: %w", err)
		}
		var r reply
		if err := json.Unmarshal(line, &r); err != nil {
			return fmt.Errorf("read answer of criserver: %w", err)
		}
		switch {
		case r.Progress != nil:
			if progress != nil {
				progress(*r.Progress)
			}
		case r.Error != "":
			return answered{r}
		default:
			return json.Unmarshal(r.Result, result)
		}
	}
}

// answered is an error that criserver gave.
type answered struct{ reply reply }

func (a answered) Error() string { return a.reply.Error }

// Is tells the kinds.
func (a answered) Is(target error) bool {
	is, known := kinds[a.reply.Kind]
	return known && is == target
}

func send(conn *net.UnixConn, call string, args any, file *os.File) error {
	encoded, err := json.Marshal(args)
	if err != nil {
		return err
	}
	line, err := json.Marshal(request{Call: call, Args: encoded})
	if err != nil {
		return err
	}
	if line = append(line, '\n'); len(line) > maxRequest {
		return fmt.Errorf("the request has %d bytes, more than %d", len(line), maxRequest)
	}
	if file == nil {
		_, err = conn.Write(line)
		return err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	n, failed := 0, error(nil)
	if err := raw.Control(func(fd uintptr) { n, _, failed = conn.WriteMsgUnix(line, unix.UnixRights(int(fd)), nil) }); err != nil {
		return err
	}
	if failed == nil && n < len(line) {
		_, failed = conn.Write(line[n:])
	}
	return failed
}
