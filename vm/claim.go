package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/internal/dirlock"
	"gitlab-sardine-executor/vm/cache"
	"gitlab-sardine-executor/vm/domain"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/idle"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/removal"
	"gitlab-sardine-executor/vm/virt"
)

// claimTimeout is how long the guest of an idle machine may take to accept the login.
const claimTimeout = 2 * time.Second

// dropTimeout is how long a job waits for the end of an idle machine that it cannot use.
const dropTimeout = time.Second

// ErrPlug: the cache disk cannot be plugged into the idle machine, and probably not into others
// of its kind.
var ErrPlug = errors.New("the cache disk cannot be plugged in")

// A Claim is what a job wants of an idle machine.
type Claim struct {
	// Domain of the idle machine.
	Domain string
	// Name by which the job knows the machine from now on, and the Place of a machine with
	// that name.
	Name string
	Place
	// Cache to plug in, a disk; nil for none.
	Cache *cache.Config
	// Record of the job. Take adds what is known of the machine.
	Record record.Record
}

// Take gives the idle machine to the job, and logs in: the host key and the machine at the
// address must be those that were seen when it became ready. It needs no [Started.WaitReady].
// The error is [idle.ErrTaken] if another process has it. After another error the machine is
// removed: it has waited too long, or is not what it was.
func (c Claim) Take(ctx context.Context, h *virt.Host) (*Started, error) {
	at := c.Of(c.Domain)
	locked, err := dirlock.Try(at.JobDir)
	if err == nil && locked == nil || errors.Is(err, fs.ErrNotExist) {
		return nil, idle.ErrTaken
	}
	if err != nil {
		return nil, err
	}
	defer locked.Unlock()
	if err := idle.Take(c.Storage(), c.Domain, c.Name); err != nil {
		return nil, err
	}
	taken, err := c.open(ctx, h, at.JobDir)
	if err == nil {
		return taken, nil
	}
	// libvirt takes long to end a QEMU that hangs, and goes on with it.
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), dropTimeout)
	defer cancel()
	return nil, errors.Join(
		fmt.Errorf("take the idle machine %s: %w", c.Domain, err),
		removal.Locked(ending, h, c.Domain, at), idle.Forget(c.Storage(), c.Name, c.Domain))
}

// open logs in, plugs in the cache and writes the record. The caller holds the lock of the
// machine, and the link of the job leads to it.
func (c Claim) open(ctx context.Context, h *virt.Host, jobDir string) (_ *Started, err error) {
	dom, err := h.Domain(ctx, c.Domain)
	if err != nil {
		return nil, err
	}
	found, err := record.Read(ctx, dom)
	if err == nil && !found.Idle {
		err = fmt.Errorf("%w: it is the one of %s", errdefs.ErrNotOurs, found.Machine)
	}
	if err != nil {
		return nil, err
	}
	state, err := idle.Load(c.Storage(), c.Domain)
	if err != nil {
		return nil, err
	}
	s := &Started{Instance: &Instance{host: h, dom: dom, name: c.Domain, record: found, jobDir: jobDir}, tools: state.Tools, idle: true, settled: state.Settled}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.login, err = guestssh.LoadLogin(jobDir); err != nil {
		return nil, err
	}
	answering, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	if err := s.Connect(answering, s.login); err != nil {
		return nil, err
	}
	unlock, err := c.plugCache(ctx, h, s)
	if err != nil {
		return nil, err
	}
	s.record = c.recordOf(found, s.cache)
	if err := errors.Join(s.record.Store(ctx, dom), unlock()); err != nil {
		return nil, err
	}
	if err := dom.SetTitle(ctx, c.Name); err != nil {
		s.Warnings = append(s.Warnings, err.Error())
	}
	return s, nil
}

// recordOf is the record of the job with what is known of the machine.
func (c Claim) recordOf(found record.Record, plugged cache.Cache) record.Record {
	r := c.Record
	r.Machine, r.Cache = c.Name, plugged.Name
	r.MAC, r.Address, r.HostKey, r.User = found.MAC, found.Address, found.HostKey, found.User
	return r
}

// plugCache plugs in the cache disk. unlock must be called when the record names the cache.
func (c Claim) plugCache(ctx context.Context, h *virt.Host, s *Started) (unlock func() error, err error) {
	if c.Cache == nil {
		return func() error { return nil }, nil
	}
	acquired, unlock, err := c.Cache.Acquire(ctx, h)
	if err != nil {
		return nil, err
	}
	if err := plugDisk(ctx, s.dom, acquired.Path); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrPlug, err), unlock())
	}
	s.cache = acquired
	return unlock, nil
}

// plugDisk plugs a cache disk into a running domain.
func plugDisk(ctx context.Context, dom *virt.Domain, path string) error {
	doc, err := dom.XML(ctx)
	if err != nil {
		return err
	}
	d := &libvirtxml.Domain{}
	if err := d.Unmarshal(doc); err != nil {
		return fmt.Errorf("read the domain: %w", err)
	}
	domain.AddCacheDisk(d, path, cache.Label)
	device, err := d.Devices.Disks[len(d.Devices.Disks)-1].Marshal()
	if err != nil {
		return fmt.Errorf("describe the cache disk: %w", err)
	}
	return dom.AttachDevice(ctx, device)
}

// Idle reports whether the machine had waited for the job, instead of being started for it.
func (s *Started) Idle() bool { return s.idle }

// Settled reports whether the guest of an idle machine is as the job wants it: its boot has ended, and
// the directories for jobs are there.
func (s *Started) Settled() bool { return s.settled }
