# Creates the directories $dirs and prints those that cannot be created or written.
foreach ($dir in $dirs) {
  try {
    [void][IO.Directory]::CreateDirectory($dir)
    $probe = [IO.Path]::Combine($dir, [Guid]::NewGuid().ToString())
    [IO.File]::WriteAllText($probe, '')
    [IO.File]::Delete($probe)
  } catch {
    'gitlab-sardine-executor: ' + $dir
  }
}
