//go:build boot && nightly

package admin

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

// A ciJob is the job of docs/images.md that builds an image.
type ciJob struct {
	script, afterScript []string
	variables           map[string]string
}

// documentedJob reads the job from the page. It knows as much YAML as the job needs: lists of plain
// scalars, which may continue on further lines, and a mapping of them.
func documentedJob(t *testing.T) ciJob {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "images.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, block, found := strings.Cut(string(page), "```yaml\nbuild-image:\n")
	block, _, ended := strings.Cut(block, "```\n")
	if !found || !ended {
		t.Fatal("docs/images.md has no job build-image")
	}
	job := ciJob{variables: map[string]string{}}
	lists := map[string]*[]string{"script": &job.script, "after_script": &job.afterScript}
	key := ""
	for line := range strings.Lines(block) {
		line, _, _ = strings.Cut(strings.TrimRight(line, "\n"), "   #")
		text := strings.TrimSpace(line)
		list := lists[key]
		switch indent := len(line) - len(strings.TrimLeft(line, " ")); {
		case indent == 2:
			key, _, _ = strings.Cut(text, ":")
		case key == "variables":
			name, value, _ := strings.Cut(text, ": ")
			job.variables[name] = value
		case list != nil && strings.HasPrefix(text, "- "):
			*list = append(*list, text[2:])
		case list != nil && len(*list) > 0:
			(*list)[len(*list)-1] += " " + text
		default:
			t.Fatalf("unexpected line %q", line)
		}
	}
	return job
}

// body is a script of the job. The executor expands variables that refer to others.
func (j ciJob) body(lines []string) string {
	var body strings.Builder
	for name, value := range j.variables {
		body.WriteString("export " + name + `="` + value + "\"\n")
	}
	return body.String() + strings.Join(lines, "\n") + "\n"
}

// shellExecutor is a driver that runs each script on this host, as GitLab Runner's shell executor
// does. $1 is the directory of the programs.
const shellExecutor = `#!/bin/sh
bin=$1 stage=$2
export PATH="$bin:$PATH"
case $stage in
config) echo '{"builds_dir": "'"$(dirname "$bin")"'/builds", "cache_dir": "'"$(dirname "$bin")"'/cache"}' ;;
run) exec bash "$3" ;;
esac
`

// TestBuildInCI runs the job of docs/images.md with the shell executor and the credentials that
// GitLab gives a job. When it is canceled, nothing stays.
func TestBuildInCI(t *testing.T) {
	const user, password = "gitlab-ci-token", "64_token of $this job"
	s := newSite(t, testbed.Session(t))
	registry := testbed.StartRegistry(t, testbed.WithLogin(user, password))
	s.Mode.Trust(t, registry)
	base := s.base(t)
	s.run(t, "pull", "--quiet", base)
	bin := filepath.Join(s.dir, "bin")
	s.Mode.Run(t, "mkdir", bin)
	s.program(t, filepath.Join(bin, program), "#!/bin/sh\nexec '"+s.Driver+"' --config '"+s.Config+"' \"$@\"\n")
	runner := s.Mode.Runner(t, s.program(t, filepath.Join(s.dir, "shell"), shellExecutor), bin)

	documented := documentedJob(t)
	for i, line := range documented.script {
		documented.script[i] = strings.ReplaceAll(line, "quay.io/containerdisks/debian:13", base)
	}
	image := registry.Image("group/project")
	job := gitlab.Job{
		Variables: []gitlab.Variable{
			{Key: "CI_REGISTRY", Value: registry.Host}, {Key: "CI_REGISTRY_IMAGE", Value: image},
			{Key: "CI_REGISTRY_USER", Value: user}, {Key: "CI_REGISTRY_PASSWORD", Value: password, Masked: true},
			{Key: "CI_COMMIT_REF_SLUG", Value: "main"},
		},
		Script: documented.body(documented.script), AfterScript: documented.body(documented.afterScript),
	}
	before := testbed.TakeInventory(t, s.Mode, s.Storage)
	project := filepath.Join(s.dir, "builds", "group", "project")
	checkout := func(setup string) {
		job.Scripts = map[string]string{gitlab.StageGetSources: "mkdir -p ci\ncat >ci/setup.sh <<'END'\n" + setup + "END\n"}
	}
	checkLeft := func(t *testing.T) {
		t.Helper()
		before.CheckNothingLeft(t)
		if auth, err := os.ReadFile(filepath.Join(project, ".auth.json")); strings.Contains(string(auth), registry.Host) || err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the login stays: %q, %v", auth, err)
		}
	}
	t.Run("canceled", func(t *testing.T) {
		checkout("echo step is running\nsleep 600\n")
		build := runner.Start(t.Context(), job)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		if err := build.Log().WaitFor(ctx, "step is running"); err != nil {
			t.Error(err, build.Log())
		}
		build.CancelGracefully()
		result := build.Wait()
		if result.Status != gitlab.Canceled {
			t.Error(result)
		}
		checkLeft(t)
		if index, err := os.Lstat(filepath.Join(project, "image")); err == nil {
			t.Errorf("the layout was left: %v", index)
		}
	})
	t.Run("succeeds", func(t *testing.T) {
		checkout("echo changed >/etc/motd\n")
		result := runner.Run(t.Context(), job)
		t.Log(result.JobLog)
		if result.Status != gitlab.Success {
			t.Fatal(result)
		}
		checkLeft(t)
		if strings.Contains(result.JobLog, password) || !strings.Contains(result.JobLog, "section_start:") {
			t.Error("the job log has the password, or no sections")
		}
		pushed := s.Mode.Run(t, "skopeo", "inspect", "--tls-verify=false", "--creds", user+":"+password, "--format", "{{.Digest}}", "docker://"+image+"/vm:main")
		if built := s.run(t, "inspect", "oci:"+filepath.Join(project, "image")+":latest"); !strings.Contains(built, strings.TrimSpace(pushed)) {
			t.Errorf("the registry has %s, the layout:\n%s", pushed, built)
		}
	})
	t.Run("wrong password", func(t *testing.T) {
		for i := range job.Variables {
			if job.Variables[i].Key == "CI_REGISTRY_PASSWORD" {
				job.Variables[i].Value = "wrong"
			}
		}
		result := runner.Run(t.Context(), job)
		if result.Status != gitlab.BuildFailure || strings.Contains(result.JobLog, "Guest ready") {
			t.Error(result)
		}
		checkLeft(t)
	})
}

// program writes a program of the mode's user.
func (s *site) program(t *testing.T, path, text string) string {
	t.Helper()
	s.Mode.WriteFile(t, path, text)
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}
