// Package blockio reads the classes of block I/O that an administrator has made: weights, and rates of devices.
//
// The file has the form of goresctrl, which containerd and CRI-O read too:
//
//	Classes:
//	  slow:
//	    - Weight: 80                          # of all devices that nothing below names
//	    - Devices: [/dev/sd[a-z], /dev/disk/by-id/*SSD*]
//	      Weight: 50
//	      ThrottleReadBps: 50M
//	      ThrottleWriteBps: 10M
//	      ThrottleReadIOPS: 10k
//	      ThrottleWriteIOPS: 5k
//
// Of a device that several entries name the later one counts. Patterns match what is there when a class is asked for; links
// are followed, and partitions are left out, since the kernel limits whole disks.
//
// Which container is in which class is said by annotations: of the container, of the pod for one container, of the pod for
// all, the first that is there. What a class then means for a cgroup is package cgroup's.
package blockio
