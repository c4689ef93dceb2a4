// Package distribution is a client of the OCI distribution API that connects to
// nothing but the registry it was made for and the places that this registry may
// name: its token service and its object storage. docs/registries.md, "Where a
// pull may connect", has the rules.
//
// containers/image has such a client as well, but makes its own http.Client: it
// sends a password or a token along with a redirect to another port, waits without
// a deadline, and quotes bodies in errors. None of that can be set from outside.
// What it knows of files (registries.conf, certs.d) is used here.
package distribution
