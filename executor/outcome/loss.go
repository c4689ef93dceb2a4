package outcome

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"gitlab-sardine-executor/executor/failure"
)

// lossFile is the name in the directory of the job's machine.
const lossFile = "lost.json"

// A Loss says that a job has lost its machine. Later stages fail with it at once.
type Loss struct {
	// Stage that lost the machine, and the reason in a few words.
	Stage  string `json:"stage"`
	Reason string `json:"reason"`
	// ByJob: a script is the cause, so the failure is the job's.
	ByJob bool `json:"by_job,omitempty"`
}

// Save records the loss in the directory of the job's machine.
func (l Loss) Save(dir string) error {
	text, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, lossFile), text, 0o600)
}

// LoadLoss returns the recorded loss as an error; nil if there is none, or if it cannot be
// read.
func LoadLoss(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, lossFile))
	if err != nil {
		return nil
	}
	var l Loss
	if json.Unmarshal(text, &l) != nil {
		return nil
	}
	err = fmt.Errorf("the machine was lost in %s: %s", l.Stage, l.Reason)
	if l.ByJob {
		return failure.OfJob(err)
	}
	return err
}
