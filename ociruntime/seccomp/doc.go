// Package seccomp compiles OCI seccomp policies into filters for the kernel, and provides the policies of
// SeccompProfile RuntimeDefault and Localhost.
//
// A filter is a binary tree of ranges of system call numbers, because the kernel emulates a filter for every number
// when it is loaded: a list of comparisons costs most of a container's start.
//
// A policy means what libseccomp and runc make of it:
//
//   - A rule whose action is the default action is left out; so is a name that the architecture does not know.
//   - The first unconditional rule of a system call decides. Without one, conditional rules are tried in the order of
//     the policy and the first match decides; no match is the default action.
//   - The conditions of a rule must all hold, unless two of them look at the same argument: then each of them is a
//     rule of its own.
//   - The 32-bit architectures (x32 too) compare the low half of an argument.
//   - On x86, rules without conditions for a socket or System V IPC call also hold for its form behind socketcall and ipc.
//   - The native architecture always belongs to the policy; a call of an architecture that does not belong kills
//     the process.
//   - Default action ERRNO (with anything but ENOSYS): numbers above the newest call that the policy names answer
//     ENOSYS. C libraries try the newest call first and fall back on ENOSYS only; EPERM from a call that the author of
//     the policy could not know breaks every program on the day of a new libc.
//
// Compilation is pure and safe for concurrent use. Results are cached by the digest of the policy and never change.
package seccomp

//go:generate go run ./internal/gensyscalls
