// Package kernel asks the running kernel what it can do.
//
// Every question is a Feature: a probe that does the thing once, in a corner where nobody sees it, and says yes, no, or
// that it could not tell. Only yes and no are remembered. The version that first had a feature serves messages and tests;
// nothing decides by it.
//
// A feature is required (criserver does not run without it) or optional (there is a fallback, or something that is
// refused with a clear error). For tests every optional feature can be refused: by Refuse, or for a whole process by
// the environment variable CRISERVER_REFUSE, "all" or names with commas between them.
//
// Two answers depend on a file system and so are functions of a directory: ErofsFileBacked and IDMapped.
//
// The probes need root. They leave nothing: mounts are detached or made in a mount namespace that ends with the probe.
// Concurrency: safe; a question that is asked twice at once is probed once.
package kernel
