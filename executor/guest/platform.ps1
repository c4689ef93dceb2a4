# Says what the guest is, unless it has a gitlab-runner.
if (-not (Get-Command gitlab-runner -ErrorAction SilentlyContinue)) {
  "Windows $env:PROCESSOR_ARCHITECTURE"
}
