// Package registry starts real registries for tests (Debian's docker-registry on a loopback port, with its storage in the
// test's own directory) and builds images for them.
//
// Everything ends with the test that started it. A missing docker-registry skips the test. Images are built in memory and
// are the same every time. Push uploads over HTTP, as any client would; Addr also fits skopeo.
package registry
