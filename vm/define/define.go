// Package define defines, clones and captures the domains that administrators keep.
package define

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/internal/rollback"
	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/domain"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/virt"
)

// originNamespace is the XML namespace of an [Origin] in the metadata of a domain. It differs from
// that of a job's record, so that sweep does not take the domain for a machine of a job.
const originNamespace = "urn:gitlab-sardine-executor:base:1"

// An Origin identifies the image of a domain that [Define] defined.
type Origin struct {
	XMLName xml.Name `xml:"urn:gitlab-sardine-executor:base:1 image"`
	// Image is the reference, Digest the digest of the manifest.
	Image  string `xml:"reference"`
	Digest string `xml:"digest"`
}

// A Spec describes a persistent virtual machine that the administrator clones, or starts and
// changes.
type Spec struct {
	// Name of the domain; unique on the host.
	Name string
	// Source of its domain and disks. The disks of the image are never written.
	domain.Source
	// Network is "user", for QEMU's own user network, or the name of a libvirt network.
	Network string
	// Dir is the directory for the machine's overlays and UEFI variables. It must not exist.
	Dir    string
	Origin Origin
}

// Define creates overlays on the disks and defines a persistent domain with them. If it
// fails, it leaves neither files nor domain. It returns what was dropped from the image's
// domain XML. The error is [errdefs.ErrExists] if there is a domain of that name.
func Define(ctx context.Context, h *virt.Host, base Spec) (dropped []string, err error) {
	rebuilt, _, err := domain.Build(base.Source)
	if err != nil {
		return nil, err
	}
	switch _, err := h.Domain(ctx, base.Name); {
	case err == nil:
		return nil, fmt.Errorf("%w: %s at %s", errdefs.ErrExists, base.Name, h.URI())
	case !errors.Is(err, errdefs.ErrNoDomain):
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(base.Dir), 0o711); err != nil {
		return nil, fmt.Errorf("create the directory of %s: %w", base.Name, err)
	}
	if err := os.Mkdir(base.Dir, 0o711); err != nil {
		return nil, fmt.Errorf("create the directory of %s: %w", base.Name, err)
	}
	undo := &rollback.Stack{}
	undo.Add(func() error { return os.RemoveAll(base.Dir) })
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.Run())
		}
	}()
	if _, err := domain.Accelerate(ctx, rebuilt.Domain, base.Accel, filepath.Dir(base.Dir)); err != nil {
		return nil, err
	}
	files := domain.Files{NVRAM: filepath.Join(base.Dir, "nvram.fd")}
	if files.BackingStore, err = domain.WritesBackingStore(base.OmitBackingStore, h.Version()); err != nil {
		return nil, err
	}
	if files.Overlays, err = disk.CloneDisks(ctx, base.Disks, base.Dir, 0); err != nil {
		return nil, err
	}
	if err := base.complete(rebuilt.Domain, files); err != nil {
		return nil, err
	}
	return rebuilt.Dropped, define(ctx, h, rebuilt.Domain)
}

// complete gives the domain of an image its name, files and network.
func (b *Spec) complete(d *libvirtxml.Domain, files domain.Files) error {
	origin, err := xml.Marshal(b.Origin)
	if err != nil {
		return fmt.Errorf("write the origin of %s: %w", b.Name, err)
	}
	d.Name, d.Metadata = b.Name, &libvirtxml.DomainMetadata{XML: string(origin)}
	if err := domain.PlaceDisks(d, b.Disks, files); err != nil {
		return err
	}
	// If the domain names a file with variables, this machine gets a copy. Otherwise libvirt
	// creates a file.
	if named, err := disk.NamedNVRAM(d.OS); err != nil {
		return err
	} else if named != "" {
		if err := disk.CopyNVRAM(d.OS, files.NVRAM, ""); err != nil {
			return err
		}
		disk.SetNVRAM(d.OS, files.NVRAM)
	}
	for i := range d.Devices.Disks {
		// Unlike a job's disk, this one must survive a crash.
		if driver := d.Devices.Disks[i].Driver; driver != nil {
			driver.Cache = ""
		}
	}
	for i := range d.Devices.Interfaces {
		source := &libvirtxml.DomainInterfaceSource{User: &libvirtxml.DomainInterfaceSourceUser{}}
		if b.Network != userNetwork {
			source = &libvirtxml.DomainInterfaceSource{Network: &libvirtxml.DomainInterfaceSourceNetwork{Network: b.Network}}
		}
		d.Devices.Interfaces[i].Source = source
	}
	return nil
}

func define(ctx context.Context, h *virt.Host, d *libvirtxml.Domain) error {
	doc, err := d.Marshal()
	if err != nil {
		return fmt.Errorf("write the domain %s: %w", d.Name, err)
	}
	dom, err := h.Define(ctx, d.Name, doc, true)
	if err != nil {
		return virt.ClassifyXML(err)
	}
	dom.Free()
	return nil
}

// errNoOrigin: the domain was not defined by [Define].
var errNoOrigin = errors.New("not defined from an image")

// userNetwork is the name of QEMU's own user network.
const userNetwork = "user"

// A TemplateDomain is a domain that [Define] defined.
type TemplateDomain struct {
	Name   string
	Origin Origin
}

// List lists the domains that [Define] defined.
func List(ctx context.Context, h *virt.Host) ([]TemplateDomain, error) {
	domains, err := h.Domains(ctx)
	if err != nil {
		return nil, err
	}
	var bases []TemplateDomain
	for _, dom := range domains {
		base, err := templateDomain(ctx, dom)
		dom.Free()
		if errors.Is(err, errNoOrigin) || errors.Is(err, errdefs.ErrNoDomain) {
			continue
		}
		if err != nil {
			return nil, err
		}
		bases = append(bases, base)
	}
	return bases, nil
}

func templateDomain(ctx context.Context, dom *virt.Domain) (TemplateDomain, error) {
	text, err := dom.Metadata(ctx, "the origin", originNamespace)
	if errors.Is(err, virt.ErrNoMetadata) {
		return TemplateDomain{}, errNoOrigin
	} else if err != nil {
		return TemplateDomain{}, err
	}
	// libvirt returns the element without its namespace.
	var origin struct {
		Image  string `xml:"reference"`
		Digest string `xml:"digest"`
	}
	if err := xml.Unmarshal([]byte(text), &origin); err != nil {
		return TemplateDomain{}, fmt.Errorf("%w: its origin is damaged: %w", errNoOrigin, err)
	}
	return TemplateDomain{Name: dom.Name(), Origin: Origin{Image: origin.Image, Digest: origin.Digest}}, nil
}
