package pause

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrGone is returned by requests on a connection that has ended: pause died, or a newer connection took over.
var ErrGone = errors.New("connection to pause has ended")

// Hello is what pause says of itself when a connection begins.
type Hello struct {
	PID       int // in pause's pid namespace, which is criserver's
	MaxTasks  int
	MaxKept   int
	ExitSlots int
	Build     string
}

// Conn is one controlling connection to a pause.
type Conn struct {
	sock  *net.UnixConn
	hello Hello
	pidfd *os.File

	write chan struct{} // holds one token: whoever has it may send, so that a request's packets stay together

	mu      sync.Mutex
	nextID  uint32
	waiting map[uint32]*call
	ended   error // set once, then every request fails with it
}

// call collects the answers to one request.
type call struct {
	done    chan struct{}
	packets []packet // in order; the last one is the final answer
	dropped bool     // nobody waits any more: close what comes
	err     error
}

type packet struct {
	header header
	body   []byte
	files  []*os.File
}

func (p packet) close() {
	for _, f := range p.files {
		_ = f.Close()
	}
}

// Dial connects to the socket that a pause listens on and says hello.
func Dial(ctx context.Context, path string) (*Conn, error) {
	var d net.Dialer
	sock, err := d.DialContext(ctx, "unixpacket", path)
	if err != nil {
		return nil, err
	}
	c, err := hello(sock.(*net.UnixConn))
	if err != nil {
		return nil, err
	}
	if err := c.Greet(ctx); err != nil {
		_ = c.Close() // with what the answer brought, if there was one
		return nil, err
	}
	return c, nil
}

// Begin takes over f, one end of a SOCK_SEQPACKET pair whose other end is a pause's FDControl, and says hello. Requests can be
// sent at once, also to a pause that is still being born; before the first Next the answer must be taken by Greet.
func Begin(f *os.File) (*Conn, error) {
	c, err := net.FileConn(f)
	_ = f.Close()
	if err != nil {
		return nil, fmt.Errorf("control socket of pause: %w", err)
	}
	sock, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("control socket of pause is a %T", c)
	}
	return hello(sock)
}

func hello(sock *net.UnixConn) (*Conn, error) {
	c := &Conn{sock: sock, write: make(chan struct{}, 1), nextID: 1, waiting: make(map[uint32]*call)}
	c.write <- struct{}{}
	if _, err := sock.Write(encode(msgHello, 0, helloBody{Min: 1, Max: protocolVersion})); err != nil {
		_ = sock.Close()
		return nil, fmt.Errorf("greet pause: %w", err)
	}
	return c, nil
}

// Greet waits for what pause says of itself. An error ends the connection, and the requests that wait for it.
func (c *Conn) Greet(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = c.sock.Close() })
	err := c.greet()
	if !stop() && err == nil {
		err = ctx.Err() // the answer came at the same moment, on a socket that is closed now
	}
	if err != nil {
		_ = c.sock.Close()
		err = errors.Join(fmt.Errorf("greet pause: %w", err), ctx.Err())
		c.end(err)
	}
	return err
}

func (c *Conn) greet() error {
	for {
		p, err := c.receive()
		if err != nil {
			return err
		}
		switch p.header.Type {
		case msgWelcome:
			return c.welcome(p)
		case msgFailed:
			p.close()
			return failure(p.body)
		default:
			p.close() // exits are listed again after adoption
		}
	}
}

func (c *Conn) welcome(p packet) error {
	var b welcomeBody
	if err := decodeBody(p.body, &b); err != nil {
		p.close()
		return err
	}
	if len(p.files) != 1 {
		p.close()
		return fmt.Errorf("welcome carries %d descriptors, want the pidfd of pause", len(p.files))
	}
	c.pidfd = p.files[0]
	build := name{}
	copy(build[:], b.Build[:])
	c.hello = Hello{PID: int(b.PID), MaxTasks: int(b.MaxTasks), MaxKept: int(b.MaxKept), ExitSlots: int(b.ExitSlots), Build: build.String()}
	return nil
}

// Hello returns what pause said when it was greeted.
func (c *Conn) Hello() Hello { return c.hello }

// PidFD is a pidfd of pause, once it was greeted; it belongs to c.
func (c *Conn) PidFD() *os.File { return c.pidfd }

// Close ends the connection; pause and its containers go on.
func (c *Conn) Close() error {
	err := c.sock.Close()
	c.end(ErrGone)
	return errors.Join(err, c.pidfd.Close())
}

// Next delivers answers until pause reports an exit, and returns that. Its error is final and wraps ErrGone.
func (c *Conn) Next() (Exit, error) {
	for {
		p, err := c.receive()
		if err != nil {
			err = fmt.Errorf("%w: %w", ErrGone, err)
			c.end(err)
			return Exit{}, err
		}
		if p.header.Type != msgExited {
			c.deliver(p)
			continue
		}
		p.close()
		var r exitRecord
		if err := decodeBody(p.body, &r); err != nil {
			return Exit{}, err
		}
		return r.exit(), nil
	}
}

