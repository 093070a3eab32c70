package erofs

import (
	"slices"
	"strings"

	"github.com/criserver/criserver/store/layer/tarstream"
)

// What overlayfs looks for on a directory that hides those below it, and on one that has whiteouts.
var (
	opaqueXattr = tarstream.Xattr{Name: tarstream.OverlayOpaque, Value: "y"}
	hidingXattr = tarstream.Xattr{Name: tarstream.OverlayOrigin}
)

var xattrSpaces = []struct {
	prefix string
	index  byte
}{
	{"system.posix_acl_access", xattrIndexAccess},
	{"system.posix_acl_default", xattrIndexDefault},
	{"user.", xattrIndexUser},
	{"trusted.", xattrIndexTrusted},
	{"security.", xattrIndexSecure},
}

// xattrSets keeps each distinct set of attributes once, in the form that follows an inode in the image.
type xattrSets struct {
	numbers map[string]uint32
	sets    []string
}

// intern gives the number of the set + 1; 0 is the empty one.
func (x *xattrSets) intern(list []tarstream.Xattr) uint32 {
	if len(list) == 0 {
		return 0
	}
	body := encodeXattrs(list)
	if n, ok := x.numbers[string(body)]; ok {
		return n
	}
	if x.numbers == nil {
		x.numbers = map[string]uint32{}
	}
	s := string(body)
	x.sets = append(x.sets, s)
	x.numbers[s] = uint32(len(x.sets))
	return uint32(len(x.sets))
}

func (x *xattrSets) get(n uint32) string {
	if n == 0 {
		return ""
	}
	return x.sets[n-1]
}

// with adds one more attribute, which the set does not have, to set n.
func (x *xattrSets) with(n uint32, a tarstream.Xattr) uint32 {
	all := append(decodeXattrs(x.get(n)), a)
	slices.SortFunc(all, func(a, b tarstream.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return x.intern(all)
}

func encodeXattrs(list []tarstream.Xattr) []byte {
	b := make([]byte, xattrHeaderSize) // no filter, no shared ones
	for _, a := range list {
		for _, s := range xattrSpaces {
			name, ok := strings.CutPrefix(a.Name, s.prefix)
			if !ok {
				continue
			}
			b = append(b, byte(len(name)), s.index)
			b = le.AppendUint16(b, uint16(len(a.Value)))
			b = append(b, name...)
			b = append(b, a.Value...)
			b = append(b, make([]byte, -len(b)&3)...)
			break
		}
	}
	return b
}

func decodeXattrs(body string) (list []tarstream.Xattr) {
	for at := xattrHeaderSize; at < len(body); {
		n, value := int(body[at]), int(le.Uint16([]byte(body[at+2:at+4])))
		prefix := ""
		for _, s := range xattrSpaces {
			if s.index == body[at+1] {
				prefix = s.prefix
			}
		}
		at += xattrEntryHeader
		list = append(list, tarstream.Xattr{Name: prefix + body[at:at+n], Value: body[at+n : at+n+value]})
		at = (at + n + value + 3) &^ 3
	}
	return list
}

// xattrCount is the number that an inode gives for the length of its body.
func xattrCount(body string) uint16 {
	if body == "" {
		return 0
	}
	return uint16((len(body)-xattrHeaderSize)/xattrEntryHeader + 1)
}
