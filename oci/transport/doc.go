// Package transport defines sources and destinations of images, and reads manifests and
// blobs from a source with all checks.
package transport
