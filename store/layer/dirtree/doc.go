// Package dirtree unpacks a layer into a directory, one inode per file, in the form that overlayfs takes as a lower.
//
// Whiteouts become character devices 0/0 in a directory with trusted.overlay.origin, and opaque directories get
// trusted.overlay.opaque=y. It agrees with package erofs about every rule of tarstream, so that both stores show the same
// layer; only times that the file system cannot keep become the nearest that it can.
//
// Paths may be longer than PATH_MAX. Every path is resolved by the kernel with openat2 from the descriptor of the layer's root (RESOLVE_IN_ROOT,
// RESOLVE_NO_MAGICLINKS), or one component at a time without following anything; a symbolic link in a layer can lead
// nowhere else. Needs root and Linux 5.8. Nothing is synced.
//
// Attributes that later entries would disturb (times of directories, default access lists) are set by Finish; until
// then each directory costs about 100 bytes and its path, and each regular file 16 bytes.
//
// Finish writes an inventory: a line for each name, in an order that depends on names only, with what the file system
// says of it and the checksum of its contents as they were written. Check compares a tree with its inventory.
package dirtree
