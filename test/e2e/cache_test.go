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

// cacheModes runs a test with each way to have a cache, where it can be had: this
// libvirt has no virtiofs for ordinary users (TestNoShareForUsers).
func cacheModes(t *testing.T, test func(t *testing.T, s *site, kind string)) {
	t.Helper()
	testbed.EachMode(t, func(t *testing.T, mode *testbed.Mode) {
		for _, kind := range []string{"disk", "share"} {
			if kind == "share" && mode.Name == "session" {
				continue
			}
			t.Run(kind, func(t *testing.T) {
				test(t, newSite(t, mode, fmt.Sprintf("cache = %q", kind), `cache_size = "32MiB"`, `accel = "tcg"`), kind)
			})
		}
	})
}

// cacheJob is a job of the project with that number.
func (s *site) cacheJob(id, project int64, protected bool, script string) gitlab.Job {
	job := s.job(script)
	job.ID, job.ProjectID, job.Protected = id, project, &protected
	return job
}

// runCacheJob runs a job that must succeed and returns what its script said.
func (s *site) runCacheJob(t *testing.T, job gitlab.Job) (stdout, log string) {
	t.Helper()
	result := s.runner(t).Run(deadline(t), job)
	checkOutputs(t, result)
	if result.Status != gitlab.Success {
		t.Fatal(result)
	}
	if result.RunnerLog != "" {
		t.Errorf("cleanup said %q", result.RunnerLog)
	}
	script, _ := result.Find(gitlab.StageBuildScript)
	return script.Stdout, result.JobLog
}

// What one job leaves the next one of its project finds, and nobody else.
func TestCache(t *testing.T) {
	cacheModes(t, func(t *testing.T, s *site, kind string) {
		const look = "cat /cache/file 2>/dev/null || echo nothing"
		// No sync: what the guest holds in its memory has to come, too.
		_, log := s.runCacheJob(t, s.cacheJob(1, 42, false, "echo of job 1 >/cache/file; mkdir /cache/dir; ls -ld /cache/lost+found || true"))
		if strings.Contains(log, "WARNING") {
			t.Errorf("a warning for the first job:\n%s", log)
		}
		forged := s.cacheJob(4, 43, true, look)
		for key, value := range map[string]string{"CI_PROJECT_ID": "42", "CI_PROJECT_PATH": "group/project", "CI_COMMIT_REF_PROTECTED": "false"} {
			forged.Variables = append(forged.Variables, gitlab.Variable{Key: key, Value: value})
		}
		for _, test := range []struct {
			name string
			job  gitlab.Job
			want string
		}{
			{"same project", s.cacheJob(2, 42, false, look+"; touch /cache/dir/by-the-second"), "of job 1\n"},
			{"protected ref", s.cacheJob(3, 42, true, look), "nothing\n"},
			{"another project, with the variables of ours", forged, "nothing\n"},
		} {
			if kind == "disk" && s.mode.Name != "session" && test.job.ID != 2 {
				continue // whose it is does not depend on the mode
			}
			if got, log := s.runCacheJob(t, test.job); got != test.want || strings.Contains(log, "WARNING") {
				t.Errorf("%s: the job found %q, want %q; its log:\n%s", test.name, got, test.want, log)
			}
		}
		s.checkCachesArePrivate(t, kind)
	})
}

// checkCachesArePrivate looks at who of this host can get at what guests wrote.
func (s *site) checkCachesArePrivate(t *testing.T, kind string) {
	t.Helper()
	pattern, wanted := "disks/*/*.img", os.FileMode(0o600)
	if kind == "share" {
		pattern, wanted = "shares", os.ModeDir|0o700
	}
	found, err := filepath.Glob(filepath.Join(s.storage, "caches", pattern))
	if err != nil || len(found) == 0 {
		t.Fatalf("no caches of kind %s: %v", kind, err)
	}
	for _, path := range found {
		if info, err := os.Lstat(path); err != nil || info.Mode() != wanted {
			t.Errorf("%s has mode %v (%v), want %v", path, info.Mode(), err, wanted)
		}
	}
}

