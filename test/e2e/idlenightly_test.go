//go:build boot && nightly

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

// Forty jobs, eight at a time, take idle machines while the service is killed and started
// again: each job succeeds, in a guest that no other job has had.
func TestFortyJobsOnIdleMachines(t *testing.T) {
	testbed.EachMode(t, func(t *testing.T, mode *testbed.Mode) {
		const jobs, atOnce = 40, 8
		s, v := idleSite(t, mode, 3, `memory = "256MiB"`, `cpus = 1`, `pull_policy = "if-not-present"`)
		s.awaitIdle(t, 3)
		turn := make(chan bool, atOnce)
		results := make([]gitlab.Result, jobs)
		var all sync.WaitGroup
		for n := range jobs {
			turn <- true
			job, runner, ctx := s.job(fmt.Sprintf("echo %d >>/tmp/jobs; sleep 1; cat /tmp/jobs", n)), s.runner(t), deadline(t)
			job.ID, job.Concurrent = int64(1000+n), n
			all.Go(func() {
				results[n] = runner.Run(ctx, job)
				<-turn
			})
			if n%10 == 9 { // in the middle of whatever it does
				v.kill(t)
				v = s.serve(t)
			}
		}
		all.Wait()
		ready := 0
		for n, result := range results {
			prepare, _ := result.Find("prepare")
			script, _ := result.Find(gitlab.StageBuildScript)
			if result.Status != gitlab.Success || script.Stdout != fmt.Sprintf("%d\n", n) {
				t.Errorf("job %d: %s", n, result)
			}
			ready += strings.Count(prepare.Stderr, readyBefore)
		}
		if ready == 0 {
			t.Error("no job has taken an idle machine")
		}
		t.Logf("%d of %d jobs took an idle machine", ready, jobs)
		s.awaitIdle(t, 3)
		v.stop(t)
		if left := s.left(t); left != "nothing" {
			t.Errorf("left: %s", left)
		}
	})
}

// A job gets the image that was just pushed, not the machine that was made before; then the
// idle machine is of the new image, too.
func TestIdleMachineOfAnOldImage(t *testing.T) {
	testbed.EachMode(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode)
		s.configureIdle(t, 1)
		v := s.serve(t)
		old := s.awaitIdle(t, 1)[0]
		s.push(t, slowGuestLayout(t), s.registry.Image("vms/guest:1"))
		job := s.job("")
		job.ID = 940
		e := s.runner(t).Stage(deadline(t), job, "prepare")
		if e.ExitCode != 0 || strings.Contains(e.Stderr, readyBefore) {
			t.Errorf("the job after the push: %s", e)
		}
		until(t, "the machine is of the new image", func() bool {
			names := s.idle()
			return len(names) == 1 && names[0] != old
		})
		if e := s.runner(t).Stage(deadline(t), job, "cleanup"); e.ExitCode != 0 {
			t.Error(e)
		}
		job.ID = 941
		if e := s.runner(t).Stage(deadline(t), job, "prepare"); e.ExitCode != 0 || !strings.Contains(e.Stderr, readyBefore) {
			t.Errorf("the next job: %s", e)
		}
		v.stop(t)
		s.mustCleanUp(t, job)
	})
}

// After a restart of libvirt's daemon the machines are still there, and jobs take them.
func TestIdleMachineAfterARestartOfLibvirt(t *testing.T) {
	testbed.EachMode(t, func(t *testing.T, mode *testbed.Mode) {
		s, v := idleSite(t, mode, 1)
		name := s.awaitIdle(t, 1)[0]
		s.restartLibvirtd(t)
		if names := s.idle(); len(names) != 1 || names[0] != name {
			t.Errorf("offered are %q, want %s", names, name)
		}
		job := s.job("")
		job.ID = 950
		if e := s.runner(t).Stage(deadline(t), job, "prepare"); e.ExitCode != 0 || !strings.Contains(e.Stderr, readyBefore) {
			t.Error(e)
		}
		s.awaitIdle(t, 1)
		v.stop(t)
		s.mustCleanUp(t, job)
	})
}

// With memory_snapshot, idle machines resume from a snapshot, and each job gets one that
// nothing has used.
func TestIdleMachineFromASnapshot(t *testing.T) {
	testbed.EachMode(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSnapshotSite(t, mode)
		s.image = s.slowImage // a boot of it shows on the console
		s.configureIdle(t, 1, `memory_snapshot = true`, `network = "user"`)
		v := s.serve(t)
		for id := range int64(2) {
			name := s.awaitIdle(t, 1)[0]
			console, err := os.ReadFile(filepath.Join(s.Storage, "jobs", name, "console.log"))
			if err != nil || id > 0 && strings.Contains(string(console), sshIsLate) { // the first one makes the snapshot
				t.Errorf("machine %d booted (%v):\n%s", id, err, console)
			}
			job := s.job("cat /tmp/mark 2>/dev/null || true; echo job $CI_JOB_ID >/tmp/mark; date +%s")
			job.ID = 960 + id
			out, _, log := s.snapshotJob(t, job)
			now, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
			if !strings.Contains(log, readyBefore) || err != nil || time.Since(time.Unix(now, 0)).Abs() > time.Minute {
				t.Errorf("job %d printed %q (%v):\n%s", job.ID, out, err, log)
			}
		}
		if s.memory(t) == "" {
			t.Error("there is no snapshot")
		}
		v.stop(t)
		if left := s.left(t); left != "nothing" {
			t.Errorf("left: %s", left)
		}
	})
}
