// Package sums keeps checksums of what was written, block by block, and compares them later with what a disk gives.
//
// A checksum is the CRC-32C of a block of 4 KiB, which finds what disks, controllers and crashes do to data. It does not
// find tampering: what can write to the store can write checksums as well. That of a block of zeros is kept
// as 0, so that holes of a file are holes of its checksums, and a file of a tebibyte of nothing costs nothing.
//
// What loses writes of a file may lose its checksums too, and then both are zeros; OfSums, kept elsewhere, tells.
//
// Compare reads past the page cache where the file system can, and so asks the disk and not memory.
package sums
