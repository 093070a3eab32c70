// Package layer keeps the unpacked layers of images and builds the root file systems of containers from them.
//
// It owns the formats of layers on disk, their mounts, what is durable, and the writable directories of containers.
// Which layers exist in the end, which images want them and when one is removed is the caller's.
//
// # Formats
//
// "erofs": two files, metadata and contents (package erofs), mounted once from the files, with `directio` where the
// kernel has it (else page cache would hold contents twice; a new layer gets it after two minutes, see warm.go).
// Linux 6.12. A mount reads ahead as the disk below does, up to 1 MiB (package readahead). "overlay": a directory (package dirtree).
// New layers get the format that was asked for or the first that works; layers of the other format are used as well.
//
// # Durability
//
// A layer can be used as soon as Commit returns. Until Sync (or Run, which waits up to syncDelay for layers that are being
// unpacked) has synced its data it is recorded as pending with the boot's ID; Open drops the pending layers of other boots,
// and those only. So nothing durable vouches for something that is not. A layer whose data cannot be synced is removed; a
// directory that a container uses is put aside until the next boot.
//
// # Damage
//
// While a layer is unpacked, checksums of its files are kept beside it (package sums; an inventory of a
// directory, see dirtree), and one of its frame in its record. Verify compares; Expel takes a damaged layer away, so that a pull brings it anew.
//
// # Roots
//
// Root gives an overlay as a detached mount: on Linux 6.15 and newer straight from the detached mounts of the layers;
// before, layers are attached once in a mount namespace of the store's own, which lives on one locked thread, and
// overlays are made there. The host's mount table never changes. The writable directory is volatile: it does not
// survive a reboot, and nothing waits for a disk. Of one layer that an image has twice the upper one counts.
// The mount of a layer stays open until the layer is removed, so its page cache stays warm from container to
// container; Kept and Adopt carry it over a restart of criserver.
//
// # Mount points
//
// A start makes what is missing of the mount points that its container needs (/etc/hosts), by copies in the writable directory: the
// dearest part of it. So the first root of a combination of layers and RootOptions.MountPoints is looked at, and those that follow
// stand on a footing: a directory with exactly what the layers lack, links of the image followed, below all of them. A layer's entry
// hides it, as does a whiteout; then the start makes the mount point as before. Roots with the same needs share one. It is
// made aside, and never written to afterwards. A container sees its directories as it sees those of the image: to rename one that is above a
// mount point is EXDEV, unless the kernel redirects directories. Up to maxFootings that no root stands on are kept, and none over a restart.
//
// # What containers write
//
// On a file system with project quotas (package quota) each writable directory has a project of its own, from 2^30 up, which
// counts it and, with Config.WritableLimit, bounds it. Its number is in the root's record, and free when the directory is gone.
//
// # Files below Config.Root
//
//	layers/<algorithm>-<hex>/      a layer: `layer` (record), `frame` (package frame), `sums`, `meta` and `data`, or `fs`
//	layers/<name>.aside-<n>/       one that could not be synced while a container used it
//	containers/<id>/               `root` (record: boot, layers, project, footing), `upper`, `work`
//	footings/<hash>/               a footing; the hash is of its mount points
//	empty/                         the lower of images without layers
//	tmp/, trash/                   unfinished and doomed things; emptied by Open. What RemoveRoot leaves in trash is empty
//	                               directories, which one goroutine deletes; Close waits for it
//
// Concurrency: all methods of Store are safe. Lock order: entry.mounting (held for one mount of that layer), then
// the lock of readahead.Disk (held for one mount of any layer), then Store.mu (held for one rename or open inside the root,
// never while unpacking, mounting, syncing or deleting).
package layer
