//go:build boot

package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

// TestOneMachine makes one machine and has many scripts run in it. Its job has all that a
// job can ask for: credentials for its image, services, hostile variables, and as large an
// environment as the driver can be started with.
func TestOneMachine(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode)
		s.Configure(t, fmt.Sprintf("prepare_script = %q", mode.WriteFile(t, filepath.Join(mode.Dir(t), "prepare.sh"), hostilePrepareScript)))
		job := s.privateJob(t)
		t.Run("without credentials", func(t *testing.T) { s.checkAccessDenied(t, job) })
		job.Credentials = []gitlab.Credentials{
			{Type: "git", URL: strings.SplitN(job.Image.Name, "/", 2)[0], Username: "gitlab-ci-token", Password: "other"},
			{Type: "registry", URL: strings.SplitN(job.Image.Name, "/", 2)[0], Username: "gitlab-ci-token", Password: "s3cret"},
		}
		large := s.withLargestEnvironment(t, job)
		if e := s.runner(t).Stage(deadline(t), large, "config"); e.ExitCode != 0 {
			t.Errorf("config with the largest environment: %.2000s", e.String())
		}
		prepare := s.runner(t).Stage(deadline(t), large, "prepare")
		if prepare.ExitCode != 0 {
			t.Fatalf("%.2000s", prepare.String())
		}
		t.Run("prepare", func(t *testing.T) { checkPrepared(t, prepare) })
		t.Run("record", func(t *testing.T) { s.checkRecord(t, job) })
		t.Run("variables end with the driver", func(t *testing.T) { checkNoVariables(t) })
		t.Run("how scripts end", func(t *testing.T) { s.checkScriptEnds(t, job) })
		t.Run("hostile variables", func(t *testing.T) { s.checkHostileVariables(t, job) })
		t.Run("large variables", func(t *testing.T) { s.checkLargeVariables(t, job) })
		// Before other stages that need gitlab-runner: the guest is looked at once.
		t.Run("gitlab-runner", func(t *testing.T) { s.checkRunnerBinary(t, job) })
		t.Run("stages", func(t *testing.T) { s.checkStages(t, job) })
		t.Run("other jobs", func(t *testing.T) { s.checkOtherJobs(t, job) })
		if e := s.script(t, large, gitlab.StageBuildScript, "echo runs"); e.Stdout != "runs\n" {
			t.Errorf("run with the largest environment: %.2000s", e.String())
		}
		s.mustCleanUp(t, large)
	})
}

// hostile are values that a shell would like to understand.
var hostile = []string{
	"two words", "single ' quote", `double " quote`, "$(touch /tmp/owned)", "`touch /tmp/owned`", "; touch /tmp/owned",
	"line one\nline two", "'; touch /tmp/owned; '", `\`, `'\''`, "$HOME ${PATH}", "*", "~", "!!", "-n", "", "grüß dich \xff\x01",
	"export X=1\ntouch /tmp/owned",
}

// hostilePrepareScript notes in the guest what the variables hold there.
var hostilePrepareScript = `
i=0
while [ $i -lt ` + fmt.Sprint(len(hostile)) + ` ]; do
	eval "printf '%s' \"\$HOSTILE_$i\"" | sha256sum
	i=$((i+1))
done >/tmp/sums
ls /tmp/owned 2>/dev/null
env | grep -c STRANGE >>/tmp/sums
echo prepared in $PWD with "$CERTIFICATE"
exit ${PREPARE_STATUS:-0}
`

const certificate = "-----BEGIN CERTIFICATE-----\n'quoted' $HOME\n-----END CERTIFICATE-----\n"

// privateJob returns a job whose image is in a registry that asks for a login.
func (s *site) privateJob(t *testing.T) gitlab.Job {
	t.Helper()
	private := testbed.StartRegistry(t, testbed.WithLogin("gitlab-ci-token", "s3cret"))
	s.Mode.Trust(t, private)
	auth := s.Mode.WriteFile(t, filepath.Join(s.Mode.Dir(t), "auth.json"), fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`,
		private.Host, base64.StdEncoding.EncodeToString([]byte("gitlab-ci-token:s3cret"))))
	job := s.job("true")
	job.ID = 1
	job.Image.Name = private.Image("vms/private:1")
	s.Mode.Run(t, s.Driver, "push", "--quiet", "--authfile", auth, "oci:"+guestLayout(t)+":1", job.Image.Name)
	job.Timeout = 25 * time.Minute
	// Without a meaning for a machine.
	job.Image.Entrypoint, job.Image.Options = []string{"/bin/sh", "-c"}, json.RawMessage(`{"docker":{"platform":"arm64","user":"nobody"}}`)
	job.Services = []gitlab.Service{{Name: "postgres:16", Alias: "db"}, {Name: "redis:7"}}
	for i, value := range hostile {
		job.Variables = append(job.Variables, gitlab.Variable{Key: fmt.Sprintf("HOSTILE_%d", i), Value: value})
	}
	job.Variables = append(job.Variables,
		gitlab.Variable{Key: "CERTIFICATE", Value: certificate, File: true},
		gitlab.Variable{Key: "SECRET", Value: "sesame-of-this-job", Masked: true})
	return job
}

