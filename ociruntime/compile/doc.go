// Package compile turns a decided OCI process into a Program: the exact system calls that a child of
// pause makes between its birth and execve.
//
// Compilation is pure. What needed the kernel (detached mounts, opened cgroup files, the terminal) was
// done before and appears here as indices of descriptors; what depends on the running kernel comes in
// as values. The same input gives the same Program, which the golden tests print.
//
// Every Program of a container begins in the minimal mount namespace that package ociruntime builds;
// the constants below name what is there.
package compile

// Places in the minimal mount namespace.
const (
	ProcDir   = "/proc"   // a full proc, without which the kernel refuses another one to a user namespace
	SysDir    = "/s"      // a full sysfs, for the same reason
	NewRoot   = "/new"    // where the container's root is attached
	CgroupDir = "/cgroup" // with v1: a read-only tmpfs with a directory for each hierarchy
	EmptyDir  = "/empty"  // an empty read-only tmpfs: what masked directories show
	NullFile  = "/null"   // a null device of our own: what masked files show
	PauseExe  = "/pause"  // the pause binary, read-only
)
