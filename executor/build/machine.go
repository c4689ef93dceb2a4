package build

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"gitlab-sardine-executor/executor"
	"gitlab-sardine-executor/executor/guestshell"
	"gitlab-sardine-executor/executor/job"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/executor/policy"
	"gitlab-sardine-executor/internal/dirlock"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/store"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/admission"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/removal"
)

const (
	// removeTimeout bounds the removal of a machine, also after a signal.
	removeTimeout = time.Minute
	// lockTimeout bounds the wait for the directory of a machine that has just started.
	lockTimeout = 5 * time.Second
	// keepTime is how long a failed machine is kept.
	keepTime = 24 * time.Hour
	// spareTime is what a build may take besides its steps and its boots.
	spareTime = time.Hour
	// pollInterval is how often powerOff looks whether the domain is gone.
	pollInterval = 100 * time.Millisecond
)

// A machine is one of a build. Its record and its files are those of a job's machine, so that
// ssh, status and sweep know it.
type machine struct {
	b       *builder
	name    string
	jobDir  string
	began   time.Time // the start of the machine, after the pull
	started *vm.Started
	login   guestssh.Login
	image   *oci.Image // locked; nil if the machine has unlinked its overlays
	// lock of the job directory: no sweep takes the overlays for abandoned ones after the
	// machine has powered off.
	lock *dirlock.Lock
}

// start starts the machine of the base.
func (b *builder) start(ctx context.Context) (*machine, error) {
	progress := b.Progress("Pulling")
	defer progress.Close()
	pull := store.PullOptions{Policies: b.settings.PullPolicies, Credentials: b.Credentials, Progress: progress}
	return b.startMachine(ctx, b.Log, b.base, pull, true)
}

