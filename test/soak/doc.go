// Package soak lives many lives of pods at once against one criserver that is killed all the time, and looks whether
// anything is left. It is started by hand, `make soak`, or `go test -run Soak ./test/soak -soak 3m -v`; without -soak
// its test is skipped.
//
// What happens: workers make, use and remove pods (host network and bridge, containers that end by themselves, that are
// stopped, that are killed, whose pause is killed); every request goes out once or several times, with a deadline that is
// sometimes far too short, and is repeated until one answers; criserver is killed with SIGKILL at random moments and
// started again; images are pulled and removed meanwhile.
//
// What must hold: a repeated request ends with one object; exit codes and logs are exact; no address is used twice; at
// the end of every epoch, when all pods are removed, the system, the files of criserver and its descriptors are as before.
//
// It runs in mount, network and pid namespaces, directories and cgroups of its own.
package soak
