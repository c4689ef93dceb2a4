// Package index chooses an image in an index.
package index
