package virt

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"libvirt.org/go/libvirt"

	"gitlab-sardine-executor/vm/errdefs"
)

// ErrNoMetadata: the domain has no metadata in that namespace.
var ErrNoMetadata = errors.New("the domain has no such metadata")

// A Domain is a domain of libvirt. It refers to the domain that was looked up, also if
// another one gets its name later.
type Domain struct {
	dom        *libvirt.Domain
	name       string
	keepEvents *sync.Once // of the connection: see subscribe
	calls      calls
}

// Domain looks up a domain by its name; the error is [errdefs.ErrNoDomain] if there is
// none.
func (h *Host) Domain(ctx context.Context, name string) (*Domain, error) {
	dom, err := await(ctx, &h.calls, "look up domain "+name, func() (*libvirt.Domain, error) {
		return h.conn.LookupDomainByName(name)
	})
	return h.found(dom, name, err)
}

// DomainByUUID looks up a domain by its UUID; the error is [errdefs.ErrNoDomain] if there is
// none.
func (h *Host) DomainByUUID(ctx context.Context, id string) (*Domain, error) {
	dom, err := await(ctx, &h.calls, "look up domain "+id, func() (*libvirt.Domain, error) {
		return h.conn.LookupDomainByUUIDString(id)
	})
	return h.found(dom, id, err)
}

func (h *Host) found(dom *libvirt.Domain, name string, err error) (*Domain, error) {
	if isCode(err, libvirt.ERR_NO_DOMAIN) {
		return nil, fmt.Errorf("%w: %s at %s", errdefs.ErrNoDomain, name, h.uri)
	}
	return h.wrap(dom, name, err)
}

func (h *Host) wrap(dom *libvirt.Domain, name string, err error) (*Domain, error) {
	if err != nil {
		return nil, err
	}
	return h.domain(dom, name), nil
}

func (h *Host) domain(dom *libvirt.Domain, name string) *Domain {
	return &Domain{dom: dom, name: name, keepEvents: h.keepEvents, calls: calls{release: dom.Free}}
}

// Domains lists all domains, active or not. The caller frees them.
func (h *Host) Domains(ctx context.Context) ([]*Domain, error) { return h.list(ctx, 0) }

// RunningTransient lists the running transient domains. Those of jobs are transient. The
// caller frees them.
func (h *Host) RunningTransient(ctx context.Context) ([]*Domain, error) {
	return h.list(ctx, libvirt.CONNECT_LIST_DOMAINS_ACTIVE|libvirt.CONNECT_LIST_DOMAINS_TRANSIENT)
}

func (h *Host) list(ctx context.Context, flags libvirt.ConnectListAllDomainsFlags) ([]*Domain, error) {
	return await(ctx, &h.calls, "list the domains", func() ([]*Domain, error) {
		listed, err := h.conn.ListAllDomains(flags)
		if err != nil {
			return nil, err
		}
		var domains []*Domain
		for i := range listed {
			name, err := listed[i].GetName()
			if err != nil {
				return nil, err
			}
			domains = append(domains, h.domain(&listed[i], name))
		}
		return domains, nil
	})
}

// Start creates and starts a transient domain: it does not exist any more when it stops.
func (h *Host) Start(ctx context.Context, name, doc string) (*Domain, error) {
	dom, err := await(ctx, &h.calls, "start domain "+name, func() (*libvirt.Domain, error) {
		return h.conn.DomainCreateXML(doc, 0)
	})
	return h.wrap(dom, name, err)
}

// Define defines a domain without starting it. With validate, libvirt checks the XML
// against its schema.
func (h *Host) Define(ctx context.Context, name, doc string, validate bool) (*Domain, error) {
	var flags libvirt.DomainDefineFlags
	if validate {
		flags = libvirt.DOMAIN_DEFINE_VALIDATE
	}
	dom, err := await(ctx, &h.calls, "define domain "+name, func() (*libvirt.Domain, error) {
		return h.conn.DomainDefineXMLFlags(doc, flags)
	})
	return h.wrap(dom, name, err)
}

