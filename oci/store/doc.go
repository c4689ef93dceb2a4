// Package store is the local store of unpacked images.
package store