// startMachine starts a machine of an image. With keepDisks its overlays can be exported. The
// log says what is pulled and started.
func (b *builder) startMachine(ctx context.Context, log *joblog.Log, image oci.Reference, pull store.PullOptions, keepDisks bool) (_ *machine, err error) {
	server := "build://" + joblog.Hostname()
	own := job.Job{ID: strconv.FormatUint(rand.Uint64N(1<<40)+1, 10), Server: server}
	m := &machine{b: b, name: own.VMName(), jobDir: b.dirs.Job(own.VMName())}
	size, err := b.size(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	admit := executor.AdmissionPolicy(b.Options.Settings)
	if !keepDisks {
		admit = admission.Policy{Reserve: admit.Reserve, Timeout: admit.Timeout} // two are needed at once
	}
	admit.Waiting = func(reason string) { b.Log.Say("Waiting for room on this host: %s", reason) }
	started, err := executor.FetchAndClone(ctx, b.host, executor.FetchAndCloneOptions{
		Image: image, Pull: executor.PullLimits(b.Options.Settings, b.settings, pull),
		Dirs: b.dirs, Name: m.name, Settings: b.settings, Size: size, Admission: admit, KeepDisks: keepDisks,
		Record: record.Record{
			Job: own.ID, Project: "build", Server: server,
			Created: now.UTC().Truncate(time.Second), Expires: now.Add(b.longest()).UTC().Truncate(time.Second),
		},
		Log:   log,
		Phase: func(string) func() { return func() { m.began = time.Now() } },
	})
	if err != nil {
		return nil, err
	}
	m.started, m.login = started.Guest, started.Login
	if keepDisks {
		m.image = started.Image
		if m.lock, err = dirlock.Acquire(ctx, m.jobDir, lockTimeout); err != nil {
			return nil, errors.Join(err, m.remove(ctx))
		}
	}
	return m, nil
}

// longest is how long the build may take.
func (b *builder) longest() time.Duration {
	return time.Duration(len(b.Steps))*b.Timeout + 4*b.settings.Timeout + spareTime
}

// size is that of the settings, or of the command line.
func (b *builder) size(ctx context.Context) (policy.Size, error) {
	host, err := b.host.Size(ctx)
	if err != nil {
		return policy.Size{}, err
	}
	size := policy.SizeFor(b.settings, host.CPUs, b.Options.Settings.Defaults.Concurrency)
	if b.CPUs > 0 {
		size.CPUs = b.CPUs
	}
	if b.Memory > 0 {
		size.Memory = b.Memory
	}
	if b.Disk > 0 {
		size.Disk = b.Disk
	}
	return size, nil
}

// checkRoot fails if the login user cannot become root.
const checkRoot = `test "$(id -u)" = 0`

// waitReady waits until the guest has booted and lets the build log in.
func (m *machine) waitReady(ctx context.Context) error {
	began := time.Now()
	end := m.b.Log.Section("sardine_boot", "Machine "+m.name)
	defer end()
	limited, cancel := context.WithTimeout(ctx, m.b.settings.Timeout)
	defer cancel()
	err := m.started.WaitReady(limited, m.login)
	if errors.Is(err, errdefs.ErrNoAnswer) || errors.Is(err, errdefs.ErrNoBoot) {
		return fmt.Errorf("%w (waited %s: the setting timeout)", err, m.b.settings.Timeout)
	}
	if err != nil {
		return err
	}
	if err := guestssh.SaveLogin(m.jobDir, m.login); err != nil {
		return err
	}
	err = guestshell.Within(ctx, began.Add(m.b.settings.Timeout), func(ctx context.Context) error {
		return guestshell.Settle(ctx, m.started, m.b.settings, m.jobDir, m.b.Log)
	})
	if err != nil {
		return err
	}
	if err := runAsRoot(ctx, m.started.Instance, m.b.Log, nil, checkRoot); err != nil {
		var status exitError
		if errors.As(err, &status) {
			err = fmt.Errorf("user %s of the guest cannot become root with sudo and without a password (%w): name another one with --user", m.login.User, err)
		}
		return err
	}
	m.b.Log.Say("Guest ready at %s as %s (%s)", m.started.Record().Address, m.login.User, joblog.Seconds(time.Since(m.began)))
	return nil
}

// powerOffScript powers the guest off. Its services are not stopped one by one: all processes
// get SIGTERM, and the file systems are unmounted. Otherwise some services would write again
// what the seal removed, such as the random seed. The connection ends with the guest.
const powerOffScript = `sync
if [ -d /run/systemd/system ]; then systemctl poweroff --force; else poweroff || shutdown -h now; fi
exec sleep 3600`

// powerOff powers the guest off and waits until QEMU has ended, and so has written the
// overlays.
func (m *machine) powerOff(ctx context.Context) error {
	began := time.Now()
	limited, cancel := context.WithTimeout(ctx, m.b.settings.Timeout)
	defer cancel()
	_, err := m.started.Instance.Run(limited, guestssh.Command{Line: asRoot(powerOffScript)})
	if err != nil && !errors.Is(err, errdefs.ErrPoweredOff) && !errors.Is(err, guestssh.ErrLost) && limited.Err() == nil {
		return fmt.Errorf("power the guest off: %w", err)
	}
	for {
		dom, err := m.b.host.Domain(limited, m.name)
		if errors.Is(err, errdefs.ErrNoDomain) {
			m.b.Log.Say("Powered off (%s)", joblog.Seconds(time.Since(began)))
			return nil
		}
		if err == nil {
			dom.Free()
		}
		select {
		case <-limited.Done():
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("the guest did not power off within %s (the setting timeout)", m.b.settings.Timeout)
		case <-time.After(pollInterval):
		}
	}
}

// keep keeps the machine of a failed step and says how to reach it.
func (m *machine) keep(ctx context.Context) bool {
	until := time.Now().Add(keepTime)
	if err := record.Keep(ctx, m.b.host, m.name, until); err != nil {
		m.b.Log.Warn("the machine cannot be kept: %v", err)
		return false
	}
	m.b.Log.Say("The machine is kept until %s: gitlab-sardine-executor ssh %s (virsh destroy %s, then sweep, removes it)",
		until.Format(time.RFC3339), m.name, m.name)
	return true
}

// close closes the connection and the locks. The machine continues to run.
func (m *machine) close() error {
	failed := []error{m.started.Close()}
	if m.image != nil {
		failed = append(failed, m.image.Close())
		m.image = nil
	}
	if m.lock != nil {
		failed = append(failed, m.lock.Unlock())
		m.lock = nil
	}
	return errors.Join(failed...)
}

// remove removes the machine and its files, also after a signal.
func (m *machine) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	closed := m.close()
	err := removal.Remove(ctx, m.b.host, m.name, vm.Place{OverlayDir: m.b.dirs.Overlays, JobDir: m.jobDir})
	if err != nil {
		err = fmt.Errorf("remove the machine %s (sweep will try again): %w", m.name, err)
	}
	return errors.Join(closed, err)
}
