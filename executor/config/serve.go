package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gitlab-sardine-executor/vm/guestssh"
)

// Serve is the table [serve]: settings of the command serve.
type Serve struct {
	// Listen is where /metrics and /healthz answer; see [Serve.Address].
	Listen string `toml:"listen"`
	// SweepInterval is how often serve removes machines and files that no job owns.
	SweepInterval Duration `toml:"sweep_interval"`
	// PruneOlderThan is the time after which serve removes unused images and caches; 0 means
	// never.
	PruneOlderThan Duration `toml:"prune_older_than"`

	// Nesting offers GitLab's nesting API at NestingSocket (see [Serve.NestingPath]) to the
	// group NestingGroup; empty means the group of serve.
	Nesting       bool   `toml:"nesting"`
	NestingSocket string `toml:"nesting_socket"`
	NestingGroup  string `toml:"nesting_group"`
	// NestingAuthorizedKeys are the SSH keys by which its clients may log in to guests: lines
	// as in authorized_keys(5).
	NestingAuthorizedKeys []string `toml:"nesting_authorized_keys"`
	// NestingTimeout is how long a machine exists that no client removes.
	NestingTimeout Duration `toml:"nesting_timeout"`
}

// defaultIdleTime is the age at which an idle machine is replaced.
const defaultIdleTime = time.Hour

// maxIdleMachines bounds idle_machines, against slips of the keyboard.
const maxIdleMachines = 1000

func serveDefaults() Serve {
	return Serve{SweepInterval: Duration(10 * time.Minute), NestingTimeout: Duration(12 * time.Hour)}
}

// unixPrefix marks the path of a socket.
const unixPrefix = "unix:"

// Address splits Listen for [net.Listen]; network is empty if serve listens nowhere. A port
// must be on the loopback interface: what answers there has no password.
func (s Serve) Address() (network, address string, err error) {
	if s.Listen == "" {
		return "", "", nil
	}
	wrong := fmt.Errorf("listen is %q: want unix:/PATH, or 127.0.0.1:PORT or [::1]:PORT", s.Listen)
	if path, ok := strings.CutPrefix(s.Listen, unixPrefix); ok {
		// unix:///PATH, as gRPC and GitLab Runner write it, is the same.
		if path = filepath.Clean(path); !filepath.IsAbs(path) {
			return "", "", wrong
		}
		return "unix", path, nil
	}
	host, port, err := net.SplitHostPort(s.Listen)
	if err != nil || port == "" {
		return "", "", wrong
	}
	if addr, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !addr.IsLoopback()) {
		return "", "", wrong
	}
	return "tcp", s.Listen, nil
}

func (s Serve) check() error {
	if s.SweepInterval < Duration(time.Second) {
		return errors.New("sweep_interval must be at least 1s")
	}
	if _, _, err := s.Address(); err != nil {
		return err
	}
	return s.checkNesting()
}

func (s Serve) checkNesting() error {
	if s.NestingTimeout < Duration(time.Second) {
		return errors.New("nesting_timeout must be at least 1s")
	}
	if s.NestingSocket != "" && !filepath.IsAbs(s.NestingSocket) {
		return fmt.Errorf("nesting_socket is %q: want an absolute path", s.NestingSocket)
	}
	for i, line := range s.NestingAuthorizedKeys {
		if err := guestssh.CheckAuthorizedKey(line); err != nil {
			return fmt.Errorf("nesting_authorized_keys: number %d: %w", i+1, err)
		}
	}
	return nil
}

// NestingPath is the path of the socket of the nesting API: NestingSocket, or a name in
// /run/gitlab-sardine-executor; for other users than root in $XDG_RUNTIME_DIR.
func (s Serve) NestingPath() (string, error) {
	if s.NestingSocket != "" {
		return filepath.Clean(s.NestingSocket), nil
	}
	dir := "/run"
	if os.Geteuid() != 0 {
		if dir = os.Getenv("XDG_RUNTIME_DIR"); !filepath.IsAbs(dir) {
			return "", fmt.Errorf("%w: [serve]: nesting: there is no XDG_RUNTIME_DIR for the socket: set nesting_socket", ErrSettings)
		}
	}
	return filepath.Join(dir, "gitlab-sardine-executor", "nesting.sock"), nil
}

// checkIdle checks the settings for idle machines.
func (s *Section) checkIdle() error {
	if s.IdleMachines > maxIdleMachines {
		return fmt.Errorf("idle_machines is %d: want at most %d", s.IdleMachines, maxIdleMachines)
	}
	if s.IdleTime != nil && *s.IdleTime < Duration(time.Second) {
		return errors.New("idle_time must be at least 1s")
	}
	return nil
}

// IdleLimit is the age at which an idle machine of the section is replaced.
func (s *Section) IdleLimit() time.Duration {
	if s.IdleTime == nil {
		return defaultIdleTime
	}
	return time.Duration(*s.IdleTime)
}
