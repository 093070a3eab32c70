# Made and loaded by criserver, for containers that ask for no other profile.
profile criserver-default flags=(attach_disconnected,mediate_deleted) {
  # Namespaces, capabilities and seccomp bound these.
  file,
  network,
  unix,
  capability,
  umount,

  # The host stops and kills; in the container, and in others with this profile, pid namespaces bound the rest.
  signal (receive) peer=unconfined,
  signal (send, receive) peer=criserver-default,
  ptrace (trace, read, tracedby, readby) peer=criserver-default,

  # Mounts are made before the container's program runs.
  deny mount,

  # Of /proc, a process may write to what is its own (/proc/PID), and to the limits of shared memory.
  deny /proc/* wkl,
  deny /proc/[^0-9st]*/** wkl,
  deny /proc/t[^h]*/** wkl,
  deny /proc/s[^ey]*/** wkl,
  deny /proc/sy[^s]*/** wkl,
  deny /proc/sys?*/** wkl,
  deny /proc/sys/[^k]** wkl,
  deny /proc/sys/k[^e]** wkl,
  deny /proc/sys/ke[^r]** wkl,
  deny /proc/sys/kernel/[^s]** wkl,
  deny /proc/sys/kernel/s[^h]** wkl,
  deny /proc/sys/kernel/sh[^m]** wkl,
  deny /proc/{sysrq-trigger,mem,kmem,kcore} rwklx,

  # Of /sys, the container's cgroups.
  deny /sys/[^f]** wklx,
  deny /sys/f[^s]** wklx,
  deny /sys/fs/[^c]** wklx,
  deny /sys/fs/c[^g]** wklx,
  deny /sys/fs/cg[^r]** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
