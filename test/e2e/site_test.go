//go:build boot

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

const program = "gitlab-sardine-executor"

func TestMain(m *testing.M) { testbed.Main(m, "gitlab-sardine-executor/cmd/"+program) }

// sessionOnly runs a test in session mode alone, if the code does not depend on the mode.
func sessionOnly(t *testing.T, test func(t *testing.T, mode *testbed.Mode)) {
	t.Helper()
	testbed.InMode(t, "session", test)
}

// mostlyIn runs a test in one mode, and at night in the other as well.
func mostlyIn(t *testing.T, name string, test func(t *testing.T, mode *testbed.Mode)) {
	t.Helper()
	testbed.MostlyIn(t, name, nightly, test)
}

// systemOnly runs a test of something that exists in system mode alone.
func systemOnly(t *testing.T, test func(t *testing.T, mode *testbed.Mode)) {
	t.Helper()
	testbed.InMode(t, "system", test)
}

// A site is an installation with a registry that holds the test guest.
type site struct {
	*testbed.Site
	registry *testbed.Registry
	// slow stands before the registry. Images are pulled through it.
	slow *slowRegistry
	// tools is a directory before all others on the driver's PATH.
	tools string
	// image and slowImage are references of the test guest and of one that starts its
	// SSH server late.
	image, slowImage string
}

// newSite makes a site with a registry and a storage of its own, which end with the test.
// The test fails if it leaves anything of a job behind.
func newSite(t testing.TB, mode *testbed.Mode, settings ...string) *site {
	t.Helper()
	s := makeSite(t, mode, settings...)
	// Before the inventory is checked: a registry that the test restarted is another
	// process than before.
	s.takeInventory(t)
	t.Cleanup(func() { s.registry.Stop() })
	return s
}

// sharedSite returns the site that the tests of a mode share, with settings of the test:
// one registry, and one storage, which holds the images already.
func sharedSite(t testing.TB, mode *testbed.Mode, settings ...string) *site {
	t.Helper()
	shared := sharedSites[mode.Name]
	if shared == nil {
		shared = makeSite(lasting{t}, mode)
		for _, image := range []string{shared.image, shared.slowImage} {
			shared.Run(t, "pull", "--quiet", image)
		}
		sharedSites[mode.Name] = shared
	}
	installation, s := *shared.Site, *shared
	s.Site = &installation
	s.Config = filepath.Join(mode.Dir(t), "config.toml")
	s.Configure(t, settings...)
	s.takeInventory(t)
	return &s
}

var sharedSites = map[string]*site{}

// lasting is a test for what outlives it. Nothing is cleaned up: it ends with the host of
// the tests.
type lasting struct{ testing.TB }

func (lasting) Cleanup(func())           {}
func (lasting) Context() context.Context { return context.Background() }

func makeSite(t testing.TB, mode *testbed.Mode, settings ...string) *site {
	t.Helper()
	s := &site{Site: testbed.NewSite(t, mode, program, settings...), registry: testbed.StartRegistry(t), tools: mode.Dir(t)}
	mode.Trust(t, s.registry)
	s.slow = startSlowRegistry(t, s.registry)
	mode.Trust(t, s.slow.registry)
	s.push(t, guestLayout(t), s.registry.Image("vms/guest:1"))
	s.push(t, slowGuestLayout(t), s.registry.Image("vms/slow:1"))
	s.image, s.slowImage = s.slow.registry.Image("vms/guest:1"), s.slow.registry.Image("vms/slow:1")
	s.writeQEMUImg(t)
	return s
}

// takeInventory has the test fail if there is anything left at its end that is not there
// now.
func (s *site) takeInventory(t testing.TB) {
	t.Helper()
	inventory := testbed.TakeInventory(t, s.Mode, s.Storage)
	t.Cleanup(func() {
		if t.Failed() {
			s.clear(t)
		}
		inventory.CheckNothingLeft(t)
	})
}

