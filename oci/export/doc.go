// Package export packs disk files as an image in an OCI layout.
package export
