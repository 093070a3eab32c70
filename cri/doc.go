// Package cri is the gRPC surface: CRI v1 RuntimeService and ImageService.
//
// A handler validates its request, translates it, makes one call and translates the answer. There is no kernel work
// and no state here besides what Version, Status and RuntimeConfig answer, which work from the moment the socket does;
// every other RPC answers Unavailable until Start has brought the services that it needs. RPCs that are not
// written answer Unimplemented, which is the only code for which the kubelet has a fallback.
//
// Errors of the services meet gRPC codes in status.go and nowhere else. The interceptor logs them, once,
// with the stages of the operation that failed; services return errors and do not log them.
//
// Concurrency: safe; every RPC is a goroutine of its own. Lists and status are translated from immutable values.
package cri
