//go:build boot && nightly

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
	"gitlab-sardine-executor/vm/record"
)

// The machine of a dead job that does not end when it is told to, as libvirt gives it
// 15 s, is no reason for the next job to wait.
func TestSweepDoesNotHoldPrepareUp(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		log := filepath.Join(mode.Dir(t), "log")
		s := sharedSite(t, mode, fmt.Sprintf("log_file = %q", log))
		dead := s.job("true")
		dead.ID = 50
		s.mustPrepare(t, dead)
		s.expire(t, dead)
		one(t, "guest", isGuest(machineOf(dead))).signal(t, syscall.SIGSTOP)
		job := s.job("true")
		job.ID = 51
		if result := s.runner(t).Run(deadline(t), job); result.Status != gitlab.Success {
			t.Error(result)
		}
		text, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), "is still ending") {
			t.Errorf("prepare waited for the end of another job's machine:\n%s", text)
		}
		s.clear(t)
	})
}

// expire has the time of the job's machine be over.
func (s *site) expire(t *testing.T, job gitlab.Job) {
	t.Helper()
	metadata := s.Mode.Virsh(t, "metadata", machineOf(job), "--uri", record.Namespace)
	expired := regexp.MustCompile(`<expires>[^<]*`).ReplaceAllString(metadata, "<expires>2026-01-01T00:00:00Z")
	if expired == metadata {
		t.Fatalf("the metadata has no time: %s", metadata)
	}
	s.Mode.Virsh(t, "metadata", machineOf(job), "--uri", record.Namespace, "--key", "sardine", "--live",
		"--set", strings.Join(strings.Fields(expired), " "))
}
