package guestshell

import (
	"context"
	_ "embed"
	"fmt"
	"strings"

	"al.essio.dev/pkg/shellescape"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/vm/guestssh"
)

//go:embed scripts/authorize.sh
var authorizeScript string

// SettleFor is [Settle], unless the guest is settled and no script has run in it since, and then
// authorize.
func SettleFor(ctx context.Context, guest Guest, settings config.Resolved, settled bool, dir string, keys []string, log *joblog.Log) error {
	if !settled {
		if err := Settle(ctx, guest, settings, dir, log); err != nil {
			return err
		}
	}
	return authorize(ctx, guest, settings, keys, log)
}

// authorize lets the holders of SSH keys log in to the guest as the user that is logged in:
// lines as in authorized_keys(5). Guests with Windows keep them in several places: there is
// a warning.
func authorize(ctx context.Context, guest Guest, settings config.Resolved, keys []string, log *joblog.Log) error {
	if len(keys) == 0 {
		return nil
	}
	if settings.Windows() {
		log.Warn("the guest runs Windows, where keys cannot be added: use the password of its user")
		return nil
	}
	var said beginning
	status, err := guest.Run(ctx, guestssh.Command{
		Line:   "sh -s " + shellescape.QuoteCommand(keys),
		Stdin:  strings.NewReader(authorizeScript),
		Stderr: &said,
	})
	if err != nil {
		return fmt.Errorf("add keys to the guest's authorized_keys: %w", err)
	}
	if status != 0 {
		return fmt.Errorf("add keys to the guest's authorized_keys: exit status %d: %.200q", status, strings.TrimSpace(said.String()))
	}
	return nil
}