func (s *site) checkAccessDenied(t *testing.T, job gitlab.Job) {
	result := s.runner(t).Run(deadline(t), job)
	failed, attempts := failures(result)
	if result.Status != gitlab.BuildFailure || attempts != 1 {
		t.Errorf("without credentials: %s", result)
	}
	checkErrorLine(t, failed.Stderr, []string{"access denied"})
}

// withLargestEnvironment gives a job variables until one more would keep the driver from
// being started. (128 KiB are the limit of one string with name and NUL, MAX_ARG_STRLEN.)
func (s *site) withLargestEnvironment(t *testing.T, job gitlab.Job) gitlab.Job {
	t.Helper()
	const full = 128<<10 - len("CUSTOM_ENV_BIG_00=") - 1
	withBytes := func(size int) gitlab.Job {
		large := job
		large.Variables = slices.Clone(job.Variables)
		for i := 0; size > 0; i++ {
			part := min(size, full)
			large.Variables = append(large.Variables, gitlab.Variable{Key: fmt.Sprintf("BIG_%02d", i), Value: strings.Repeat("x", part)})
			size -= part
		}
		return large
	}
	// Somewhat more than any stage has: the path of a script, and directories.
	longest := strings.Repeat("/as-long-as-what-comes-with-a-script", 6)
	starts := func(size int) bool {
		e := s.runner(t).Stage(deadline(t), withBytes(size), "run", longest, gitlab.StageUploadArtifactsOnFailure)
		if e.Err != nil && !strings.Contains(e.Err.Error(), syscall.E2BIG.Error()) {
			t.Fatal(e.Err)
		}
		return e.Err == nil
	}
	const step = 64
	largest := sort.Search(8<<20/step, func(n int) bool { return !starts(n * step) }) - 1
	if largest < 200<<10/step {
		t.Fatalf("the driver starts with %d bytes at most", largest*step)
	}
	t.Logf("the driver starts with variables of %d bytes", largest*step)
	return withBytes(largest * step)
}

// checkPrepared looks at what prepare says to the author of the job.
func checkPrepared(t *testing.T, prepare gitlab.Execution) {
	if log := prepare.Stderr; !strings.Contains(log, "with "+certificate) || strings.Contains(log, "owned") {
		t.Errorf("prepare_script said:\n%s", log)
	}
	if !sectionOf(prepare.Stderr, "sardine_prepare_script") {
		t.Errorf("no section for prepare_script in:\n%q", prepare.Stderr)
	}
	if n := strings.Count(prepare.Stderr, "WARNING: services: is ignored (postgres:16, redis:7)"); n != 1 {
		t.Errorf("%d warnings of services, want 1:\n%s", n, prepare.Stderr)
	}
}

