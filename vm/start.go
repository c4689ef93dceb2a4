package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/internal/dirlock"
	"gitlab-sardine-executor/internal/rollback"
	"gitlab-sardine-executor/vm/cache"
	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/domain"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/network"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/removal"
	"gitlab-sardine-executor/vm/snapshot"
	"gitlab-sardine-executor/vm/toolsdisk"
	"gitlab-sardine-executor/vm/virt"
)

// Start creates and starts an ephemeral machine: a transient domain whose overlays are
// unlinked once QEMU has opened them, so that no crash leaves a disk behind. It does not
// wait for the guest: see [Started.WaitReady].
//
// The machine resumes from a snapshot in [Spec.SnapshotDir] if there is one of the same
// kind of machine, and boots otherwise.
//
// If Start fails, it leaves nothing of the machine. The error is [errdefs.ErrExists] if
// there is a domain of that name, [errdefs.ErrInvalid] or a [domainxml.RefusedError] if the
// machine cannot be created from that image on this host.
func Start(ctx context.Context, h *virt.Host, spec Spec) (_ *Started, err error) {
	s := newStarter(h, spec)
	d, err := s.buildDomain(ctx)
	if err != nil {
		return nil, err
	}
	resumed, err := s.resumeIfPossible(ctx, d)
	if resumed != nil || err != nil {
		return resumed, err
	}
	undo := &rollback.Stack{}
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.Run())
		}
	}()
	if err := s.boot(ctx, d, undo); err != nil {
		return nil, err
	}
	if err := s.unlinkOverlays(); err != nil {
		return nil, err
	}
	return s.started(nil), nil
}

// A starter is a machine that is being started. Once it runs, it is a [Started].
type starter struct {
	host *virt.Host
	spec Spec
	// record of the machine; it is written to the domain when that is complete.
	record          record.Record
	notes, warnings []string

	shared   []disk.Disk       // files that the overlays are based on
	overlays map[string]string // paths, by the names of the disks
	dir      *dirlock.Lock     // of the job
	tools    bool              // the machine has the disk with programs of this host
	cache    cache.Cache
	network  network.Network
	dom      *virt.Domain
}

func newStarter(h *virt.Host, spec Spec) *starter {
	if spec.SSHPort == 0 {
		spec.SSHPort = 22
	}
	return &starter{host: h, spec: spec, record: spec.Record, shared: spec.Disks}
}

// started is the machine when it runs. from is the snapshot that it resumed from; nil if it
// booted.
func (s *starter) started(from *snapshot.Snapshot) *Started {
	return &Started{
		Instance: &Instance{host: s.host, dom: s.dom, name: s.spec.Name, record: s.record, jobDir: s.spec.JobDir},
		Notes:    s.notes, Warnings: s.warnings, Overlays: s.overlays,
		network: s.network, cache: s.cache, snapshot: from, loginGrace: s.spec.LoginGrace, tools: s.tools,
	}
}

// boot starts the machine from power-on. Its overlays are not unlinked yet.
func (s *starter) boot(ctx context.Context, d *libvirtxml.Domain, undo *rollback.Stack) error {
	if err := s.prepareBoot(ctx, d, undo); err != nil {
		return err
	}
	if err := s.start(ctx, d, undo, s.create); err != nil {
		return s.explain(ctx, d, err)
	}
	return nil
}

// explain adds to the error of a start what is wrong with the host.
func (s *starter) explain(ctx context.Context, d *libvirtxml.Domain, err error) error {
	qemu, unknown := s.host.QEMUUser(ctx)
	if unknown != nil {
		return err
	}
	return domain.Explain(err, d, s.spec.OverlayDir, s.spec.Disks, int(qemu.Uid), int(qemu.Gid))
}

// unlinkOverlays unlinks the files of the running machine: QEMU has opened them.
func (s *starter) unlinkOverlays() error {
	if err := disk.ChownToRoot(s.shared); err != nil {
		return err
	}
	if s.spec.KeepOverlays {
		return s.dir.Unlock()
	}
	dir, _ := s.spec.Files(s.spec.Name)
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("unlink the overlays of %s: %w", s.spec.Name, err)
	}
	return s.dir.Unlock()
}