// Two jobs of a project at once: a disk has one writer, a share has both. While they
// run, prune spares what they have.
func TestCacheSideBySide(t *testing.T) {
	cacheModes(t, func(t *testing.T, s *site, kind string) {
		if kind == "disk" && s.mode.Name != "session" {
			return // one mode stands for both
		}
		first := s.cacheJob(1, 42, false, "echo of job 1 >/cache/file; echo script runs\nwhile ! [ -e /tmp/go ]; do sleep 0.1; done; cat /cache/file")
		holder := s.runner(t).Start(deadline(t), first)
		if err := holder.Log().WaitFor(deadline(t), "script runs"); err != nil {
			t.Fatal(err)
		}
		got, log := s.runCacheJob(t, s.cacheJob(2, 42, false, "cat /cache/file || echo nothing; echo of job 2 >/cache/second"))
		if want := map[string]string{"disk": "nothing\n", "share": "of job 1\n"}[kind]; got != want || strings.Contains(log, "WARNING") {
			t.Errorf("beside job 1, job 2 found %q, want %q; its log:\n%s", got, want, log)
		}
		pruned := s.mode.Run(t, s.driver, "--config", s.config, "prune", "--older-than", "0s")
		if inUse := strings.Contains(pruned, "/0.img") || strings.Contains(pruned, "shares/"); inUse {
			t.Errorf("prune removed what job 1 has:\n%s", pruned)
		}
		if second := strings.Contains(pruned, "/1.img"); second != (kind == "disk") {
			t.Errorf("prune removed the second disk: %t; it said:\n%s", second, pruned)
		}
		s.endJob(t, first)
		result := holder.Wait()
		if script, _ := result.Find(gitlab.StageBuildScript); result.Status != gitlab.Success || !strings.HasSuffix(script.Stdout, "of job 1\n") {
			t.Errorf("job 1 after job 2 and prune: %s", result)
		}
		if got, _ := s.runCacheJob(t, s.cacheJob(3, 42, false, "cat /cache/file")); got != "of job 1\n" {
			t.Errorf("after both, job 3 found %q", got)
		}

		would := s.mode.Run(t, s.driver, "--config", s.config, "prune", "--older-than", "0s", "--dry-run")
		spared := s.mode.Run(t, s.driver, "--config", s.config, "prune", "--older-than", "1h")
		pruned = s.mode.Run(t, s.driver, "--config", s.config, "prune", "--older-than", "0s")
		if strings.ReplaceAll(would, "Would remove", "Removed") != pruned || !strings.Contains(pruned, "group/project of https://gitlab.example.com (project 42), unprotected refs\nRemoved 1 caches") {
			t.Errorf("prune said\n%s\nand before, with --dry-run,\n%s", pruned, would)
		}
		if strings.Contains(spared, "caches") {
			t.Errorf("prune removed a cache that was used just now:\n%s", spared)
		}
		var left []string
		filepath.WalkDir(filepath.Join(s.storage, "caches"), func(path string, entry os.DirEntry, err error) error {
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

// endJob ends the script of a job that waits for /tmp/go.
func (s *site) endJob(t *testing.T, job gitlab.Job) {
	t.Helper()
	login := s.mode.Command(deadline(t), s.driver, "--config", s.config, "login", fmt.Sprint(job.ID))
	login.Stdin = strings.NewReader("touch /tmp/go\n")
	if output, err := login.CombinedOutput(); err != nil {
		t.Fatalf("end the script: %v\n%s", err, output)
	}
}

// What a job does to its cache disk costs the next job what was there, and no more.
func TestHostileCacheDisk(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		const (
			look    = "cat /cache/file 2>/dev/null || echo nothing; df -P /cache | grep -c ^/dev/vd; echo mine >/cache/file\n"
			damaged = "it is formatted"
		)
		s := newSite(t, mode, `cache = "disk"`, `cache_size = "32MiB"`, `accel = "tcg"`)
		found, says := "nothing\n1\n", ""
		for i, test := range []struct{ name, script, found, says string }{
			{"garbage", "sudo umount /cache; sudo dd if=/dev/urandom of=/dev/vdb bs=1M count=8", "nothing\n1\n", damaged},
			{"header of a qcow2 file", "sudo umount /cache; { printf 'QFI\\373\\0\\0\\0\\003'; dd if=/dev/zero bs=1M count=1; } | sudo dd of=/dev/vdb bs=1M", "nothing\n1\n", damaged},
			{"errors that e2fsck cannot repair by itself", "sudo umount /cache; sudo dd if=/dev/urandom of=/dev/vdb bs=1024 seek=2 count=64", "nothing\n1\n", damaged},
			{"full", "dd if=/dev/zero of=/cache/big bs=1M || true", "nothing\n1\n", "full: it is formatted"},
			{"somebody else's", "sudo chown -R 7:7 /cache; sudo chmod 0 /cache", "mine\n1\n", ""},
			{"nothing", "true", "mine\n1\n", ""},
			{"nothing again", "true", "", ""},
		} {
			got, log := s.runCacheJob(t, s.cacheJob(int64(i+1), 42, false, look+test.script))
			if got != found || !strings.Contains(log, says) || says == "" && strings.Contains(log, "cache disk") {
				t.Errorf("the job before %q found %q, want %q and to be told of %q; its log:\n%s", test.name, got, found, says, log)
			}
			found, says = test.found, test.says
		}
	})
}

// A share is a directory of this host, of which the guests' root is root: what lies
// there leads nowhere, whoever mounts, prunes or measures it.
func TestHostileShare(t *testing.T) {
	systemOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode, `cache = "share"`, `accel = "tcg"`)
		outside := mode.Dir(t)
		sentinel := mode.WriteFile(t, filepath.Join(outside, "sentinel"), "stays")
		s.runCacheJob(t, s.cacheJob(1, 42, false, fmt.Sprintf(`cd /cache
ln -s %[1]s out; ln -s ../../../.. up; ln -s / root; mkdir dir; ln -s %[1]s dir/out
cp /usr/bin/busybox shell; sudo chown 0:0 shell; sudo chmod 4777 shell
sudo mknod device b 8 0
sudo chown 0:0 /cache; sudo chmod 0 /cache`, outside)))
		got, log := s.runCacheJob(t, s.cacheJob(2, 42, false, `cd /cache && touch mine && ls
ls out/ up/etc root/builds 2>&1 | grep -c sentinel || true
[ -u shell ] && ./shell id -u; exit 0`))
		if want := "device\ndir\nmine\nout\nroot\nshell\nup\n0\n"; !strings.HasPrefix(got, want) || strings.Contains(log, "WARNING") {
			t.Errorf("the next job found %q, want %q first; its log:\n%s", got, want, log)
		}
		s.checkCachesArePrivate(t, "share")
		if pruned := mode.Run(t, s.driver, "--config", s.config, "prune", "--older-than", "0s"); !strings.Contains(pruned, "Removed 1 caches") {
			t.Errorf("prune said:\n%s", pruned)
		}
		if text, err := os.ReadFile(sentinel); err != nil || string(text) != "stays" {
			t.Errorf("the host's file: %q, %v", text, err)
		}
		if files, err := filepath.Glob(filepath.Join(s.storage, "caches", "*", "*")); err != nil || len(files) > 0 {
			t.Errorf("after prune there are %v, %v", files, err)
		}
	})
}

