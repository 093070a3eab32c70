package user

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Limits of what images may say.
const (
	MaxFile   = 16 << 20 // bytes of passwd and of group
	MaxLine   = 1 << 20  // bytes of a line, which bounds the members of a group
	MaxGroups = 65536    // NGROUPS_MAX
)

// Request says who the process shall be.
type Request struct {
	// User is "", "user", "user:group", each a name or a number; the empty one is root.
	User string
	// UID replaces the user and the group of User. It is a number whatever names passwd has: an entry called "1000" does
	// not change who 1000 is.
	UID *uint32
	// GID replaces the group.
	GID *uint32
	// Groups are supplementary groups by number.
	Groups []uint32
	// Strict leaves out the groups of /etc/group that have the user as a member.
	Strict bool
}

// User is who a process is.
type User struct {
	UID, GID uint32
	// Additional are the supplementary groups: the primary one, memberships in the order of the file, the requested
	// ones; none twice. It is never empty.
	Additional []uint32
	Name       string // "" if passwd does not have the user
	Home       string // "/" if passwd does not have one
}

// NotFoundError says that a name is not in the image.
type NotFoundError struct {
	Kind, Name, File string // "user", "app", "/etc/passwd"
}

func (e *NotFoundError) Error() string {
	return fmt.Sprintf("%s %q is not in %s of the image", e.Kind, e.Name, e.File)
}

// Resolve answers a request from the files below root, an open directory (O_PATH is enough).
func Resolve(root *os.File, req Request) (User, error) {
	userPart, groupPart, _ := strings.Cut(req.User, ":")
	if req.UID != nil {
		userPart, groupPart = "", ""
	}
	u, err := findUser(root, userPart, req.UID)
	if err != nil {
		return User{}, err
	}
	switch {
	case req.GID != nil:
		u.GID = *req.GID
	case groupPart != "":
		if u.GID, err = findGroup(root, groupPart); err != nil {
			return User{}, err
		}
	}
	u.Additional = []uint32{u.GID}
	if !req.Strict && u.Name != "" {
		groups, err := memberships(root, u.Name)
		if err != nil {
			return User{}, err
		}
		u.Additional = append(u.Additional, groups...)
	}
	u.Additional = unique(append(u.Additional, req.Groups...))
	if len(u.Additional) > MaxGroups {
		return User{}, fmt.Errorf("user has more than %d groups", MaxGroups)
	}
	return u, nil
}

func unique(groups []uint32) []uint32 {
	seen := make(map[uint32]bool, len(groups))
	return slices.DeleteFunc(groups, func(g uint32) bool {
		again := seen[g]
		seen[g] = true
		return again
	})
}

// findUser looks for the first entry with the number, or with what has the form of a number or name.
func findUser(root *os.File, text string, uid *uint32) (User, error) {
	if text == "" && uid == nil {
		uid = new(uint32)
	}
	number, numeric := parseID(text)
	if uid != nil {
		number, numeric, text = *uid, true, ""
	}
	found := User{UID: number, Home: "/"}
	there := false
	err := lines(root, passwdFile, func(line string) (more bool, err error) {
		e, ok := parseEntry(line)
		byName := text != "" && e.name == text
		if !byName && (!ok || !numeric || e.uid != number) {
			return true, nil
		}
		if !ok {
			return false, fmt.Errorf("entry of %q is malformed", text)
		}
		found.UID, found.GID, found.Name, there = e.uid, e.gid, e.name, true
		if strings.HasPrefix(e.home, "/") {
			found.Home = e.home
		}
		return false, nil
	})
	if err != nil {
		return User{}, err
	}
	if !there && !numeric {
		return User{}, &NotFoundError{"user", text, passwdFile}
	}
	return found, nil
}

func findGroup(root *os.File, text string) (uint32, error) {
	number, numeric := parseID(text)
	there := false
	gid := number
	err := lines(root, groupFile, func(line string) (more bool, err error) {
		name, id, _, ok := parseGroup(line)
		if name != text && (!ok || !numeric || id != number) {
			return true, nil
		}
		if !ok {
			return false, fmt.Errorf("entry of %q is malformed", text)
		}
		gid, there = id, true
		return false, nil
	})
	if err != nil {
		return 0, err
	}
	if !there && !numeric {
		return 0, &NotFoundError{"group", text, groupFile}
	}
	return gid, nil
}

func memberships(root *os.File, name string) ([]uint32, error) {
	var groups []uint32
	seen := make(map[uint32]bool)
	err := lines(root, groupFile, func(line string) (more bool, err error) {
		_, gid, members, ok := parseGroup(line)
		if !ok || seen[gid] {
			return true, nil
		}
		for member := range strings.SplitSeq(members, ",") {
			if member == name {
				seen[gid] = true
				groups = append(groups, gid)
				break
			}
		}
		if len(groups) > MaxGroups {
			return false, fmt.Errorf("%q is a member of more than %d groups", name, MaxGroups)
		}
		return true, nil
	})
	return groups, err
}

// entry is a line of passwd.
type entry struct {
	name     string
	uid, gid uint32
	home     string
}

// parseEntry returns the name also if the rest is malformed.
func parseEntry(line string) (entry, bool) {
	f := strings.SplitN(line, ":", 7)
	e := entry{name: f[0]}
	if len(f) < 4 || e.name == "" || strings.ContainsRune(line, 0) {
		return e, false
	}
	var okUID, okGID bool
	e.uid, okUID = parseID(f[2])
	e.gid, okGID = parseID(f[3])
	if len(f) > 5 {
		e.home = f[5]
	}
	return e, okUID && okGID
}

// parseGroup returns the name also if the rest is malformed.
func parseGroup(line string) (name string, gid uint32, members string, ok bool) {
	f := strings.SplitN(line, ":", 4)
	if len(f) < 3 || f[0] == "" {
		return f[0], 0, "", false
	}
	gid, ok = parseID(f[2])
	if len(f) == 4 {
		members = f[3]
	}
	return f[0], gid, members, ok
}

// parseID accepts decimal numbers that the kernel takes for ids; the largest one means "none" there.
func parseID(s string) (uint32, bool) {
	id, err := strconv.ParseUint(s, 10, 32)
	return uint32(id), err == nil && id < math.MaxUint32
}
