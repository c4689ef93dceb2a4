//go:build boot && nightly

package e2e

import (
	"testing"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

// A script that succeeds can power the machine off, or reboot it, while the next stage tries to log
// in to a guest without its SSH server, as one that shuts down is.
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