// writeQEMUImg writes a qemu-img that stands still while there is a file "hold" beside
// it.
func (s *site) writeQEMUImg(t testing.TB) {
	t.Helper()
	real, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Fatal(err)
	}
	hold, held := filepath.Join(s.tools, "hold"), filepath.Join(s.tools, "held")
	s.writeTool(t, "qemu-img", fmt.Sprintf(`#!/bin/sh
if [ -e %[1]s ]; then
	: >%[2]s
	while [ -e %[1]s ]; do sleep 0.05; done
	rm -f %[2]s
fi
exec %[3]s "$@"
`, hold, held, real))
}

// writeTool writes a program that the driver finds before those of the host.
func (s *site) writeTool(t testing.TB, name, text string) {
	t.Helper()
	path := s.Mode.WriteFile(t, filepath.Join(s.tools, name), text)
	t.Cleanup(func() { os.Remove(path) })
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
}

// runner returns a GitLab Runner with the site's tools.
func (s *site) runner(t testing.TB) gitlab.Runner {
	t.Helper()
	r := s.Mode.Runner(t, s.Driver, "--config", s.Config)
	r.Env = append(r.Env, "PATH="+s.tools+":"+os.Getenv("PATH"))
	return r
}

// runnerWithout returns a GitLab Runner for which some stages do nothing and succeed. A
// runner without cleanup is one that dies. One without prepare and cleanup runs scripts in
// a machine that is there: several jobs of one number use it one after another.
func (s *site) runnerWithout(t testing.TB, stages ...string) gitlab.Runner {
	t.Helper()
	r := s.runner(t)
	r.Exec = s.Mode.WriteFile(t, filepath.Join(s.Mode.Dir(t), "driver"),
		fmt.Sprintf("#!/bin/sh\ncase $3 in %s) exit 0;; esac\nexec %s \"$@\"\n", strings.Join(stages, "|"), s.Driver))
	if err := os.Chmod(r.Exec, 0o755); err != nil {
		t.Fatal(err)
	}
	return r
}

// job returns a job with the test guest as its image.
func (s *site) job(script string) gitlab.Job {
	return gitlab.Job{Image: &gitlab.Image{Name: s.image}, Script: script}
}

// mustPrepare makes the machine of a job.
func (s *site) mustPrepare(t testing.TB, job gitlab.Job) {
	t.Helper()
	if e := s.runner(t).Stage(deadline(t), job, "prepare"); e.ExitCode != 0 {
		t.Fatal(e)
	}
}

// mustCleanUp removes the machine of a job.
func (s *site) mustCleanUp(t testing.TB, job gitlab.Job) {
	t.Helper()
	if e := s.runner(t).Stage(deadline(t), job, "cleanup"); e.ExitCode != 0 || s.left(t) != "nothing" {
		t.Errorf("left is %s after %s", s.left(t), e)
	}
}

// script runs a script in the machine of a job, as the stage of that name.
func (s *site) script(t testing.TB, job gitlab.Job, stage, text string) gitlab.Execution {
	t.Helper()
	path := s.Mode.WriteFile(t, filepath.Join(s.Mode.Dir(t), "script."), text)
	return s.runner(t).Stage(deadline(t), job, "run", path, stage)
}

// inGuest runs commands in the guest of a job's machine by the command ssh, beside any
// script.
func (s *site) inGuest(t testing.TB, job gitlab.Job, commands string) {
	t.Helper()
	cmd := s.Mode.Command(deadline(t), s.Driver, "--config", s.Config, "ssh", strconv.FormatInt(job.ID, 10))
	cmd.Stdin = strings.NewReader(commands + "\n")
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("run %q in the machine of job %d: %v\n%s", commands, job.ID, err, output)
	}
}

// forgetImages removes all images from the store, so that the next job pulls its image.
func (s *site) forgetImages(t testing.TB) {
	t.Helper()
	for _, dir := range []string{"images", "references"} {
		if err := os.RemoveAll(filepath.Join(s.Storage, dir)); err != nil {
			t.Fatal(err)
		}
	}
}

// clear removes the machines of all jobs.
func (s *site) clear(t testing.TB) {
	t.Helper()
	s.Run(t, "sweep", "--all")
}

// push pushes a layout to the registry.
func (s *site) push(t testing.TB, layout, image string) {
	t.Helper()
	s.Mode.Run(t, s.Driver, "push", "--quiet", "oci:"+layout+":1", image)
}

// guestLayout returns the path of an OCI layout that holds the test guest, tag 1.
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
