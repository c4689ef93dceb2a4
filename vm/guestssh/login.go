package guestssh

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// A Login says how to log in to a guest. Every method that is set is tried.
type Login struct {
	User     string
	Password string `json:",omitempty"`
	// IdentityFile is the path of a private key on this host.
	IdentityFile string `json:",omitempty"`
	// Agent says to ask the ssh-agent of this user ($SSH_AUTH_SOCK).
	Agent bool `json:",omitempty"`
	// Key is the key of this one job.
	Key ed25519.PrivateKey `json:",omitempty"`
	// Late says that the guest learns of the key only while it boots: until it is
	// ready, a refusal is not final.
	Late bool `json:",omitempty"`
}

const loginFile = "login.json"

// SaveLogin keeps how to log in to a machine in its job directory, for the
// stages to come: mode 0600 and gone with the machine.
func SaveLogin(jobDir string, login Login) error {
	text, err := json.Marshal(login)
	if err != nil {
		return fmt.Errorf("save the login: %w", err)
	}
	if err := renameio.WriteFile(filepath.Join(jobDir, loginFile), text, 0o600); err != nil {
		return fmt.Errorf("save the login: %w", err)
	}
	return nil
}

// LoadLogin reads what [SaveLogin] kept.
func LoadLogin(jobDir string) (Login, error) {
	var login Login
	text, err := os.ReadFile(filepath.Join(jobDir, loginFile))
	if err != nil {
		return login, fmt.Errorf("load the login that prepare saved: %w", err)
	}
	if err := json.Unmarshal(text, &login); err != nil {
		return login, fmt.Errorf("load the login that prepare saved: %w", err)
	}
	return login, nil
}