// scratch holds the buffers of one receive; a connection that waits for its pause holds none.
type scratch struct {
	data [maxMessage]byte
	oob  [4096]byte
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

func (c *Conn) receive() (packet, error) {
	if err := c.waitReadable(); err != nil {
		return packet{}, err
	}
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	n, oobn, flags, _, err := c.sock.ReadMsgUnix(s.data[:], s.oob[:])
	if err != nil {
		return packet{}, err
	}
	files, err := receivedFiles(s.oob[:oobn])
	p := packet{files: files}
	if err == nil && n == 0 && oobn == 0 {
		err = errors.New("pause closed the connection")
	}
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = fmt.Errorf("packet from pause was cut (flags %#x)", flags)
	}
	if err == nil {
		var body []byte
		p.header, body, err = decodeHeader(s.data[:n])
		p.body = append([]byte(nil), body...)
	}
	if err != nil {
		p.close()
		return packet{}, err
	}
	return p, nil
}

// waitReadable blocks without holding a buffer.
func (c *Conn) waitReadable() error {
	raw, err := c.sock.SyscallConn()
	if err != nil {
		return err
	}
	first := true
	return raw.Read(func(fd uintptr) bool {
		if first {
			first = false
			fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(fds[:], 0)
			return n > 0 || err != nil
		}
		return true
	})
}

func receivedFiles(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control data from pause: %w", err)
	}
	var files []*os.File
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue // credentials and the like carry nothing to close
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "pause"))
		}
	}
	return files, nil
}

func (c *Conn) deliver(p packet) {
	final := p.header.Type != msgTask && p.header.Type != msgKept
	c.mu.Lock()
	w := c.waiting[p.header.ID]
	if w != nil && final {
		delete(c.waiting, p.header.ID)
	}
	if w == nil || w.dropped {
		c.mu.Unlock()
		p.close()
		return
	}
	w.packets = append(w.packets, p)
	c.mu.Unlock()
	if final {
		close(w.done)
	}
}

// end fails every request that waits and every later one.
func (c *Conn) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended != nil {
		return
	}
	c.ended = err
	for id, w := range c.waiting {
		w.err = err
		close(w.done)
		delete(c.waiting, id)
	}
}

// request sends one request and waits for its answers. A ctx that ends once pause has the request only ends the
// waiting: descriptors that arrive later are closed.
func (c *Conn) request(ctx context.Context, t messageType, body any, files []*os.File) ([]packet, error) {
	id, w, err := c.ask(ctx, t, body, files)
	if err != nil {
		return nil, err
	}
	select {
	case <-w.done:
	case <-ctx.Done():
		if c.forget(id, w) {
			return nil, fmt.Errorf("wait for pause: %w", ctx.Err())
		}
		<-w.done // the answer came at the same moment
	}
	return w.answers()
}

// ask sends one request, and returns when pause has it: files may be closed then. When it fails pause will not act on it.
func (c *Conn) ask(ctx context.Context, t messageType, body any, files []*os.File) (uint32, *call, error) {
	w := &call{done: make(chan struct{})}
	c.mu.Lock()
	if c.ended != nil {
		c.mu.Unlock()
		return 0, nil, c.ended
	}
	id := c.nextID
	c.nextID++
	if c.nextID == 0 {
		c.nextID = 1
	}
	c.waiting[id] = w
	c.mu.Unlock()

	if err := c.send(ctx, t, id, body, files); err != nil {
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
		return 0, nil, fmt.Errorf("send to pause: %w", err)
	}
	return id, w, nil
}

// answers returns what came for a call that is done.
func (w *call) answers() ([]packet, error) {
	if w.err != nil {
		closeAll(w.packets)
		return nil, w.err
	}
	last := w.packets[len(w.packets)-1]
	if last.header.Type == msgFailed {
		closeAll(w.packets)
		return nil, failure(last.body)
	}
	return w.packets, nil
}

// forget gives up waiting; false means that the call has been answered or failed already.
func (c *Conn) forget(id uint32, w *call) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting[id] != w {
		return false
	}
	w.dropped = true
	closeAll(w.packets)
	w.packets = nil
	return true
}

func closeAll(packets []packet) {
	for _, p := range packets {
		p.close()
	}
}

func (c *Conn) send(ctx context.Context, t messageType, id uint32, body any, files []*os.File) error {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	select {
	case <-c.write:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { c.write <- struct{}{} }()
	defer c.stopWritingWith(ctx)()
	err := c.sendPackets(t, id, body, fds)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ctx.Err()
	}
	return err
}

// stopWritingWith makes a write end with ctx, until the function that it returns is called.
func (c *Conn) stopWritingWith(ctx context.Context) func() {
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = c.sock.SetWriteDeadline(time.Unix(1, 0)) // fails once the socket is closed, as the write does
		close(ended)
	})
	return func() {
		if !stop() {
			<-ended
			_ = c.sock.SetWriteDeadline(time.Time{})
		}
	}
}

// sendPackets may fail half way: pause drops what came for a request when it hears of the next one.
func (c *Conn) sendPackets(t messageType, id uint32, body any, fds []int) error {
	for len(fds) > maxFDs {
		if err := c.sendPacket(encode(msgFDs, id, nil), fds[:maxFDs]); err != nil {
			return err
		}
		fds = fds[maxFDs:]
	}
	return c.sendPacket(encode(t, id, body), fds)
}

func (c *Conn) sendPacket(data []byte, fds []int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = syscall.UnixRights(fds...)
	}
	_, _, err := c.sock.WriteMsgUnix(data, oob, nil)
	return err
}
