// Package store manages the local store of unpacked images: Pull, Inventory and Prune.
package store
