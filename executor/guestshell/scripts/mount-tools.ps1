# Finds the drive with the programs of the host, and notes it for the scripts of GitLab,
# which get it first on their PATH: see bootstrap.ps1. $prefer is "host" to do so even if
# the guest has its own gitlab-runner. Answers as mount-tools.sh does.
$dir = "$HOME/.gitlab-sardine-executor"
$drive = [IO.DriveInfo]::GetDrives() | Where-Object { $_.IsReady -and $_.VolumeLabel -eq 'SARDINE_TOOLS' } | Select-Object -First 1
if (-not $drive) {
  'gitlab-sardine-executor: unusable it has no drive with the label SARDINE_TOOLS'
} elseif ($prefer -ne 'host' -and (Get-Command gitlab-runner -ErrorAction SilentlyContinue)) {
  'gitlab-sardine-executor: own'
} else {
  [void][IO.Directory]::CreateDirectory($dir)
  [IO.File]::WriteAllText("$dir/tools", $drive.RootDirectory.FullName)
  'gitlab-sardine-executor: linked'
}
