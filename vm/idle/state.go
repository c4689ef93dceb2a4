package idle

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
)

// stateFile is in the directory of a machine, from when it is ready.
const stateFile = "idle.json"

// A State is what is known of an idle machine that is ready.
type State struct {
	// Kind is equal for machines that are alike, down to the bytes of their image.
	Kind string `json:"kind"`
	// Image is the reference of the image, for people.
	Image string `json:"image"`
	// Memory of the machine, in bytes.
	Memory uint64 `json:"memory"`
	// Tools: the machine has the disk with programs of this host.
	Tools bool `json:"tools,omitempty"`
	// Settled: the boot has ended, and the directories for jobs are there.
	Settled bool `json:"settled,omitempty"`
	// Made is when the machine became ready.
	Made time.Time `json:"made"`
}

// Save writes the state of a machine.
func (s State) Save(jobs, domain string) error {
	text, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("save the state of an idle machine: %w", err)
	}
	if err := renameio.WriteFile(filepath.Join(jobs, domain, stateFile), text, 0o600); err != nil {
		return fmt.Errorf("save the state of an idle machine: %w", err)
	}
	return nil
}

// Load reads the state of a machine. The error is a [os.ErrNotExist] if it is not ready.
func Load(jobs, domain string) (State, error) {
	var s State
	text, err := os.ReadFile(filepath.Join(jobs, domain, stateFile))
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	if err != nil {
		return s, fmt.Errorf("read the state of an idle machine: %w", err)
	}
	return s, nil
}
