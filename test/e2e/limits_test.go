//go:build boot

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
)

// The machine of a failed job is kept for a look inside, however the job asked for that,
// until sweep ends it; a domain that only looks like one of ours stays. On a host for one
// machine, the next job waits for it, says so without naming the other job, and gets its
// turn; a job that cannot wait so long is the host's failure, not the job's.
func TestKeptMachine(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode, `keep_on_failure = "30m"`, "slots = 1")
		foreign := s.startForeignDomain(t)
		kept := s.job("echo evidence >/tmp/evidence; exit 9")
		kept.ID = 77
		result := s.runner(t).Run(deadline(t), kept)
		checkOutputs(t, result)
		if result.Status != gitlab.BuildFailure || result.ExitCode != 9 {
			t.Fatal(result)
		}
		if !strings.Contains(result.JobLog, "gitlab-sardine-executor ssh 77") {
			t.Errorf("the job is not told how to look inside:\n%s", result.JobLog)
		}
		login := mode.Command(deadline(t), s.Driver, "--config", s.Config, "ssh", "77")
		login.Stdin = strings.NewReader("cat /tmp/evidence; exit 5\n")
		output, err := login.Output()
		if string(output) != "evidence\n" || login.ProcessState.ExitCode() != 5 {
			t.Errorf("ssh 77: %q, %v", output, err)
		}
		s.Run(t, "sweep")
		if left := s.left(t); !strings.Contains(left, "machine") {
			t.Errorf("sweep ended a machine that is kept; left is %s", left)
		}

		waiting := s.waitForRoom(t)
		s.checkQueueTimeout(t)

		would := s.Run(t, "sweep", "--all", "--dry-run")
		swept := s.Run(t, "sweep", "--all")
		if would != swept || !strings.HasPrefix(swept, machineOf(kept)+"\t") || strings.Count(swept, "\n") != 1 {
			t.Errorf("sweep --all said %q, and with --dry-run %q; want %s alone", swept, would, machineOf(kept))
		}
		if result := waiting.Wait(); result.Status != gitlab.Success {
			t.Error(result)
		}
		if n := strings.Count(waiting.Log().String(), roomTaken); n != 1 {
			t.Errorf("the second job said %d times that it waits:\n%s", n, waiting.Log())
		}
		domains := strings.Fields(mode.Virsh(t, "list", "--name"))
		if len(domains) != 1 || domains[0] != foreign {
			t.Errorf("domains after sweep --all: %v, want %s alone", domains, foreign)
		}
	})
}

// roomTaken is what a job says that waits for the kept machine.
const roomTaken = "Waiting for room on this host: 1 of 1 machines are running\n"

// waitForRoom starts a job and returns when it waits for room on the host.
func (s *site) waitForRoom(t *testing.T) *gitlab.Build {
	t.Helper()
	job := s.job("echo my turn")
	job.ID = 2
	build := s.runner(t).Start(deadline(t), job)
	if err := build.Log().WaitFor(deadline(t), roomTaken); err != nil {
		t.Fatal(err)
	}
	return build
}

func (s *site) checkQueueTimeout(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(s.Config)
	if err != nil {
		t.Fatal(err)
	}
	impatient := s.Mode.WriteFile(t, filepath.Join(s.Mode.Dir(t), "config.toml"), string(text)+"queue_timeout = \"3s\"\n")
	job := s.job("true")
	job.ID = 3
	runner := s.runner(t)
	runner.Args = []string{"--config", impatient}
	e := runner.Stage(deadline(t), job, "prepare")
	if e.ExitCode != gitlab.SystemFailureExitCode {
		t.Errorf("want a system failure, got %s", e)
	}
	checkErrorLine(t, e.Stderr, []string{"no room", "queue_timeout", "1 of 1 machines are running"})
	if strings.Contains(e.Stderr, "job 77") {
		t.Errorf("the log names another job:\n%s", e.Stderr)
	}
}

// startForeignDomain starts a domain that is not of a job but has such a name.
func (s *site) startForeignDomain(t *testing.T) string {
	t.Helper()
	job := s.job("")
	job.ID = 999999
	name := machineOf(job)
	xml := s.Mode.WriteFile(t, filepath.Join(s.Mode.Dir(t), "foreign.xml"), `<domain type="qemu"><name>`+name+`</name>
<memory unit="MiB">16</memory><os><type arch="x86_64">hvm</type></os></domain>`)
	s.Mode.Virsh(t, "create", xml)
	t.Cleanup(func() { s.Mode.Virsh(t, "destroy", name) })

	// Nor do cleanup and prepare of a job of that number touch it.
	for _, stage := range []string{"prepare", "cleanup"} {
		e := s.runner(t).Stage(deadline(t), job, stage)
		if e.ExitCode != gitlab.SystemFailureExitCode || !strings.Contains(e.Stderr, name+": not a machine of a job") {
			t.Errorf("%s beside a domain that is not ours: %s", stage, e)
		}
	}
	return name
}

