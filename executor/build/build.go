// Package build makes an image from another one: it boots a machine, changes its guest, and
// exports its disks.
package build

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"

	"gitlab-sardine-executor/executor"
	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/registry"
	"gitlab-sardine-executor/oci/transfer"
	"gitlab-sardine-executor/vm/console"
	"gitlab-sardine-executor/vm/virt"
)

// DefaultTimeout is how long a step may take if [Options.Timeout] is 0.
const DefaultTimeout = time.Hour

// Options configure [Build].
type Options struct {
	Settings *config.Settings
	// From is the base, as a job would name it, or an image on this host.
	From string
	// Steps change the guest, in this order.
	Steps []Step
	// To is the layout of the new image. Push is where to copy it; nil for nowhere.
	To   oci.Reference
	Push *oci.Reference

	// CPUs, Memory (bytes) and Disk (bytes) of the machine; 0 means the settings for From.
	// The new image keeps the size of the disk.
	CPUs   uint
	Memory uint64
	Disk   int64
	// User of the guest, and of the jobs with the new image; empty means that of From.
	User string
	// Labels of the new image.
	Labels map[string]string
	// Format of the new image: see [export.Options].
	Format string
	// Timeout of each step; 0 means [DefaultTimeout].
	Timeout time.Duration
	// Keep keeps the machine if a step fails.
	Keep bool
	// NoVerify does not boot the new image before it gets its tag.
	NoVerify bool

	Credentials registry.Credentials
	// Log shows the phases of the build, and the output of the steps.
	Log *joblog.Log
	// Progress makes the display of one transfer.
	Progress func(what string) joblog.Progress
}

// Build makes an image and returns its digest.
//
// The machine is started as that of a job, but its overlays stay until they are exported: the
// new image is a backing chain of the disks of the base and these overlays. When its steps are
// done the guest removes what must differ between machines, and powers off: QEMU has then
// written everything. The image gets its tag after two machines of it ran at the same time.
//
// If Build fails, nothing stays, except with Keep. If the process is killed, the next sweep
// removes the machine when it has expired.
func Build(ctx context.Context, o Options) (digest.Digest, error) {
	b, err := newBuilder(o)
	if err != nil {
		return "", err
	}
	host, err := executor.OpenHost(ctx, o.Settings)
	if err != nil {
		return "", err
	}
	defer host.Close()
	b.host = host
	d, err := b.run(ctx)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return "", fmt.Errorf("build of %s: %w", o.To, cause)
		}
		showConsole(o.Log, err)
		return "", err
	}
	if o.Push == nil {
		return d, nil
	}
	progress := o.Progress("Pushing")
	_, err = transfer.Push(ctx, o.To.AtDigest(d), *o.Push, transfer.Options{
		Credentials: o.Credentials, Progress: progress, StallTimeout: time.Duration(o.Settings.Defaults.PullStallTimeout),
	})
	progress.Close()
	if err != nil {
		return "", fmt.Errorf("the image is complete at %s, but not pushed: %w", o.To, err)
	}
	return d, nil
}

// A builder makes one image.
type builder struct {
	Options
	host     *virt.Host
	base     oci.Reference
	settings config.Resolved
	dirs     config.Dirs
}

// newBuilder checks everything that can be checked without a machine.
func newBuilder(o Options) (*builder, error) {
	if !o.To.IsLayout() || o.To.Digest() != "" {
		return nil, fmt.Errorf("build writes to a layout, oci:PATH[:TAG], not to %s; --push copies the image to a registry", o.To)
	}
	if o.Push != nil && (!o.Push.IsRegistry() || o.Push.Digest() != "") {
		return nil, fmt.Errorf("build pushes to a registry, HOST/NAME:TAG, not to %s", o.Push)
	}
	b := &builder{Options: o, settings: o.Settings.For(o.From)}
	var err error
	if b.base, err = oci.ParseReference(b.settings.Image); err != nil {
		return nil, err
	}
	if b.dirs, err = o.Settings.Dirs(); err != nil {
		return nil, err
	}
	if b.settings.Windows() {
		return nil, errors.New("build needs a guest with a POSIX shell; the settings for the base say that it runs Windows (guest_builds_dir)")
	}
	if limit := b.settings.MaxDisk; limit > 0 && b.Disk > limit {
		return nil, fmt.Errorf("--disk: a disk of %s, and the limit for jobs is %s (max_disk)", units.BytesSize(float64(b.Disk)), units.BytesSize(float64(limit)))
	}
	if b.Timeout == 0 {
		b.Timeout = DefaultTimeout
	}
	for n, step := range o.Steps {
		if err := step.check(); err != nil {
			return nil, fmt.Errorf("step %d: %w", n+1, err)
		}
	}
	b.adjustSettings()
	return b, nil
}

// adjustSettings changes the settings for jobs of the base to those for a build.
func (b *builder) adjustSettings() {
	b.settings.MemorySnapshot = false
	b.settings.RunnerBinary = config.RunnerOff
	if b.User != "" {
		b.settings = b.settings.WithUser(b.User)
	}
}

// run makes the image without pushing it.
func (b *builder) run(ctx context.Context) (_ digest.Digest, err error) {
	m, err := b.start(ctx)
	if err != nil {
		return "", err
	}
	surveyed := b.survey(ctx, m.image)
	kept := false
	defer func() {
		surveyed.stop()
		if !kept {
			err = errors.Join(err, m.remove(ctx))
		}
	}()
	if err := m.waitReady(ctx); err != nil {
		return "", err
	}
	for n, step := range b.Steps {
		if err := m.do(ctx, n, step); err != nil {
			if kept = b.Keep && ctx.Err() == nil && m.keep(ctx); kept {
				surveyed.stop()
				m.close()
			}
			return "", err
		}
	}
	if err := m.seal(ctx); err != nil {
		return "", err
	}
	if err := m.powerOff(ctx); err != nil {
		return "", err
	}
	return b.export(ctx, m, surveyed.wait())
}

// showConsole shows the end of the guest's console, if err has it.
func showConsole(log *joblog.Log, err error) {
	if text := console.TailOf(err); text != "" {
		log.Say("The guest's console ended with:")
		for _, line := range strings.Split(text, "\n") {
			log.Say("    %s", line)
		}
	}
}
