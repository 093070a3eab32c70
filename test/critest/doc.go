// Package critest is the conformance suite: it drives a criserver of its own over its socket, as a kubelet would, and looks
// at what comes of it from outside.
//
// The suite runs in mount, network and pid namespaces of its own, with a registry (Debian's docker-registry) and its
// criservers inside, so that nothing of the machine changes: no bridge, no packet filter rule, no sysctl. What namespaces do
// not hold apart, the cgroups, is made below one parent with a name of this run. What is on disk is in one directory.
//
// There is one file a subject. After every test the oracle (package test/leak, and oracle_test.go for the daemon's
// descriptors) compares the system with what it was before. Image rows run against both layer stores.
//
// `go test ./test/critest` as root; docs/testing.md says what is covered. The Debian image is made once with mmdebstrap
// and kept in the user's cache directory; without mmdebstrap or a mirror its rows are skipped.
package critest
