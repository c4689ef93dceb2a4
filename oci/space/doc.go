// Package space measures free space on the store's file system and keeps a reserve.
package space
