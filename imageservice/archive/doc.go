// Package archive reads and writes images as files: what `docker save`, `skopeo copy`, `ctr images export` and build tools
// write, and what they read.
//
// It knows no registry, no store and no daemon. What an archive claims is only what it claims: blobs are given as they
// lie there, and who takes them verifies their digests.
//
// # Reading
//
// Open takes a tar, plain or packed by gzip or zstd, or a directory. In it lies an OCI layout (oci-layout, index.json,
// blobs/) or Docker's archive (manifest.json, with a config and layers for each image), or both, as Docker writes since
// version 25: then the layout counts, and manifest.json gives names to images that have none there. Images of Docker's
// archive get a manifest, made from what is there.
//
// Nothing but small documents is held in memory. Files are read at their places, several at once; a tar that is packed or
// comes from a pipe is copied first, see Spool.
//
// Refused with ErrInvalid: names that lead out of the archive, documents that are there twice, links in circles or to
// nothing, digests that are none, more of anything than limits.go allows.
//
// # Writing
//
// Write makes one tar that is an OCI layout and Docker's archive at once. Layers are not compressed in it, so that the same
// images always give the same bytes.
package archive
