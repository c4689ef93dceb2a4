package oci

import (
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"time"

	"github.com/opencontainers/go-digest"
)

// An Image is a complete virtual machine image in the local store. Its disks are unpacked,
// verified, and never change.
type Image struct {
	// Digest is the manifest digest: two references to one digest are one image.
	Digest digest.Digest `json:"digest"`
	// Reading is the fingerprint of the plan (format.Plan.Fingerprint); empty if an older
	// version stored the image.
	Reading string `json:"reading,omitempty"`
	// Reference is the reference of the first pull.
	Reference string `json:"reference"`
	// Format is the name of the recognized format, such as "sardinecake" or
	// "containerdisk" (docs/image-format.md).
	Format string `json:"format"`
	// Architecture and OS are Go's names (amd64, linux); empty if unknown.
	Architecture string `json:"architecture,omitempty"`
	OS           string `json:"os,omitempty"`
	// Created is the creation time of the image; zero if unknown.
	Created time.Time `json:"created,omitzero"`
	// Disks in the order of the image. Backing files precede the disks that use them.
	Disks []Disk `json:"disks"`
	// DomainXML is the untrusted libvirt domain XML of the image; nil if it has none.
	DomainXML []byte `json:"-"`
	// Guest says how to log in; fields that the image does not set are empty.
	Guest GuestConfig `json:"guest"`

	// Dir is the image's absolute directory in the store.
	Dir string `json:"-"`

	// hold is the lock that prevents the removal of the image; may be nil. See Close.
	hold io.Closer
}

// A Disk is a file of an image in the store. It is read-only (0444).
type Disk struct {
	// Name is the file name in [Image.Dir]; the domain XML of the image refers to it.
	Name string `json:"name"`
	// Format is "qcow2" or "raw" (also for ISO images). QEMU is always told the format and
	// never probes.
	Format string `json:"format"`
	// CDROM is true for ISO 9660 images.
	CDROM bool `json:"cdrom,omitempty"`
	// Backing is the Name of the backing disk in this image; empty if there is none.
	Backing string `json:"backing,omitempty"`
	// Size of the file, and VirtualSize of the guest's disk, in bytes.
	Size        int64 `json:"size"`
	VirtualSize int64 `json:"virtualSize"`
	// Digest of the file in the image. The file in the store may differ in the name of its
	// backing file. For a disk of chunks with digests, only the chunks were verified, and
	// Digest may be empty.
	Digest digest.Digest `json:"digest,omitempty"`

	// Alias is the name by which other disks refer to this one, if that is not Name.
	Alias string `json:"-"`
}

// GuestConfig is sardinecake's VM config
// (application/vnd.sardinecake.vm.config.v1+json): users and services of the guest.
type GuestConfig struct {
	Users    []User    `json:"users,omitempty"`
	Services []Service `json:"services,omitempty"`
}

// A User of a guest. The first user of an image runs the jobs.
type User struct {
	Username string `json:"username"`
	Password string `json:"password,omitempty"`
	// Port of this user's SSH server; 0 means to use the service "ssh". It is not in the
	// schema of the Python tool, but the tool reads it.
	Port int `json:"port,omitempty"`
}

// A Service of a guest.
type Service struct {
	Service  string `json:"service"`
	Port     int    `json:"port"`
	Protocol string `json:"protocol,omitempty"`
}

// SSHPort returns the port of the guest's SSH server: that of the first user, or of the
// service "ssh", or 22.
func (g GuestConfig) SSHPort() int {
	if len(g.Users) > 0 && g.Users[0].Port != 0 {
		return g.Users[0].Port
	}
	for _, s := range g.Services {
		if s.Service == "ssh" && s.Port != 0 {
			return s.Port
		}
	}
	return 22
}

// Architecture returns arch, or this host's architecture if arch is empty.
func Architecture(arch string) string {
	if arch == "" {
		return runtime.GOARCH
	}
	return arch
}

// Files in [Image.Dir] beside the disks; disks must not have these names.
const (
	ImageFile  = "image.json"
	DomainFile = "domain.xml"
	// ChunkFile lists the chunks of an image, for later images that share some.
	ChunkFile = "pieces.json"
)

// Key identifies the image in the store: by its manifest digest and its reading. Images with
// the same digest and different keys are different.
func (i *Image) Key() string { return filepath.Base(i.Dir) }

// Size returns the size of the image's files, in bytes.
func (i *Image) Size() int64 {
	var sum int64
	for _, d := range i.Disks {
		sum += d.Size
	}
	return sum
}

// Close unlocks the image, so that it can be removed from the store. An image returned by
// store.Store.Pull is locked until Close or the end of this process: call Close once QEMU
// has opened the disks.
func (i *Image) Close() error {
	if i.hold == nil {
		return nil
	}
	err := i.hold.Close()
	i.hold = nil
	if err != nil {
		return fmt.Errorf("unlocking image %s: %w", i.Digest, err)
	}
	return nil
}

// Hold makes [Image.Close] close c, a lock that prevents the removal of the image.
func (i *Image) Hold(c io.Closer) { i.hold = c }
