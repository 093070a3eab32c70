// Package reset has the machine reset without warning while criserver pulls and removes images, and looks, when the machine
// is there again, at what came of them.
//
// It formats the disk and resets the machine that it runs on, and so does nothing but in a guest that was made for it: flavour
// "reset" of hack/vm, which has a disk that outlives resets and counts the boots. TestReset runs at each boot. It looks at what the cut
// before has left, and leaves a program (this one, with TestCut) that makes the next, once the host has the results. criserver
// and all that it keeps, pods too, is on the disk. The table of cuts is in reset_test.go.
//
// What is lost is what the kernel had not yet handed to the disk: pages, names, the journal. What the disk had taken is kept, as by
// a disk whose power goes on; imageservice's TestPowerLossOfExt4 takes that away too.
package reset
