package mount

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Attr is a change of mount attributes (MOUNT_ATTR_*), as mount_setattr(2) takes it.
type Attr struct {
	Set, Clear uint64
}

// Options is the meaning of a list of OCI mount options.
type Options struct {
	Attr        Attr     // of the mount itself
	Recursive   Attr     // of it and everything below (rro, rnosuid, ...; 5.12)
	Propagation uint64   // MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_UNBINDABLE; 0: leave
	RecProp     bool     // the propagation is meant for everything below too
	Bind        bool     // bind or rbind
	RecBind     bool     // rbind
	Data        []string // for the file system: "key" or "key=value"
	IDMap       bool     // idmap or ridmap
	RecIDMap    bool     // ridmap
}

var attrs = map[string]Attr{
	"ro":            {Set: unix.MOUNT_ATTR_RDONLY},
	"rw":            {Clear: unix.MOUNT_ATTR_RDONLY},
	"nosuid":        {Set: unix.MOUNT_ATTR_NOSUID},
	"suid":          {Clear: unix.MOUNT_ATTR_NOSUID},
	"nodev":         {Set: unix.MOUNT_ATTR_NODEV},
	"dev":           {Clear: unix.MOUNT_ATTR_NODEV},
	"noexec":        {Set: unix.MOUNT_ATTR_NOEXEC},
	"exec":          {Clear: unix.MOUNT_ATTR_NOEXEC},
	"nosymfollow":   {Set: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"symfollow":     {Clear: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"nodiratime":    {Set: unix.MOUNT_ATTR_NODIRATIME},
	"diratime":      {Clear: unix.MOUNT_ATTR_NODIRATIME},
	"relatime":      {Set: unix.MOUNT_ATTR_RELATIME, Clear: unix.MOUNT_ATTR__ATIME},
	"norelatime":    {Clear: unix.MOUNT_ATTR__ATIME},
	"noatime":       {Set: unix.MOUNT_ATTR_NOATIME, Clear: unix.MOUNT_ATTR__ATIME},
	"atime":         {Clear: unix.MOUNT_ATTR__ATIME},
	"strictatime":   {Set: unix.MOUNT_ATTR_STRICTATIME, Clear: unix.MOUNT_ATTR__ATIME},
	"nostrictatime": {Clear: unix.MOUNT_ATTR__ATIME},
	"defaults":      {},
}

var propagations = map[string]uint64{
	"private":    unix.MS_PRIVATE,
	"slave":      unix.MS_SLAVE,
	"shared":     unix.MS_SHARED,
	"unbindable": unix.MS_UNBINDABLE,
}

// Superblock flags that mount(2) knows by number and a file system's own parser does not take.
var superblockFlags = []string{"sync", "dirsync", "lazytime", "mand", "async", "nolazytime", "nomand", "silent", "loud", "iversion", "noiversion"}

// ParseOptions translates OCI mount options. What it does not know is data for the file system.
func ParseOptions(options []string) Options {
	var o Options
	for _, s := range options {
		o.parse(s)
	}
	return o
}

func (o *Options) parse(s string) {
	if a, ok := attrs[s]; ok {
		o.Attr = o.Attr.then(a)
		return
	}
	if r, ok := strings.CutPrefix(s, "r"); ok {
		if a, ok := attrs[r]; ok && s != "ro" && s != "rw" {
			o.Recursive = o.Recursive.then(a)
			return
		}
		if p, ok := propagations[r]; ok {
			o.Propagation, o.RecProp = p, true
			return
		}
	}
	if p, ok := propagations[s]; ok {
		o.Propagation, o.RecProp = p, false
		return
	}
	switch s {
	case "bind":
		o.Bind = true
	case "rbind":
		o.Bind, o.RecBind = true, true
	case "idmap":
		o.IDMap = true
	case "ridmap":
		o.IDMap, o.RecIDMap = true, true
	default:
		if s != "" {
			o.Data = append(o.Data, s)
		}
	}
}

// then applies b after a.
func (a Attr) then(b Attr) Attr {
	return Attr{Set: a.Set&^b.Clear&^(atimeOf(b)) | b.Set, Clear: a.Clear&^b.Set | b.Clear}
}

// atimeOf is the whole atime field if b changes any of it: its values exclude each other.
func atimeOf(b Attr) uint64 {
	if (b.Set|b.Clear)&unix.MOUNT_ATTR__ATIME != 0 {
		return unix.MOUNT_ATTR__ATIME
	}
	return 0
}

// Validate refuses options that make no sense for a bind mount.
func (o Options) Validate() error {
	if !o.Bind {
		return nil
	}
	for _, d := range o.Data {
		if !slices.Contains(superblockFlags, d) && !strings.HasPrefix(d, "x-") && !strings.Contains(d, "context=") && d != "z" && d != "Z" {
			return fmt.Errorf("mount option %q is not one of a bind mount", d)
		}
	}
	return nil
}
