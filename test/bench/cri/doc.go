// Command cri measures a CRI server that is there already, ours or a peer, as a kubelet would see it.
//
//	go run ./test/bench/cri -endpoint unix:///run/criserver/criserver.sock -image REF [-pods 20] [-containers 1000]
//	    [-requests 1000] [-parallel 1,8] [-cgroup-parent /bench-cri] [-stats]
//
// It prints in markdown what package lists finds out. Times of two runs cannot be compared; for a comparison let it ask both servers on one machine.
package main
