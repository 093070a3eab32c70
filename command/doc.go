// Package command runs programs of the operator and of the host within bounds: CNI plugins, OCI hooks, credential helpers, image
// verifiers, iptables, apparmor_parser.
//
// It owns one run: the process group that is killed as a whole when ctx ends, output that is bounded and read no longer than
// Linger past the end of the program, whoever holds it open. Time limits are the caller's, as a context whose cause is the error.
// Which program, what it is told and what its answer means is the caller's too.
//
// A program is killed with criserver, however that ends: what a next criserver undoes or asks again does not race with
// it. Processes that left its group, or that it may leave behind, are not.
//
// Concurrency: Run is safe. An Output must not be read before Run has returned.
package command
