// Package leak compares the system before and after a test: processes, mounts, network namespaces, cgroups, links,
// addresses, routes, packet filter rules, files, and the test process's own descriptors and goroutines.
//
//	func TestSomething(t *testing.T) {
//		leak.Check(t, leak.Files(root, state)) // first, so that its comparison runs after all other cleanups
//
// A State is a list of lines a kind, each of which names one thing exactly and does not change while that thing stays
// the same. Comparing is by bounded polling, the one place of the tests where that is right: what ends, ends a little
// later, and there is no event for "nothing is left".
//
// On a machine that others use at the same time, Match restricts the kinds that all share to lines of one's own. Tests
// that run in parallel with others cannot be checked one by one.
//
// `go run ./test/leak/snapshot write FILE` and `... compare FILE` do the same for a whole suite.
package leak
