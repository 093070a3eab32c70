// Package nri tells plugins of the node resource interface (github.com/containerd/nri) of pods and containers, and hands
// back what they want changed.
//
// Plugins owns the socket, the plugins that criserver launches, and their registration. It knows no pod: its owner, package
// sandbox, describes each one at each event, says which have been told when a plugin comes new (Source), and applies what
// comes back. Adjust changes an OCI spec as plugins ask, and refuses by name what a container of ours cannot have.
//
// # Nothing is lost, nothing twice
//
// A plugin is added in one step: it is told of everything that the others know, and gets all events from then on. So
// an event, and the note of its owner that it was told, happen under one Hold, during which no plugin is added. A
// Hold is for one event. It is not held by anybody who waits for a Hold, and a Source takes none: a waiting plugin would
// block both.
//
// # Bounds
//
// A plugin has RequestTimeout to answer. One that does not is dropped, and the event goes on without it, unless it asked for
// another policy when it registered. Events are told one at a time on the whole node: that is the library's order.
//
// # Where the library falls short
//
// It drops evictions. It tells the next plugin, but not us, which variables a plugin removed: Create finds them. Its generator
// of specs leaves out memory limits but one and appends limits that are there already: Adjustment.Apply does it instead.
//
// Concurrency: all methods are safe. A nil *Plugins is valid, and has no plugins.
package nri
