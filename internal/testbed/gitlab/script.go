package gitlab

import (
	"path"
	"strings"

	"al.essio.dev/pkg/shellescape"
)

// The stages that run scripts.
const (
	StagePrepareScript            = "prepare_script"
	StageGetSources               = "get_sources"
	StageClearWorktree            = "clear_worktree"
	StageRestoreCache             = "restore_cache"
	StageDownloadArtifacts        = "download_artifacts"
	StageBuildScript              = "build_script"
	StageAfterScript              = "after_script"
	StageArchiveCache             = "archive_cache"
	StageArchiveCacheOnFailure    = "archive_cache_on_failure"
	StageUploadArtifacts          = "upload_artifacts_on_success"
	StageUploadArtifactsOnFailure = "upload_artifacts_on_failure"
	StageCleanupFileVariables     = "cleanup_file_variables"

	stageStep = "step_"
)

func isPowerShell(shell string) bool { return shell == "pwsh" || shell == "powershell" }

// fileOf is the file in the guest that a file variable names.
func fileOf(v Variable, projectDir string) string { return path.Join(projectDir+".tmp", v.Key) }

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
		value := quotePowerShell(v.Value)
		if v.File {
			file := quotePowerShell(fileOf(v, projectDir))
			commands.WriteString("New-Item -ItemType directory -Force -Path " + quotePowerShell(projectDir+".tmp") + " | out-null\n" +
				"[System.IO.File]::WriteAllText(" + file + ", " + value + ")\n")
			value = file
		}
		commands.WriteString("$" + v.Key + "=" + value + "\n$env:" + v.Key + "=$" + v.Key + "\n")
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
// evaluates one quoted string too. The value of a file variable is put into a file,
// of which the script gets the path.
func bashScript(body, projectDir string, variables []Variable) string {
	var commands strings.Builder
	for _, v := range variables {
		value := shellescape.Quote(v.Value)
		if v.File {
			file := shellescape.Quote(fileOf(v, projectDir))
			commands.WriteString("mkdir -p " + shellescape.Quote(projectDir+".tmp") + "\nprintf '%s' " + value + " > " + file + "\n")
			value = file
		}
		commands.WriteString("export " + v.Key + "=" + value + "\n")
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
