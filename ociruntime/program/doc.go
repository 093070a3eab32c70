// Package program builds Programs: flat lists of Linux system calls that pause executes in a new
// process between clone3 and execve. The wire format is fixed in pause/src/program.h.
//
// Building is pure: a Program holds no descriptor and asks the kernel nothing. Descriptors are named
// by the index at which the caller will pass them; results of earlier calls by Slots. Every call
// carries a description, which Text prints and Describe finds again when pause reports that an
// instruction failed.
package program
