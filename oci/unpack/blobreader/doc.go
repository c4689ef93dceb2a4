// Package blobreader reads a sequence of blobs as one stream and verifies each.
package blobreader
