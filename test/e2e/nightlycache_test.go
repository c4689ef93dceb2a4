//go:build boot && nightly

package e2e

import (
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
