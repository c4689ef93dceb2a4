package executor

import (
	"context"
	"os"
	"path/filepath"
	"slices"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/guestshell"
)

// runnerSeenFile, in the job's directory, says that the guest has gitlab-runner, or that
// it cannot get it.
const runnerSeenFile = "runner-seen"

// runnerStages have scripts that call gitlab-runner in the guest.
var runnerStages = []string{
	"restore_cache", "download_artifacts", "archive_cache", "archive_cache_on_failure",
	"upload_artifacts_on_success", "upload_artifacts_on_failure",
}

// copyRunner copies gitlab-runner into the guest before the first stage that needs it,
// if the guest lacks it.
func (d *Driver) copyRunner(ctx context.Context, guest guestshell.Guest, dirs config.Dirs, settings config.Resolved, stage string) error {
	if settings.RunnerBinary == config.RunnerOff || !slices.Contains(runnerStages, stage) {
		return nil
	}
	seen := filepath.Join(d.jobDir(dirs), runnerSeenFile)
	if _, err := os.Stat(seen); err == nil {
		return nil
	}
	if err := guestshell.CopyRunner(ctx, guest, settings, d.Log); err != nil {
		return err
	}
	return os.WriteFile(seen, nil, 0o600)
}