// Restore starts a domain from a file that [Domain.Save] wrote.
func (h *Host) Restore(ctx context.Context, name, path string) error {
	return awaitDone(ctx, &h.calls, "restore domain "+name, func() error {
		return h.conn.DomainRestoreFlags(path, "", libvirt.DOMAIN_SAVE_RUNNING)
	})
}

// Name of the domain.
func (d *Domain) Name() string { return d.name }

// Libvirt returns the domain of the library, for calls that this package does not wrap.
func (d *Domain) Libvirt() *libvirt.Domain { return d.dom }

// Free releases the handle, after the calls that were given up. It does not touch the domain.
func (d *Domain) Free() { _ = d.calls.close() }

// XML of the running domain.
func (d *Domain) XML(ctx context.Context) (string, error) {
	return await(ctx, &d.calls, "read domain "+d.name, func() (string, error) { return d.dom.GetXMLDesc(0) })
}

// InactiveXML is the XML with which the domain would start the next time. With secure it
// includes passwords.
func (d *Domain) InactiveXML(ctx context.Context, secure bool) (string, error) {
	flags := libvirt.DOMAIN_XML_INACTIVE
	if secure {
		flags |= libvirt.DOMAIN_XML_SECURE
	}
	return await(ctx, &d.calls, "read domain "+d.name, func() (string, error) { return d.dom.GetXMLDesc(flags) })
}

// IsActive reports whether the domain runs.
func (d *Domain) IsActive(ctx context.Context) (bool, error) {
	return await(ctx, &d.calls, "ask whether domain "+d.name+" runs", d.dom.IsActive)
}

// IsPersistent reports whether libvirt keeps a definition of the domain.
func (d *Domain) IsPersistent(ctx context.Context) (bool, error) {
	persistent, err := await(ctx, &d.calls, "ask whether domain "+d.name+" is defined", d.dom.IsPersistent)
	return persistent, gone(err)
}

// HasManagedSave reports whether libvirt would start the domain from saved memory (virsh
// managedsave). It is false for drivers without that feature.
func (d *Domain) HasManagedSave(ctx context.Context) (bool, error) {
	saved, err := await(ctx, &d.calls, "ask whether domain "+d.name+" is saved", func() (bool, error) { return d.dom.HasManagedSaveImage(0) })
	if isCode(err, libvirt.ERR_NO_SUPPORT) {
		return false, nil
	}
	return saved, err
}

// Metadata is the metadata of the domain in an XML namespace; the error is
// [ErrNoMetadata] if it has none.
func (d *Domain) Metadata(ctx context.Context, what, namespace string) (string, error) {
	text, err := await(ctx, &d.calls, "read "+what+" of the domain", func() (string, error) {
		return d.dom.GetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, namespace, libvirt.DOMAIN_AFFECT_CURRENT)
	})
	if isCode(err, libvirt.ERR_NO_DOMAIN_METADATA) {
		return "", fmt.Errorf("%w: %w", ErrNoMetadata, err)
	}
	return text, gone(err)
}

// SetMetadata replaces the metadata of a running domain in an XML namespace.
func (d *Domain) SetMetadata(ctx context.Context, what, text, prefix, namespace string) error {
	return awaitDone(ctx, &d.calls, "store "+what+" in its domain", func() error {
		return d.dom.SetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, text, prefix, namespace, libvirt.DOMAIN_AFFECT_LIVE)
	})
}

// SetTitle sets the title of a running domain, which virsh list --title shows.
func (d *Domain) SetTitle(ctx context.Context, title string) error {
	return awaitDone(ctx, &d.calls, "set the title of its domain", func() error {
		return d.dom.SetMetadata(libvirt.DOMAIN_METADATA_TITLE, title, "", "", libvirt.DOMAIN_AFFECT_LIVE)
	})
}

// AttachDevice plugs a device into the running domain.
func (d *Domain) AttachDevice(ctx context.Context, device string) error {
	return awaitDone(ctx, &d.calls, "plug a device into domain "+d.name, func() error {
		return d.dom.AttachDeviceFlags(device, libvirt.DOMAIN_DEVICE_MODIFY_LIVE)
	})
}

