//go:build boot

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

// signalsIn returns what GitLab Runner sends, and at night SIGINT as well: the driver
// handles the two alike (TestSignalDuringConfig).
func signalsIn(mode *testbed.Mode) []syscall.Signal {
	if nightly && mode.Name == "session" {
		return []syscall.Signal{syscall.SIGTERM, syscall.SIGINT}
	}
	return []syscall.Signal{syscall.SIGTERM}
}

// told sends a signal to the driver and waits until it has ended, which takes two seconds
// at most on a host that is not busy. It does not wait for what holds it up: that is
// released later.
func told(t *testing.T, driver process, signal syscall.Signal) {
	t.Helper()
	began := time.Now()
	driver.signal(t, signal)
	until(t, "the driver has ended", driver.ended)
	t.Logf("%v: ended after %v", signal, time.Since(began).Round(time.Millisecond))
}

// checkTold wants what GitLab Runner has to see of a stage that was told to end:
// the status, one line, and the end of its output.
func checkTold(t *testing.T, e gitlab.Execution) {
	t.Helper()
	if e.ExitCode != gitlab.SystemFailureExitCode {
		t.Errorf("want exit code %d, got %s", gitlab.SystemFailureExitCode, e)
	}
	if e.OutputHeld {
		t.Errorf("somebody holds the output of the stage open: %s", e)
	}
	if e.Stage != "cleanup" { // whose stderr is the administrator's
		if strings.Contains(e.Stderr, "ERROR") || strings.Contains(e.Stderr, "system failure") ||
			!strings.HasSuffix(e.Stderr, "Job ended by a signal: canceled, timed out, or the runner stopped\n") {
			t.Errorf("want one last line about the signal and no error, got:\n%s", e.Stderr)
		}
	}
}

// A prepare that is told to end does so at once, says so, and leaves nothing of the
// machine, though no cleanup follows. Its last request to libvirt may outlive it: on a
// slow host the end of a machine takes longer than the two seconds.
func TestSignalDuringPrepare(t *testing.T) {
	daily := map[string][]haltPoint{
		"session": {duringPull, duringBoot},
		"system":  {duringClone, duringSSHWait},
	}
	testbed.EachMode(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode)
		points := daily[mode.Name]
		if nightly {
			points = []haltPoint{duringPull, duringImport, duringClone, duringBoot, duringSSHWait}
		}
		for _, m := range points {
			for _, signal := range signalsIn(mode) {
				t.Run(fmt.Sprintf("%s/%v", m, signal), func(t *testing.T) {
					job := s.jobUntil(m, 1)
					reached, release := s.arrange(t, m, job)
					result := s.interrupt(t, job, signal, reached)
					release()
					checkPrepareTold(t, s, result)
				})
			}
		}
		if !nightly {
			return
		}
		script := mode.WriteFile(t, filepath.Join(mode.Dir(t), "prepare.sh"), "echo prepare script runs\nsleep 1000\n")
		s.Configure(t, fmt.Sprintf("prepare_script = %q", script))
		for _, signal := range signalsIn(mode) {
			t.Run(fmt.Sprintf("prepare script/%v", signal), func(t *testing.T) {
				result := s.interrupt(t, s.jobUntil(duringBoot, 1), signal, func(log *gitlab.Trace) {
					if err := log.WaitFor(deadline(t), "prepare script runs"); err != nil {
						t.Fatal(err)
					}
				})
				checkPrepareTold(t, s, result)
			})
		}
	})
}

// watchOpens returns a function that reports whether a file was opened since.
func watchOpens(t *testing.T, path string) func() bool {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err == nil {
		t.Cleanup(func() { unix.Close(fd) })
		_, err = unix.InotifyAddWatch(fd, path, unix.IN_OPEN)
	}
	if err != nil {
		t.Fatalf("watch %s: %v", path, err)
	}
	return func() bool {
		n, err := unix.Read(fd, make([]byte, unix.SizeofInotifyEvent+unix.NAME_MAX+1))
		return n > 0 && err == nil
	}
}

// A prepare that is told to end when its guest is ready, and only its metrics are not
// written yet, has failed: the job must not go on.
func TestSignalAtEndOfPrepare(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		metrics := filepath.Join(mode.Dir(t), "sardine.prom")
		s := sharedSite(t, mode, fmt.Sprintf("metrics_textfile = %q", metrics))
		path := mode.WriteFile(t, metrics+".lock", "")
		if err := os.Chmod(path, 0o666); err != nil {
			t.Fatal(err)
		}
		lock := flock.New(path)
		if err := lock.Lock(); err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
		runner := s.runner(t)
		runner.PrepareWait = time.Minute // no second attempt
		build := runner.Start(deadline(t), s.job("echo the job goes on"))
		if err := build.Log().WaitFor(deadline(t), "Guest ready"); err != nil {
			t.Fatal(err)
		}
		opens := watchOpens(t, path)
		driver := one(t, "driver", s.isDriver("prepare"))
		// It opens the file for each attempt to lock it.
		until(t, "the driver waits to write its metrics", func() bool { return opens() || driver.opened(path) })
		driver.signal(t, syscall.SIGTERM)
		until(t, "the driver has taken the signal", func() bool { return !driver.pending(syscall.SIGTERM) })
		lock.Close()
		until(t, "the driver has ended", driver.ended)
		build.Cancel()
		result := build.Wait()
		prepare, _ := result.Find("prepare")
		checkTold(t, prepare)
		if left := s.left(t); left != "nothing" {
			t.Errorf("left is %s", left)
		}
	})
}

