// Package rlimit names the resource limits of processes, reads them from text, and says which of them criserver can give.
//
// It changes no limit: a container's are set by its Program, pause's by package ociruntime.
package rlimit
