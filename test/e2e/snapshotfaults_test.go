//go:build boot

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

// The halt points at which the making of a snapshot can be disturbed.
const (
	duringSnapshotBoot haltPoint = "boot for a snapshot"
	duringSave         haltPoint = "save"
)

// Whatever ends while a snapshot is made, nothing but a whole snapshot stays, and the next
// job succeeds. Without the flag -faults it kills the driver during the save.
func TestSnapshotInterrupted(t *testing.T) {
	testbed.EachMode(t, func(t *testing.T, mode *testbed.Mode) {
		if !*faultsFlag && mode.Name != "session" {
			return
		}
		s := newSite(t, mode, `memory_snapshot = true`, `network = "user"`)
		id := int64(0)
		for _, disturb := range []struct {
			name string
			do   func(t *testing.T, job gitlab.Job, reached func())
			// byDefault is when it is tried without -faults, in session mode.
			byDefault haltPoint
		}{
			{"SIGTERM of driver", s.tellDriver, ""},
			{"SIGKILL of driver", s.killDriver, duringSave},
			{"SIGKILL of guest", func(t *testing.T, job gitlab.Job, reached func()) {
				s.disturbed(t, job, reached, func() { one(t, "guest", isGuest(machineOf(job))).signal(t, syscall.SIGKILL) })
			}, ""},
			{"SIGKILL of libvirtd", func(t *testing.T, job gitlab.Job, reached func()) {
				s.disturbed(t, job, reached, func() { s.endLibvirtd(t, syscall.SIGKILL)() })
			}, ""},
		} {
			for _, m := range []haltPoint{duringSnapshotBoot, duringSave} {
				if !*faultsFlag && m != disturb.byDefault {
					continue
				}
				if m == duringSnapshotBoot && mode.Name == "system" {
					continue // one mode stands for both
				}
				t.Run(fmt.Sprintf("%s/%s", disturb.name, m), func(t *testing.T) {
					id++
					if err := os.RemoveAll(filepath.Join(s.Storage, "clones", "snapshots")); err != nil {
						t.Fatal(err)
					}
					job := s.job("true")
					job.ID = id
					disturb.do(t, job, func() { s.awaitSnapshot(t, m, job) })
					if left := s.left(t); left != "nothing" {
						t.Errorf("left is %s", left)
						s.clear(t)
					}
					next := s.job("echo fine")
					next.ID = 1000 + id
					out, from, log := s.snapshotJob(t, next)
					t.Logf("the next job started from its %s", from)
					if out != "fine\n" {
						t.Errorf("the next job printed %q:\n%s", out, log)
					}
					if half, _ := filepath.Glob(filepath.Join(s.Storage, "clones", "snapshots", "*", "*.new")); len(half) > 0 {
						t.Errorf("there is half of a snapshot: %q", half)
					}
				})
			}
		}
	})
}

// awaitSnapshot waits until the job's prepare is at m.
func (s *site) awaitSnapshot(t *testing.T, m haltPoint, job gitlab.Job) {
	t.Helper()
	until(t, string(m), func() bool {
		if m == duringSave {
			memory, _ := filepath.Glob(filepath.Join(s.Storage, "clones", "snapshots", "*", "*.new", "memory"))
			return len(memory) > 0
		}
		return len(processes(isGuest(machineOf(job)))) == 1
	})
}

// tellDriver ends a prepare as GitLab Runner does.
func (s *site) tellDriver(t *testing.T, job gitlab.Job, reached func()) {
	result := s.interrupt(t, job, syscall.SIGTERM, func(*gitlab.Trace) { reached() })
	checkPrepareTold(t, s, result)
}

// killDriver kills driver and runner: nobody cleans up but sweep.
func (s *site) killDriver(t *testing.T, job gitlab.Job, reached func()) {
	runner := s.runnerWithout(t, "cleanup")
	runner.PrepareWait = time.Minute
	build := runner.Start(deadline(t), job)
	reached()
	one(t, "driver", s.isDriver("prepare")).signal(t, syscall.SIGKILL)
	until(t, "the attempt is over", func() bool { return len(processes(s.isDriver("prepare"))) == 0 })
	build.Cancel()
	checkOutputs(t, build.Wait())
	s.clear(t)
}

// disturbed runs a job that must succeed, be it at the second attempt, though something
// is killed under it.
func (s *site) disturbed(t *testing.T, job gitlab.Job, reached, kill func()) {
	build := s.runner(t).Start(deadline(t), job)
	reached()
	kill()
	result := build.Wait()
	checkOutputs(t, result)
	if result.Status != gitlab.Success {
		t.Error(result)
	}
	if failed, _ := failures(result); failed.Stage != "" {
		t.Log(strings.TrimSpace(failed.Stderr))
	}
}
