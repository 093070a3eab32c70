// Package control is how commands of criserver (`criserver images`) speak with the one that runs: a socket for root.
//
// CRI has no call for most of what they do. It owns the socket and its protocol; what the calls mean is the services'.
//
// # Protocol
//
// A connection is one call. The client sends a line of JSON {"call", "args"}, and with it at most one descriptor: what to
// import (a file, a directory or a pipe) or where to export to (a pipe). So a large archive is read where it lies, a pipe
// has its own flow control, and whatever a slow disk or terminal does to the client's files is the client's to wait for.
// The server answers with lines of JSON: any number of {"progress"}, then {"result"} or {"error", "kind"}. When the client goes
// away the call is cancelled.
//
// # Invariants
//
// The socket is control.sock in the state directory, mode 0600. Both ends are of the same build, so the protocol has no
// version. A pipe is read and written without blocking a thread, and is closed when the call ends.
//
// Concurrency: calls run side by side. Close cancels all and waits for them.
package control