// What the administrator does not allow is refused in one attempt, with the name
// of the rule; what does not fit is bounded.
func TestRefused(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode)
		for _, test := range []struct {
			name     string
			settings []string
			variable gitlab.Variable
			says     []string
		}{
			{"images", []string{`allowed_images = ["registry.example.com/**"]`}, gitlab.Variable{}, []string{"allowed_images", s.image}},
			{"memory", nil, gitlab.Variable{Key: "SARDINE_MEMORY", Value: "8GiB"}, []string{"SARDINE_MEMORY", "allowed_job_variables"}},
			{"CPUs", []string{`allowed_job_variables = ["SARDINE_MEMORY"]`}, gitlab.Variable{Key: "SARDINE_CPUS", Value: "2"}, []string{"SARDINE_CPUS", "allowed_job_variables"}},
			{"keeping", nil, gitlab.Variable{Key: "SARDINE_KEEP_ON_FAILURE", Value: "5h"}, []string{"SARDINE_KEEP_ON_FAILURE", "allowed_job_variables"}},
			{"nonsense", []string{`allowed_job_variables = ["SARDINE_CPUS"]`}, gitlab.Variable{Key: "SARDINE_CPUS", Value: "-1"}, []string{"SARDINE_CPUS", "-1"}},
			{"memory without its unit", []string{`allowed_job_variables = ["SARDINE_MEMORY"]`}, gitlab.Variable{Key: "SARDINE_MEMORY", Value: "512"}, []string{"SARDINE_MEMORY", "512", "16MiB"}},
			{"a host that is too small", []string{`host_reserve = "8TiB"`}, gitlab.Variable{}, []string{"host_reserve", "memory"}},
			{"a pull policy", nil, gitlab.Variable{}, []string{"never", "allowed_pull_policies"}},
		} {
			t.Run(test.name, func(t *testing.T) {
				s.Configure(t, test.settings...)
				job := s.job("echo script runs")
				if test.variable.Key != "" {
					job.Variables = []gitlab.Variable{test.variable}
				}
				if test.name == "a pull policy" {
					job.Image.PullPolicies = []string{"never"}
				}
				result := s.runner(t).Run(deadline(t), job)
				checkOutputs(t, result)
				failed, attempts := failures(result)
				if result.Status != gitlab.BuildFailure || attempts != 1 {
					t.Errorf("want one build failure, got %s", result)
				}
				checkErrorLine(t, failed.Stderr, test.says)
			})
		}
	})
}

// A prepare_script that fails is the host's failure. Names that no shell takes are left
// out of its variables; the job's own script could not be run with such names.
func TestPrepareScriptFails(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode)
		s.Configure(t, fmt.Sprintf("prepare_script = %q", mode.WriteFile(t, filepath.Join(mode.Dir(t), "prepare.sh"),
			"env | grep STRANGE\nls /tmp/owned 2>/dev/null\nexit $PREPARE_STATUS\n")))
		job := s.job("true")
		for _, name := range []string{"STRANGE.NAME", "STRANGE-NAME", "1STRANGE", "STRANGE NAME", "STRANGE;touch /tmp/owned"} {
			job.Variables = append(job.Variables, gitlab.Variable{Key: name, Value: "x"})
		}
		job.Variables = append(job.Variables, gitlab.Variable{Key: "PREPARE_STATUS", Value: "3"})
		e := s.runner(t).Stage(deadline(t), job, "prepare")
		if e.ExitCode != gitlab.SystemFailureExitCode || strings.Contains(e.Stderr, "owned") || strings.Contains(e.Stderr, "STRANGE") {
			t.Errorf("want a system failure, got %s", e)
		}
		checkErrorLine(t, e.Stderr, []string{"prepare_script", "exit status 3"})
	})
}

// sectionOf says whether a job log has a whole section of that name.
func sectionOf(log, name string) bool {
	mark := func(what string) bool {
		return regexp.MustCompile(`\x1b\[0Ksection_` + what + `:\d+:` + name + `\r\x1b\[0K`).MatchString(log)
	}
	return mark("start") && mark("end")
}

