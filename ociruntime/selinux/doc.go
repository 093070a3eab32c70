// Package selinux makes the SELinux labels of containers.
//
// Every pod has a level of its own: two categories that no other pod has (Levels). A container's process has the policy's
// type for containers at that level, and its files the policy's type for files of containers at the same level, so that a
// container that breaks out of everything else still cannot touch what belongs to another pod. Processes that are not to
// be separated have the type PrivilegedType.
//
// The root of a container and every file system that is made for it get their label as a mount option, which costs
// nothing. What is the host's is relabelled where a request asks for it (Relabel).
//
// Labels are computed here; others apply them: package store/layer to roots, package ociruntime to mounts, pipes and
// processes.
package selinux
