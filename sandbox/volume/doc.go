// Package volume prepares directories of the host that are mounted into containers: copies of what an image has where it
// asks for a volume, and directories where a mount has no source yet.
//
// It mounts nothing and remembers nothing: who asked for a directory removes it. A path of an image is opened below the
// image's root and nowhere else.
//
// Concurrency: safe. A file system that does not answer costs one goroutine a path, and those who ask only their time.
package volume
