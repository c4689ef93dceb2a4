package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"time"
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
}

// defaultIdleTime is the age at which an idle machine is replaced.
const defaultIdleTime = time.Hour

// maxIdleMachines bounds idle_machines, against slips of the keyboard.
const maxIdleMachines = 1000

func serveDefaults() Serve {
	return Serve{SweepInterval: Duration(10 * time.Minute)}
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
	_, _, err := s.Address()
	return err
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
