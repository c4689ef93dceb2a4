# Runs the script that comes on standard input, as pwsh -File would run a file.
#
# Neither "-Command -" nor "-File -" does that: they take their input line by line,
# as if it were typed, and end with 0 or 1 whatever the script says
# (https://github.com/PowerShell/PowerShell/issues/15331). A file in the guest would
# do, but the script holds the job's secrets.

# GitLab's scripts are UTF-8, whatever the code page of the guest.
$OutputEncoding = New-Object System.Text.UTF8Encoding
# Fails where there is no console.
try { [Console]::OutputEncoding = $OutputEncoding; [Console]::InputEncoding = $OutputEncoding } catch { }

# gitlab-runner may be here, or on the drive that mount-tools.ps1 found.
foreach ($__dir in @("$HOME/.gitlab-sardine-executor/bin", (Get-Content "$HOME/.gitlab-sardine-executor/tools" -ErrorAction SilentlyContinue))) {
  if ($__dir) { $env:PATH = "$__dir$([IO.Path]::PathSeparator)$env:PATH" }
}

# The reader skips a byte order mark. A script that does not parse ends here. (PowerShell
# itself reads standard input only if this text contains "$input".)
try {
  $__stdin = New-Object System.IO.StreamReader([Console]::OpenStandardInput(), $OutputEncoding)
  $__script = [ScriptBlock]::Create($__stdin.ReadToEnd())
} catch {
  [Console]::Error.WriteLine($_.Exception.Message)
  exit 1
}

# exit in the script ends this process with its status; a terminating error ends it
# with 1. As with a file, $LASTEXITCODE is ignored.
& $__script
exit 0
