// Package tarstream reads one uncompressed OCI layer as a stream of checked entries.
//
// It owns what an archive may say: how names become paths, what is a whiteout, which extended attributes are taken,
// and the limits. It owns also how a path is walked through the symbolic links of the layer itself (Walk), so that
// every store places an entry at the same spot. It writes nothing: erofs and dirtree do.
//
// # Rules
//
// Names are cleaned: "/a", "./a" and "b/../a" are all "a", and "" is the root itself. A name, or the target of a hard
// link, that leads out of the root ("../a") is refused, since it can only be a trick.
// Symbolic links are kept as they are; a link inside the parent path of a later entry is followed within the layer,
// absolute targets counting from the layer's root and ".." stopping there, as openat2 does with RESOLVE_IN_ROOT.
// Parent directories that no entry made are made with mode 0755, owner 0:0 and time 0.
//
// ".wh.x" and a character device 0/0 named x hide x of the layers below; ".wh..wh..opq" hides all that the layers
// below have in its directory; other names that begin with ".wh..wh." are bookkeeping of AUFS and skipped.
// A whiteout never touches what its own layer brings: beside a directory x it makes x opaque, beside a file it is moot.
// One that hides nothing is never seen: its directory gets trusted.overlay.origin, which makes overlayfs look for it.
//
// Extended attributes come from the PAX records SCHILY.xattr.*. Taken are user.* (on files and directories), trusted.*,
// security.* and POSIX ACLs; not taken are trusted.overlay.*, which would steer the overlay that the layer becomes a
// part of, security.selinux, which the node's policy gives, and name spaces that Linux does not have.
//
// Errors that the archive is to blame for satisfy errors.Is(err, ErrInvalid) and name the entry.
package tarstream
