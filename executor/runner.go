package executor

import (
	"context"
	"os"
	"path/filepath"
	"slices"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/guestshell"
	"gitlab-sardine-executor/vm"
)

// runnerSeenFile, in the job's directory, says that a stage has looked already.
const runnerSeenFile = "runner-seen"

// runnerStages are the stages whose scripts call gitlab-runner in the guest.
var runnerStages = []string{
	"restore_cache", "download_artifacts", "archive_cache", "archive_cache_on_failure",
	"upload_artifacts_on_success", "upload_artifacts_on_failure",
}

// ensureRunner sees to it that the script of a stage finds gitlab-runner in the
// guest: artifacts and cache need it there. It is copied only when a stage wants
// it and the guest has none. That there is none to copy is a warning: GitLab's
// script says what it misses, and some jobs can do without.
func (d *Driver) ensureRunner(ctx context.Context, guest *vm.Guest, dirs config.Dirs, settings config.Resolved, stage string) error {
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
