// Package record keeps small values in checksummed files.
//
// It owns the format of one file and nothing else: what a value means, where files lie and when one is deleted is
// the caller's. A write replaces the file whole by rename, so a reader sees the old value or the new one and never a
// mixture, as long as the machine stays up. Nothing is synced: a record survives the death of every process but not a
// power loss, after which the file may be missing, empty or torn. That is found by its checksum and told as
// ErrCorrupt; the caller decides whether to set the file aside.
//
// # Format
//
// One header line, then the value as JSON up to the end of the file:
//
//	criserver-record 1 <sha256 of the payload, 64 lower-case hex digits> <payload length, decimal>\n
//
// A reader accepts exactly one spelling of the header, hence every flipped bit of a file is noticed.
//
// # Files on disk
//
// <path> is the record. <path>.tmp-<number> exists during a Write; one that a crash left behind is removed by Sweep.
// <path>.corrupt-<N> is a record that was set aside, N counting from 1.
//
// Concurrency: all functions are safe, also on one path: the last Write wins.
package record
