// Package inflate reads gzip streams, faster than packages made for streams of any size and shape: most of what a pull costs
// is inflating.
//
// It takes what compress/gzip takes and refuses what that refuses, in one member or many, checksums and lengths included; a
// fuzz target compares the two. It differs where that is seen from outside only in reading ahead: bytes behind the last member
// would be read too, and are an error as they are there.
//
// # How
//
// Input is looked at 64 bits at a time. At the end of the stream it is followed by zeros, so that no step has to ask whether
// there is more; what was used beyond the end is found afterwards. One look into a table gives a symbol of up to 11 bits with what it means and
// how many bits follow it; longer symbols need a second look. Output goes into a buffer that has the last 32 KiB before it,
// with room for the longest match behind it, so that matches are copied eight bytes at a time and may write too much.
//
// Nothing here is unsafe: a stream that finds a mistake gets a panic, no memory.
//
// Concurrency: a Reader is for one goroutine.
package inflate
