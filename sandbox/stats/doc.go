// Package stats measures what pods and containers use: counters of their cgroups, rates made of them, traffic of their
// networks, their processes and descriptors, and what their writable layers hold.
//
// It owns no pod and keeps no list: package sandbox asks for one object at a time and holds, in that object, the little that is
// remembered between two readings, a Meter, an Idle and a Layer. They need no making and no closing, and are forgotten with the object.
//
// # Costs
//
// Nothing is held open: a control file is opened, read once and closed, three system calls, and a directory with several of them
// is opened before and closed after them. A sample for a rate reads two files of a pod, and one of a container if a task of its pod
// has run. Statistics of a container read 3 files (11 calls) on v1, 6 (22) on v1 with a cgroup2 beside it, which counts pressure,
// 9 (29) on v2; limits on v1 are two files more, those of a pod one, and that of its network. Metrics read 13 files on v1, limits and
// I/O three more, and 15 on v2, besides those of huge pages, and look into /proc/PID/fd of every process: one call a descriptor. Where no task has run since some seconds, only what others can
// have changed is read again, see Idle: of metrics on v1 with a cgroup2 5 files (15 calls) and no process, of a pod 5, of a container in it 3.
// Most of the time goes into finding files by their names, which the kernel does slowly below /sys/fs/cgroup; kept open, each would
// hold a page of its memory.
//
// Lists are measured by a few goroutines, in pieces, so that a slow reader of a long list holds little.
//
// # Writable layers
//
// Where the file system counts a directory (project quotas, see store/layer/quota) it is asked, and nothing here is used. Most
// do not, so the directory is walked, never while a request waits: one goroutine, on a thread whose I/O has the lowest priority,
// visits the layers in turn and rests nineteen times as long as it has worked. Work is processor time, or all time where a disk
// was read; what a busy machine makes it wait is none, so that values do not get old there.
// A value is of the time that it says. The first visit is when the container is made, while there is nothing; after a restart
// a container has no usage of its layer until it was visited.
//
// Concurrency: everything is safe; a Meter, an Idle and a Layer may be used by several goroutines.
package stats