// buildDomain builds the domain of the machine, without its files and network.
func (s *starter) buildDomain(ctx context.Context) (*libvirtxml.Domain, error) {
	built, notes, err := domain.Build(s.spec.Source)
	if err != nil {
		return nil, err
	}
	s.notes = append(s.notes, notes...)
	for _, path := range built.Dropped {
		s.notes = append(s.notes, "dropped from the image's domain: "+path)
	}
	switch dom, err := s.host.Domain(ctx, s.spec.Name); {
	case err == nil:
		dom.Free()
		return nil, fmt.Errorf("%w: %s", errdefs.ErrExists, s.spec.Name)
	case !errors.Is(err, errdefs.ErrNoDomain):
		return nil, err
	}
	size, err := s.host.Size(ctx)
	if err != nil {
		return nil, err
	}
	if home, err := os.UserConfigDir(); err == nil && !s.host.System() {
		s.notes = append(s.notes, domain.DropLongChannels(built.Domain, s.spec.Name, home)...)
	}
	if s.spec.CacheLater {
		domain.LeaveSlots(built.Domain)
	}
	s.spec.Resize(built.Domain)
	s.warn(s.spec.Limit(built.Domain, size.CPUs, s.spec.Admission.Most(size.Memory))...)
	architectures, err := s.host.Architectures(ctx)
	if err == nil {
		err = domain.CheckArchitecture(s.spec.Source, built.Domain, architectures)
	}
	if err != nil {
		return nil, err
	}
	warning, err := domain.Accelerate(ctx, built.Domain, s.spec.Accel, s.spec.Storage())
	s.warn(warning)
	return built.Domain, err
}

// prepareBoot creates the files of a machine that boots, and completes its domain.
func (s *starter) prepareBoot(ctx context.Context, d *libvirtxml.Domain, undo *rollback.Stack) error {
	files, err := s.createFiles(ctx, s.spec.Disks, undo)
	if err != nil {
		return err
	}
	if err := disk.CopyNVRAM(d.OS, files.NVRAM, ""); err != nil {
		return err
	}
	if err := domain.ApplyInstance(d, s.spec.Name, s.spec.Disks, files); err != nil {
		return err
	}
	s.spec.Tools.Attach(d, s.host.System())
	if s.spec.Seed == nil {
		return nil
	}
	s.record.HostKey = s.spec.Seed.HostKey()
	dir, _ := s.spec.Files(s.spec.Name)
	return s.spec.Seed.Attach(d, dir)
}

// start waits for room on the host, attaches cache and network, and starts the domain with
// run.
func (s *starter) start(ctx context.Context, d *libvirtxml.Domain, undo *rollback.Stack,
	run func(context.Context, *libvirtxml.Domain) error) error {
	s.tools = toolsdisk.AttachedTo(d)
	admission := s.spec.Admission
	admission.Evict = func(ctx context.Context, memory uint64) error {
		return removal.Evict(ctx, s.host, s.spec.Place, memory)
	}
	release, err := admission.Admit(ctx, s.host, s.spec.Name, domain.Memory(d), s.spec.Storage())
	if err != nil {
		return err
	}
	undo.Add(release)
	releaseCache, err := s.attachCache(ctx, d)
	if err != nil {
		return err
	}
	undo.Add(releaseCache)
	if err := s.attachNetwork(ctx, d, undo); err != nil {
		return err
	}
	if d.Metadata, err = s.record.Metadata(); err != nil {
		return err
	}
	undo.Add(func() error { return ignoring(disk.ChownToRoot(s.shared), fs.ErrNotExist) })
	// The daemon may start the machine even after ctx has ended.
	undo.Add(func() error {
		ctx, cancel := rollback.Context(ctx)
		defer cancel()
		return removal.Destroy(ctx, s.host, s.spec.Name)
	})
	if err := run(ctx, d); err != nil {
		return err
	}
	if err := s.network.Started(ctx); err != nil {
		return err
	}
	// libvirt counts the machine now, and its record names its cache.
	return errors.Join(releaseCache(), release())
}

// attachCache attaches the cache. release must be called when libvirt knows the machine, or
// when the start fails.
func (s *starter) attachCache(ctx context.Context, d *libvirtxml.Domain) (release func() error, err error) {
	if s.spec.Cache == nil {
		return func() error { return nil }, nil
	}
	if s.cache, release, err = s.spec.Cache.Acquire(ctx, s.host); err != nil {
		return nil, err
	}
	if s.spec.Cache.Mode == cache.Disk {
		domain.AddCacheDisk(d, s.cache.Path, cache.Label)
	} else {
		domain.AddCacheShare(d, s.cache.Path, cache.Label)
	}
	s.record.Cache = s.cache.Name
	return release, nil
}

