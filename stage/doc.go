// Package stage gives long operations their shape: named stages with bounds, lists of steps that are undone in
// reverse, operations that several callers may wait for, and a flight recorder of what the last ones did.
//
// It owns no object of the domain and knows none: sandbox, imageservice and cri bring their own. It keeps nothing on disk.
//
// Run is one stage: an error of it names the stage and the time it took. Steps is a list of stages with their undoing.
// Group makes operations joinable: work is keyed by the identity of what it makes and runs on a context of its own, so
// that the deadline of a caller ends that caller's wait and nothing else. Recorder remembers the last operations.
// Persist repeats what nobody waits for until it succeeds.
//
// Concurrency: everything here is safe for concurrent use. Lock order: Group.mu, then Recorder.mu, then Op.mu;
// none is held while work, an undo or a caller is waited for. Group calls Work.Valid with Group.mu held.
package stage
