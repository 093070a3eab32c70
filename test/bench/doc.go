// Command bench measures criserver beside its peers: in one run, in turns, so that whatever else the machine does falls on
// all of them. It prints markdown: the machine, a table for each part, and the ratios to the better peer with their targets
// (DESIGN.md, section 9).
//
//	go run ./test/bench [-quick] [-times 3] [-only start,exec,...] [-runc PATH] [-crun COMMAND] [-containerd PATH]
//	    [-crio PATH -conmon PATH -pinns PATH] [-plugins DIR] [-pods 100]
//
// -beside names another build of criserver, which takes part as a peer: so a change is measured, in turns with what was before it.
//
// Parts: start, mounts and exec drive package ociruntime beside runc and crun, with one bundle for all; unpack has no peer but
// the work that cannot be avoided; roots compares roots of EROFS with roots of directories (it drops the machine's caches), layers
// images of many layers with one; pull fetches an image of many small files from docker-registry beside inflating and hashing it,
// and looks at memory and disk; cri, bridge, sync, lists, stats, memory and a half of logs drive bin/criserver beside containerd
// (1 or 2, with the runc that is named) and CRI-O (with conmon and crun) over their sockets. With a bridge, all daemons run the same
// CNI plugins, and these are measured alone, too; criserver-embedded is one more criserver, with the network that it brings. What a kubelet makes before it asks a runtime, the cgroups of pods, is made by the
// bench. Times are p10, which other work disturbs least, p50 and p99, back to back and one every 100 ms: a loop hides the
// kernel's grace periods.
//
// It runs in mount and network namespaces of its own, with an empty /run and /var/lib, under a directory and a cgroup parent of
// its own, and removes what it made; it kills only what it started. A peer that is missing or does not start is told and left
// out. fetch-crun in this folder unpacks a newer crun than Debian 12 has where bench looks for it; CRI-O then starts it through a
// shell script, since its loader is named on the command line: a crun that is one file spares it that.
package main
