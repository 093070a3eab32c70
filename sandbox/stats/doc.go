// Package stats measures what pods and containers use: counters of their cgroups, rates made of them, traffic of their
// networks, their processes and descriptors, and what their writable layers hold.
//
// It owns no pod and keeps no list: package sandbox asks for one object at a time and holds, in that object, the little that is
// remembered between two readings, a Meter and a Layer. They need no making and no closing, and are forgotten with the object.
//
// # Costs
//
// Nothing is held open: a control file is opened relative to the root of its hierarchy, read once and closed, three system
// calls. A sample for a rate reads one file (3 system calls). Statistics of a container read 5 files (15 calls) on v1, 9 (27)
// on v2, 8 (24) on v1 with a cgroup2 beside it, which counts pressure; those of a pod one file more and that of its network. Metrics read 16 files on v1 and 15 on v2 besides those of huge
// pages, and look into /proc/PID/fd of every process: one call a descriptor.
//
// Lists are measured by a few goroutines, in pieces, so that a slow reader of a long list holds little.
//
// # Writable layers
//
// No file system that criserver can count on says what a directory holds, so it is walked, never while a request waits: one
// goroutine, on a thread of the lowest priority, visits the layers in turn and rests nineteen times as long as it has worked.
// A value is of the time that it says. The first visit is when the container is made, while there is nothing; after a restart
// a container has no usage of its layer until it was visited.
//
// Concurrency: everything is safe; a Meter and a Layer may be used by several goroutines.
package stats
