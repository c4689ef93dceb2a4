// Package diskfile reads a disk file of this host as an image.
package diskfile
