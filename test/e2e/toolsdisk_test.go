//go:build boot

package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

// hostRunner is a gitlab-runner as a host has it, of a size that shows if it is copied. It says
// where it was found and what it was told. Its kind, a script, runs in any guest.
var hostRunner = `#!/bin/sh
if [ "$1" = --version ]; then
	printf 'Version:      17.9.3\nGit revision: 1\n'
	exit
fi
echo "host's $(readlink -f "$0") $*"
exit
` + strings.Repeat("#"+strings.Repeat(" ", 1022)+"\n", 8<<10)

// guestRunner is a gitlab-runner of the guest's own.
func guestRunner(version string) string {
	return fmt.Sprintf("printf '#!/bin/sh\\n[ \"$1\" = --version ] && echo \"Version: %s\" || echo \"own $*\"\\n' >/tmp/runner; "+
		"chmod 755 /tmp/runner; sudo -n cp /tmp/runner /usr/bin/gitlab-runner; ", version)
}

// onDisk is where the guest has what is on the disk.
const onDisk = "/run/gitlab-sardine-executor/gitlab-runner"

// A job uses this host's gitlab-runner from the read-only disk: for cache and artifacts alone,
// without a copy, unless the guest's own fits or is preferred. Each row is a job in the same
// machine, which begins as prepare leaves it.
func TestToolsDisk(t *testing.T) {
	mostlyIn(t, "session", func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode)
		s.writeTool(t, "gitlab-runner", hostRunner)
		job := s.job("")
		job.ID = 1
		s.mustPrepare(t, job)
		todo := filepath.Join(s.Storage, "jobs", machineOf(job), "runner")
		for _, test := range []struct {
			name, setting string
			guest         string // commands in the guest before the job
			said          string // by gitlab-runner in the stages that call it
			log           string // what the job's log says of it; empty: nothing
		}{
			{"none in the guest", "auto", "", "host's " + onDisk, ""},
			{"mounted before", "auto", "", "host's " + onDisk, ""},
			{"another minor version", "auto", guestRunner("16.11.0"), "host's " + onDisk, "gitlab-runner in the guest is 16.11.0: this host's 17.9.3 is used instead"},
			{"the same minor version", "auto", guestRunner("17.9.0"), "own", ""},
			{"the guest's is preferred", "guest", guestRunner("16.11.0"), "own", ""},
			{"preferred, but none", "guest", "sudo -n rm -f /usr/bin/gitlab-runner; ", "host's " + onDisk, ""},
			{"off", "off", "", "none", ""},
		} {
			if mode.Name == "system" && test.guest+test.setting != "auto" {
				continue // decided in the guest, in both modes alike
			}
			t.Run(test.name, func(t *testing.T) {
				s.Configure(t, fmt.Sprintf("runner_binary = %q", test.setting))
				s.inGuest(t, job, test.guest+"rm -rf ~/.gitlab-sardine-executor")
				mode.WriteFile(t, todo, "disk")
				result := s.runnerWithout(t, "prepare", "cleanup").Run(deadline(t), withRunnerStages(job))
				s.checkRunnerStages(t, result, test.said)
				if said := strings.Contains(result.JobLog, "gitlab-runner in the guest"); said != (test.log != "") || !strings.Contains(result.JobLog, test.log) {
					t.Errorf("want %q in the log:\n%s", test.log, result.JobLog)
				}
			})
		}
		if mode.Name == "session" { // the stages are the same
			t.Run("canceled", func(t *testing.T) { s.checkCanceledWithoutRunner(t, job, todo) })
		}
		s.mustCleanUp(t, job)
	})
}

// withRunnerStages gives a job the stages that call gitlab-runner.
func withRunnerStages(job gitlab.Job) gitlab.Job {
	call := "command -v gitlab-runner >/dev/null || { echo none; exit; }; gitlab-runner "
	job.Script = "cat /sys/class/net/eth0/statistics/rx_bytes"
	job.Scripts = map[string]string{gitlab.StageRestoreCache: call + "cache-extractor", gitlab.StageUploadArtifacts: call + "artifacts-uploader"}
	return job
}

// checkRunnerStages wants each of these stages to have called the expected gitlab-runner, and
// the job's network to have carried scripts alone.
func (s *site) checkRunnerStages(t *testing.T, result gitlab.Result, said string) {
	t.Helper()
	checkOutputs(t, result)
	if result.Status != gitlab.Success {
		t.Fatalf("%s\n%s", result, result.JobLog)
	}
	for stage, command := range map[string]string{gitlab.StageRestoreCache: "cache-extractor", gitlab.StageUploadArtifacts: "artifacts-uploader"} {
		want := said + " " + command + "\n"
		if said == "none" {
			want = "none\n"
		}
		if e, ran := result.Find(stage); !ran || e.Stdout != want {
			t.Errorf("%s: %q, want %q", stage, e.Stdout, want)
		}
	}
	var received int
	script, _ := result.Find(gitlab.StageBuildScript)
	if _, err := fmt.Sscan(script.Stdout, &received); err != nil || received > len(hostRunner)/4 {
		t.Errorf("the guest has received %q bytes from the network, want few: gitlab-runner has %d", script.Stdout, len(hostRunner))
	}
}

// checkCanceledWithoutRunner cancels a job whose guest could only get a copy: a job that is to
// end does not wait for one.
func (s *site) checkCanceledWithoutRunner(t *testing.T, job gitlab.Job, todo string) {
	s.Configure(t)
	s.inGuest(t, job, "rm -rf ~/.gitlab-sardine-executor")
	s.Mode.WriteFile(t, todo, "copy")
	job.Script = waitingScript
	job.Scripts = map[string]string{gitlab.StageUploadArtifactsOnFailure: "command -v gitlab-runner || echo none"}
	build := s.runnerWithout(t, "prepare", "cleanup").Start(deadline(t), job)
	awaitScript(t, build)
	build.CancelGracefully()
	result := build.Wait()
	upload, ran := result.Find(gitlab.StageUploadArtifactsOnFailure)
	if !ran || upload.Stdout != "none\n" || !strings.Contains(upload.Stderr, "the job was cancelled: gitlab-runner is not copied into the guest for upload_artifacts_on_failure") {
		t.Errorf("%s\n%s", result, upload)
	}
}
