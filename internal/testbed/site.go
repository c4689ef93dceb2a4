package testbed

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A Site is an installation of the program by the user of a mode: settings and storage.
type Site struct {
	Mode    *Mode
	Driver  string // path of the program
	Config  string // path of the settings
	Storage string
	// DefaultMachine leaves the size of machines to the program. Otherwise they have what
	// the test guest needs, since emulating a second CPU costs two fifths more of a boot.
	DefaultMachine bool
}

// NewSite makes an installation with a storage of its own.
func NewSite(t testing.TB, mode *Mode, program string, settings ...string) *Site {
	t.Helper()
	s := &Site{Mode: mode, Driver: Program(t, program), Storage: mode.Dir(t)}
	s.Config = filepath.Join(mode.Dir(t), "config.toml")
	s.Configure(t, settings...)
	return s
}

// Configure writes the settings: lines for [defaults], which win over the site's own,
// and after a line "[[image]]" for an image.
func (s *Site) Configure(t testing.TB, settings ...string) {
	t.Helper()
	own := []string{
		fmt.Sprintf("connect = %q", s.Mode.Connect),
		fmt.Sprintf("network = %q", s.Mode.Network),
		fmt.Sprintf("storage = %q", s.Storage),
		`timeout = "5m"`,
		`guest_builds_dir = "/builds"`,
		`guest_cache_dir = "/cache"`,
		`accel = "tcg"`,
	}
	if !s.DefaultMachine {
		own = append(own, `cpus = 1`, `memory = "256MiB"`)
	}
	for _, line := range settings {
		key, _, _ := strings.Cut(line, "=")
		own = slices.DeleteFunc(own, func(l string) bool { return strings.HasPrefix(l, key+"=") })
	}
	s.Mode.WriteFile(t, s.Config, "[defaults]\n"+strings.Join(append(own, settings...), "\n")+"\n")
}

// Run runs a command of the program and returns its standard output. It is fatal if the
// command fails.
func (s *Site) Run(t testing.TB, args ...string) string {
	t.Helper()
	return s.Mode.Run(t, s.Driver, append([]string{"--config", s.Config}, args...)...)
}
