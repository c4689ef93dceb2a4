// Package chain names the disks of an image and checks their backing chains.
package chain
