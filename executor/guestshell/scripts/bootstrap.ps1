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

# Where the driver has put gitlab-runner, if it did.
$env:PATH += "$([IO.Path]::PathSeparator)$HOME/.gitlab-sardine-executor/bin"

# The reader drops a byte order mark. What does not parse ends here, too. (Without
# "$input" in this text PowerShell itself leaves standard input alone.)
try {
  $__stdin = New-Object System.IO.StreamReader([Console]::OpenStandardInput(), $OutputEncoding)
  $__script = [ScriptBlock]::Create($__stdin.ReadToEnd())
} catch {
  [Console]::Error.WriteLine($_.Exception.Message)
  exit 1
}

# exit in the script ends this process with its status, an error that ends the
# script with 1. What is left over in $LASTEXITCODE does not count, nor in a file.
& $__script
exit 0