// A disk that was there when a guest did not come up is not given to the next.
func TestSuspectCacheDisk(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newHaltSite(t, mode, `cache = "disk"`, `cache_size = "32MiB"`)
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

// A guest that will not flush its cache has its end all the same, and soon; one that
// still writes has it flushed.
func TestCacheFlush(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode, `cache = "disk"`, `cache_size = "32MiB"`, `accel = "tcg"`)
		got, _ := s.runCacheJob(t, s.cacheJob(1, 42, false, `echo busy >/cache/file
(cd /cache && exec sleep 1000 >/cache/held 2>&1) &
echo started`))
		if got != "started\n" {
			t.Errorf("the job said %q", got)
		}
		if got, log := s.runCacheJob(t, s.cacheJob(2, 42, false, "cat /cache/file")); got != "busy\n" || strings.Contains(log, "WARNING") {
			t.Errorf("after a job that kept its cache busy, the next found %q; its log:\n%s", got, log)
		}
		hangs := s.cacheJob(3, 42, false, hangingSudo)
		result := s.runner(t).Run(deadline(t), hangs)
		cleanup, _ := result.Find("cleanup")
		if result.Status != gitlab.Success || cleanup.ExitCode != 0 || cleanup.Duration > patience/10 || !strings.Contains(result.RunnerLog, "may lack") {
			t.Errorf("cleanup of a guest that does not flush took %s: %s\n%s", cleanup.Duration, result, result.RunnerLog)
		}
	})
}

// Ordinary users' libvirt before version 10 has no virtiofs: a job is told so at once,
// and the administrator by doctor.
func TestNoShareForUsers(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode, `cache = "share"`, `accel = "tcg"`)
		result := s.runner(t).Run(deadline(t), s.cacheJob(1, 42, false, "echo script runs"))
		checkOutputs(t, result)
		failed, attempts := failures(result)
		if result.Status != gitlab.BuildFailure || attempts != 1 {
			t.Errorf("want one build failure, got %s", result)
		}
		checkErrorLine(t, failed.Stderr, []string{`cache = "share"`, "qemu:///session", `cache = "disk"`})
		output, _ := mode.Command(deadline(t), s.driver, "--config", s.config, "doctor").Output()
		if !strings.Contains(string(output), `cache = "share" needs`) {
			t.Errorf("doctor does not say that shares cannot be had:\n%s", output)
		}
	})
}

// A cleanup that is told to end while it waits for a guest to flush does so at once;
// the next one does all of it.
func TestSignalDuringCacheFlush(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newHaltSite(t, mode, `cache = "disk"`, `cache_size = "32MiB"`)
		job := s.cacheJob(1, 42, false, "")
		if e := s.runner(t).Stage(deadline(t), job, "prepare"); e.ExitCode != 0 {
			t.Fatal(e)
		}
		login := mode.Command(deadline(t), s.driver, "--config", s.config, "login", "1")
		login.Stdin = strings.NewReader(hangingSudo + "\n")
		if output, err := login.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, output)
		}
		cleanup := s.background(t, job, "cleanup")
		until(t, "cleanup runs", func() bool { return len(processes(s.isDriver("cleanup"))) == 1 })
		time.Sleep(time.Second) // it has logged in by then, and has four more seconds to wait
		told(t, one(t, "driver", s.isDriver("cleanup")), syscall.SIGTERM)
		checkTold(t, <-cleanup)
		if e := s.runner(t).Stage(deadline(t), job, "cleanup"); e.ExitCode != 0 {
			t.Error(e)
		}
		if left := s.left(t); left != "nothing" {
			t.Errorf("the second cleanup has left: %s", left)
		}
	})
}

// hangingSudo is a script after which a guest never again becomes root.
const hangingSudo = `printf '#!/usr/bin/busybox sh\nsleep 1000\n' >/tmp/hang; chmod 755 /tmp/hang
sudo cp /tmp/hang /usr/bin/hang; sudo mv /usr/bin/hang /usr/bin/sudo`
