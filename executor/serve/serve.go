// Package serve is the service of a host that makes jobs start sooner: components that run
// beside each other until the service ends, with one set of settings, metrics and a log.
package serve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sync/errgroup"

	"gitlab-sardine-executor/executor/metrics"
	"gitlab-sardine-executor/internal/sdnotify"
)

// lockFile is locked by the serve of a storage, in the directory of jobs.
const lockFile = ".serve"

// errRunning: two would keep twice as many machines.
var errRunning = errors.New("another gitlab-sardine-executor serve looks after this storage")

// A Component is a part of the service.
type Component interface {
	// Name is for the log and /healthz.
	Name() string
	// Run works until ctx ends, and cleans up: it has a minute for that. An error ends
	// the service, so it is for what cannot get better.
	Run(ctx context.Context) error
	// Health is nil, or what is wrong at the moment.
	Health() error
}

// stopTimeout is how long components may take to end. The unit of systemd waits longer.
const stopTimeout = 60 * time.Second

// An Env is what components share.
type Env struct {
	// Version of this program.
	Version  string
	Settings *Current
	Log      *slog.Logger
	Metrics  *metrics.Live
}

// A Server runs components.
type Server struct {
	Env
	Components []Component
	// Reload makes the server read the settings again.
	Reload <-chan os.Signal
}

// Run runs the components until ctx ends, and returns when all have ended. The error is nil
// then, unless they did not end in time. systemd is told of each step.
func (s *Server) Run(ctx context.Context) error {
	release, err := s.lock()
	if err != nil {
		return err
	}
	defer release()
	page, err := s.listen()
	if err != nil {
		return err
	}
	group, running := errgroup.WithContext(ctx)
	for _, c := range append([]Component{page}, s.Components...) {
		group.Go(func() error {
			if err := c.Run(running); err != nil && running.Err() == nil {
				return fmt.Errorf("%s: %w", c.Name(), err)
			}
			return nil
		})
	}
	s.notify(sdnotify.Ready("running"))
	s.Log.Info("serve is running", "settings", s.Settings.Get().Path, "listen", s.Settings.Get().Serve.Listen)
	s.loop(running)
	s.notify(sdnotify.Stopping())
	s.Log.Info("serve is ending")
	return waitFor(group, stopTimeout)
}

// waitFor bounds the end of the components: one of them may be in a call of libvirt that does
// not return.
func waitFor(group *errgroup.Group, timeout time.Duration) error {
	ended := make(chan error, 1)
	go func() { ended <- group.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-time.After(timeout):
		return fmt.Errorf("serve did not end in %s: the next sweep removes what is left", timeout)
	}
}

// loop reads the settings again when told to, or when the file has changed, and tells systemd
// that the service works.
func (s *Server) loop(ctx context.Context) {
	changed := time.NewTicker(settingsPoll)
	defer changed.Stop()
	var watchdog <-chan time.Time
	if interval := sdnotify.WatchdogInterval(); interval > 0 {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		watchdog = ticker.C
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-watchdog:
			s.notify(sdnotify.Watchdog())
		case <-s.Reload:
			s.reload()
		case <-changed.C:
			if s.Settings.fileChanged() {
				s.reload()
			}
		}
	}
}

// reload reads the settings. If they cannot be used, the old ones stay.
func (s *Server) reload() {
	s.notify(sdnotify.Reloading())
	status := "running"
	ignored, err := s.Settings.reload()
	switch {
	case err != nil:
		status = "running with old settings: " + err.Error()
		s.Log.Error("the settings cannot be read, and the old ones stay", "error", err)
	case len(ignored) > 0:
		s.Log.Warn("settings read; some apply after a restart", "keys", ignored)
	default:
		s.Log.Info("settings read")
	}
	s.notify(sdnotify.Ready(status))
}

func (s *Server) notify(err error) {
	if err != nil {
		s.Log.Warn("systemd was not told", "error", err)
	}
}

// lock makes this process the only serve of the storage. The kernel releases the lock of a
// process that dies.
func (s *Server) lock() (release func(), err error) {
	dirs, err := s.Settings.Get().Dirs()
	if err != nil {
		return nil, err
	}
	// The QEMU of the system daemon passes through the storage, but not through jobs.
	if err := errors.Join(os.MkdirAll(filepath.Dir(dirs.Jobs), 0o755), os.MkdirAll(dirs.Jobs, 0o700)); err != nil {
		return nil, fmt.Errorf("start serve: %w", err)
	}
	lock := flock.New(filepath.Join(dirs.Jobs, lockFile))
	got, err := lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("start serve: %w", err)
	}
	if !got {
		return nil, fmt.Errorf("%w (%s)", errRunning, dirs.Jobs)
	}
	return func() { lock.Close() }, nil
}
