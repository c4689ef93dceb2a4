package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/internal/rollback"
	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/domain"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/network"
	"gitlab-sardine-executor/vm/virt"
)

// Start makes a machine and starts it: an ephemeral one, which is a transient
// domain whose overlays are unlinked once QEMU holds them open, so that a crash
// of anything leaves no disk behind. It does not wait for the guest: see
// [Guest.WaitReady].
//
// The machine goes on from the snapshot in [Spec.SnapshotDir] if there is one of
// the same kind of machine, and boots otherwise.
//
// If Start fails, nothing of the machine is left. The error is [errdefs.ErrExists] if
// there is a domain of that name, [ErrSpec] or a [domainxml.RefusedError] if the
// machine cannot be made from that image on this host.
func Start(ctx context.Context, h *virt.Host, spec Spec) (_ *Guest, err error) {
	spec.normalise()
	guest := newGuest(h, &spec)
	d, err := guest.design(ctx, &spec)
	if err != nil {
		return nil, err
	}
	resumed, err := guest.resumeIfPossible(ctx, d, &spec)
	if err != nil {
		return nil, err
	}
	if resumed {
		return guest, nil
	}
	undo := &rollback.Stack{}
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.Run())
		}
	}()
	if err := guest.boot(ctx, d, &spec, undo); err != nil {
		return nil, err
	}
	if err := guest.letGo(&spec); err != nil {
		return nil, err
	}
	return guest, nil
}

// normalise fills in what a spec leaves out.
func (s *Spec) normalise() {
	if s.SSHPort == 0 {
		s.SSHPort = 22
	}
}

func newGuest(h *virt.Host, spec *Spec) *Guest {
	return &Guest{host: h, name: spec.Name, record: spec.Record, jobDir: spec.JobDir}
}

// boot starts the machine from its beginning. Its files are still where they were
// made.
func (g *Guest) boot(ctx context.Context, d *libvirtxml.Domain, spec *Spec, undo *rollback.Stack) error {
	if err := g.equip(ctx, d, spec, undo); err != nil {
		return err
	}
	return g.launch(ctx, d, spec, undo, g.create)
}

// letGo unlinks the files of a machine that runs: QEMU has them open.
func (g *Guest) letGo(spec *Spec) error {
	if err := disk.ChownToRoot(spec.Disks); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(spec.CloneDir, spec.Name)); err != nil {
		return fmt.Errorf("unlink the overlays of %s: %w", spec.Name, err)
	}
	return g.making.unlock()
}

// design makes the domain of the machine, as far as that takes nothing of the
// host.
func (g *Guest) design(ctx context.Context, spec *Spec) (*libvirtxml.Domain, error) {
	rebuilt, err := domain.Build(spec.source())
	if err != nil {
		return nil, err
	}
	for _, path := range rebuilt.Dropped {
		g.Notes = append(g.Notes, "dropped from the image's domain: "+path)
	}
	switch _, err := g.host.Domain(ctx, spec.Name); {
	case err == nil:
		return nil, fmt.Errorf("%w: %s", errdefs.ErrExists, spec.Name)
	case !errors.Is(err, virt.ErrNoDomain):
		return nil, err
	}
	size, err := g.host.Size(ctx)
	if err != nil {
		return nil, err
	}
	spec.size().Resize(rebuilt.Domain)
	g.warn(spec.size().Limit(rebuilt.Domain, size.CPUs, size.Memory)...)
	warning, err := domain.Accelerate(ctx, rebuilt.Domain, spec.Accel, filepath.Dir(spec.JobDir))
	g.warn(warning)
	return rebuilt.Domain, err
}

