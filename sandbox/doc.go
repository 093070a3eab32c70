// Package sandbox owns the pods and containers of the node: their life cycle, their records and what they owe.
//
// Service is all pods. A pod's changes are serialised by that pod alone; nothing that is shared between pods is locked
// across I/O, a process, a mount or a plugin. It decides; ociruntime runs processes, cni attaches networks, the image
// service gives roots.
//
// # Operations
//
// Every change is an operation of a stage.Group, keyed by the identity of its object: pod (name, namespace, uid,
// attempt), container (sandbox, name, attempt). A caller's deadline ends its wait only. Making is a list of steps
// with their undoing; the same list serves rollback, removal and recovery after a crash.
//
// # Reading
//
// PodStatus and ContainerStatus are immutable values behind atomic pointers, the table of all objects is a sorted slice
// that is replaced whole. List and Status take no lock and touch no file. Statistics are read from the kernel, by package
// stats; a pod's mu is taken for a moment only, to find what belongs to it.
//
// # Events
//
// advance, the one door of a phase, also lists the object or not and tells subscribers (package events), with pod.mu held: what
// an event says is what lists say from then on, a pod's events have the order of its transitions, each comes once. Objects that
// never were listed have none.
//
// # Plugins
//
// What NRI plugins are asked is a step of an operation; what they are told of an end is told by whoever sees it, once:
// known says what they know of an object, and changes under the Hold of the event only. One thing is told of a container at a
// time, by whoever has its turn; a start has it from its first event to its last, so that no end overtakes it. Nobody who
// has a lock asks, tells, or waits for a turn.
//
// # Recovery
//
// A record stands on disk before the first external effect of its object and goes after the last one was undone, so a
// criserver that is killed between any two steps leaves nothing that the next one does not find. What was half made or
// half removed is undone, what lives is adopted; the truth about processes is asked of the runtime, before anybody is
// answered. A record that cannot be read costs its object, never the start.
//
// # Files on disk
//
//	<state>/pods/<pod id>/record              the pod, as podRecord, with what its runtime handler gave when it was made
//	<state>/pods/<pod id>/c-<container id>    a container, as containerRecord
//	<state>/pods/<pod id>/{hostname,hosts,resolv.conf}  what containers see under /etc; the rest there is ociruntime's
//	<state>/corrupt/                          records that could not be read
//	<root>/ledger/                            network attachments that are owed their DEL, see package ledger
//	<root>/volumes/<container id>/<n>         volumes of the image
//	/run/netns/cri-<pod id>                   a pod's network namespace, for CNI plugins
//
// Concurrency: Service is safe. The start, the updates and the removal of one container take turns; a turn is waited for
// with a context, before any lock. Lock order: pod.mu, then Service.mu or those of package events, then halting; keeper.mu is
// taken alone. Only pod.mu is held across I/O, the writing of that pod's record to tmpfs. One goroutine a pod follows the ends of
// its processes.
package sandbox
