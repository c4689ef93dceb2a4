package executor

// shells are the values of the setting shell: what is started in the guest, with
// the script on its standard input, and what GitLab Runner is told, so that it
// writes a script for that shell. Login shells, as GitLab's own ssh executor
// uses: a job finds what /etc/profile puts on the PATH.
var shells = map[string]struct{ command, runner string }{
	"bash": {"bash --login", "bash"},
	"sh":   {"sh -l", "sh"},
	"zsh":  {"zsh --login", "bash"},
}
