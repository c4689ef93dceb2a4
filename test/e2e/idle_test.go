//go:build boot

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
	"gitlab-sardine-executor/vm/idle"
)

// A service is a running gitlab-sardine-executor serve.
type service struct {
	s     *site
	cmd   *exec.Cmd
	log   *bytes.Buffer
	ended chan error
}

// idleSite returns a site with idle machines of its image, and the service that makes them.
func idleSite(t testing.TB, mode *testbed.Mode, machines int, settings ...string) (*site, *service) {
	t.Helper()
	s := sharedSite(t, mode)
	s.configureIdle(t, machines, settings...)
	return s, s.serve(t)
}

// configureIdle writes settings with a section for the image of the site.
func (s *site) configureIdle(t testing.TB, machines int, settings ...string) {
	t.Helper()
	s.Configure(t, append(settings, "[[image]]", fmt.Sprintf("match = %q", s.image), fmt.Sprintf("idle_machines = %d", machines))...)
}

// serve starts the service. The test ends it, unless it has ended.
func (s *site) serve(t testing.TB) *service {
	t.Helper()
	v := &service{s: s, cmd: s.Mode.Command(context.WithoutCancel(t.Context()), s.Driver, "--config", s.Config, "serve"), log: &bytes.Buffer{}, ended: make(chan error, 1)}
	v.cmd.Stderr = v.log
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { v.ended <- v.cmd.Wait() }()
	t.Cleanup(func() {
		v.stop(t)
		if t.Failed() || testing.Verbose() {
			t.Logf("log of serve:\n%s", v.log)
		}
	})
	return v
}

// stop ends the service as systemd does. It may be called again.
func (v *service) stop(t testing.TB) {
	t.Helper()
	if v.ended == nil {
		return
	}
	if err := v.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := <-v.ended; err != nil {
		t.Errorf("serve ended with %v:\n%s", err, v.log)
	}
	v.ended = nil
}

// kill ends it as a power failure does.
func (v *service) kill(t testing.TB) {
	t.Helper()
	if err := v.cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	<-v.ended
	v.ended = nil
}

// idle are the names of the machines that jobs can take, the oldest first.
func (s *site) idle() []string {
	names, _ := idle.Offered(filepath.Join(s.Storage, "jobs"))
	return names
}

// awaitIdle waits until that many machines are ready, and returns their names.
func (s *site) awaitIdle(t testing.TB, count int) (names []string) {
	t.Helper()
	until(t, fmt.Sprintf("%d machines are ready", count), func() bool {
		names = s.idle()
		return len(names) == count
	})
	return names
}

const readyBefore = "The machine was ready before the job"

// A job gets a machine that was ready before, which is like any other: its scripts, its title,
// its login by ssh, its cache disk, its removal. Another one replaces it, and all idle ones go with the service.
func TestIdleMachine(t *testing.T) {
	mostlyIn(t, "session", func(t *testing.T, mode *testbed.Mode) {
		s, v := idleSite(t, mode, 1, `cache = "disk"`, `cache_size = "32MiB"`)
		t.Cleanup(func() { s.dropCaches(t) })
		first := s.awaitIdle(t, 1)[0]
		job := s.cacheJob(900, 42, false, "")
		s.mustPrepare(t, job)
		if titles := mode.Virsh(t, "list", "--title"); !strings.Contains(titles, first) || !strings.Contains(titles, machineOf(job)) {
			t.Errorf("virsh shows\n%s, want %s with the title %s", titles, first, machineOf(job))
		}
		s.inGuest(t, job, "echo ssh >>/tmp/jobs")
		if e := s.script(t, job, gitlab.StageBuildScript, "cat /tmp/jobs\n"+cacheLook); e.Stdout != "ssh\n"+emptyCache {
			t.Errorf("a script of the job: %s", e)
		}
		second := s.awaitIdle(t, 1)[0]
		if second == first {
			t.Errorf("%s is offered although a job has it", first)
		}
		if e := s.runner(t).Stage(deadline(t), job, "cleanup"); e.ExitCode != 0 || strings.Contains(mode.Virsh(t, "list", "--name"), first) {
			t.Errorf("after %s there is still %s", e, first)
		}
		result := s.runner(t).Run(deadline(t), s.cacheJob(901, 42, false, "echo job >>/tmp/jobs; cat /tmp/jobs\n"+cacheLook))
		checkOutputs(t, result)
		prepare, _ := result.Find("prepare")
		script, _ := result.Find(gitlab.StageBuildScript)
		if result.Status != gitlab.Success || !strings.Contains(prepare.Stderr, readyBefore) || script.Stdout != "job\n"+keptCache {
			t.Errorf("the second job: %s", result)
		}
		v.stop(t)
		if left := s.left(t); left != "nothing" {
			t.Errorf("left after SIGTERM: %s", left)
		}
	})
}

// idleDomains are the idle machines that libvirt runs.
func (s *site) idleDomains(t testing.TB) (names []string) {
	t.Helper()
	for _, name := range strings.Fields(s.Mode.Virsh(t, "list", "--name")) {
		if strings.HasPrefix(name, "sardine-idle-") {
			names = append(names, name)
		}
	}
	return names
}

// On a host that idle machines fill, a job of another image gets its room at once, also if
// nothing looks after them. What is left is swept when it is clear that nothing does.
func TestIdleMachinesGiveWay(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		const guest = 256 << 20
		s, v := idleSite(t, mode, 2, `memory = "256MiB"`, `pull_policy = "if-not-present"`, fmt.Sprintf("host_reserve = '%dB'", hostMemory(t, mode)-2*guest-guest/2))
		names := s.awaitIdle(t, 2)
		v.kill(t)
		job := s.job("")
		job.ID, job.Image.Name = 920, s.slowImage
		e := s.runner(t).Stage(deadline(t), job, "prepare")
		if left := s.idle(); e.ExitCode != 0 || strings.Contains(e.Stderr, "Waiting for room") || len(left) != 1 || left[0] != names[1] {
			t.Errorf("offered are %q after %s", left, e)
		}
		s.Run(t, "sweep")
		if n := len(s.idleDomains(t)); n != 1 {
			t.Errorf("%d idle machines after a sweep that was too early", n)
		}
		long := time.Now().Add(-time.Hour)
		if err := os.Chtimes(filepath.Join(s.Storage, "jobs", ".idle"), long, long); err != nil {
			t.Fatal(err)
		}
		s.Run(t, "sweep")
		if n := len(s.idleDomains(t)); n != 0 {
			t.Errorf("%d idle machines after the sweep", n)
		}
		s.mustCleanUp(t, job)
	})
}
