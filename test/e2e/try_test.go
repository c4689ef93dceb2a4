//go:build boot

package e2e

import (
	"os/exec"
	"strings"
	"testing"

	"gitlab-sardine-executor/internal/testbed"
)

// try shows the command's output and the stages, and ends as the command does.
func TestTry(t *testing.T) {
	testbed.EachMode(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode)
		// One mode tries an image in a registry, and the other one in a layout.
		image := map[string]string{"system": s.image, "session": "oci:" + guestLayout(t) + ":1"}[mode.Name]
		cmd := mode.Command(deadline(t), s.Driver, "--config", s.Config, "try", image, "--", "sh", "-c", "uname -s; exit 3")
		var stdout, stderr strings.Builder
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 3 {
			t.Errorf("ended with %v, want exit status 3; it said:\n%s", err, stderr.String())
		}
		if stdout.String() != "Linux\n" {
			t.Errorf("stdout is %q, want what uname says", stdout.String())
		}
		for _, stage := range []string{"config", "prepare", "run", "cleanup"} {
			if !strings.Contains(stderr.String(), stage) {
				t.Errorf("no word of the stage %s in:\n%s", stage, stderr.String())
			}
		}
	})
}
