package oci

import (
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"time"

	"github.com/opencontainers/go-digest"
)

// An Image is a virtual machine image that lies complete in a [Store]: every
// disk is unpacked, its digest was checked, and nothing of it will change.
type Image struct {
	// Digest is the manifest digest: two references to one digest are one image.
	Digest digest.Digest `json:"digest"`
	// Reading is the fingerprint of what was made of the manifest (format.Plan.Fingerprint);
	// empty if an older version stored the image.
	Reading string `json:"reading,omitempty"`
	// Reference is the name under which the image was pulled first.
	Reference string `json:"reference"`
	// Format is the name of the format that was recognised, such as
	// "sardinecake" or "containerdisk" (docs/image-format.md).
	Format string `json:"format"`
	// Architecture and OS are Go's names (amd64, linux); empty if unknown.
	Architecture string `json:"architecture,omitempty"`
	OS           string `json:"os,omitempty"`
	// Created is when the image was made; zero if it does not say.
	Created time.Time `json:"created,omitzero"`
	// Disks in the order of the image. A backing file comes before the disks
	// that need it.
	Disks []Disk `json:"disks"`
	// DomainXML is the libvirt domain that the image brings, as its maker wrote
	// it and therefore not to be trusted; nil if it brings none.
	DomainXML []byte `json:"-"`
	// Guest says how to log in; its fields are empty where the image is silent.
	Guest GuestConfig `json:"guest"`

	// Dir is the absolute directory of the image in the store.
	Dir string `json:"-"`

	// hold keeps the image from being removed; nil if nothing does. See Close.
	hold io.Closer
}

// A Disk is a file of an image in the store: read-only (0444) for good.
type Disk struct {
	// Name is the base name of the file in [Image.Dir]; the domain XML of the
	// image names its disks by it.
	Name string `json:"name"`
	// Format is what the file holds: "qcow2" or "raw" (ISO images are raw). It is
	// read from the file by us, and given to QEMU, which never probes.
	Format string `json:"format"`
	// CDROM is true for ISO 9660 images.
	CDROM bool `json:"cdrom,omitempty"`
	// Backing is the Name of the disk of this image which backs this one; empty
	// if it stands alone.
	Backing string `json:"backing,omitempty"`
	// Size of the file and size of the disk that a guest sees, in bytes.
	Size        int64 `json:"size"`
	VirtualSize int64 `json:"virtualSize"`
	// Digest of the file as its maker packed it; where a backing name had to be
	// rewritten, the file in the store differs in that name. Of a disk that came in
	// pieces each with a digest of its own, it is the maker's word, and may be empty:
	// what was checked are the pieces.
	Digest digest.Digest `json:"digest,omitempty"`

	// alias is what the disks it backs call it, if that is not Name.
	Alias string
}

// GuestConfig is sardinecake's VM config
// (application/vnd.sardinecake.vm.config.v1+json): who can log in, and where.
type GuestConfig struct {
	Users    []User    `json:"users,omitempty"`
	Services []Service `json:"services,omitempty"`
}

// A User of a guest. The first user of an image is the one that runs jobs.
type User struct {
	Username string `json:"username"`
	Password string `json:"password,omitempty"`
	// Port of this user's SSH server; 0 means [GuestConfig.SSHPort] decides. Not
	// in the schema of the Python tool, but read by it.
	Port int `json:"port,omitempty"`
}

// A Service that listens in a guest.
type Service struct {
	Service  string `json:"service"`
	Port     int    `json:"port"`
	Protocol string `json:"protocol,omitempty"`
}

// SSHPort is the port of the guest's SSH server: the first user's own, else the
// service called "ssh", else 22.
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

// architecture is arch, or this machine's if arch is empty.
func Architecture(arch string) string {
	if arch == "" {
		return runtime.GOARCH
	}
	return arch
}

// Files in [Image.Dir] beside the disks, which must not be called like them.
const (
	ImageFile  = "image.json"
	DomainFile = "domain.xml"
	// pieceFile is the table of the pieces of an image, for those that come later
	// and share some of them.
	PieceFile = "pieces.json"
)

// Key names the image in the store: manifest digest and reading. Two images with one digest
// and two keys are different images.
func (i *Image) Key() string { return filepath.Base(i.Dir) }

// Close lets the image go: from then on it can be removed from the store. An
// image that [Store.Pull] returned is held until it is closed or this process
// ends, so call Close once QEMU has opened the disks. Images from elsewhere are
// not held.
func (i *Image) Close() error {
	if i.hold == nil {
		return nil
	}
	err := i.hold.Close()
	i.hold = nil
	if err != nil {
		return fmt.Errorf("letting image %s go: %w", i.Digest, err)
	}
	return nil
}

// Hold makes [Image.Close] close c, which keeps the image from being removed.
func (i *Image) Hold(c io.Closer) { i.hold = c }
