// Command cri measures a CRI server that is there already, ours or a peer, as a kubelet would see it.
//
//	go run ./test/bench/cri -endpoint unix:///run/criserver/criserver.sock -image REF [-pods 20] [-containers 1000]
//	    [-requests 1000] [-parallel 1,8] [-cgroup-parent /bench-cri] [-stats]
//
// It makes pods on the host network with containers as large as the kubelet makes them (created, and with -stats started), asks for lists and
// statuses, or for statistics, and removes what it made, also when it is interrupted. It prints markdown: p50 and p99 until the answer is there,
// and the same until the client has decoded it, which is Go's work and the same for every server.
//
// The image must be present. Times of two runs cannot be compared; for a comparison let it ask both servers on one machine.
package main
