// Package readahead gives mounts of EROFS images that lie in files the read-ahead of the disk below.
//
// The kernel counts read-ahead per BDI (backing device info). A mount from files has one of its own with the kernel's
// 128 KiB, so it asks a disk that was given more in small pieces. The BDI is named erofs-N, and nothing tells which mount
// has which N: not st_dev, not statmount. But N is never used twice and the BDI is there when the mount is, so if there is
// exactly one new name after a mount, it is the mount's, whoever else mounts. If there are more, because somebody else
// mounted at that moment, all are left as they are; mounts of one Disk wait for each other.
//
// A mount gets 1 MiB at most. A fault on a mapped file reads that much around it, and what is read counts for the memory
// of who faults. It can be reclaimed, but with 8 MiB a container with a limit of 32 MiB that faulted at random in a file
// of 512 MiB took 16 times the processor time that it takes with 128 KiB (as it does with directories on such a disk),
// with 1 MiB 3.5 times. A program starts as fast with 1 MiB as with 8.
//
// Nothing is done where the disk cannot be found (a file system with an anonymous device, no sysfs), where it has the
// kernel's 128 KiB, or where sysfs cannot be written. Nothing is left: the BDI goes with the mount.
package readahead
