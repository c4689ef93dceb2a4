// Package containerdisk finds the disk in the layers of a container image. Its paths are paths
// in the image: it opens no file of the host.
package containerdisk
