package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const mirror = "http://deb.debian.org/debian"

// tree is a directory that mmdebstrap fills with packages of a suite.
type tree struct {
	suite    string
	variant  string // extract: unpacked only; minbase: installed
	packages []string
	options  []string
}

func (t tree) args(dir string) []string {
	args := []string{"--quiet", "--variant=" + t.variant, "--format=directory", "--include=" + strings.Join(t.packages, ",")}
	if t.variant == "extract" { // else it is a package's script that makes /bin, /lib and others links into /usr
		args = append(args, "--hook-directory=/usr/share/mmdebstrap/hooks/merged-usr")
	}
	args = append(args, t.options...)
	return append(args, t.suite, dir, "deb "+mirror+" "+t.suite+" main")
}

// inputs is what decides what the tree has, but for the day on which it is made.
func (t tree) inputs() []string { return t.args("") }

func (t tree) make(ctx context.Context, dir string) error {
	return tell(ctx, "/", "mmdebstrap", t.args(dir)...)
}

// qemu is that of trixie: bookworm's corrupts guests, and that of its backports fails assertions now and then. It is unpacked
// with all its libraries, so that it is the same on any machine.
var qemu = func() recipe {
	t := tree{suite: "trixie", variant: "extract", packages: []string{"qemu-system-x86"}}
	return recipe{name: "qemu", inputs: t.inputs(), make: t.make}
}()

// qemuCommand returns how the qemu in dir is called, and its environment.
func qemuCommand(dir string) (command, env []string) {
	lib := filepath.Join(dir, "usr/lib/x86_64-linux-gnu")
	command = []string{filepath.Join(lib, "ld-linux-x86-64.so.2"), "--library-path", lib, filepath.Join(dir, "usr/bin/qemu-system-x86_64")}
	for _, data := range []string{"usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"} {
		command = append(command, "-L", filepath.Join(dir, data))
	}
	return command, append(os.Environ(), "QEMU_MODULE_DIR="+filepath.Join(lib, "qemu"))
}

// What all roots have: what the flavours run on, and what tests look for.
var rootPackages = []string{
	"systemd", "systemd-sysv", "dbus", "kmod", "iproute2", "procps", "util-linux", "mount", "ca-certificates",
	"busybox-static", "docker-registry", "nftables", "iptables", "erofs-utils", "xfsprogs", "runc",
}

const rootSize = "6G" // sparse

// rootOf makes a suite's root file system for guests with a security module and the packages of that, as root.ext4.
func rootOf(suite, security string, packages ...string) recipe {
	t := tree{suite: suite, variant: "minbase", packages: append(packages, rootPackages...),
		options: []string{"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*"}}
	if security == "selinux" {
		t.options = append(t.options, "--customize-hook=chroot \"$1\" sh -c '"+addPolicy+labelFiles+"'")
	}
	return recipe{name: "root-" + security, inputs: append(t.inputs(), rootSize), make: func(ctx context.Context, dir string) error {
		root := filepath.Join(dir, "root")
		if err := t.make(ctx, root); err != nil {
			return err
		}
		if err := tell(ctx, dir, "/sbin/mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", root, "root.ext4", rootSize); err != nil {
			return err
		}
		return os.RemoveAll(root)
	}}
}

// addPolicy adds to Debian's policy what a package of criserver would bring. There is no domain for it yet: it runs as the
// script that starts it, whose type may do all, as may the iptables that it calls. Containers are confined.
const addPolicy = `cat >/tmp/vm.cil <<END &&
(typeattributeset cil_gen_require initrc_t)
(typeattributeset cil_gen_require iptables_t)
(typeattributeset cil_gen_require container_t)
(typeattributeset cil_gen_require spc_t)
(typepermissive initrc_t)
(typepermissive iptables_t)
(allow container_t initrc_t (fd (use)))
(allow container_t initrc_t (process (sigchld)))
(allow spc_t initrc_t (fd (use)))
END
semodule -n -i /tmp/vm.cil && rm /tmp/vm.cil &&
`

// labelFiles gives the files of a root the labels of its policy. The kernel's command line says whether that is enforced.
const labelFiles = `printf "SELINUX=permissive\nSELINUXTYPE=default\n" >/etc/selinux/config &&
	setfiles -F -e /proc -e /sys -e /dev /etc/selinux/default/contexts/files/file_contexts /`

// erofsImage packs a directory. What is in it has an SELinux label of the given type.
func erofsImage(ctx context.Context, image, dir, label string) error {
	context := []byte("system_u:object_r:" + label + ":s0")
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, unix.Lsetxattr(path, "security.selinux", context, 0))
	})
	if err != nil {
		return fmt.Errorf("label %s: %w", dir, err)
	}
	return tell(ctx, "/", "mkfs.erofs", "--quiet", image, dir)
}
