//go:build boot && nightly

package e2e

import (
	"syscall"
	"testing"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

// systemd tells every process of the runner's service to end, and the runner then tells
// its stage: prepare undoes what it did all the same.
func TestSignalsDuringPrepare(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode)
		job := s.jobUntil(duringBoot, 1)
		reached, _ := s.arrange(t, duringBoot, job)
		result := s.interrupt(t, job, syscall.SIGTERM, func(log *gitlab.Trace) {
			reached(log)
			driver := one(t, "driver", s.isDriver("prepare"))
			driver.signal(t, syscall.SIGTERM)
			// Two that are pending at once are one.
			until(t, "the driver has taken the signal", func() bool { return !driver.pending(syscall.SIGTERM) })
		})
		checkPrepareTold(t, s, result)
	})
}

// GitLab Runner starts cleanup while a prepare that it told to end still removes its
// machine.
func TestCleanupBesidePrepare(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode)
		job := s.jobUntil(duringSSHWait, 1)
		reached, _ := s.arrange(t, duringSSHWait, job)
		prepare := s.background(t, job, "prepare")
		reached(nil)
		driver := one(t, "driver", s.isDriver("prepare"))
		told, release := s.holdCleanup(t, job)
		driver.signal(t, syscall.SIGTERM)
		told()
		cleanup := s.background(t, job, "cleanup")
		until(t, "cleanup runs", func() bool { return len(processes(s.isDriver("cleanup"))) == 1 })
		release()
		checkTold(t, <-prepare)
		if e := <-cleanup; e.ExitCode != 0 || e.OutputHeld {
			t.Error(e)
		}
		if left := s.left(t); left != "nothing" {
			t.Errorf("left is %s", left)
		}
	})
}
