// Package disk makes what machines store on the host: overlays on the disks of an image,
// and UEFI variables. It also keeps the owners of disks that machines share.
package disk