// Start starts a defined domain.
func (d *Domain) Start(ctx context.Context) error {
	return awaitDone(ctx, &d.calls, "start domain "+d.name, d.dom.Create)
}

// Save writes the memory of the domain to a file. The domain ends.
func (d *Domain) Save(ctx context.Context, path string) error {
	return awaitDone(ctx, &d.calls, "save domain "+d.name, func() error { return d.dom.Save(path) })
}

// UpdateDevice changes a device of the running domain, even if the guest has locked it.
func (d *Domain) UpdateDevice(ctx context.Context, device string) error {
	return awaitDone(ctx, &d.calls, "change a device of domain "+d.name, func() error {
		return d.dom.UpdateDeviceFlags(device, libvirt.DOMAIN_DEVICE_MODIFY_LIVE|libvirt.DOMAIN_DEVICE_MODIFY_FORCE)
	})
}

// Destroy stops the domain at once. It is no error if the domain has stopped already.
func (d *Domain) Destroy(ctx context.Context) error {
	err := awaitDone(ctx, &d.calls, "destroy domain "+d.name, d.dom.Destroy)
	if isCode(err, libvirt.ERR_NO_DOMAIN) || isCode(err, libvirt.ERR_OPERATION_INVALID) {
		return nil
	}
	return err
}

// Remove destroys and undefines the domain, with its UEFI variables. Its disks stay.
func (d *Domain) Remove(ctx context.Context) error {
	return awaitDone(ctx, &d.calls, "remove domain "+d.name, func() error {
		active, err := d.dom.IsActive()
		if err == nil && active {
			err = d.dom.Destroy()
		}
		if persistent, lookup := d.dom.IsPersistent(); err == nil && lookup == nil && persistent {
			if err = d.dom.UndefineFlags(libvirt.DOMAIN_UNDEFINE_NVRAM); isCode(err, libvirt.ERR_INVALID_ARG) {
				err = d.dom.Undefine() // the driver does not have this flag
			}
		}
		if isCode(err, libvirt.ERR_NO_DOMAIN) {
			return nil
		}
		return err
	})
}

// StopReason describes why the domain does not run; empty if it does. A domain that an
// administrator paused counts as running.
func (d *Domain) StopReason(ctx context.Context) (string, error) {
	type domainState struct {
		state  libvirt.DomainState
		reason int
	}
	s, err := await(ctx, &d.calls, "ask for the state of "+d.name, func() (domainState, error) {
		state, reason, err := d.dom.GetState()
		return domainState{state, reason}, err
	})
	if isCode(err, libvirt.ERR_NO_DOMAIN) {
		return "it powered off or its QEMU died", nil
	}
	if err != nil {
		return "", err
	}
	switch s.state {
	case libvirt.DOMAIN_SHUTOFF, libvirt.DOMAIN_SHUTDOWN:
		return "it is shutting down", nil
	case libvirt.DOMAIN_CRASHED:
		return "it crashed", nil
	case libvirt.DOMAIN_PAUSED:
		switch libvirt.DomainPausedReason(s.reason) {
		case libvirt.DOMAIN_PAUSED_IOERROR:
			return "paused by an I/O error of its disk (is the host's disk full?)", nil
		case libvirt.DOMAIN_PAUSED_CRASHED:
			return "it crashed (guest panic)", nil
		}
	}
	return "", nil
}

// Progress returns the CPU time, in nanoseconds, that the domain has used, and whether it is
// paused. It does not ask QEMU.
func (d *Domain) Progress(ctx context.Context) (used uint64, paused bool, err error) {
	info, err := await(ctx, &d.calls, "ask for the CPU time of "+d.name, d.dom.GetInfo)
	if err != nil {
		return 0, false, err
	}
	return info.CpuTime, info.State == libvirt.DOMAIN_PAUSED, nil
}

// gone makes err an [errdefs.ErrNoDomain] if the domain has ended since the lookup.
func gone(err error) error {
	if isCode(err, libvirt.ERR_NO_DOMAIN) {
		return fmt.Errorf("%w: %w", errdefs.ErrNoDomain, err)
	}
	return err
}
