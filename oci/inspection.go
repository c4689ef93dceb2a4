package oci

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// An Inspection is what an image says of itself. Of its disks nothing but the
// manifest was read: what is in them is known once they are pulled.
type Inspection struct {
	Reference string `json:"reference"`
	// Digest of the manifest, and of the index that led to it, if one did.
	Digest digest.Digest `json:"digest"`
	Index  digest.Digest `json:"index,omitempty"`
	// Format is the name of the format that was recognised, Evidence what the
	// manifest says by which it was.
	Format       string    `json:"format"`
	Evidence     []string  `json:"evidence"`
	Architecture string    `json:"architecture,omitempty"`
	OS           string    `json:"os,omitempty"`
	Created      time.Time `json:"created,omitzero"`
	// Size is what a pull transfers at most, in bytes.
	Size  int64           `json:"size"`
	Disks []InspectedDisk `json:"disks"`
	// Guest is the VM config; its fields are empty where the image is silent.
	Guest GuestConfig `json:"guest"`
	// DomainXML is the libvirt domain that the image brings, as its maker wrote it;
	// nil if it brings none.
	DomainXML []byte `json:"-"`
}

// An InspectedDisk is a disk as the manifest describes it.
type InspectedDisk struct {
	// Name of the file; empty if only its content says it.
	Name string `json:"name,omitempty"`
	// Content is "qcow2", "raw" or "iso"; empty if only its content says it.
	Content string `json:"content,omitempty"`
	// Layers of which the disk is made, and their size in bytes.
	Layers     int   `json:"layers"`
	Compressed int64 `json:"compressed"`
	// Size of the file in bytes, and its digest, if the image says them.
	Size   int64         `json:"size,omitempty"`
	Digest digest.Digest `json:"digest,omitempty"`
}
