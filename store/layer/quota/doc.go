// Package quota counts and limits what directories hold with project quotas, which ext4 (features quota and project; limits with
// the mount option prjquota) and XFS (prjquota) have, in two system calls and without walking.
//
// A directory that Assign gave a project passes it on to all that is made below it. Which projects are used is the caller's to
// know; this package remembers nothing. Linux 5.14.
package quota
