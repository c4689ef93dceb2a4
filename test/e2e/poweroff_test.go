//go:build boot

package e2e

import (
	"strings"
	"testing"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

// A script that succeeds can power the machine off afterwards: the stages that follow fail at
// once, and that is the job's own failure. In session mode libvirt keeps its logs elsewhere.
func TestPowerOffBetweenStages(t *testing.T) {
	testbed.EachMode(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode)
		job := s.job("")
		job.ID = 1
		s.mustPrepare(t, job)
		if e := s.script(t, job, gitlab.StageBuildScript, "sudo -n setsid sh -c 'sleep 1; poweroff -f' >/dev/null 2>&1 </dev/null &\n"); e.ExitCode != 0 {
			t.Fatal(e)
		}
		until(t, "the machine is off", func() bool { return len(processes(isGuest(machineOf(job)))) == 0 })
		s.wantJobFailure(t, s.script(t, job, gitlab.StageAfterScript, "true"), "the guest was powered off by the job before after_script")
		s.wantJobFailure(t, s.script(t, job, gitlab.StageUploadArtifacts, "true"), "the machine was lost in after_script: the job had powered it off")
		s.mustCleanUp(t, job)
	})
}

// The same while the next stage tries to log in to a guest without its SSH server, as one
// that shuts down is; and with a reboot.
func TestPowerOffBeforeLogin(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode)
		for command, says := range map[string]string{
			"poweroff -f": "the guest was powered off by the job before after_script",
			"reboot -f":   "the guest was rebooted by the job before after_script",
		} {
			// The server is the oldest of its processes.
			job := s.job("sudo -n kill $(pidof dropbear | tr ' ' '\\n' | sort -n | head -n 1)\nsudo -n setsid sh -c 'sleep 4; " + command + "' >/dev/null 2>&1 </dev/null &\n")
			job.AfterScript = "true"
			job.Scripts = map[string]string{gitlab.StageUploadArtifacts: "true"}
			result := s.runner(t).Run(deadline(t), job)
			checkOutputs(t, result)
			if script, _ := result.Find(gitlab.StageBuildScript); script.ExitCode != 0 || result.Status != gitlab.BuildFailure {
				t.Errorf("%s: %s", command, result)
			}
			after, _ := result.Find(gitlab.StageAfterScript)
			s.wantJobFailure(t, after, says)
			upload, _ := result.Find(gitlab.StageUploadArtifacts)
			s.wantJobFailure(t, upload, "the machine was lost in after_script")
		}
	})
}

// wantJobFailure wants a stage that is a failure of the job, and says so in one line.
func (s *site) wantJobFailure(t *testing.T, e gitlab.Execution, says string) {
	t.Helper()
	if e.ExitCode != gitlab.BuildFailureExitCode || !strings.Contains(e.Stderr, says) || strings.Count(e.Stderr, "\n") != 1 {
		t.Errorf("want a build failure with one line, …%s…, got %s", says, e)
	}
}
