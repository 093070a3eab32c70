// Package imageservice pulls images, says which there are, removes them, and gives containers their roots.
//
// It owns the way from a registry (package remote) to the image database (store/imagedb) and the layer store
// (store/layer), and who needs which layer. How a layer lies on disk is the layer store's.
//
// # Pull
//
// A layer is one stream: registry, digest of the packed bytes, inflate, digest of the plain bytes, layer store. Each of
// these works in a goroutine of its own, so that the slowest bounds the layer, while fewer layers than processors are on their
// way; else one goroutine does them all, which saves handing over and keeps a buffer in one processor's cache. Layers run side
// by side, the largest first; layers, connections and memory are bounded over all pulls (Bounds). What each stage took is
// accounted (package progress), for metrics and the log. The same layer wanted twice is fetched once, the same pull wanted
// twice runs once; a caller whose ctx ends stops waiting, and the work stops with the last one that waits. A pull that fails
// leaves nothing behind, also no layer that was complete. The layer store syncs nothing before the pull is recorded: the record
// is synced itself, and would wait for the disk behind all layers.
//
// What a pull may bring in is for package trust to say where that is configured: after the manifests are known and before
// anything else is fetched, at every pull, also of an image that is present. What is present may be used.
//
// # Archives
//
// Import takes images from an archive (package archive) as Pull does from a registry: the same digests are verified, the same
// limits hold, and a layer that a pull fetches at the same time is unpacked once. Export rebuilds layers byte for byte from
// their frames, so ids stay. Compressed bytes are not kept: a manifest that speaks of compressed layers is replaced in the
// archive by one that speaks of plain ones, and comes along as a blob; Import finds it there and keeps it. So do the indexes by which
// the image was reached: a repository digest is taken from an archive only with the documents that lead from it to the image.
// The manifest of an artifact is never replaced; its parts come back under their digests, or it cannot be exported.
// Package trust is asked about every name that an image gets by an import, as if it were pulled by that; what it looks for is in the
// archive. Configuration can let imports in (Verification.AnyImport).
//
// # Artifacts
//
// An OCI manifest with an artifact type, or with a config that is no image's, is an artifact: content of any kind, which can be
// mounted as a volume and of which no container is made. A layer with a title is a file of that name; one whose media type is
// an archive's and that has no title, or is marked to be unpacked (as oras marks directories), is what the archive has.
// Each is a layer of the store; the diff ID of a file is that of an archive with the file alone. Nothing vouches for diff IDs
// here: they are what came of bytes with the right digest, and are known once these were fetched.
//
// # Invariants
//
// An image is in the database only while all its layers are in the store. A layer is in the store only while it
// is held (see holds) or a container's root is built on it. Nothing durable vouches for something that is not: the
// store drops layers that a power loss caught before they were synced, and New then forgets the images of these.
//
// # Identity
//
// An image is its config: the id is sha256:<hex> of the config's bytes everywhere; an artifact, its manifest. Removing it by any of its names removes
// it with all of them. Reads are answered from the database's snapshot, which never waits.
//
// Concurrency: everything is safe. Lock order: Service.images, then imagedb's and holds' own; nothing is locked while the
// network or the layer store is waited for.
package imageservice
