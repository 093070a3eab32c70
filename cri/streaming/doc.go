// Package streaming serves what the URLs lead to that Exec, Attach and PortForward answer: HTTP connections that are upgraded
// to SPDY or WebSocket, with k8s.io/cri-streaming. Of WebSocket it has the protocols up to version 4; version 5 of exec and attach
// is in websocket.go, and in tunnel.go the SPDY inside of a WebSocket with which ports are forwarded.
//
// A URL holds a token of 128 random bits that opens one stream once, within a minute; at most 1,000 wait to be used. Nothing
// else authenticates a client, so the default address is on loopback.
//
// What the library leaves to us is in conn.go: it does not notice that a client is gone while it waits for a process, and it
// closes connections in a way that takes the last output and the exit code from a client that is still sending.
//
// Listen takes the port, so that a start fails if it cannot be had; Serve begins to answer. Close ends every stream: commands are
// killed, containers that somebody was attached to go on. Streams that fail are logged here, since no RPC carries their errors.
//
// Concurrency: safe. Every stream has a goroutine of net/http and those of the library; they end with the connection.
package streaming
