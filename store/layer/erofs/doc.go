// Package erofs writes a layer as an EROFS file system in two files: metadata, and a device with the contents.
//
// It works from a stream: contents go to the data device as they come, metadata follows at Finish. Both are plain
// files to it; mounting is the caller's. Nothing is compressed.
//
// # Image
//
// The metadata file has the superblock (block 0, with its device table), then all inodes with their extended
// attributes and small directories inline, then the blocks of larger directories and long symbolic links. A regular
// file is one chunk on device 1, whatever its size: one index of eight bytes. Contents begin at block borders; long
// runs of zeros are holes of the data file. Names of one inode share it (hard links). Inodes are extended (64 bytes,
// mtime with nanoseconds), or compact (32 bytes) where their mtime is the most frequent one, which the superblock
// then holds. Extended attributes are inline, none are shared. Opaque directories carry trusted.overlay.opaque=y,
// whiteouts are character devices 0/0 and their directories carry trusted.overlay.origin. Linux 6.12 mounts such an
// image from files, 5.16 from block devices. The same layer always gives the same image.
//
// # Memory
//
// Per entry: 56 bytes for the inode, 20 for the name's place, 4 to 16 for the hash table, 4 for the order of writing, the name itself and a
// symbolic link's target; about 110 bytes with usual names. Distinct sets of extended attributes are kept once. Names,
// targets and sets are together bounded by Limits.Text.
// Beside that three buffers of 1 MiB. A name that was ever used costs its entry once, however often it is replaced,
// and all work is linear in the length of the stream.
package erofs
