// Package remote speaks to image registries: it fetches manifests and blobs of one repository.
//
// Where the endpoints of a registry come from (hosts.toml directories, TLS) is containerd's library, because that is what
// operators have configured already. The requests and the answers to challenges are made here: every endpoint is tried in
// order, every attempt is remembered and stands in the error, a blob is one stream that survives resets, stalls and tokens that
// expire by asking for the rest.
//
// What all sessions share is Registries': how much a host may be asked at a time (gate), and where credentials are.
//
// The rest of a large blob comes in parts over several connections, in order, where the network is what its reader waits for and
// the endpoint serves ranges exactly; what they take together is bounded over all sessions (Lanes).
//
// Nothing is kept on disk and nothing is unpacked. A manifest fetched by digest is verified here; a blob stream is only
// held to its length, its digest is the reader's to verify.
//
// # Credentials
//
// What the caller gives for a pull is sent to the registry that the reference names, or to the endpoint that its
// ServerAddress names. An endpoint for which the caller gives nothing is shown what the credentials file has for that very host
// (package credentials), a mirror what is its own. Nothing is looked for or sent before an endpoint asks for it. A token
// server that an endpoint points at gets what the endpoint would, over a connection no weaker than the endpoint's own; it is
// not followed to another host. Along a redirect nothing is sent to another host, and none of the headers of hosts.toml.
// Secrets never appear in errors or logs: URLs in attempts have neither query nor user, credentials print as where they came
// from.
//
// Concurrency: a Session may be used by many goroutines; a stream by one.
package remote