// A job's wish beyond the limits gets what the limits give, and is told so. The
// administrator sees of jobs: metrics, the log, the console of a guest that did not come
// up.
func TestObserved(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		dir := mode.Dir(t)
		metrics, adminLog := filepath.Join(dir, "sardine.prom"), filepath.Join(dir, "log")
		s := sharedSite(t, mode, fmt.Sprintf("metrics_textfile = %q", metrics), fmt.Sprintf("log_file = %q", adminLog), `log_format = "json"`,
			`allowed_job_variables = ["SARDINE_MEMORY", "SARDINE_DISK"]`, `max_memory = "300MiB"`, `max_disk = "64MiB"`)
		s.checkBoundedJob(t)
		lost := s.loseGuest(t)

		checkLines(t, metrics, []string{
			`sardine_jobs_total{result="script_failure"} 1`, `sardine_jobs_total{result="system_failure"} 1`,
			`sardine_phase_seconds_count{phase="run"} 1`, `sardine_phase_seconds_count{phase="cleanup"} 1`, `sardine_phase_seconds_count{phase="prepare"} 2`,
			`sardine_machines 0`,
		})
		log, err := os.ReadFile(adminLog)
		if err != nil {
			t.Fatal(err)
		}
		for _, says := range []string{`"stage":"prepare"`, `"status":4`, `"class":"system failure"`, `"project":"group/project"`} {
			if !strings.Contains(string(log), says) {
				t.Errorf("the administrator's log lacks %s:\n%s", says, log)
			}
		}
		for _, hidden := range []string{"dXNlcjpzM2NyZXQ", "s3cret", "job-token"} {
			if strings.Contains(string(log), hidden) {
				t.Errorf("the administrator's log holds a secret, %s:\n%s", hidden, log)
			}
		}
		console, err := os.ReadFile(filepath.Join(s.Storage, "consoles", machineOf(lost)+".log"))
		if err != nil || !strings.Contains(string(console), "Linux version") || !strings.Contains(string(console), sshIsLate) {
			t.Errorf("the console of the guest that did not come up: %v\n%s", err, console)
		}
	})
}

// checkBoundedJob runs a job that asks for more than it may have, and fails.
func (s *site) checkBoundedJob(t *testing.T) {
	t.Helper()
	job := s.job("awk '/MemTotal/ {print int($2/1024)}' /proc/meminfo; cat /sys/block/vda/size; exit 4")
	job.Variables = []gitlab.Variable{
		{Key: "SARDINE_MEMORY", Value: "64GiB"}, {Key: "SARDINE_DISK", Value: "1TiB"},
		{Key: "DOCKER_AUTH_CONFIG", Value: `{"auths":{"registry.example.com":{"auth":"dXNlcjpzM2NyZXQ="}}}`, Masked: true},
	}
	result := s.runner(t).Run(deadline(t), job)
	if result.Status != gitlab.BuildFailure || result.ExitCode != 4 {
		t.Fatal(result)
	}
	script, _ := result.Find(gitlab.StageBuildScript)
	var memory, sectors int
	if _, err := fmt.Sscan(script.Stdout, &memory, &sectors); err != nil || memory > 300 || memory < 200 || sectors != 64<<20/512 {
		t.Errorf("the guest has %d MiB of memory and a disk of %d sectors (%v), want less than 300 and %d", memory, sectors, err, 64<<20/512)
	}
	if log := result.JobLog; !strings.Contains(log, "300 MiB of memory") || !strings.Contains(log, "max_disk") {
		t.Errorf("the job is not told what it did not get:\n%s", log)
	}
}

// loseGuest kills the QEMU of a guest before prepare can log in to it.
func (s *site) loseGuest(t *testing.T) gitlab.Job {
	t.Helper()
	lost := s.jobUntil(duringSSHWait, 5)
	reached, _ := s.arrange(t, duringSSHWait, lost)
	prepare := s.background(t, lost, "prepare")
	reached(nil)
	one(t, "guest", isGuest(machineOf(lost))).signal(t, syscall.SIGKILL)
	e := <-prepare
	if e.ExitCode != gitlab.SystemFailureExitCode || !strings.Contains(e.Stderr, sshIsLate) {
		t.Errorf("want the console's last lines, got %s", e)
	}
	return lost
}

// checkLines wants a file to hold lines.
func checkLines(t *testing.T, path string, lines []string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines {
		if !strings.Contains(string(text), line+"\n") {
			t.Errorf("%s lacks %s:\n%s", path, line, text)
		}
	}
}
