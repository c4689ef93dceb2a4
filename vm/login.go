package vm

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

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
