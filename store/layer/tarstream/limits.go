package tarstream

import (
	"errors"
	"fmt"
)

// ErrInvalid says that the layer itself is at fault: malformed, forbidden, or over a limit. Fetching it again from the
// same place cannot help.
var ErrInvalid = errors.New("invalid layer")

// Limits bound what one layer may ask for. Every field must be positive.
type Limits struct {
	Entries    int   // entries and the parent directories that they imply
	Bytes      int64 // of the archive, and of all file contents together once holes are filled
	Holes      int64 // bytes of contents that the archive does not have, but a map of sparse files fills with zeros: they cost time
	PathBytes  int   // of a name, or the target of a hard link, as the archive spells it
	NameBytes  int   // of one component
	Depth      int   // directories above an entry, counted where it comes to lie
	XattrBytes int   // names and values of one entry's extended attributes
	Text       int64 // bytes of names, link targets and attributes that unpacking keeps in memory; at most 2 GiB
}

// DefaultLimits are above every image seen in practice and below what hurts a node.
func DefaultLimits() Limits {
	return Limits{
		Entries:    4 << 20,
		Bytes:      1 << 40,
		Holes:      1 << 36,
		PathBytes:  64 << 10,
		NameBytes:  255, // NAME_MAX
		Depth:      512,
		XattrBytes: 64 << 10,
		Text:       256 << 20,
	}
}

// maxTarget is the longest target of a symbolic link: PATH_MAX without the final NUL.
const maxTarget = 4095

// maxXattrValue is the longest value that EROFS can hold, one byte less than Linux allows.
const maxXattrValue = 1<<16 - 1

// Invalidf makes an error about the entry called name that satisfies errors.Is(err, ErrInvalid).
func Invalidf(name, format string, args ...any) error {
	return fmt.Errorf("%w: entry %s: %s", ErrInvalid, Quote(name), fmt.Sprintf(format, args...))
}

// Quote makes a name from an archive fit for a message: escaped, and cut in the middle when it is long.
func Quote(name string) string {
	const most = 200
	if len(name) > most {
		return fmt.Sprintf("%q...%q", name[:most/2], name[len(name)-most/2:])
	}
	return fmt.Sprintf("%q", name)
}

// Kept counts what unpacking a layer keeps of its text.
type Kept struct{ bytes int64 }

// Add takes n more bytes of the entry called name.
func (k *Kept) Add(l Limits, name string, n int) error {
	if k.bytes += int64(n); k.bytes > l.Text {
		return Invalidf(name, "names, link targets and extended attributes are together more than the limit of %d bytes", l.Text)
	}
	return nil
}
