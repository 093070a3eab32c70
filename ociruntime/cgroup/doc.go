// Package cgroup makes, limits, counts, watches, kills and removes the control groups of pods and containers.
//
// A Group is one leaf: a directory of the same path in every mounted hierarchy (cgroup v1: one hierarchy per set of
// controllers; v2: one in all; hybrid: v1 controllers beside a cgroup2, where every leaf has a directory too).
// The two versions meet behind the unexported interface dialect; no code outside this package asks which one runs.
//
// A Guest has a directory of its own only where its processes are counted and killed, and is in the group above otherwise.
//
// What it owns: the leaves, and their limits. The directories above them belong to the kubelet: they are made where they
// are missing, their limits are never written (an empty v1 cpuset, in which nothing could run, gets its parent's processors),
// and they are removed only if Create made them and Delete is told so.
//
// Nobody is moved into a leaf from outside. Placement hands out descriptors with which a child places itself (v1: "0" into
// tasks) or is born in its place (v2: CLONE_INTO_CGROUP); writing a pid from outside would wait for RCU grace periods.
//
// A Group keeps no descriptor open and nothing on disk; Open finds it again from its path alone.
//
// Stats reads the counters of a leaf or of any group above it, one file at a time.
//
// The truth about processes is asked of the kernel (cgroup.events, cgroup.procs); events only wake the asker.
//
// Concurrency: a Hierarchies is safe for all; the methods of one Group may run at the same time, except
// that Update must not overlap with itself and nothing may follow Delete.
//
// With the systemd driver a Scope, one per pod, takes the place of the parent directory.
package cgroup
