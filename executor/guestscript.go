package executor

import (
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/job"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/guestssh"
)

// shellName is a name that every shell takes for a variable's.
var shellName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// exports are statements that export the job's variables. Their values are the
// author's, and so are quoted, whatever they hold; names that no shell knows are
// left out, and those that a shell keeps to itself stay as they are.
func exports(j job.Job, sh shell) string {
	names := make([]string, 0, len(j.Variables))
	for name := range j.Variables {
		if shellName.MatchString(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var text strings.Builder
	for _, name := range names {
		text.WriteString(sh.export(name, j.Variables[name]))
	}
	return text.String()
}

// runPrepareScript runs the administrator's prepare_script in the guest, with the
// job's variables in its environment and its output in the job's log. If it fails,
// so does the preparation, which may be tried again: it is the host's business,
// not the job's.
func (d *Driver) runPrepareScript(ctx context.Context, guest *vm.Guest, settings config.Resolved) error {
	path := settings.PrepareScript
	if path == "" {
		return nil
	}
	script, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("%w: prepare_script: %w", config.ErrSettings, err)
	}
	defer script.Close()
	defer d.Log.Section("sardine_prepare_script", "Prepare script")()
	text, err := withoutBOM(script)
	if err != nil {
		return fmt.Errorf("%w: prepare_script: %w", config.ErrSettings, err)
	}
	output, sh := d.Log.Writer(), shells[settings.Shell]
	status, err := guest.Run(ctx, guestssh.Command{
		Line:   sh.command,
		Stdin:  io.MultiReader(strings.NewReader(exports(d.Job, sh)), text),
		Stdout: output,
		Stderr: output,
	})
	if err != nil {
		return fmt.Errorf("run prepare_script in the guest: %w", err)
	}
	if status != 0 {
		return fmt.Errorf("prepare_script %s ended with exit status %d in the guest", path, status)
	}
	return nil
}
