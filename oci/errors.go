package oci

import "errors"

// What can be wrong with an image, as far as somebody decides on it: these are
// final, trying again changes nothing. Every other error of this package (a
// registry that is down, a full disk, a cancelled context) may pass.
var (
	// ErrReference: the text is not an image reference.
	ErrReference = errors.New("not an image reference")
	// ErrNotFound: the registry or the layout has no such image; with pull policy
	// never, the store has not.
	ErrNotFound = errors.New("image not found")
	// ErrDenied: the registry wants other credentials.
	ErrDenied = errors.New("access denied")
	// ErrFormat: what was found is not a virtual machine image that we know.
	ErrFormat = errors.New("not a usable virtual machine image")
	// ErrHostile: the image breaks a rule that protects the host: a digest or a
	// size that is not true, a name that leaves its directory, a disk that names
	// files of the host, more data than allowed.
	ErrHostile = errors.New("image refused")
)

// Final reports whether trying again would change nothing.
func Final(err error) bool {
	for _, final := range []error{ErrReference, ErrNotFound, ErrDenied, ErrFormat, ErrHostile} {
		if errors.Is(err, final) {
			return true
		}
	}
	return false
}
