// Package mount makes detached mounts: file descriptors of mounts that are attached nowhere, which the
// child of pause moves to their places. It never changes the mount table of the caller's namespace.
//
// Bind clones a part of the caller's mount namespace; New makes a file system; Options translates the
// option strings of the OCI runtime specification. All need CAP_SYS_ADMIN and Linux 5.12 (mount_setattr).
package mount
