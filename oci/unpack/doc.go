// Package unpack writes the disks of an image from its plan.
package unpack
