// Package ociruntime is the embedded runtime: it starts pods and containers and knows when they end.
//
// A Runtime owns the minimal mount namespace in which pauses are born. A Pod is one pause process and
// the namespaces, descriptors and cgroup leaf that belong to it. A Container is prepared by Create
// (cgroup leaf, root, record on disk) and becomes a process by Start: everything it is to see is made
// here as detached mounts and opened files, compiled into a Program and executed by pause.
//
// On disk, in the directory that the caller gives each pod:
//
//	pause.sock      pause listens here for criservers that come later
//	exits           exit records, written by pause
//	oci-<id>.json   what must be known of a container after a restart
//	bundle-<id>/    of a container with hooks: config.json, and rootfs, where its root is attached while it starts
//
// # Starts that begin early
//
// When a container has been created its start begins in the background, for it nearly always follows at once: the leaf is opened, and the
// file systems that are the container's alone are made (ahead). Volumes are opened by Start, and what Start is asked for holds. What
// waits is bounded in number and given up after some seconds; then Start does all of it.
//
// # Hooks
//
// A container with OCI hooks starts more slowly than others, which pay nothing for it. Its root is attached in its bundle on
// the host, and the child begins in a copy of the host's mounts, where it is too. When everything is mounted the child waits:
// prestart and createRuntime hooks run beside criserver, createContainer hooks as processes of pause in the child's namespaces.
// It waits once more, complete but for its last confinement, for startContainer hooks. A hook that fails ends the start;
// poststart and poststop hooks are only reported. Poststop hooks run if there was a start, whoever started the container.
//
// # Volumes that propagate
//
// They are attached by criserver, in the mount namespace of a child that waits, and cloned again until nothing is missing that
// the host mounted meanwhile (anteroom). Starts without them do not wait.
//
// Nothing here is durable: after a reboot all of it is worthless.
//
// Concurrency: all methods may be called at any time, but the caller sees to it that one container is
// not created, started and deleted at the same moment. Lock order: Pod.mu alone; it is never held across a
// system call that can wait.
package ociruntime
