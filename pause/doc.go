// Package pause is criserver's side of the conversation with a pod's pause process.
//
// A pause holds a pod's namespaces, starts and reaps its containers and writes their logs; it is a
// small static C program (src/) that understands only system calls. PROTOCOL.md describes the
// messages, src/protocol.h and src/program.h fix their layout.
//
// A Conn is one controlling connection. Next must be called in a loop by its owner: it delivers the
// answers to the requests of other goroutines and returns the exits that pause reports. Everything
// else is safe for concurrent use.
//
// Descriptors: files given to a request stay the caller's, who closes them after the call returned;
// files in results are the caller's too.
package pause