// interrupt starts a job, ends its prepare with a signal when reached returns, and
// then cancels it.
func (s *site) interrupt(t *testing.T, job gitlab.Job, signal syscall.Signal, reached func(*gitlab.Trace)) gitlab.Result {
	t.Helper()
	runner := s.runnerWithout(t, "cleanup")
	runner.PrepareWait = time.Minute // no second attempt
	build := runner.Start(deadline(t), job)
	reached(build.Log())
	told(t, one(t, "driver", s.isDriver("prepare")), signal)
	build.Cancel()
	return build.Wait()
}

// checkPrepareTold wants an interrupted prepare to leave nothing but what libvirt was
// still removing when the driver ended: that goes by itself, and its files with the next
// sweep, which every prepare does.
func checkPrepareTold(t *testing.T, s *site, result gitlab.Result) {
	t.Helper()
	prepare, ran := result.Find("prepare")
	if !ran {
		t.Fatal(result)
	}
	checkTold(t, prepare)
	left := s.left(t)
	if left == "nothing" {
		return
	}
	t.Logf("when the driver ended, there was left: %s", left)
	until(t, "libvirt has removed the machine", func() bool { return !strings.Contains(s.Mode.Virsh(t, "list", "--all", "--name"), "sardine-") })
	s.Run(t, "sweep")
	if left := s.left(t); left != "nothing" {
		t.Errorf("prepare and sweep have left: %s\n%s", left, result)
		s.clear(t)
	}
}

// A run that is told to end leaves the machine to cleanup. A cleanup that is told to end,
// because a machine does not, fails; the next one does what is left to do.
func TestSignalDuringScriptAndCleanup(t *testing.T) {
	testbed.EachMode(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode)
		for _, signal := range signalsIn(mode) {
			t.Run(signal.String(), func(t *testing.T) {
				job := s.jobUntil(duringScript, 1)
				reached, _ := s.arrange(t, duringScript, job)
				build := s.runnerWithout(t, "cleanup").Start(deadline(t), job)
				reached(build.Log())
				told(t, one(t, "driver", s.isDriver("run")), signal)
				result := build.Wait()
				script, _ := result.Find(gitlab.StageBuildScript)
				checkTold(t, script)
				if left := s.left(t); !strings.Contains(left, "machine") {
					t.Errorf("the machine is gone already; left is %s", left)
				}

				held, release := s.holdCleanup(t, job)
				cleanup := s.background(t, job, "cleanup")
				held()
				told(t, one(t, "driver", s.isDriver("cleanup")), signal)
				checkTold(t, <-cleanup)
				release()
				s.mustCleanUp(t, job)
			})
		}
	})
}

// Config reads a file, which can hang where files are far away.
func TestSignalDuringConfig(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode)
		for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
			t.Run(signal.String(), func(t *testing.T) {
				pipe := mode.WriteFile(t, filepath.Join(mode.Dir(t), "config.toml"), "")
				if err := os.Remove(pipe); err != nil {
					t.Fatal(err)
				}
				if err := unix.Mkfifo(pipe, 0o644); err != nil {
					t.Fatal(err)
				}
				runner := s.runner(t)
				runner.Args = []string{"--config", pipe}
				done := make(chan gitlab.Execution, 1)
				ctx, job := deadline(t), s.job("true")
				go func() { done <- runner.Stage(ctx, job, "config") }()
				var writer *os.File
				until(t, "the settings are read", func() (read bool) {
					var err error // ENXIO: nobody reads
					writer, err = os.OpenFile(pipe, os.O_WRONLY|unix.O_NONBLOCK, 0)
					return err == nil
				})
				defer writer.Close()
				told(t, one(t, "driver", s.isDriver("config")), signal)
				checkTold(t, <-done)
			})
		}
	})
}

// A cleanup that comes while a script runs removes the machine, and the script ends.
func TestCleanupBesideScript(t *testing.T) {
	systemOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode)
		job := s.jobUntil(duringScript, 1)
		reached, _ := s.arrange(t, duringScript, job)
		build := s.runner(t).Start(deadline(t), job)
		reached(build.Log())
		if cleanup := s.runner(t).Stage(deadline(t), job, "cleanup"); cleanup.ExitCode != 0 {
			t.Error(cleanup)
		}
		result := build.Wait()
		checkOutputs(t, result)
		script, _ := result.Find(gitlab.StageBuildScript)
		if result.Status != gitlab.SystemFailure || script.ExitCode != gitlab.SystemFailureExitCode {
			t.Errorf("want a system failure, got %s", result)
		}
		if left := s.left(t); left != "nothing" {
			t.Errorf("left is %s", left)
		}
	})
}

// background runs a stage beside the test.
func (s *site) background(t testing.TB, job gitlab.Job, stage string) <-chan gitlab.Execution {
	t.Helper()
	runner, ctx, done := s.runner(t), deadline(t), make(chan gitlab.Execution, 1)
	var running sync.WaitGroup
	running.Go(func() { done <- runner.Stage(ctx, job, stage) })
	t.Cleanup(running.Wait)
	return done
}
