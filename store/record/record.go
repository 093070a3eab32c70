package record

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotExist says that there is no record at the path.
var ErrNotExist = fs.ErrNotExist

// ErrCorrupt says that a file is there but is not a whole record: torn, altered, not ours, or of a version that this
// program does not know. The file was left alone; SetAside moves it out of the way.
var ErrCorrupt = errors.New("record is corrupt")

// MaxSize is the largest file that Read accepts and the largest payload that Write takes, in bytes.
const MaxSize = 16 << 20

const (
	magic     = "criserver-record"
	version   = 1
	maxHeader = 128 // bytes, the newline included
	tmpMark   = ".tmp-"
)

// Write makes path hold v, replacing what was there. The file is readable by its owner only.
// The directory must exist. On error the former record is untouched and no temporary file remains.
func Write(path string, v any) error {
	payload, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode record %s: %w", path, err)
	}
	if len(payload) > MaxSize-maxHeader {
		return fmt.Errorf("write record %s: %d bytes are more than the %d allowed", path, len(payload), MaxSize-maxHeader)
	}
	tmp, err := writeTemp(path, append(header(payload), payload...))
	if err != nil {
		return fmt.Errorf("write record %s: %w", path, err)
	}
	if err := unix.Rename(tmp, path); err != nil {
		return fmt.Errorf("write record %s: %w", path, errors.Join(err, os.Remove(tmp)))
	}
	return nil
}

// written numbers temporary files, from where no earlier process has left one.
var written atomic.Uint64

func init() { written.Store(uint64(time.Now().UnixNano())) }

// writeTemp puts data into a new file beside path and returns its name. It asks the kernel directly: package os makes six
// system calls more, to find out whether it can wait for a file, and a pod's life has a dozen records.
func writeTemp(path string, data []byte) (string, error) {
	tmp := path + tmpMark + strconv.FormatUint(written.Add(1), 36)
	fd, err := -1, error(unix.EINTR)
	for errors.Is(err, unix.EINTR) {
		fd, err = unix.Open(tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	}
	if err != nil {
		return "", err
	}
	err = writeAll(fd, data)
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return "", errors.Join(err, os.Remove(tmp))
	}
	return tmp, nil
}

// writeAll also writes what the kernel left at the first time, as on a full disk, to learn why.
func writeAll(fd int, data []byte) error {
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// Read fills v, a pointer, with the record at path. The error is ErrNotExist if there is none, ErrCorrupt if the file
// cannot be trusted, and that of the file system otherwise; v is then undefined.
func Read(path string, v any) error {
	data, err := readFile(path)
	if err != nil {
		return fmt.Errorf("read record %s: %w", path, err)
	}
	payload, err := verify(data)
	if err != nil {
		return fmt.Errorf("read record %s: %w", path, err)
	}
	if err := json.Unmarshal(payload, v); err != nil {
		return fmt.Errorf("read record %s: %w: %w", path, ErrCorrupt, err)
	}
	return nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read from
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MaxSize {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrCorrupt, MaxSize)
	}
	return data, nil
}

// verify returns the payload of a whole record.
func verify(data []byte) ([]byte, error) {
	end := bytes.IndexByte(data[:min(len(data), maxHeader)], '\n')
	if end < 0 {
		return nil, fmt.Errorf("%w: no header line in %d bytes", ErrCorrupt, len(data))
	}
	got, payload := data[:end+1], data[end+1:]
	if !bytes.Equal(got, header(payload)) {
		return nil, fmt.Errorf("%w: header does not match the %d bytes after it", ErrCorrupt, len(payload))
	}
	return payload, nil
}

func header(payload []byte) []byte {
	sum := sha256.Sum256(payload)
	return fmt.Appendf(nil, "%s %d %s %d\n", magic, version, hex.EncodeToString(sum[:]), len(payload))
}

// SetAside renames the file at path to <path>.corrupt-N, N being the first number that is free, and returns the new
// name. It replaces nothing. The error is ErrNotExist if there is no file.
func SetAside(path string) (string, error) {
	for n := 1; ; n++ {
		aside := fmt.Sprintf("%s.corrupt-%d", path, n)
		err := os.Link(path, aside) // unlike rename, link refuses a name that is taken
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err == nil {
			err = os.Remove(path)
		}
		if err != nil {
			return "", fmt.Errorf("set record %s aside: %w", path, err)
		}
		return aside, nil
	}
}

// Sweep removes the temporary files that writers left in dir when they were killed. No Write may be under way there.
func Sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("sweep records: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if strings.Contains(e.Name(), tmpMark) && e.Type().IsRegular() {
			errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sweep records: %w", err)
	}
	return nil
}
