//go:build boot && nightly

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

// A disk that was there when a guest did not come up is not given to the next.
func TestSuspectCacheDisk(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode, `cache = "disk"`, `cache_size = "32MiB"`)
		s.runCacheJob(t, s.cacheJob(1, 42, false, "echo suspect >/cache/file"))
		lost := s.jobUntil(duringSSHWait, 2)
		lost.ProjectID = 42
		reached, _ := s.arrange(t, duringSSHWait, lost)
		prepare := s.background(t, lost, "prepare")
		reached(nil)
		one(t, "guest", isGuest(machineOf(lost))).signal(t, syscall.SIGKILL)
		if e := <-prepare; e.ExitCode != gitlab.SystemFailureExitCode {
			t.Errorf("want a system failure, got %s", e)
		}
		if got, _ := s.runCacheJob(t, s.cacheJob(3, 42, false, "cat /cache/file || echo nothing")); got != "nothing\n" {
			t.Errorf("the next job found %q", got)
		}
	})
}

// A guest that will not flush its cache still ends. A cleanup that is told to end while it
// waits for that does so at once; the next one does all of it, and says what it could not.
func TestCacheFlush(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode, `cache = "disk"`, `cache_size = "32MiB"`)
		t.Cleanup(func() { s.dropCaches(t) })
		job := s.cacheJob(1, 42, false, "")
		s.mustPrepare(t, job)
		s.inGuest(t, job, hangingSudo)
		cleanup := s.background(t, job, "cleanup")
		until(t, "the guest is told to flush", func() bool { return s.hangs(t, job) })
		told(t, one(t, "driver", s.isDriver("cleanup")), syscall.SIGTERM)
		checkTold(t, <-cleanup)
		e := s.runner(t).Stage(deadline(t), job, "cleanup")
		if e.ExitCode != 0 || !strings.Contains(e.Stderr, "may lack") {
			t.Errorf("the second cleanup: %s", e)
		}
		if left := s.left(t); left != "nothing" {
			t.Errorf("the second cleanup has left: %s", left)
		}
	})
}

// Two jobs of a project at once have one share; of disks, one job has the project's and the other
// a second one. While they run, prune spares what they use.
func TestCacheSideBySide(t *testing.T) {
	testbed.EachMode(t, func(t *testing.T, mode *testbed.Mode) {
		kind := map[string]string{"session": "disk", "system": "share"}[mode.Name]
		s := newSite(t, mode, fmt.Sprintf("cache = %q", kind), `cache_size = "32MiB"`)
		first := s.cacheJob(1, 42, false, "echo of job 1 >/cache/file; echo script runs\nwhile ! [ -e /tmp/go ]; do sleep 0.1; done; cat /cache/file")
		holder := s.runner(t).Start(deadline(t), first)
		if err := holder.Log().WaitFor(deadline(t), "script runs"); err != nil {
			t.Fatal(err)
		}
		got, log := s.runCacheJob(t, s.cacheJob(2, 42, false, "cat /cache/file || echo nothing; echo of job 2 >/cache/second"))
		if want := map[string]string{"disk": "nothing\n", "share": "of job 1\n"}[kind]; got != want || strings.Contains(log, "WARNING") {
			t.Errorf("beside job 1, job 2 found %q, want %q; its log:\n%s", got, want, log)
		}
		pruned := s.Run(t, "prune", "--older-than", "0s")
		if inUse := strings.Contains(pruned, "/0.img") || strings.Contains(pruned, "shares/"); inUse {
			t.Errorf("prune removed what job 1 has:\n%s", pruned)
		}
		if second := strings.Contains(pruned, "/1.img"); second != (kind == "disk") {
			t.Errorf("prune removed the second disk: %t; it said:\n%s", second, pruned)
		}
		s.inGuest(t, first, "touch /tmp/go")
		result := holder.Wait()
		if script, _ := result.Find(gitlab.StageBuildScript); result.Status != gitlab.Success || !strings.HasSuffix(script.Stdout, "of job 1\n") {
			t.Errorf("job 1 after job 2 and prune: %s", result)
		}
		would := s.Run(t, "prune", "--older-than", "0s", "--dry-run")
		spared := s.Run(t, "prune", "--older-than", "1h")
		pruned = s.Run(t, "prune", "--older-than", "0s")
		if strings.ReplaceAll(would, "Would remove", "Removed") != pruned || !strings.Contains(pruned, "group/project of https://gitlab.example.com (project 42), unprotected refs\nRemoved 1 caches") {
			t.Errorf("prune said\n%s\nand before, with --dry-run,\n%s", pruned, would)
		}
		if strings.Contains(spared, "caches") {
			t.Errorf("prune removed a cache that was used just now:\n%s", spared)
		}
		var left []string
		filepath.WalkDir(filepath.Join(s.Storage, "caches"), func(path string, entry os.DirEntry, err error) error {
			if !entry.IsDir() {
				left = append(left, path)
			}
			return err
		})
		if len(left) != 1 || filepath.Base(left[0]) != "lock" {
			t.Errorf("after prune there are %v", left)
		}
	})
}

// hangingSudo is a script after which a guest never again becomes root.
const hangingSudo = `sudo chmod 666 /dev/console
printf '#!/usr/bin/busybox sh\necho guest: sudo hangs >/dev/console\nsleep 1000\n' >/tmp/hang; chmod 755 /tmp/hang
sudo cp /tmp/hang /usr/bin/hang; sudo mv /usr/bin/hang /usr/bin/sudo`

// hangs says whether somebody has called sudo since hangingSudo.
func (s *site) hangs(t *testing.T, job gitlab.Job) bool {
	t.Helper()
	console, err := os.ReadFile(filepath.Join(s.Storage, "jobs", machineOf(job), "console.log"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(console), "sudo hangs")
}
