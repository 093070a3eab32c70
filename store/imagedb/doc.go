// Package imagedb remembers which images there are: names, digests, config, manifest and layers of each, and small documents of theirs.
//
// It owns one bbolt file and a lock file beside it. It knows nothing of registries or of layer data: whether the
// layers that an image names are really there is the caller's to find out after Open.
//
// Readers never touch the disk: they use the Snapshot that the last change published, an immutable value behind an
// atomic pointer. A change is one synced bbolt transaction and then a new snapshot, so what a snapshot shows is durable.
//
// # Invariants
//
// An image has one ID, the digest of its config; an artifact that of its manifest. A name (repository:tag) belongs to at most one image: giving it to
// another takes it away from the former, which stays under its ID and digests. A repository digest
// (repository@digest) belongs to at most one image as well.
//
// # Any state of the file
//
// Before bbolt maps the file, every page of it is checked by code that trusts nothing (bbolt itself takes pointers from
// the file and dies of a wrong one). A file that fails is renamed to <path>.corrupt-N and a new one begun. Single
// values whose digest or checksum does not match are dropped. Open reports both; neither is an error, because every
// image can be pulled again.
//
// # A full disk
//
// bbolt writes before it frees, so a removal needs space. A file holds as much of it back, is emptied when a removal finds the
// disk full, and is filled again by Refill, Put and Open.
//
// # Files on disk
//
// <path> (bbolt), <path>.lock (flock, held while open), <path>.reserve, <path>.corrupt-N (set aside, never touched again).
//
// Concurrency: safe. Writers queue behind one mutex, which is held during the sync; readers never wait.
package imagedb
