package guestshell

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"gitlab-sardine-executor/vm/guestssh"
)

// ErrOtherBoot: the guest has booted again since prepare.
var ErrOtherBoot = errors.New("the guest has rebooted since prepare")

// A Boot is Linux's ID of a boot (random(4)): a guest that has rebooted, and answers again
// before the next stage asks, shows it by nothing else. Empty if the guest has none.
type Boot string

var bootID = regexp.MustCompile(`^[0-9a-f-]{36}$`)

// sayBoot answers with the ID of the boot, behind the word that [bootIn] expects.
const sayBoot = `{ read -r boot </proc/sys/kernel/random/boot_id; } 2>/dev/null && echo "` + answerMark + `boot $boot"
:
`

// bootIn finds the answer to sayBoot. The guest is not trusted.
func bootIn(stdout string) Boot {
	for _, answer := range answers(stdout) {
		if id, ok := strings.CutPrefix(answer, "boot "); ok && bootID.MatchString(id) {
			return Boot(id)
		}
	}
	return ""
}

// otherBoot is the exit status of a shell that refuses to run its script, because it is in
// another boot than it expects. A script may end with it, too: the guest is asked once more.
const otherBoot = 213

// guard ends a shell in another boot. It starts no process.
func (b Boot) guard() string {
	if b == "" {
		return ""
	}
	return fmt.Sprintf(`REPLY=; { read -r REPLY </proc/sys/kernel/random/boot_id; } 2>/dev/null; [ "${REPLY:-%[1]s}" = %[1]s ] || exit %[2]d; unset REPLY; `, b, otherBoot)
}

// check returns [ErrOtherBoot] if the guest is in another boot.
func (b Boot) check(ctx context.Context, guest Guest) error {
	var stdout beginning
	if _, err := guest.Run(ctx, guestssh.Command{Line: "sh", Stdin: strings.NewReader(sayBoot), Stdout: &stdout}); err != nil {
		return fmt.Errorf("ask the guest whether it has rebooted: %w", err)
	}
	if now := bootIn(stdout.String()); now != "" && now != b {
		return ErrOtherBoot
	}
	return nil
}

// bootFile is the name in the directory of the job's machine.
const bootFile = "boot"

// Save records the boot in the directory of the job's machine.
func (b Boot) Save(dir string) error {
	return os.WriteFile(filepath.Join(dir, bootFile), []byte(b), 0o600)
}

// LoadBoot returns the recorded boot; empty if there is none.
func LoadBoot(dir string) Boot {
	text, err := os.ReadFile(filepath.Join(dir, bootFile))
	if err != nil || !bootID.Match(text) {
		return ""
	}
	return Boot(text)
}
