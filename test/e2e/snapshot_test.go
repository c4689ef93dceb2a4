//go:build boot

package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

// newSnapshotSite is a site whose machines start from snapshots.
func newSnapshotSite(t *testing.T, mode *testbed.Mode, settings ...string) *site {
	return newSite(t, mode, append([]string{`memory_snapshot = true`, `network = "user"`}, settings...)...)
}

// memory is the path of the memory of the site's only snapshot; empty if there is
// none.
func (s *site) memory(t *testing.T) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(s.Storage, "clones", "snapshots", "*", "*", "memory"))
	if err != nil || len(found) > 1 {
		t.Fatal(found, err)
	}
	return strings.Join(found, "")
}

// snapshotJob runs a job that must succeed, and says what it printed, and how its
// machine started.
func (s *site) snapshotJob(t *testing.T, job gitlab.Job) (stdout, from, log string) {
	t.Helper()
	result := s.runner(t).Run(deadline(t), job)
	checkOutputs(t, result)
	if result.Status != gitlab.Success {
		t.Fatal(result)
	}
	script, _ := result.Find(gitlab.StageBuildScript)
	from = "boot"
	if strings.Contains(result.JobLog, "resumed from a snapshot") {
		from = "snapshot"
	}
	return script.Stdout, from, result.JobLog
}

// The first job of an image makes a snapshot, from which it and the later ones start; none
// finds anything of another. A machine that does not resume is replaced by one that boots,
// and the snapshot is not used again.
func TestJobsFromASnapshot(t *testing.T) {
	testbed.EachMode(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSnapshotSite(t, mode)
		const script = "date +%s; cat /tmp/mark 2>/dev/null || true; echo job $CI_JOB_ID >/tmp/mark; hostname"
		for id := range int64(2) {
			job := s.job(script)
			job.ID = id + 1
			out, from, log := s.snapshotJob(t, job)
			if from != "snapshot" || strings.Contains(log, "WARNING") {
				t.Errorf("job %d started from its %s:\n%s", job.ID, from, log)
			}
			if made := strings.Contains(log, "Booting a machine for a snapshot"); made != (id == 0) {
				t.Errorf("job %d made a snapshot: %v", job.ID, made)
			}
			lines := strings.Fields(out)
			if len(lines) != 2 {
				t.Fatalf("job %d found something:\n%s", job.ID, out)
			}
			if now, err := strconv.ParseInt(lines[0], 10, 64); err != nil || time.Since(time.Unix(now, 0)).Abs() > time.Minute {
				t.Errorf("job %d had the time %s", job.ID, lines[0])
			}
		}
		info, err := os.Stat(s.memory(t))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("others may read the guest's memory: %v", info.Mode())
		}
		if mode.Name == "session" {
			s.checkSnapshotOfAnotherGuest(t)
			return
		}
		s.Run(t, "prune", "--older-than", "0s")
		if left, _ := filepath.Glob(filepath.Join(s.Storage, "clones", "snapshots", "*")); len(left) > 0 {
			t.Errorf("prune left %q of the snapshots", left)
		}
	})
}

// checkSnapshotOfAnotherGuest changes the host key that the site's snapshot is known by.
func (s *site) checkSnapshotOfAnotherGuest(t *testing.T) {
	t.Helper()
	note := filepath.Join(filepath.Dir(s.memory(t)), "snapshot.json")
	text, err := os.ReadFile(note)
	if err != nil {
		t.Fatal(err)
	}
	key := regexp.MustCompile(`"HostKey": "[^"]*"`)
	other := `"HostKey": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDoNotTrustThisKeyItIsOnlyForATestOfSnapshots0"`
	if err := os.WriteFile(note, key.ReplaceAll(text, []byte(other)), 0o600); err != nil {
		t.Fatal(err)
	}
	out, from, log := s.snapshotJob(t, s.job("echo fine"))
	if out != "fine\n" || from != "boot" || !strings.Contains(log, "did not resume from its snapshot") {
		t.Errorf("the job after it printed %q and started from its %s:\n%s", out, from, log)
	}
	if s.memory(t) != "" {
		t.Error("the snapshot is still there")
	}
}