func (s *starter) attachNetwork(ctx context.Context, d *libvirtxml.Domain, undo *rollback.Stack) error {
	n, warnings, err := network.New(ctx, s.host, network.Options{
		Network: s.spec.Network, Machine: s.spec.Name, NICs: len(d.Devices.Interfaces), SSHPort: s.spec.SSHPort,
		HostAccess: s.spec.HostAccess,
		OverlayDir: s.spec.OverlayDir, JobDir: s.spec.JobDir,
	})
	if err != nil {
		return err
	}
	undo.Add(n.Stop)
	s.warn(warnings...)
	s.network = n
	s.record.MAC = strings.Join(n.MACs(), " ")
	return n.Attach(d)
}

// createFiles creates the directories of the machine, and overlays on disks. The job
// directory stays locked until the machine runs or everything is undone.
func (s *starter) createFiles(ctx context.Context, disks []disk.Disk, undo *rollback.Stack) (domain.Files, error) {
	dir, files := s.spec.Files(s.spec.Name)
	var err error
	if files.BackingStore, err = domain.WritesBackingStore(s.spec.OmitBackingStore, s.host.Version()); err != nil {
		return files, err
	}
	if s.dir, err = createJobDir(ctx, s.spec.JobDir); err != nil {
		return files, err
	}
	undo.Add(func() error { return errors.Join(os.RemoveAll(s.spec.JobDir), s.dir.Unlock()) })
	// The QEMU of the system daemon runs as another user. It passes through this directory
	// and cannot list it.
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return files, fmt.Errorf("create the directory for overlays: %w", err)
	}
	// Files of that name are left over from a process that died: no domain has them.
	if err := os.RemoveAll(dir); err != nil {
		return files, fmt.Errorf("clear the directory for overlays: %w", err)
	}
	if err := os.Mkdir(dir, 0o711); err != nil {
		return files, fmt.Errorf("create the directory for overlays: %w", err)
	}
	undo.Add(func() error { return os.RemoveAll(dir) })
	files.Overlays, err = disk.CloneDisks(ctx, disks, dir, s.spec.DiskSize)
	s.overlays = files.Overlays
	return files, err
}

// jobDirTimeout is how long a start waits for its job directory while another process
// removes what is there.
const jobDirTimeout = 5 * time.Second

// createJobDir creates and locks the directory of a machine. The process that starts the
// machine holds the lock until the domain runs, which protects the files from then on; a
// process that removes the machine holds it until everything is removed. What is in the
// directory was left by a process that died: no domain has these files.
func createJobDir(ctx context.Context, path string) (*dirlock.Lock, error) {
	locked, err := dirlock.Acquire(ctx, path, jobDirTimeout)
	if err != nil {
		return nil, fmt.Errorf("create the job's directory: %w", err)
	}
	if locked == nil {
		return nil, fmt.Errorf("another process uses the job's directory %s: is a second prepare of this job running?", path)
	}
	if err := locked.Clear(); err != nil {
		return nil, errors.Join(fmt.Errorf("clear the job's directory: %w", err), locked.Unlock())
	}
	return locked, nil
}

// create starts the domain, and changes its network as long as that is why it does not
// start.
func (s *starter) create(ctx context.Context, d *libvirtxml.Domain) error {
	for {
		doc, err := d.Marshal()
		if err != nil {
			return fmt.Errorf("write the domain of %s: %w", d.Name, err)
		}
		if s.dom, err = s.host.Start(ctx, d.Name, doc); err == nil {
			return nil
		}
		warning, again := s.network.Retry(ctx, err, d)
		if !again && s.tools && ctx.Err() == nil && !errors.Is(err, errdefs.ErrDisconnected) {
			// A convenience must not keep a machine from starting.
			toolsdisk.Detach(d)
			s.tools, again = false, true
			warning = fmt.Sprintf("the guest gets no disk with gitlab-runner: %v", err)
		}
		if !again {
			return virt.ClassifyXML(err)
		}
		s.warn(warning)
	}
}

func (s *starter) warn(warnings ...string) {
	for _, w := range warnings {
		if w = strings.TrimSpace(w); w != "" {
			s.warnings = append(s.warnings, w)
		}
	}
}

// ignoring returns err, or nil if err is the ignored error.
func ignoring(err, ignored error) error {
	if errors.Is(err, ignored) {
		return nil
	}
	return err
}
