// Package trust says whether an image may come onto the node: by rules in a policy file with public keys, and by programs
// of the operator. It has no network of its own; signatures come through a Source that the caller gives, and
// are kept in an Evidence while one image is asked about, under however many names.
//
// # Policy
//
// The file has the form of containers-policy.json(5): default, and under transports.docker rules for scopes, of which the
// most specific one that the image's name is in counts, alone. All requirements of a rule must be met. What this package
// does not understand is an error when the file is read, never ignored: GPG (signedBy), certificates (fulcio, pki),
// transparency logs (rekorPublicKey...), unknown keys, keys that are there twice.
//
// sigstoreSigned wants a signature as cosign attaches it: manifest sha256-<hex>.sig in the image's repository, one layer
// a signature. One that vouches for what the reference names (an index, say) or for this node's manifest is enough. The
// order is: signature by one of the keys, and only then the payload is read; its digest is that of the manifest; its
// identity is what signedIdentity wants.
//
// If none of these counts, bundles are looked at that refer to the manifest, as cosign 3 attaches them: an envelope with a
// statement, of which the predicate says that it is a signature, or a signature of the manifest's own bytes. The order is the same.
// They need not say anything of a name, which only matchDigest accepts: any image that a key has signed could then come under
// any name of the scope.
//
// An image of an archive has the rule for the transport of the archive if there is one, else that of the name that it gets; without a
// name the default.
//
// # Verifiers
//
// A directory of programs in the form of containerd's plugin io.containerd.image-verifier.v1.bindir: each is told name,
// digest and descriptor, and exits with 0 if it accepts. All must. Unlike there, a directory that is missing and one with
// more programs than allowed refuse every image, and so is one without a name.
//
// # Errors
//
// ErrRefused is in every error that says that the image may not be used; other errors say that this could not be found out.
//
// Concurrency: a Policy and Verifiers never change; an Evidence is for one goroutine.
package trust
