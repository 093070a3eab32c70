// Package dirtree unpacks a layer into a directory, one inode per file, in the form that overlayfs takes as a lower.
//
// Whiteouts become character devices 0/0 and opaque directories get trusted.overlay.opaque=y. It agrees with package
// erofs about every rule of tarstream, so that both stores show the same layer.
//
// Every path is resolved by the kernel with openat2 from the descriptor of the layer's root (RESOLVE_IN_ROOT,
// RESOLVE_NO_MAGICLINKS), or one component at a time without following anything; a symbolic link in a layer can lead
// nowhere else. Needs root and Linux 5.8. Nothing is synced.
//
// Attributes that later entries would disturb (times of directories, default access lists) are set by Finish; until
// then each directory costs about 100 bytes and its path.
package dirtree
