//go:build boot

package e2e

import (
	"crypto/sha256"
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

// A host that is for one machine: the second job waits, says so without naming the other
// job, and gets its turn; a third that cannot wait so long is the host's failure, not the job's.
func TestSlots(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newHaltSite(t, mode, "slots = 1")
		first := s.jobUntil(duringScript, 1)
		holder := s.runner(t).Start(deadline(t), first)
		if err := holder.Log().WaitFor(deadline(t), "script runs"); err != nil {
			t.Fatal(err)
		}
		const waiting = "Waiting for room on this host: 1 of 1 machines are running\n"
		second := s.job("echo my turn")
		second.ID = 2
		waiter := s.runner(t).Start(deadline(t), second)
		if err := waiter.Log().WaitFor(deadline(t), waiting); err != nil {
			t.Fatal(err)
		}

		impatient := filepath.Join(mode.Dir(t), "config.toml")
		text, err := os.ReadFile(s.config)
		if err != nil {
			t.Fatal(err)
		}
		mode.WriteFile(t, impatient, string(text)+"queue_timeout = \"3s\"\n")
		third := s.job("true")
		third.ID = 3
		runner := s.runner(t)
		runner.Args = []string{"--config", impatient}
		e := runner.Stage(deadline(t), third, "prepare")
		if e.ExitCode != gitlab.SystemFailureExitCode {
			t.Errorf("want a system failure, got %s", e)
		}
		checkErrorLine(t, e.Stderr, []string{"no room", "queue_timeout", "1 of 1 machines are running"})
		if strings.Contains(e.Stderr, "job 1") {
			t.Errorf("the log names another job:\n%s", e.Stderr)
		}

		s.endScript(t, first)
		for _, build := range []*gitlab.Build{holder, waiter} {
			if result := build.Wait(); result.Status != gitlab.Success {
				t.Error(result)
			}
		}
		if n := strings.Count(waiter.Log().String(), waiting); n != 1 {
			t.Errorf("the second job said %d times that it waits:\n%s", n, waiter.Log())
		}
	})
}

// What the administrator does not allow is refused in one attempt, with the name
// of the rule; what does not fit is bounded.
func TestRefused(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode)
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
				s.configure(t, append(test.settings, `accel = "tcg"`)...)
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

// A job's wish beyond the limits gets what the limits give, and is told so.
func TestBounded(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode, `accel = "tcg"`, `allowed_job_variables = ["SARDINE_MEMORY", "SARDINE_DISK"]`,
			`max_memory = "300MiB"`, `max_disk = "64MiB"`)
		job := s.job("awk '/MemTotal/ {print int($2/1024)}' /proc/meminfo; cat /sys/block/vda/size")
		job.Variables = []gitlab.Variable{{Key: "SARDINE_MEMORY", Value: "64GiB"}, {Key: "SARDINE_DISK", Value: "1TiB"}}
		result := s.runner(t).Run(deadline(t), job)
		if result.Status != gitlab.Success {
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
	})
}

// The machine of a failed job is kept for a look inside, however the job asked for
// that, until sweep ends it; a domain that only looks like one of ours stays.
func TestKeptMachine(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newHaltSite(t, mode, `keep_on_failure = "30m"`)
		foreign := s.startForeignDomain(t)
		job := s.job("echo evidence >/tmp/evidence; exit 9")
		job.ID = 77
		result := s.runner(t).Run(deadline(t), job)
		checkOutputs(t, result)
		if result.Status != gitlab.BuildFailure || result.ExitCode != 9 {
			t.Fatal(result)
		}
		if !strings.Contains(result.JobLog, "gitlab-sardine-executor ssh 77") {
			t.Errorf("the job is not told how to look inside:\n%s", result.JobLog)
		}
		login := mode.Command(deadline(t), s.driver, "--config", s.config, "ssh", "77")
		login.Stdin = strings.NewReader("cat /tmp/evidence; exit 5\n")
		output, err := login.Output()
		if string(output) != "evidence\n" || login.ProcessState.ExitCode() != 5 {
			t.Errorf("ssh 77: %q, %v", output, err)
		}

		mode.Run(t, s.driver, "--config", s.config, "sweep")
		if left := s.left(t); !strings.Contains(left, "machine") {
			t.Errorf("sweep ended a machine that is kept; left is %s", left)
		}
		would := mode.Run(t, s.driver, "--config", s.config, "sweep", "--all", "--dry-run")
		swept := mode.Run(t, s.driver, "--config", s.config, "sweep", "--all")
		lines := 1
		if mode.Name == "system" { // and its address on libvirt's network
			lines = 2
		}
		if would != swept || !strings.HasPrefix(swept, machineOf(job)+"\t") || strings.Count(swept, "\n") != lines {
			t.Errorf("sweep --all said %q, and with --dry-run %q; want %s alone", swept, would, machineOf(job))
		}
		domains := strings.Fields(mode.Virsh(t, "list", "--name"))
		if len(domains) != 1 || domains[0] != foreign {
			t.Errorf("domains after sweep --all: %v, want %s alone", domains, foreign)
		}
	})
}