// checkRecord looks at how long the machine may live: that is in the job's payload alone.
func (s *site) checkRecord(t *testing.T, job gitlab.Job) {
	var record struct {
		Created time.Time `xml:"metadata>job>created"`
		Expires time.Time `xml:"metadata>job>expires"`
	}
	if err := xml.Unmarshal([]byte(s.Mode.Virsh(t, "dumpxml", machineOf(job))), &record); err != nil {
		t.Fatal(err)
	}
	if life := record.Expires.Sub(record.Created); life != job.Timeout+time.Hour {
		t.Errorf("the machine may live for %v, want the job's timeout and an hour", life)
	}
}

// checkNoVariables wants no process to have the job's variables: some of what a stage
// starts outlives the job, and an environment that is just small enough for GitLab Runner
// to start the driver has no room for longer arguments.
func checkNoVariables(t *testing.T) {
	for _, p := range processes(func(process) bool { return true }) {
		environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.pid))
		if err == nil && (bytes.Contains(environment, []byte("CUSTOM_ENV_")) || bytes.Contains(environment, []byte("sesame-of-this-job"))) {
			t.Errorf("%q has the job's variables", p.args)
		}
	}
}

// checkScriptEnds looks at how scripts end, and at what arrives of what they print.
func (s *site) checkScriptEnds(t *testing.T, job gitlab.Job) {
	job.Variables = nil
	const complaint = "bash: " // then what bash says of the script, on the one stream
	every := make([]byte, 0, 256)
	for b := range 256 {
		every = append(every, byte(b))
	}
	for _, test := range []struct {
		name, stage, script string
		exit                int
		code                string // in BUILD_EXIT_CODE_FILE
		stdout              string
	}{
		{"success", gitlab.StageBuildScript, "echo done", 0, "", "done\n"},
		{"failure", gitlab.StageBuildScript, "exit 1", gitlab.BuildFailureExitCode, "1", ""},
		{"the system failure's own status", gitlab.StageBuildScript, "exit 2", gitlab.BuildFailureExitCode, "2", ""},
		{"highest status", gitlab.StageBuildScript, "exit 255", gitlab.BuildFailureExitCode, "255", ""},
		{"first failing command", gitlab.StageBuildScript, "set -e\nfalse\necho goes on", gitlab.BuildFailureExitCode, "1", ""},
		{"shell killed", gitlab.StageBuildScript, "kill -KILL $$", gitlab.BuildFailureExitCode, "137", ""},
		{"not a command", gitlab.StageBuildScript, "no-such-command", gitlab.BuildFailureExitCode, "127", complaint},
		{"not a script", gitlab.StageBuildScript, "if then (", gitlab.BuildFailureExitCode, "2", complaint},
		{"no output left to write to", gitlab.StageBuildScript, "exec >&- 2>&-; exit 5", gitlab.BuildFailureExitCode, "5", ""},
		{"daemon in the background", gitlab.StageBuildScript, "sleep 1000 &\necho started", 0, "", "started\n"},
		{"every byte", gitlab.StageBuildScript, "for i in $(seq 0 255); do printf \"\\\\x$(printf %x $i)\"; done", 0, "", string(every)},
		{"20 MB", gitlab.StageBuildScript, "head -c 20000000 /dev/zero | tr '\\0' x", 0, "", strings.Repeat("x", 20_000_000)},
		{"empty", gitlab.StageBuildScript, "", 0, "", ""},
		{"step of another name", "step_release", "echo $0 >/dev/null; exit 4", gitlab.BuildFailureExitCode, "4", ""},
		{"stage of the future", "no_such_stage", "echo runs", 0, "", "runs\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := s.script(t, job, test.stage, test.script)
			if e.ExitCode != test.exit || strings.TrimSpace(e.CodeFile) != test.code || e.OutputHeld {
				t.Errorf("want exit code %d and %q in the code file, got %.1000s", test.exit, test.code, e.String())
			}
			if test.stdout == complaint && strings.HasPrefix(e.Stdout, complaint) {
				return
			}
			if e.Stdout != test.stdout {
				t.Errorf("stdout is %d bytes, %.100q; want %d, %.100q", len(e.Stdout), e.Stdout, len(test.stdout), test.stdout)
			}
		})
	}
	if e := s.runner(t).Stage(deadline(t), job, "run", "/no/such/script", gitlab.StageBuildScript); e.ExitCode != gitlab.SystemFailureExitCode {
		t.Errorf("a script that is not there: %s", e)
	}
}

