// Package blobreader reads blobs one after the other as one stream.
package blobreader
