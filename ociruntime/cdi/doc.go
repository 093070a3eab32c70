// Package cdi gives containers the devices that vendors describe in files of the Container Device Interface: what a device
// name stands for are changes of an OCI runtime specification.
//
// It owns the reading of those files and nothing else: who asks for which device is decided by the callers (a field and
// annotations of the CRI, adjustments of NRI plugins), and who builds what the specification then says is package ociruntime.
//
// The directories are read at every injection, so a file that a device plugin has just written counts. A file that cannot
// be read costs its own devices only; the error that says that one of them cannot be found names the file too.
//
// Concurrency: safe.
package cdi
