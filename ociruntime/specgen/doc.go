// Package specgen translates what the CRI asks for into an OCI runtime specification.
//
// It is the last place below package cri that knows cri-api messages. Translation is pure but for what Input brings as
// functions: the user is looked up in the image, devices in the host's /dev; a Localhost seccomp profile is read.
// Mount sources are not opened.
//
// What the CRI leaves open follows the peers: Docker's rules for command, arguments and user; containerd's
// default capabilities, masks as given, mounts sorted by depth with the request's winning over defaults.
//
// Every refusal of the request is an *InvalidError that names the field. Any other error is the node's or the image's.
package specgen
