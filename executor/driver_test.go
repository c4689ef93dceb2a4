package executor

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"gitlab-sardine-executor/executor/job"
)

// config passes the name of the machine that the payload gives.
func TestConfigNamesTheMachine(t *testing.T) {
	first := jobIn(t, "JOB_RESPONSE_FILE="+payloadFile(t, `{"id": 4711, "git_info": {"repo_url": "https://gitlab.example.com/group/project.git"}}`))
	var stdout bytes.Buffer
	if err := (&Driver{Settings: parse(t, ""), Job: first}).Config(&stdout); err != nil {
		t.Fatal(err)
	}
	var output configOutput
	if err := json.Unmarshal(stdout.Bytes(), &output); err != nil {
		t.Fatal(err)
	}
	later := []string{"JOB_RESPONSE_FILE=/nonexistent/response.json"}
	for name, value := range output.JobEnv {
		later = append(later, name+"="+value)
	}
	if got := jobIn(t, later...); got.VMName() != first.VMName() {
		t.Errorf("config says %s, the job is %s", got.VMName(), first.VMName())
	}
}

func jobIn(t *testing.T, environ ...string) job.Job {
	t.Helper()
	j, err := job.FromEnv(environ)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func payloadFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "response.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
