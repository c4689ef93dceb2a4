//go:build boot && upgrade

package e2e

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

var previousFlag = flag.String("previous", "", "path of an older driver (make test-upgrade builds it)")

// previousDriver copies the older driver to where the user of the mode can run it.
func previousDriver(t *testing.T, mode *testbed.Mode) string {
	t.Helper()
	program, err := os.ReadFile(*previousFlag)
	if err != nil {
		t.Fatalf("-previous names the older driver: %v", err)
	}
	path := mode.WriteFile(t, filepath.Join(mode.Dir(t), "previous"), string(program))
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// by is the site with another driver.
func (s *site) by(driver string) *site {
	installation, other := *s.Site, *s
	installation.Driver = driver
	other.Site = &installation
	return &other
}

// A driver that was upgraded while jobs ran finds the machines, images, caches and
// snapshots of the older one. docs/versions.md promises it.
func TestUpgradeOfTheDriver(t *testing.T) {
	testbed.EachMode(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode, `cache = "disk"`, `cache_size = "32MiB"`)
		old := s.by(previousDriver(t, mode))

		// Between two scripts of a job.
		job := old.cacheJob(1, 1, true, "")
		old.mustPrepare(t, job)
		if e := old.script(t, job, gitlab.StageGetSources, "#!/bin/sh\necho before >/cache/file; echo before >/tmp/file\n"); e.ExitCode != 0 {
			t.Fatalf("the older driver: %s", e)
		}
		if e := s.script(t, job, gitlab.StageBuildScript, "#!/bin/sh\ncat /tmp/file; exit 0\n"); e.ExitCode != 0 || e.Stdout != "before\n" {
			t.Errorf("a script in a machine of the older driver: %s", e)
		}
		if out := s.Run(t, "sweep"); strings.Contains(out, "removed") {
			t.Errorf("sweep takes the machine of a job of the older driver: %s", out)
		}
		s.mustCleanUp(t, job)

		// The next job of the project, without the registry.
		s.Configure(t, `cache = "disk"`, `cache_size = "32MiB"`, `pull_policy = "never"`)
		if out, log := s.runCacheJob(t, s.cacheJob(2, 1, true, "cat /cache/file")); out != "before\n" || strings.Contains(log, damagedCache) {
			t.Errorf("the cache has %q, want what the job before left; the log:\n%s", out, log)
		}

		// A runner that died with the older driver.
		lost := old.cacheJob(3, 1, true, "")
		old.mustPrepare(t, lost)
		s.Run(t, "sweep", "--all")
		if left := s.left(t); left != "nothing" {
			t.Errorf("after sweep --all, the older driver's machine left %s", left)
		}
	})
}

// Snapshots of the older driver are used, or made anew; no job fails for them.
func TestUpgradeWithASnapshot(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSnapshotSite(t, mode)
		old := s.by(previousDriver(t, mode))
		for id, driver := range []*site{old, s, s} {
			job := s.job("echo ran")
			job.ID = int64(id + 1)
			out, from, log := driver.snapshotJob(t, job)
			if out != "ran\n" {
				t.Errorf("job %d printed %q", id+1, out)
			}
			if id == 2 && from != "snapshot" {
				t.Errorf("the second job after the upgrade started from a %s:\n%s", from, log)
			}
		}
		s.Run(t, "prune", "--keep-storage", "0")
		if path := s.memory(t); path != "" {
			t.Errorf("prune left the snapshot %s", path)
		}
	})
}
