// Package remote speaks to image registries: it fetches manifests and blobs of one repository.
//
// Where the endpoints of a registry come from (hosts.toml directories, TLS) and how a challenge is answered (basic,
// bearer, identity tokens) is containerd's library, because that is what operators have configured already. The
// requests are made here: every endpoint is tried in order, every attempt is remembered and stands in the error, a blob
// is one stream that survives resets and stalls by asking for the rest.
//
// Nothing is kept on disk and nothing is unpacked. A manifest fetched by digest is verified here; a blob stream is only
// held to its length, its digest is the reader's to verify.
//
// # Credentials
//
// What the caller gives for a pull is sent to the registry that the reference names, or to the endpoint that its
// ServerAddress names, and to the token server that this endpoint points at over a connection no weaker than its own.
// It is never sent to another mirror, nor along a redirect to another host. It never appears in errors or logs: URLs in
// attempts have neither query nor user.
//
// Concurrency: a Session may be used by many goroutines; a stream by one.
package remote
