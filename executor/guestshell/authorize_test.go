package guestshell

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/vm/guestssh"
)

// Keys are added to those that the guest has, whatever its file ends with, and nothing in a
// key is a command.
func TestAuthorize(t *testing.T) {
	const first, second = "ssh-ed25519 AAAA one $(touch owned)", "ssh-ed25519 BBBB it's"
	for _, test := range []struct{ name, before, want string }{
		{"no file", "-", "\n" + first + "\n\n" + second + "\n"},
		{"a file without a newline at its end", "ssh-rsa CCCC old", "ssh-rsa CCCC old\n" + first + "\n\n" + second + "\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			home := t.TempDir()
			t.Setenv("HOME", home)
			path := filepath.Join(home, ".ssh", "authorized_keys")
			if test.before != "-" {
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(test.before), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := authorize(t.Context(), shellGuest(home), config.Resolved{}, []string{first, second}, joblog.New(io.Discard)); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(path)
			if err != nil || string(text) != test.want {
				t.Errorf("got %q, %v; want %q", text, err, test.want)
			}
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("got %v, %v", info, err)
			}
			if found, _ := os.ReadDir(home); len(found) != 1 {
				t.Errorf("there are %v", found)
			}
		})
	}
}

func TestAuthorizeFails(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	if err := os.WriteFile(filepath.Join(home, ".ssh"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := authorize(t.Context(), shellGuest(home), config.Resolved{}, []string{"ssh-ed25519 AAAA"}, joblog.New(io.Discard))
	if err == nil || !strings.Contains(err.Error(), ".ssh") {
		t.Errorf("got %v, want the reason", err)
	}
	var said strings.Builder
	if err := authorize(t.Context(), shellGuest(home), config.Resolved{GuestBuildsDir: `C:\builds`}, []string{"x"}, joblog.New(&said)); err != nil || !strings.Contains(said.String(), "Windows") {
		t.Errorf("Windows: %v, %q", err, said.String())
	}
}

// shellGuest is a guest that runs commands on this host, in dir.
func shellGuest(dir string) guestFunc {
	return func(ctx context.Context, c guestssh.Command) (int, error) {
		cmd := exec.CommandContext(ctx, "sh", "-c", c.Line)
		cmd.Dir, cmd.Stdin, cmd.Stderr = dir, c.Stdin, c.Stderr
		err := cmd.Run()
		if exit := new(exec.ExitError); errors.As(err, &exit) {
			return exit.ExitCode(), nil
		}
		return 0, err
	}
}
