// Package ledger remembers what is owed to the network: one record per attachment of a pod, from before its ADD until a
// DEL succeeded. It is durable, because a reboot frees no address, and a debt outlives its pod.
//
// It makes no attachment and knows no pod but by its id. Invariant: DELs of one pod never overlap.
//
// Files on disk: <dir>/<pod id>, as cni.Debt.
//
// Concurrency: safe; the lock is held across nothing that waits.
package ledger
