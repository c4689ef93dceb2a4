package guestssh

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"golang.org/x/crypto/ssh"
)

// A Login holds the credentials for a guest. All that are set are tried.
type Login struct {
	User     string
	Password string `json:",omitempty"`
	// IdentityFile is the path of a private key on this host.
	IdentityFile string `json:",omitempty"`
	// Agent uses the keys of the ssh-agent at $SSH_AUTH_SOCK.
	Agent bool `json:",omitempty"`
	// Key is the key that was created for this job.
	Key ed25519.PrivateKey `json:",omitempty"`
	// Late: the guest is given the key while it boots, so a refusal is not final until the
	// guest is ready.
	Late bool `json:",omitempty"`
}

const loginFile = "login.json"

// SaveLogin stores the login of a machine in its job directory for the later stages. The
// file has mode 0600 and is removed with the machine.
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

// LoadLogin reads the login that [SaveLogin] stored.
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

// PublicKey returns the public half of Key as in authorized_keys; empty without a Key.
func (l Login) PublicKey() string {
	if len(l.Key) == 0 {
		return ""
	}
	public, err := ssh.NewPublicKey(l.Key.Public())
	if err != nil {
		panic(err) // it is an ed25519 key
	}
	return FormatKey(public)
}
