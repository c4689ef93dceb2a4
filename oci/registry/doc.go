// Package registry reads and writes images in registries: credentials, mirrors, retries.
// containers/image is imported only here and in its package distribution.
package registry
