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

// Namespace is the XML namespace of an [Origin] in a domain's metadata. It is
// not that of a job's record: nobody may take a base for a machine that a job
// left behind.
const Namespace = "urn:gitlab-sardine-executor:base:1"

// An Origin says which image a base was made of.
type Origin struct {
	XMLName xml.Name `xml:"urn:gitlab-sardine-executor:base:1 image"`
	// Image is its reference, Digest that of its manifest.
	Image  string `xml:"reference"`
	Digest string `xml:"digest"`
}

// A Spec describes a virtual machine that is defined to be kept: to be
// cloned, or started and changed by hand.
type Spec struct {
	// Name of the domain; unique on the host.
	Name string
	// Source of its domain and disks. The disks of the image are never written.
	domain.Source
	// Network is "user", which is QEMU's own, or the name of a libvirt network.
	Network string
	// Dir is the directory for the machine's own files, its overlays and UEFI
	// variables: it must not exist.
	Dir    string
	Origin Origin
}

// Define defines a persistent domain on overlays of the disks: first the files,
// then the domain, and nothing of either if it fails. It returns what was dropped
// from the image's domain XML. The error is [errdefs.ErrExists] if there is a domain of
// that name.
func Define(ctx context.Context, h *virt.Host, base Spec) (dropped []string, err error) {
	rebuilt, err := domain.Build(base.Source)
	if err != nil {
		return nil, err
	}
	switch _, err := h.Domain(ctx, base.Name); {
	case err == nil:
		return nil, fmt.Errorf("%w: %s at %s", errdefs.ErrExists, base.Name, h.URI())
	case !errors.Is(err, virt.ErrNoDomain):
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(base.Dir), 0o711); err != nil {
		return nil, fmt.Errorf("make the directory of %s: %w", base.Name, err)
	}
	if err := os.Mkdir(base.Dir, 0o711); err != nil {
		return nil, fmt.Errorf("make the directory of %s: %w", base.Name, err)
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

// complete makes the domain of an image that of a base.
func (b *Spec) complete(d *libvirtxml.Domain, files domain.Files) error {
	origin, err := xml.Marshal(b.Origin)
	if err != nil {
		return fmt.Errorf("write the origin of %s: %w", b.Name, err)
	}
	d.Name, d.Metadata = b.Name, &libvirtxml.DomainMetadata{XML: string(origin)}
	if err := domain.PlaceDisks(d, b.Disks, files); err != nil {
		return err
	}
	// Variables that a file of the administrator holds are not this machine's to
	// change. Where the domain names none, libvirt finds a place by itself.
	if named, err := disk.NamedNVRAM(d.OS); err != nil {
		return err
	} else if named != "" {
		if err := disk.CopyNVRAM(d.OS, files.NVRAM, ""); err != nil {
			return err
		}
		disk.SetNVRAM(d.OS, files.NVRAM)
	}
	for i := range d.Devices.Disks {
		// Of a job's disk nothing has to survive; of this one it has.
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

// userNetwork is the name of the network that is QEMU's own.
const userNetwork = "user"

// A TemplateDomain is a domain that [Define] defined.
type TemplateDomain struct {
	Name   string
	Origin Origin
}

// List lists the bases on a host.
func List(ctx context.Context, h *virt.Host) ([]TemplateDomain, error) {
	domains, err := h.Domains(ctx)
	if err != nil {
		return nil, err
	}
	var bases []TemplateDomain
	for _, dom := range domains {
		base, err := templateDomain(ctx, dom)
		dom.Free()
		if errors.Is(err, errNoOrigin) || errors.Is(err, virt.ErrNoDomain) {
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
	text, err := dom.Metadata(ctx, "the origin", Namespace)
	if errors.Is(err, virt.ErrNoMetadata) {
		return TemplateDomain{}, errNoOrigin
	} else if err != nil {
		return TemplateDomain{}, err
	}
	// libvirt gives the element without its namespace, which it knows we know.
	var origin struct {
		Image  string `xml:"reference"`
		Digest string `xml:"digest"`
	}
	if err := xml.Unmarshal([]byte(text), &origin); err != nil {
		return TemplateDomain{}, fmt.Errorf("%w: its origin is damaged: %w", errNoOrigin, err)
	}
	return TemplateDomain{Name: dom.Name(), Origin: Origin{Image: origin.Image, Digest: origin.Digest}}, nil
}
