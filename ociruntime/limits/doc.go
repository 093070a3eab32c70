// Package limits changes what a container may use, as plain values in OCI's terms; package cgroup writes them.
//
// A change names what is to be different: nil, empty and, where 0 is no limit that anybody could mean (bytes, processes,
// processor time), 0 leave a limit as it is. Huge page sizes and unified files are changed one by one,
// limits of block devices all together, because they come as a class.
//
// The limit of memory and swap together goes with the limit of memory: a change of memory alone leaves as much swap as
// there was, none for a container that was never given any.
//
// Values are never changed in place; those that are returned share what is the same with those that were given.
package limits
