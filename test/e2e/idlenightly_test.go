//go:build boot && nightly

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
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

// Of three idle machines, one hangs, one is dead and one is well, and nothing looks after them.
// Two jobs come at once: one gets the machine that is well, the other boots.
func TestIdleMachineContested(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s, v := idleSite(t, mode, 3, `pull_policy = "if-not-present"`)
		names := s.awaitIdle(t, 3)
		v.kill(t)
		hung, dead := one(t, "guest", isGuest(names[0])), one(t, "guest", isGuest(names[1]))
		hung.signal(t, syscall.SIGSTOP)
		dead.signal(t, syscall.SIGKILL)
		until(t, "libvirt knows that a guest is dead", func() bool { return len(s.idleDomains(t)) == 2 })
		var executions [2]gitlab.Execution
		var both sync.WaitGroup
		for n := range executions {
			job, runner, ctx := s.job(""), s.runner(t), deadline(t)
			job.ID = int64(910 + n)
			both.Go(func() { executions[n] = runner.Stage(ctx, job, "prepare") })
		}
		both.Wait()
		ready := 0
		for _, e := range executions {
			if e.ExitCode != 0 {
				t.Error(e)
			}
			ready += strings.Count(e.Stderr, readyBefore)
		}
		if ready != 1 || len(s.idle()) != 0 {
			t.Errorf("%d jobs got a machine that was ready, %q are offered:\n%s\n%s", ready, s.idle(), executions[0], executions[1])
		}
		for n := range executions {
			job := s.job("")
			job.ID = int64(910 + n)
			if e := s.script(t, job, gitlab.StageBuildScript, "cat /tmp/jobs 2>/dev/null; echo x >/tmp/jobs\n"); e.Stdout != "" {
				t.Errorf("the guest of job %d is not fresh: %s", job.ID, e)
			}
			if e := s.runner(t).Stage(deadline(t), job, "cleanup"); e.ExitCode != 0 {
				t.Error(e)
			}
		}
		until(t, "the machine that hung is gone", func() bool { return s.left(t) == "nothing" })
	})
}

// The only idle machine hangs, and serve does not know it. The job that tries it boots, and the
// machine is replaced.
func TestIdleMachineHangs(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s, v := idleSite(t, mode, 1, `pull_policy = "if-not-present"`)
		name := s.awaitIdle(t, 1)[0]
		hung := one(t, "guest", isGuest(name))
		hung.signal(t, syscall.SIGSTOP)
		job := s.job("")
		job.ID = 915
		e := s.runner(t).Stage(deadline(t), job, "prepare")
		if e.ExitCode != 0 || strings.Contains(e.Stderr, readyBefore) {
			t.Error(e)
		}
		t.Logf("prepare took %s with the machine that hangs", e.Duration)
		until(t, "another machine is ready", func() bool { names := s.idle(); return len(names) == 1 && names[0] != name })
		until(t, "the machine that hangs has ended", hung.ended)
		if e := s.runner(t).Stage(deadline(t), job, "cleanup"); e.ExitCode != 0 {
			t.Error(e)
		}
		job.ID = 916
		if e := s.runner(t).Stage(deadline(t), job, "prepare"); e.ExitCode != 0 || !strings.Contains(e.Stderr, readyBefore) {
			t.Errorf("the next job: %s", e)
		}
		v.stop(t)
		s.mustCleanUp(t, job)
	})
}

// A service that is killed at any step leaves what the next one can use or removes.
func TestKilledServe(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s, v := idleSite(t, mode, 1, `memory = "256MiB"`)
		until(t, "the machine boots", func() bool { return len(s.idleDomains(t)) == 1 })
		v.kill(t)
		half := s.idleDomains(t)[0]

		v = s.serve(t)
		ready := s.awaitIdle(t, 1)[0]
		if domains := s.idleDomains(t); len(domains) != 1 || ready == half {
			t.Errorf("killed at boot: %s was half made; now %q, offered %s", half, domains, ready)
		}
		v.kill(t)

		v = s.serve(t)
		s.awaitIdle(t, 1)
		if names := s.idle(); len(names) != 1 || names[0] != ready {
			t.Errorf("killed when %s was ready: now %q", ready, names)
		}

		s.configureIdle(t, 1, `memory = "288MiB"`)
		until(t, "the machine of old settings goes", func() bool { return len(s.idle()) == 0 })
		v.kill(t)

		v = s.serve(t)
		replaced := s.awaitIdle(t, 1)[0]
		if domains := s.idleDomains(t); len(domains) != 1 || replaced == ready {
			t.Errorf("killed at the replacement of %s: now %q, offered %s", ready, domains, replaced)
		}
		job := s.job("")
		job.ID = 930
		s.mustPrepare(t, job)
		v.kill(t)
		if e := s.script(t, job, gitlab.StageBuildScript, "echo still here\n"); e.Stdout != "still here\n" {
			t.Errorf("killed after a job took a machine: %s", e)
		}
		v = s.serve(t)
		s.awaitIdle(t, 1)
		v.stop(t)
		if domains := mode.Virsh(t, "list", "--name"); strings.TrimSpace(domains) != replaced {
			t.Errorf("after SIGTERM there is %q, want the machine of the job, %s", domains, replaced)
		}
		s.mustCleanUp(t, job)
	})
}
