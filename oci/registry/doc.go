// Package registry reads and writes images in registries, with their credentials,
// mirrors and failures. It is the only package that imports containers/image.
package registry
