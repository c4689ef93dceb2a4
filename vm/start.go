package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/domainxml"
)

// undoTimeout bounds what is done to leave nothing behind when a start fails or
// is cancelled: the caller may have two seconds left in all.
const undoTimeout = 1500 * time.Millisecond

// Start makes a machine and starts it: an ephemeral one, which is a transient
// domain whose overlays are unlinked once QEMU holds them open, so that a crash
// of anything leaves no disk behind. It does not wait for the guest: see
// [Guest.WaitReady].
//
// If Start fails, nothing of the machine is left. The error is [ErrExists] if
// there is a domain of that name, [ErrSpec] or a [domainxml.RefusedError] if the
// machine cannot be made from that image on this host.
func Start(ctx context.Context, h *Host, spec Spec) (_ *Guest, err error) {
	if spec.SSHPort == 0 {
		spec.SSHPort = 22
	}
	rebuilt, err := domainOf(&spec)
	if err != nil {
		return nil, err
	}
	domain := rebuilt.Domain
	guest := &Guest{host: h, name: spec.Name, record: spec.Record, jobDir: spec.JobDir}
	for _, path := range rebuilt.Dropped {
		guest.Notes = append(guest.Notes, "dropped from the image's domain: "+path)
	}
	if _, err := h.domain(ctx, spec.Name); !errors.Is(err, ErrNoDomain) {
		if err == nil {
			err = fmt.Errorf("%w: %s", ErrExists, spec.Name)
		}
		return nil, err
	}
	warning, err := accelerate(ctx, domain, &spec)
	if err != nil {
		return nil, err
	}
	guest.warn(warning)

	undo := &undoer{}
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.all())
		}
	}()
	files, err := makeFiles(ctx, h, &spec, undo)
	if err != nil {
		return nil, err
	}
	if err := personalise(domain, &spec, files); err != nil {
		return nil, err
	}
	notes, err := h.bound(ctx, domain, &spec)
	if err != nil {
		return nil, err
	}
	guest.warn(notes...)
	net, warnings, err := newNetwork(ctx, h, &spec)
	if err != nil {
		return nil, err
	}
	undo.add(net.stop)
	guest.warn(warnings...)
	guest.network = net
	if err := net.attach(domain); err != nil {
		return nil, err
	}
	// Also when we give up waiting for the daemon, it may start the machine.
	undo.add(func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		return destroy(ctx, h, spec.Name)
	})
	if err := guest.create(ctx, domain); err != nil {
		return nil, err
	}
	if err := takeBack(spec.Disks); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(filepath.Join(spec.CloneDir, spec.Name)); err != nil {
		return nil, fmt.Errorf("unlink the overlays of %s: %w", spec.Name, err)
	}
	return guest, nil
}

// makeFiles makes the directories and overlays of a machine.
func makeFiles(ctx context.Context, h *Host, spec *Spec, undo *undoer) (layout, error) {
	dir, files := machineFiles(spec)
	files.backingStore = h.version() >= firstLibvirtWithBackingStore
	if err := os.MkdirAll(spec.JobDir, 0o700); err != nil {
		return files, fmt.Errorf("make the job's directory: %w", err)
	}
	undo.add(func() error { return os.RemoveAll(spec.JobDir) })
	// The system daemon's QEMU runs as another user, which has to pass through
	// here; it can list nothing.
	if err := os.MkdirAll(spec.CloneDir, 0o711); err != nil {
		return files, fmt.Errorf("make the directory for overlays: %w", err)
	}
	// What a dead process left under this name is nobody's: no domain has it.
	if err := os.RemoveAll(dir); err != nil {
		return files, fmt.Errorf("clear the directory for overlays: %w", err)
	}
	if err := os.Mkdir(dir, 0o711); err != nil {
		return files, fmt.Errorf("make the directory for overlays: %w", err)
	}
	undo.add(func() error { return os.RemoveAll(dir) })
	var err error
	files.overlays, err = CloneDisks(ctx, spec.Disks, dir, spec.DiskSize)
	return files, err
}

// accelerate decides whether the machine runs on KVM or is emulated. An image
// that wants to be emulated is.
func accelerate(ctx context.Context, d *libvirtxml.Domain, spec *Spec) (warning string, err error) {
	accel := spec.Accel
	if accel == "" {
		accel = AccelAuto
	}
	if accel == AccelAuto && d.Type == "qemu" {
		accel = AccelTCG
	}
	switch accel {
	case AccelKVM:
		domainxml.UseKVM(d)
	case AccelTCG:
		domainxml.UseTCG(d)
	case AccelAuto:
		if why := KVMWorks(ctx, filepath.Dir(spec.JobDir)); why != nil {
			domainxml.UseTCG(d)
			return fmt.Sprintf("no working KVM on this host (%v): the machine is emulated, which is slow", why), nil
		}
		domainxml.UseKVM(d)
	default:
		return "", fmt.Errorf("%w: accel is %q: want auto, kvm or tcg", ErrSpec, accel)
	}
	return "", nil
}

// create starts the domain, transient: it is gone when it stops.
func (g *Guest) create(ctx context.Context, d *libvirtxml.Domain) error {
	for {
		doc, err := d.Marshal()
		if err != nil {
			return fmt.Errorf("write the domain of %s: %w", d.Name, err)
		}
		g.dom, err = await(ctx, "start domain "+d.Name, func() (*libvirt.Domain, error) {
			return g.host.conn.DomainCreateXML(doc, 0)
		})
		if err == nil {
			return nil
		}
		warning, again := g.network.retry(err, d)
		if !again {
			for _, code := range []libvirt.ErrorNumber{libvirt.ERR_CONFIG_UNSUPPORTED, libvirt.ERR_XML_ERROR, libvirt.ERR_XML_INVALID_SCHEMA} {
				if isCode(err, code) {
					return fmt.Errorf("%w: %w", ErrSpec, err)
				}
			}
			return err
		}
		g.warn(warning)
	}
}

// An undoer remembers how to take back what was done.
type undoer struct{ steps []func() error }

func (u *undoer) add(step func() error) { u.steps = append(u.steps, step) }

// all takes everything back, last things first.
func (u *undoer) all() error {
	var failed []error
	for i := len(u.steps) - 1; i >= 0; i-- {
		failed = append(failed, u.steps[i]())
	}
	return errors.Join(failed...)
}

// version of the daemon, as libvirt writes it: 9.1.0 is 9001000. 0 if it does
// not say.
func (h *Host) version() uint32 {
	v, err := h.conn.GetLibVersion()
	if err != nil {
		return 0
	}
	return v
}

func (g *Guest) warn(warnings ...string) {
	for _, w := range warnings {
		if w = strings.TrimSpace(w); w != "" {
			g.Warnings = append(g.Warnings, w)
		}
	}
}
