// Package hook runs OCI lifecycle hooks in the namespaces of criserver, and says how any hook ended.
//
// It owns one run, which package command does within bounds: standard input, output, time limit, the error that names the hook.
// When hooks run, what their state is and how one gets into a container is package ociruntime's.
//
// Concurrency: safe.
package hook
