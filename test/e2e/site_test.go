//go:build boot

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

const program = "gitlab-sardine-executor"

func TestMain(m *testing.M) { testbed.Main(m, "gitlab-sardine-executor/cmd/"+program) }

// sessionOnly runs a test in session mode alone, where that stands for both.
func sessionOnly(t *testing.T, test func(t *testing.T, mode *testbed.Mode)) {
	t.Helper()
	inModeOnly(t, "session", test)
}

// systemOnly runs a test of what is there in system mode alone.
func systemOnly(t *testing.T, test func(t *testing.T, mode *testbed.Mode)) {
	t.Helper()
	inModeOnly(t, "system", test)
}

func inModeOnly(t *testing.T, name string, test func(t *testing.T, mode *testbed.Mode)) {
	t.Helper()
	testbed.EachMode(t, func(t *testing.T, mode *testbed.Mode) {
		if mode.Name == name {
			test(t, mode)
		}
	})
}

// A site is an installation: a registry with the test guest, settings, storage,
// and somebody who looks after each test what it has left behind.
type site struct {
	mode     *testbed.Mode
	driver   string
	registry *testbed.Registry
	image    string // reference of the test guest
	storage  string
	config   string // path of the settings
}

// newSite makes one. settings are lines for [defaults], which win over the
// site's own.
func newSite(t testing.TB, mode *testbed.Mode, settings ...string) *site {
	t.Helper()
	s := &site{
		mode:     mode,
		driver:   testbed.Program(t, program),
		registry: testbed.StartRegistry(t),
		storage:  mode.Dir(t),
	}
	mode.Trust(t, s.registry)
	s.image = s.registry.Image("vms/guest:1")
	s.push(t, guestLayout(t), s.image)
	s.config = filepath.Join(mode.Dir(t), "config.toml")
	s.configure(t, settings...)
	inventory := testbed.TakeInventory(t, mode, s.storage)
	t.Cleanup(func() { inventory.CheckNothingLeft(t) })
	return s
}

// configure writes the settings.
func (s *site) configure(t testing.TB, settings ...string) {
	t.Helper()
	own := []string{
		fmt.Sprintf("connect = %q", s.mode.Connect),
		fmt.Sprintf("network = %q", s.mode.Network),
		fmt.Sprintf("storage = %q", s.storage),
		`timeout = "5m"`,
		`guest_builds_dir = "/builds"`,
		`guest_cache_dir = "/cache"`,
	}
	for _, line := range settings {
		key, _, _ := strings.Cut(line, "=")
		own = slices.DeleteFunc(own, func(l string) bool { return strings.HasPrefix(l, key+"=") })
	}
	s.mode.WriteFile(t, s.config, "[defaults]\n"+strings.Join(append(own, settings...), "\n")+"\n")
}

// runner is the site's GitLab Runner.
func (s *site) runner(t testing.TB) gitlab.Runner {
	t.Helper()
	return s.mode.Runner(t, s.driver, "--config", s.config)
}

// job is a job with the test guest as its image.
func (s *site) job(script string) gitlab.Job {
	return gitlab.Job{Image: &gitlab.Image{Name: s.image}, Script: script}
}

// push pushes a layout to the registry.
func (s *site) push(t testing.TB, layout, image string) {
	t.Helper()
	s.mode.Run(t, s.driver, "push", "--quiet", "oci:"+layout+":1", image)
}

// guestLayout is the path of an OCI layout that holds the test guest, tag 1.
func guestLayout(t testing.TB) string {
	t.Helper()
	guestOnce.Do(func() {
		guestDir, guestErr = export(t, testbed.Guest(t), testbed.GuestConfig(t))
	})
	if guestErr != nil {
		t.Fatal(guestErr)
	}
	return guestDir
}

var (
	guestOnce sync.Once
	guestDir  string
	guestErr  error
)

// export packs a disk, as root, who can read it wherever it is.
func export(t testing.TB, disk, vmConfig string) (string, error) {
	t.Helper()
	dir, err := os.MkdirTemp("", "layout")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	layout := filepath.Join(dir, "image")
	root := testbed.System(t)
	root.Run(t, testbed.Program(t, program), "export", "--disk", disk, "--vm-config", vmConfig, "oci:"+layout+":1")
	return layout, nil
}
