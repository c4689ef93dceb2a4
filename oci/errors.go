package oci

import "errors"

// Permanent errors: another try has the same result. All other errors (a registry that is
// down, a full disk, a cancelled context) may be transient.
var (
	// ErrReference: the text is not an image reference.
	ErrReference = errors.New("not an image reference")
	// ErrNotFound: the image is not in the registry or layout, or, with the pull policy
	// never, not in the store.
	ErrNotFound = errors.New("image not found")
	// ErrDenied: the registry requires other credentials.
	ErrDenied = errors.New("access denied")
	// ErrFormat: it is not a virtual machine image of a known format.
	ErrFormat = errors.New("not a usable virtual machine image")
	// ErrInvalid: the image violates a rule that protects the host: a wrong digest or size,
	// a name outside of its directory, a disk that refers to files of the host, more data
	// than allowed.
	ErrInvalid = errors.New("image refused")
)

// IsPermanent reports whether another try would have the same result.
func IsPermanent(err error) bool {
	for _, permanent := range []error{ErrReference, ErrNotFound, ErrDenied, ErrFormat, ErrInvalid} {
		if errors.Is(err, permanent) {
			return true
		}
	}
	return false
}
