// Package apparmor knows which AppArmor profiles the kernel has, and loads criserver's own.
//
// DefaultProfile is for containers that ask for no other. Its text is made here from what a container needs, and is given
// to apparmor_parser, the one compiler of profiles. The kernel keeps it when criserver ends: containers are confined by
// name, and a text that is loaded again under the same name confines those that run already. A file on a tmpfs remembers
// the text that was loaded, so that a restart with the same text loads nothing.
//
// Confining a process is not done here: package compile writes the profile's name to /proc/thread-self/attr in the child.
package apparmor
