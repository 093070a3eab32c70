// Package credentials finds what authenticates to a registry in a config file of docker's form.
//
// It owns reading the file (auths, credHelpers, credsStore) and running credential helpers, programs named
// docker-credential-NAME. Whether a registry may see what is found is the caller's to decide: Find answers for the host that
// it is asked about, and for that one only.
//
// Of several places the first that has something counts, as in docker: the host's credHelpers, credsStore, auths. In auths
// the entry that says most of the repository's path counts. The file is read again when it has changed, at the next Find.
//
// A helper has a time bound and a bound on what it writes, and is killed with its children beyond. What it wrote is quoted
// only if it failed, since an answer may hold a secret. Nothing of a Credential is ever printed.
//
// Concurrency: everything is safe. Helpers of several calls run side by side; nothing is locked meanwhile.
package credentials
