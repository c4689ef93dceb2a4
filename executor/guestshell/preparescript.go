package guestshell

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/joblog"
)

// RunPrepareScript runs the administrator's prepare_script in the guest, with the job's
// variables in its environment and its output in the job's log. Its failure is a system
// failure: the job cannot change the script.
func RunPrepareScript(ctx context.Context, guest Guest, settings config.Resolved, variables map[string]string, log *joblog.Log) error {
	path := settings.PrepareScript
	if path == "" {
		return nil
	}
	script, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("%w: prepare_script: %w", config.ErrSettings, err)
	}
	defer script.Close()
	defer log.Section("sardine_prepare_script", "Prepare script")()
	text, err := withoutBOM(script)
	if err != nil {
		return fmt.Errorf("%w: prepare_script: %w", config.ErrSettings, err)
	}
	output, sh := log.Writer(), For(settings.Shell)
	status, err := sh.RunScript(ctx, guest, io.MultiReader(strings.NewReader(sh.exports(variables)), text), Options{Merged: true}, output, output)
	if err != nil {
		return fmt.Errorf("run prepare_script in the guest: %w", err)
	}
	if status != 0 {
		return fmt.Errorf("prepare_script %s ended with exit status %d in the guest", path, status)
	}
	return nil
}