// checkHostileVariables looks at what the variables were in the administrator's
// prepare_script. Names that no shell takes are left out there.
func (s *site) checkHostileVariables(t *testing.T, job gitlab.Job) {
	job.Variables = nil
	var want strings.Builder
	for _, value := range hostile {
		fmt.Fprintf(&want, "%x  -\n", sha256.Sum256([]byte(value)))
	}
	want.WriteString("0\n")
	if e := s.script(t, job, gitlab.StageBuildScript, "cat /tmp/sums; ls /tmp/owned 2>/dev/null; true"); e.Stdout != want.String() {
		t.Errorf("variables had other values:\n%s\nwant\n%s", e.Stdout, want.String())
	}
}

// checkLargeVariables wants variables as large as Linux lets them be (MAX_ARG_STRLEN,
// 128 KiB with name and NUL), and of many lines, to arrive whole.
func (s *site) checkLargeVariables(t *testing.T, job gitlab.Job) {
	job.Script = `printf %s "$BIG_0$BIG_1$BIG_2" | wc -c; bash -c 'echo ${#BIG_2}'; cat "$CERTIFICATE"`
	const size = 128<<10 - len("CUSTOM_ENV_BIG_0=") - 1
	job.Variables = []gitlab.Variable{{Key: "CERTIFICATE", Value: certificate, File: true}}
	for i := range 3 {
		job.Variables = append(job.Variables, gitlab.Variable{Key: fmt.Sprintf("BIG_%d", i), Value: strings.Repeat("x", size)})
	}
	result := s.runnerWithout(t, "prepare", "cleanup").Run(deadline(t), job)
	checkOutputs(t, result)
	script, _ := result.Find(gitlab.StageBuildScript)
	if want := fmt.Sprintf("%d\n%d\n%s", 3*size, size, certificate); result.Status != gitlab.Success || script.Stdout != want {
		t.Errorf("%s: %.300q, want %.300q", result.Status, script.Stdout, want)
	}
}

// checkStages runs the stages before and beside the script: each is tried as often as the
// author wants, and none sees the status of another. The files of file variables are there
// for all of them.
func (s *site) checkStages(t *testing.T, job gitlab.Job) {
	job.Script = `cat "$CERTIFICATE"; echo "$CERTIFICATE"`
	job.Variables = []gitlab.Variable{
		{Key: "GET_SOURCES_ATTEMPTS", Value: "3"}, {Key: "RESTORE_CACHE_ATTEMPTS", Value: "2"},
		{Key: "CERTIFICATE", Value: certificate, File: true},
	}
	job.Steps = []gitlab.Step{{Name: "release", Script: "echo released; exit 9"}}
	job.AfterScript = `ls "$CERTIFICATE"`
	job.Scripts = map[string]string{
		gitlab.StagePrepareScript: "echo Running on $(hostname)", gitlab.StageGetSources: "echo >>/tmp/n; [ $(wc -l </tmp/n) -ge 3 ] || exit 128",
		gitlab.StageClearWorktree: "echo cleared", gitlab.StageRestoreCache: "echo >>/tmp/m; [ $(wc -l </tmp/m) -ge 2 ]",
	}
	result := s.runnerWithout(t, "prepare", "cleanup").Run(deadline(t), job)
	checkOutputs(t, result)
	want := []string{
		"config", "prepare", gitlab.StagePrepareScript, gitlab.StageGetSources, gitlab.StageClearWorktree, gitlab.StageGetSources, gitlab.StageGetSources,
		gitlab.StageRestoreCache, gitlab.StageRestoreCache, gitlab.StageBuildScript, "step_release", gitlab.StageAfterScript, gitlab.StageCleanupFileVariables, "cleanup",
	}
	if !slices.Equal(result.Stages(), want) {
		t.Errorf("stages %v, want %v", result.Stages(), want)
	}
	if result.Status != gitlab.BuildFailure || result.ExitCode != 9 {
		t.Errorf("want the status of the step, got %s", result)
	}
	const file = "/builds/group/project.tmp/CERTIFICATE\n"
	for stage, want := range map[string]string{gitlab.StageBuildScript: certificate + file, "step_release": "released\n", gitlab.StageAfterScript: file} {
		if e, _ := result.Find(stage); e.Stdout != want {
			t.Errorf("%s: %q, want %q", stage, e.Stdout, want)
		}
	}
	if e, _ := result.Find(gitlab.StageGetSources); e.ExitCode != 0 {
		t.Errorf("the last attempt: %s", e)
	}
	if e, _ := result.Find(gitlab.StageCleanupFileVariables); e.ExitCode != 0 {
		t.Errorf("%s", e)
	}
}

