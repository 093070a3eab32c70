// Package user finds out who a container's process is: user, groups and home directory, by the rules of Docker's USER
// and of the CRI, from /etc/passwd and /etc/group inside the container's root.
//
// These files belong to an image and are trusted in nothing. They are found with openat2, which keeps every
// link inside the root; only regular files are read, by lines, up to MaxFile bytes; lines have at most MaxLine bytes
// and a user at most MaxGroups groups. What does not have the form of an entry is skipped, unless it is the one that is
// wanted. A missing file is an empty one, so that numeric users need none.
//
// The package changes nothing and is safe for concurrent use.
package user
