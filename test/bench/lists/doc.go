// Package lists measures how long a CRI server takes for lists and statuses, or for statistics. It makes pods on the host network with containers
// as large as the kubelet makes them (created, for statistics started), asks, and removes what it made, also when it is interrupted.
//
// Answers are measured until the client has their bytes, and others until it has decoded them, which is Go's work and the
// same for every server. The image must be present.
package lists