// checkOtherJobs has jobs whose authors set every variable they can try to reach the
// machine: a job of the same project, and one of the same number on another GitLab that
// this host serves.
func (s *site) checkOtherJobs(t *testing.T, victim gitlab.Job) {
	sameProject := s.job("hostname")
	sameProject.ID = 2
	sameProject.Variables = []gitlab.Variable{
		{Key: "CI_JOB_ID", Value: "1"}, {Key: "CI_CONCURRENT_ID", Value: "1"},
		{Key: "JOB_RESPONSE_FILE", Value: "/dev/null"}, {Key: "GITLAB_SARDINE_EXECUTOR_CONFIG", Value: "/dev/null"},
		{Key: "CI_PROJECT_PATH", Value: "other/project"}, {Key: "CI_SERVER_URL", Value: "https://gitlab.example.com"},
	}
	otherGitLab := s.job("hostname")
	otherGitLab.ID, otherGitLab.ServerURL = 1, "https://other.example.com"
	otherGitLab.FirstVariables = []gitlab.Variable{{Key: "CI_SERVER_URL", Value: "https://gitlab.example.com"}}
	otherGitLab.Variables = otherGitLab.FirstVariables
	for _, attacker := range []gitlab.Job{sameProject, otherGitLab} {
		if e := s.script(t, attacker, gitlab.StageBuildScript, "echo I am in"); strings.Contains(e.Stdout, "I am in") {
			t.Errorf("a script ran in the machine of another job: %s", e)
		}
		s.runner(t).Stage(deadline(t), attacker, "cleanup")
	}
	if len(processes(isGuest(machineOf(victim)))) != 1 {
		t.Error("the other job's machine is gone")
	}
}

// checkRunnerBinary wants a stage that needs gitlab-runner in the guest to find it there,
// and only such a stage. The guest's profile prints something, as many do: this host's
// gitlab-runner is copied, since it runs what the guest does.
func (s *site) checkRunnerBinary(t *testing.T, job gitlab.Job) {
	s.writeTool(t, "gitlab-runner", "#!/bin/sh\necho stand-in \"$@\"\n")
	job.Variables = nil
	job.Script = "echo 'echo Welcome' >>~/.profile; command -v gitlab-runner || echo none"
	job.Scripts = map[string]string{gitlab.StageUploadArtifacts: "gitlab-runner artifacts-uploader", gitlab.StageArchiveCache: "gitlab-runner cache-archiver"}
	result := s.runnerWithout(t, "prepare", "cleanup").Run(deadline(t), job)
	checkOutputs(t, result)
	if result.Status != gitlab.Success {
		t.Fatal(result)
	}
	for stage, want := range map[string]string{
		gitlab.StageBuildScript: "none\n", gitlab.StageUploadArtifacts: "stand-in artifacts-uploader\n", gitlab.StageArchiveCache: "stand-in cache-archiver\n",
	} {
		if e, _ := result.Find(stage); !strings.HasSuffix(e.Stdout, want) {
			t.Errorf("%s: %q, want %q", stage, e.Stdout, want)
		}
	}
	if n := strings.Count(result.JobLog, "Copying gitlab-runner"); n != 1 {
		t.Errorf("copied %d times", n)
	}
	s.inGuest(t, job, "sed -i '/echo Welcome/d' ~/.profile")
}
