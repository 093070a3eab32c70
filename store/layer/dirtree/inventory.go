package dirtree

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/store/layer/sums"
	"github.com/criserver/criserver/store/layer/tarstream"
)

// contentSum is the checksum of a regular file that was written. Of several with one inode the last one counts: the number
// was free again.
type contentSum struct {
	ino uint64
	sum uint32
}

// writeInventory lists the tree as it is on disk now, with the checksums of what was written.
func (w *Writer) writeInventory(out io.Writer) error {
	slices.SortStableFunc(w.contents, func(a, b contentSum) int { return cmp.Compare(a.ino, b.ino) })
	buf := bufio.NewWriterSize(out, 256<<10)
	s := survey{
		contents: func(_ int, _ string, st *unix.Stat_t) (uint32, error) {
			i, _ := slices.BinarySearchFunc(w.contents, st.Ino+1, func(c contentSum, ino uint64) int { return cmp.Compare(c.ino, ino) })
			if i == 0 || w.contents[i-1].ino != st.Ino {
				return 0, errors.New("it was not unpacked here")
			}
			return w.contents[i-1].sum, nil
		},
		visit: func(path string, f *facts) error {
			_, err := buf.Write(f.line(path))
			return err
		},
		unreadable: func(path string, err error) error { return fmt.Errorf("%s: %w", tarstream.Quote(path), err) },
	}
	if err := s.tree(context.Background(), w.root, ".", ""); err != nil {
		return fmt.Errorf("list what was unpacked: %w", err)
	}
	return buf.Flush()
}

// maxLine bounds a line of an inventory, which is longer than any path is with every byte escaped.
const maxLine = 1 << 20

// Check compares the directory root with the inventory that Finish wrote, reading all contents from disk, and tells fault
// what is not as it was. An error says that it could not be done.
func Check(ctx context.Context, root string, inventory io.Reader, fault func(string)) error {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("open layer directory %s: %w", root, err)
	}
	defer func() { _ = unix.Close(fd) }() // a directory
	buf, err := sums.NewBuffer(copyBuffer)
	if err != nil {
		return err
	}
	defer func() { _ = buf.Close() }() // memory
	lines := bufio.NewScanner(inventory)
	lines.Buffer(nil, maxLine)
	c := checker{lines: lines, fault: fault}
	if err := c.next(); err != nil {
		return err
	}
	s := survey{
		contents: func(dir int, name string, _ *unix.Stat_t) (uint32, error) {
			f, err := sums.OpenAt(dir, name)
			if err != nil {
				return 0, err
			}
			defer func() { _ = f.Close() }() // read from only
			sum, _, err := sums.Whole(ctx, f, buf)
			return sum, err
		},
		visit:      c.visit,
		unreadable: c.unreadable,
	}
	if err := s.tree(ctx, fd, ".", ""); err != nil {
		return err
	}
	return c.end()
}

// checker goes through an inventory beside a survey.
type checker struct {
	lines *bufio.Scanner
	fault func(string)
	path  string // that is expected next
	want  facts
	over  bool // nothing is
}

func (c *checker) next() error {
	if !c.lines.Scan() {
		c.over = true
		if err := c.lines.Err(); err != nil {
			return fmt.Errorf("read list of files: %w", err)
		}
		return nil
	}
	line, w := c.lines.Text(), &c.want
	quote := strings.IndexByte(line, '"')
	if quote < 0 {
		return errInventory
	}
	_, err := fmt.Sscanf(line[:quote], factsFormat, &w.mode, &w.uid, &w.gid, &w.links, &w.size, &w.rdev, &w.sec, &w.nsec, &w.attributes, &w.contents)
	if err == nil {
		c.path, err = strconv.Unquote(line[quote:])
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errInventory, err)
	}
	return nil
}

var errInventory = errors.New("the list of files is damaged")

// visit takes a name that is there.
func (c *checker) visit(path string, f *facts) error {
	if err := c.skipTo(path); err != nil {
		return err
	}
	if c.over || c.path != path {
		c.fault(tarstream.Quote(path) + " is not of the layer")
		return nil
	}
	if d := f.differences(&c.want); d != "" {
		c.fault(tarstream.Quote(path) + " has " + d)
	}
	return c.next()
}

// unreadable takes a name that cannot be looked at, or a directory, visited before, whose names cannot.
func (c *checker) unreadable(path string, err error) error {
	c.fault(fmt.Sprintf("%s cannot be read: %v", tarstream.Quote(path), err))
	if err := c.skipTo(path); err != nil || c.over || c.path != path {
		return err
	}
	return c.next()
}

// skipTo tells of names that should have come before path.
func (c *checker) skipTo(path string) error {
	for !c.over && comparePaths(c.path, path) < 0 {
		if err := c.missing(); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) missing() error {
	c.fault(tarstream.Quote(c.path) + " is missing")
	return c.next()
}

// end tells what is missing behind the last name that is there.
func (c *checker) end() error {
	for !c.over {
		if err := c.missing(); err != nil {
			return err
		}
	}
	return nil
}
