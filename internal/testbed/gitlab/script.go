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

// script writes what GitLab Runner makes of a stage for the shell that config names,
// and how it calls the file. An empty name is bash's.
func script(shell, body, projectDir string, variables []Variable) (name, text string) {
	switch shell {
	case "pwsh":
		return "script.ps1", "#!/usr/bin/env pwsh\n& {\n\n$ErrorActionPreference = \"Stop\"\n" +
			powerShellScript(body, projectDir, variables) + "\n}\n\n"
	case "powershell":
		text := "\ufeff" + powerShellScript(body, projectDir, variables) + "\n"
		return "script.ps1", strings.ReplaceAll(text, "\n", "\r\n")
	}
	// Its bash has no extension.
	return "script.", bashScript(body, projectDir, variables)
}

// powerShellScript sets every variable, changes to the project's directory, and
// looks at the end of each command.
func powerShellScript(body, projectDir string, variables []Variable) string {
	const check = "if(!$?) { Exit &{if($LASTEXITCODE) {$LASTEXITCODE} else {1}} }\n\n"
	var commands strings.Builder
	for _, v := range variables {
		commands.WriteString("$" + v.Key + "=" + quotePowerShell(v.Value) + "\n$env:" + v.Key + "=$" + v.Key + "\n")
	}
	if projectDir != "" {
		dir := quotePowerShell(projectDir)
		commands.WriteString("New-Item -ItemType directory -Force -Path " + dir + " | out-null\ncd " + dir + "\n" + check)
	}
	for line := range strings.Lines(body) {
		commands.WriteString(strings.TrimSuffix(line, "\n") + "\n" + check)
	}
	return commands.String()
}

var powerShellEscapes = strings.NewReplacer("`", "``", "\r", "`r", "\n", "`n", "#", "`#", "'", "`'", "\"", "`\"", "$", "`$")

func quotePowerShell(text string) string { return `"` + powerShellEscapes.Replace(text) + `"` }

// bashScript writes what GitLab Runner's bash shell makes of a stage: it is
// self-contained, sets the options that fail a job at the first failing command,
// exports every variable and changes to the project's directory. GitLab Runner
// evaluates one quoted string too.
func bashScript(body, projectDir string, variables []Variable) string {
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
