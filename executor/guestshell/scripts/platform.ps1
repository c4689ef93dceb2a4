# Prints the platform of the guest, unless it has a gitlab-runner.
if (-not (Get-Command gitlab-runner -ErrorAction SilentlyContinue)) {
  "gitlab-sardine-executor: Windows $env:PROCESSOR_ARCHITECTURE"
}
