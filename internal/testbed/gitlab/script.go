package gitlab

import (
	"strings"

	"al.essio.dev/pkg/shellescape"
)

// The stages that run scripts.
const (
	StagePrepareScript            = "prepare_script"
	StageGetSources               = "get_sources"
	StageRestoreCache             = "restore_cache"
	StageDownloadArtifacts        = "download_artifacts"
	StageBuildScript              = "build_script"
	StageAfterScript              = "after_script"
	StageArchiveCache             = "archive_cache"
	StageArchiveCacheOnFailure    = "archive_cache_on_failure"
	StageUploadArtifacts          = "upload_artifacts_on_success"
	StageUploadArtifactsOnFailure = "upload_artifacts_on_failure"
	StageCleanupFileVariables     = "cleanup_file_variables"
)

// script writes what GitLab Runner's bash shell makes of a stage: it is
// self-contained, sets the options that fail a job at the first failing command,
// exports every variable and changes to the project's directory. GitLab Runner
// evaluates one quoted string too.
func script(body, projectDir string, variables []Variable) string {
	var commands strings.Builder
	for _, v := range variables {
		commands.WriteString("export " + v.Key + "=" + shellescape.Quote(v.Value) + "\n")
	}
	if projectDir != "" {
		dir := shellescape.Quote(projectDir)
		commands.WriteString("mkdir -p " + dir + "\ncd " + dir + "\n")
	}
	commands.WriteString(body + "\n")
	return "#!/usr/bin/env bash\n\ntrap exit 1 TERM\n\n" +
		"if set -o | grep pipefail > /dev/null; then set -o pipefail; fi; set -o errexit\nset +o noclobber\n" +
		": | eval " + shellescape.Quote(commands.String()) + "\nexit 0\n"
}