// equip gives the machine its files.
func (g *Guest) equip(ctx context.Context, d *libvirtxml.Domain, spec *Spec, undo *rollback.Stack) error {
	files, err := g.makeFiles(ctx, spec, undo)
	if err != nil {
		return err
	}
	g.overlays = files.Overlays
	if err := disk.CopyNVRAM(d.OS, files.NVRAM, ""); err != nil {
		return err
	}
	if spec.Seed != nil {
		spec.Record.HostKey = spec.Seed.HostKey()
		g.record = spec.Record
	}
	metadata, err := spec.Record.Metadata()
	if err != nil {
		return err
	}
	instance := domain.Instance{Name: spec.Name, Metadata: metadata, Disks: spec.Disks, Files: files}
	if err := instance.Apply(d); err != nil || spec.Seed == nil {
		return err
	}
	return spec.Seed.Attach(d, filepath.Join(spec.CloneDir, spec.Name))
}

// launch waits for room on the host, gives the machine its network and starts it.
func (g *Guest) launch(ctx context.Context, d *libvirtxml.Domain, spec *Spec, undo *rollback.Stack,
	start func(context.Context, *libvirtxml.Domain) error) error {
	release, err := spec.Admission.Admit(ctx, g.host, domain.Memory(d), filepath.Dir(spec.JobDir))
	if err != nil {
		return err
	}
	undo.Add(release)
	unlock, err := g.addCache(ctx, d, spec)
	if err != nil {
		return err
	}
	undo.Add(unlock)
	var warnings []string
	g.network, warnings, err = network.New(ctx, g.host, network.Options{
		Network: spec.Network, Machine: spec.Name, NICs: len(d.Devices.Interfaces), SSHPort: spec.SSHPort,
		OverlayDir: spec.CloneDir, JobDir: spec.JobDir,
	})
	if err != nil {
		return err
	}
	undo.Add(g.network.Stop)
	g.warn(warnings...)
	if err := g.network.Attach(d); err != nil {
		return err
	}
	undo.Add(func() error { return ignoring(disk.ChownToRoot(spec.Disks), fs.ErrNotExist) })
	// Also when we give up waiting for the daemon, it may start the machine.
	undo.Add(func() error {
		ctx, cancel := rollback.Context(ctx)
		defer cancel()
		return destroy(ctx, g.host, spec.Name)
	})
	if err := start(ctx, d); err != nil {
		return err
	}
	if err := g.network.Started(ctx); err != nil {
		return err
	}
	g.record.MAC = strings.Join(g.network.MACs(), " ")
	// From now on libvirt counts the machine, and says that its cache is in use.
	return errors.Join(unlock(), release())
}

// makeFiles makes the directories and overlays of a machine.
//
// The job's directory stays locked until the machine runs or all is undone.
func (g *Guest) makeFiles(ctx context.Context, spec *Spec, undo *rollback.Stack) (domain.Files, error) {
	dir, files := machineFiles(spec)
	write, err := domain.WritesBackingStore(spec.OmitBackingStore, g.host.Version())
	if err != nil {
		return files, err
	}
	files.BackingStore = write
	job, err := makeJobDir(ctx, spec.JobDir)
	if err != nil {
		return files, err
	}
	g.making = job
	undo.Add(func() error { return errors.Join(os.RemoveAll(spec.JobDir), job.unlock()) })
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
	undo.Add(func() error { return os.RemoveAll(dir) })
	files.Overlays, err = disk.CloneDisks(ctx, spec.Disks, dir, spec.DiskSize)
	return files, err
}

// create starts the domain, transient: it is gone when it stops.
func (g *Guest) create(ctx context.Context, d *libvirtxml.Domain) error {
	for {
		doc, err := d.Marshal()
		if err != nil {
			return fmt.Errorf("write the domain of %s: %w", d.Name, err)
		}
		g.dom, err = g.host.Start(ctx, d.Name, doc)
		if err == nil {
			return nil
		}
		warning, again := g.network.Retry(ctx, err, d)
		if !again {
			return virt.ClassifyXML(err)
		}
		g.warn(warning)
	}
}

// ignoring is err, unless it is fine.
func ignoring(err, fine error) error {
	if errors.Is(err, fine) {
		return nil
	}
	return err
}

func (g *Guest) warn(warnings ...string) {
	for _, w := range warnings {
		if w = strings.TrimSpace(w); w != "" {
			g.Warnings = append(g.Warnings, w)
		}
	}
}
