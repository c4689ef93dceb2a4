//go:build boot

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

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

const cacheLook = "cat /cache/file 2>/dev/null || echo nothing; df -P /cache | grep -c ^/dev/vd; echo mine >/cache/file\n"

// A cacheStep is what a job does to its cache disk, and what the next job of the project
// then finds.
type cacheStep struct {
	name, script string
	found        string
	says         string // the job log
}

const (
	emptyCache   = "nothing\n1\n"
	keptCache    = "mine\n1\n"
	damagedCache = "it is formatted"
)

// What one job leaves on its cache disk the next one of its project finds, and no other:
// also what is still in the memory of the guest, or in a file that a process has open.
// What a job does to the disk costs the next job what was there, and no more.
func TestCacheDisk(t *testing.T) {
	steps := []cacheStep{
		{"a busy cache", "(cd /cache && exec sleep 1000 >/cache/held 2>&1) &", keptCache, ""},
		{"garbage", "sudo umount /cache; sudo dd if=/dev/urandom of=/dev/vdb bs=1M count=8", emptyCache, damagedCache},
	}
	if nightly {
		steps = append(steps,
			cacheStep{"full, and somebody else's", "dd if=/dev/zero of=/cache/big bs=1M || true; sudo chown -R 7:7 /cache; sudo chmod 0 /cache", emptyCache, "full: it is formatted"},
			cacheStep{"header of a qcow2 file", "sudo umount /cache; { printf 'QFI\\373\\0\\0\\0\\003'; dd if=/dev/zero bs=1M count=1; } | sudo dd of=/dev/vdb bs=1M", emptyCache, damagedCache},
			cacheStep{"errors that e2fsck cannot repair by itself", "sudo umount /cache; sudo dd if=/dev/urandom of=/dev/vdb bs=1024 seek=2 count=64", emptyCache, damagedCache},
			cacheStep{"somebody else's", "sudo chown -R 7:7 /cache; sudo chmod 0 /cache", keptCache, ""},
			cacheStep{"nothing", "true", keptCache, ""},
		)
	}
	testbed.EachMode(t, func(t *testing.T, mode *testbed.Mode) {
		steps := slices.Clone(steps)
		if mode.Name == "system" && !nightly { // where the disk belongs to QEMU's user meanwhile
			steps = steps[:1:1]
		}
		s := sharedSite(t, mode, `cache = "disk"`, `cache_size = "32MiB"`)
		t.Cleanup(func() { s.dropCaches(t) })
		want := cacheStep{"no job", "", emptyCache, ""}
		for i, step := range append(steps, cacheStep{}) {
			// No sync: what the guest holds in its memory has to come, too.
			got, log := s.runCacheJob(t, s.cacheJob(int64(i+1), 42, false, cacheLook+"exec 2>/dev/null\n"+step.script+"\ntrue"))
			if got != want.found || !strings.Contains(log, want.says) || want.says == "" && (strings.Contains(log, "cache disk") || strings.Contains(log, "WARNING")) {
				t.Errorf("the job after %q found %q, want %q and to be told of %q; its log:\n%s", want.name, got, want.found, want.says, log)
			}
			want = step
		}
		if mode.Name == "session" || nightly {
			s.checkOtherCaches(t)
		}
		s.checkCachesArePrivate(t, "disk")
	})
}

// checkOtherCaches has jobs of others look for the cache of project 42.
func (s *site) checkOtherCaches(t *testing.T) {
	t.Helper()
	jobs := []gitlab.Job{s.cacheJob(21, 43, true, cacheLook)}
	for key, value := range map[string]string{"CI_PROJECT_ID": "42", "CI_PROJECT_PATH": "group/project", "CI_COMMIT_REF_PROTECTED": "false"} {
		jobs[0].Variables = append(jobs[0].Variables, gitlab.Variable{Key: key, Value: value})
	}
	if nightly {
		jobs = append(jobs, s.cacheJob(22, 42, true, cacheLook))
	}
	for _, job := range jobs {
		if got, _ := s.runCacheJob(t, job); got != emptyCache {
			t.Errorf("job %d of project %d (protected: %t) found %q", job.ID, job.ProjectID, *job.Protected, got)
		}
	}
}

// dropCaches removes the caches of a shared site.
func (s *site) dropCaches(t *testing.T) {
	if err := os.RemoveAll(filepath.Join(s.Storage, "caches")); err != nil {
		t.Error(err)
	}
}

// checkCachesArePrivate looks at who of this host can get at what guests wrote.
func (s *site) checkCachesArePrivate(t *testing.T, kind string) {
	t.Helper()
	pattern, wanted := "disks/*/*.img", os.FileMode(0o600)
	if kind == "share" {
		pattern, wanted = "shares", os.ModeDir|0o700
	}
	found, err := filepath.Glob(filepath.Join(s.Storage, "caches", pattern))
	if err != nil || len(found) == 0 {
		t.Fatalf("no caches of kind %s: %v", kind, err)
	}
	for _, path := range found {
		if info, err := os.Lstat(path); err != nil || info.Mode() != wanted {
			t.Errorf("%s has mode %v (%v), want %v", path, info.Mode(), err, wanted)
		}
	}
}

// A share is a directory of this host, of which the guests' root is root: what lies
// there leads nowhere, whoever mounts, prunes or measures it.
func TestHostileShare(t *testing.T) {
	systemOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode, `cache = "share"`)
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
		if pruned := s.Run(t, "prune", "--older-than", "0s"); !strings.Contains(pruned, "Removed 1 caches") {
			t.Errorf("prune said:\n%s", pruned)
		}
		if text, err := os.ReadFile(sentinel); err != nil || string(text) != "stays" {
			t.Errorf("the host's file: %q, %v", text, err)
		}
		if files, err := filepath.Glob(filepath.Join(s.Storage, "caches", "*", "*")); err != nil || len(files) > 0 {
			t.Errorf("after prune there are %v, %v", files, err)
		}
	})
}

// Ordinary users' libvirt before version 10 has no virtiofs: a job is told so at once,
// and the administrator by doctor.
func TestNoShareForUsers(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode, `cache = "share"`)
		result := s.runner(t).Run(deadline(t), s.cacheJob(1, 42, false, "echo script runs"))
		checkOutputs(t, result)
		failed, attempts := failures(result)
		if result.Status != gitlab.BuildFailure || attempts != 1 {
			t.Errorf("want one build failure, got %s", result)
		}
		checkErrorLine(t, failed.Stderr, []string{`cache = "share"`, "qemu:///session", `cache = "disk"`})
		output, _ := mode.Command(deadline(t), s.Driver, "--config", s.Config, "doctor").Output()
		if !strings.Contains(string(output), `cache = "share" needs`) {
			t.Errorf("doctor does not say that shares cannot be had:\n%s", output)
		}
	})
}
