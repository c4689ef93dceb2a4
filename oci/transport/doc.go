// Package transport says what a source and a destination of images are, and reads
// from a source what is checked: manifests, small blobs, and blobs as streams.
package transport