// startForeignDomain starts somebody else's domain, called like one of ours.
func (s *haltSite) startForeignDomain(t *testing.T) string {
	t.Helper()
	job := s.job("")
	job.ID = 999999
	name := machineOf(job)
	xml := s.mode.WriteFile(t, filepath.Join(s.mode.Dir(t), "foreign.xml"), `<domain type="qemu"><name>`+name+`</name>
<memory unit="MiB">16</memory><os><type arch="x86_64">hvm</type></os></domain>`)
	s.mode.Virsh(t, "create", xml)
	t.Cleanup(func() { s.mode.Virsh(t, "destroy", name) })

	// Nor do cleanup and prepare of a job of that number touch it.
	for _, stage := range []string{"prepare", "cleanup"} {
		e := s.runner(t).Stage(deadline(t), job, stage)
		if e.ExitCode != gitlab.SystemFailureExitCode || !strings.Contains(e.Stderr, name+": not a machine of a job") {
			t.Errorf("%s beside a domain that is not ours: %s", stage, e)
		}
	}
	return name
}

// hostile are values that a shell would like to understand.
var hostile = []string{
	"two words", "single ' quote", `double " quote`, "$(touch /tmp/owned)", "`touch /tmp/owned`", "; touch /tmp/owned",
	"line one\nline two", "'; touch /tmp/owned; '", `\`, `'\''`, "$HOME ${PATH}", "*", "~", "!!", "-n", "", "grüß dich \xff\x01",
	"export X=1\ntouch /tmp/owned",
}

// The administrator's prepare_script sees the job's variables, whatever they hold,
// and what it does not do well is not the job's fault.
func TestPrepareScript(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode)
		script := mode.WriteFile(t, filepath.Join(mode.Dir(t), "prepare.sh"), `
i=0
while [ $i -lt `+fmt.Sprint(len(hostile))+` ]; do
	eval "printf '%s' \"\$HOSTILE_$i\"" | sha256sum
	i=$((i+1))
done >/tmp/sums
ls /tmp/owned 2>/dev/null
env | grep -c STRANGE >>/tmp/sums
echo prepared in $PWD with "$CERTIFICATE"
exit $PREPARE_STATUS
`)
		s.configure(t, `accel = "tcg"`, fmt.Sprintf("prepare_script = %q", script))
		job := s.job("cat /tmp/sums")
		var want strings.Builder
		for i, value := range hostile {
			job.Variables = append(job.Variables, gitlab.Variable{Key: fmt.Sprintf("HOSTILE_%d", i), Value: value})
			fmt.Fprintf(&want, "%x  -\n", sha256.Sum256([]byte(value)))
		}
		want.WriteString("0\n")
		job.Variables = append(job.Variables,
			gitlab.Variable{Key: "CERTIFICATE", Value: "-----BEGIN\nfile 'contents'\n-----END", File: true},
			gitlab.Variable{Key: "PREPARE_STATUS", Value: "0"})
		result := s.runner(t).Run(deadline(t), job)
		checkOutputs(t, result)
		run, _ := result.Find(gitlab.StageBuildScript)
		if result.Status != gitlab.Success || run.Stdout != want.String() {
			t.Errorf("variables came to other values:\n%s\nwant\n%s\n%s", run.Stdout, want.String(), result)
		}
		prepare, _ := result.Find("prepare")
		if log := prepare.Stderr; !strings.Contains(log, "with -----BEGIN\nfile 'contents'\n-----END\n") || strings.Contains(log, "owned") {
			t.Errorf("prepare_script said:\n%s", log)
		}
		if !sectionOf(prepare.Stderr, "sardine_prepare_script") {
			t.Errorf("no section for prepare_script in:\n%q", prepare.Stderr)
		}

		// Names that no shell takes are left out, and a script that fails is the
		// host's failure. The job's own script could not be run with such names.
		for _, name := range []string{"STRANGE.NAME", "STRANGE-NAME", "1STRANGE", "STRANGE NAME", "STRANGE;touch /tmp/owned"} {
			job.Variables = append(job.Variables, gitlab.Variable{Key: name, Value: "x"})
		}
		job.Variables = append(job.Variables, gitlab.Variable{Key: "PREPARE_STATUS", Value: "3"})
		e := s.runner(t).Stage(deadline(t), job, "prepare")
		if e.ExitCode != gitlab.SystemFailureExitCode || strings.Contains(e.Stderr, "owned") {
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

// A stage that needs gitlab-runner in the guest finds it there, and only such a
// stage; services are not there, which is said once.
func TestRunnerBinary(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode)
		stub := mode.WriteFile(t, filepath.Join(mode.Dir(t), "runner"), "#!/bin/sh\necho stand-in \"$@\"\n")
		s.configure(t, `accel = "tcg"`, fmt.Sprintf("runner_binary = %q", stub))
		job := s.job("command -v gitlab-runner || echo none")
		job.Scripts = map[string]string{gitlab.StageUploadArtifacts: "gitlab-runner artifacts-uploader", gitlab.StageArchiveCache: "gitlab-runner cache-archiver"}
		job.Services = []gitlab.Service{{Name: "postgres:16", Alias: "db"}, {Name: "redis:7"}}
		result := s.runner(t).Run(deadline(t), job)
		checkOutputs(t, result)
		if result.Status != gitlab.Success {
			t.Fatal(result)
		}
		for stage, want := range map[string]string{
			gitlab.StageBuildScript: "none\n", gitlab.StageUploadArtifacts: "stand-in artifacts-uploader\n", gitlab.StageArchiveCache: "stand-in cache-archiver\n",
		} {
			if e, _ := result.Find(stage); e.Stdout != want {
				t.Errorf("%s: %q, want %q", stage, e.Stdout, want)
			}
		}
		if n := strings.Count(result.JobLog, "Copying gitlab-runner"); n != 1 {
			t.Errorf("copied %d times", n)
		}
		if n := strings.Count(result.JobLog, "WARNING: services: is ignored (postgres:16, redis:7)"); n != 1 {
			t.Errorf("%d warnings of services, want 1:\n%s", n, result.JobLog)
		}
	})
}

// So does one in a guest whose profile says something, as many do: this host's
// gitlab-runner is copied, for it runs what the guest does.
func TestRunnerBinaryInAGuestThatGreets(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newHaltSite(t, mode)
		stub := mode.WriteFile(t, filepath.Join(s.tools, "gitlab-runner"), "#!/bin/sh\necho stand-in \"$@\"\n")
		if err := os.Chmod(stub, 0o755); err != nil {
			t.Fatal(err)
		}
		job := s.job("echo 'echo Welcome' >>~/.profile")
		job.Scripts = map[string]string{gitlab.StageUploadArtifacts: "gitlab-runner artifacts-uploader"}
		result := s.runner(t).Run(deadline(t), job)
		upload, _ := result.Find(gitlab.StageUploadArtifacts)
		if result.Status != gitlab.Success || !strings.HasSuffix(upload.Stdout, "stand-in artifacts-uploader\n") {
			t.Error(result)
		}
	})
}

// What the administrator sees of jobs: metrics, the log, the console of a guest
// that did not come up.
func TestObserved(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newHaltSite(t, mode)
		dir := mode.Dir(t)
		metrics, adminLog := filepath.Join(dir, "sardine.prom"), filepath.Join(dir, "log")
		s.configure(t, `accel = "tcg"`, fmt.Sprintf("metrics_textfile = %q", metrics), fmt.Sprintf("log_file = %q", adminLog), `log_format = "json"`)
		secret := gitlab.Variable{Key: "DOCKER_AUTH_CONFIG", Value: `{"auths":{"registry.example.com":{"auth":"dXNlcjpzM2NyZXQ="}}}`, Masked: true}
		for _, script := range []string{"true", "exit 4"} {
			job := s.job(script)
			job.Variables = []gitlab.Variable{secret}
			s.runner(t).Run(deadline(t), job)
		}
		lost := s.jobUntil(duringSSHWait, 5)
		reached, _ := s.arrange(t, duringSSHWait, lost)
		prepare := s.background(t, lost, "prepare")
		reached(nil)
		one(t, "guest", isGuest(machineOf(lost))).signal(t, syscall.SIGKILL)
		e := <-prepare
		if e.ExitCode != gitlab.SystemFailureExitCode || !strings.Contains(e.Stderr, sshIsLate) {
			t.Errorf("want the console's last lines, got %s", e)
		}

		text, err := os.ReadFile(metrics)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range []string{
			`sardine_jobs_total{result="success"} 1`, `sardine_jobs_total{result="script_failure"} 1`, `sardine_jobs_total{result="system_failure"} 1`,
			`sardine_phase_seconds_count{phase="run"} 2`, `sardine_phase_seconds_count{phase="cleanup"} 2`, `sardine_phase_seconds_count{phase="prepare"} 3`,
			`sardine_pulls_total 2`, `sardine_machines 0`,
		} {
			if !strings.Contains(string(text), line+"\n") {
				t.Errorf("metrics lack %s:\n%s", line, text)
			}
		}
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
		console, err := os.ReadFile(filepath.Join(s.storage, "consoles", machineOf(lost)+".log"))
		if err != nil || !strings.Contains(string(console), "Linux version") || !strings.Contains(string(console), sshIsLate) {
			t.Errorf("the console of the guest that did not come up: %v\n%s", err, console)
		}
	})
}
