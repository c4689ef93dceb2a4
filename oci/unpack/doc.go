// Package unpack makes disks of the plan of an image.
package unpack
