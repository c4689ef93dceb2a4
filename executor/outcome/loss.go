package outcome

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"gitlab-sardine-executor/executor/failure"
	"gitlab-sardine-executor/executor/guestshell"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/guestssh"
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

// LossIn returns the loss of the machine that err of a stage reports, and the error with its
// explanation. The loss is nil if the machine is not lost.
func LossIn(stage string, err error) (*Loss, error) {
	between := errors.Is(err, errdefs.ErrBeforeLogin)
	switch {
	case errors.Is(err, errdefs.ErrPoweredOff) && between:
		return &Loss{stage, "the job had powered it off", true},
			failure.OfJob(fmt.Errorf("the guest was powered off by the job before %s: a command of an earlier stage shut it down", stage))
	case errors.Is(err, errdefs.ErrRebooted) && between, errors.Is(err, guestshell.ErrOtherBoot):
		return &Loss{stage, "the job had rebooted it", true},
			failure.OfJob(fmt.Errorf("the guest was rebooted by the job before %s, by a command of an earlier stage: a job cannot go on after a reboot", stage))
	case errors.Is(err, guestssh.ErrHostKey):
		// No failure of the job: it may be another machine that answers.
		return &Loss{Stage: stage, Reason: "its host key had changed"},
			fmt.Errorf("%w: an earlier stage rebooted a guest that makes keys at each boot, or replaced its key, or another machine has its address", err)
	case errors.Is(err, errdefs.ErrPoweredOff):
		return &Loss{stage, "it powered off", true},
			failure.OfJob(fmt.Errorf("the machine powered off during %s: a command in it shut it down (%w)", stage, err))
	case errors.Is(err, errdefs.ErrRebooted):
		return &Loss{stage, "it rebooted", true},
			failure.OfJob(fmt.Errorf("the machine rebooted during %s, which ended the script: a job cannot go on after a reboot (%w)", stage, err))
	case errors.Is(err, errdefs.ErrGuestStopped):
		return &Loss{Stage: stage, Reason: "its guest stopped"}, err
	case errors.Is(err, errdefs.ErrNoDomain):
		return &Loss{Stage: stage, Reason: "it is gone"}, err
	case errors.Is(err, guestssh.ErrLost):
		return &Loss{Stage: stage, Reason: "no connection"}, err
	}
	return nil, err
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
