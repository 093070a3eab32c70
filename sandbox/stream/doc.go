// Package stream joins the streams of a client to those of a command, a container or a port in a pod.
//
// It copies and nothing else: who the client is and what the process is stays with the caller. A Link joins one command, with
// pipes or a terminal; Copy joins a connection. What holds for all:
//
// The end of what a client sends (io.EOF) reaches the process and the other direction goes on. Nothing is cut because a
// client reads slowly: at most a pipe and a buffer are held for it, then the process waits. What a process wrote before it
// ended is delivered; what its children still write is, until a deadline that counts only the waiting for them.
// What nobody will ever read is read and dropped, so that one stream never holds up the others of its connection.
//
// The contexts that callers pass end when the client is gone, before its streams do: a stdin that ends with them has not been
// closed by anybody and is not closed for the process either.
package stream
