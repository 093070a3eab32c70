// Command bench measures criserver beside its peers: in one run, in turns, so that whatever else the machine does falls on
// all of them. It prints markdown: the machine, a table of times for each part, and the ratios that issue 2 asks for.
//
//	go run ./test/bench [-quick] [-only start,exec,...] [-runc PATH] [-crun COMMAND] [-containerd PATH] [-pods 100]
//
// Parts: start, mounts and exec drive package ociruntime beside runc and crun, with one bundle for all; cri, memory and stats drive
// bin/criserver beside containerd over their sockets; unpack and logs have no peer but the work that cannot be avoided.
// Times are p50 and p99, back to back and one every 100 ms: a loop hides the kernel's grace periods.
//
// It runs in a mount namespace of its own, under a directory and a cgroup parent of its own, and removes what it made;
// it kills only what it started. A peer that is missing is reported as not here. fetch-crun in this folder unpacks a
// newer crun than Debian 12 has where bench looks for it.
package main
