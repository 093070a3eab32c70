package tarstream

import (
	"encoding/binary"
	"slices"
	"strings"
)

const (
	paxXattr      = "SCHILY.xattr."
	aclAccess     = "system.posix_acl_access"
	aclDefault    = "system.posix_acl_default"
	aclVersion    = 2
	maxXattrCount = 1024
)

// ACLDefault names the attribute that makes new children of a directory inherit an access list.
const ACLDefault = aclDefault

// SELinux names the attribute that is the policy's and no layer's.
const SELinux = "security.selinux"

// Attributes with which a layer speaks to overlayfs.
const (
	// OverlayOpaque with the value "y" hides what the layers below have in the directory.
	OverlayOpaque = "trusted.overlay.opaque"
	// OverlayOrigin, empty, is on directories with whiteouts. It lets overlayfs look for whiteouts in them even if no other
	// layer has the directory; without it they would be listed there, as names that do not exist.
	OverlayOrigin = "trusted.overlay.origin"
)

// xattrs picks e's extended attributes from the PAX records, sorted by name.
func (l *Limits) xattrs(e *Entry, records map[string]string) ([]Xattr, error) {
	if len(records) == 0 || e.Kind == Hardlink || e.Kind == Whiteout {
		return nil, nil
	}
	var list []Xattr
	total := 0
	for key, value := range records {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok || !wanted(name, e.Kind) {
			continue
		}
		if len(name) > 255 || len(value) > maxXattrValue {
			return nil, Invalidf(e.Name, "xattr %s of %d bytes: the limits are 255 for the name and %d for the value",
				Quote(name), len(value), maxXattrValue)
		}
		if strings.HasPrefix(name, "system.") && !validACL(value) {
			return nil, Invalidf(e.Name, "xattr %s is not a POSIX access list", name)
		}
		total += len(name) + len(value)
		list = append(list, Xattr{name, value})
	}
	if total > l.XattrBytes || len(list) > maxXattrCount {
		return nil, Invalidf(e.Name, "%d xattrs of together %d bytes: the limits are %d and %d",
			len(list), total, maxXattrCount, l.XattrBytes)
	}
	slices.SortFunc(list, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// wanted says whether the attribute is taken over on an entry of kind k.
func wanted(name string, k Kind) bool {
	switch space, rest, _ := strings.Cut(name, "."); {
	case rest == "":
		return false
	case space == "user":
		return k == Regular || k == Dir
	case space == "trusted":
		return !strings.HasPrefix(rest, "overlay.")
	case space == "security":
		return rest != "selinux"
	}
	return name == aclAccess && (k == Regular || k == Dir) || name == aclDefault && k == Dir
}

// validACL says whether v has the shape of the kernel's external form: a version, then entries of 8 bytes.
func validACL(v string) bool {
	return len(v) > 4 && len(v)%8 == 4 && binary.LittleEndian.Uint32([]byte(v[:4])) == aclVersion
}
