//go:build boot

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

// A finding of doctor --json.
type finding struct{ Part, Level, Text, Command string }

// findings are those of a part that are not ok, and the worst level of all.
func (s *site) findings(t *testing.T, part string) (found []finding, worst string) {
	t.Helper()
	cmd := s.Mode.Command(deadline(t), s.Driver, "--config", s.Config, "doctor", "--json")
	output, err := cmd.Output()
	var report struct {
		Level    string
		Findings []finding
	}
	if jsonErr := json.Unmarshal(output, &report); jsonErr != nil {
		t.Fatalf("doctor --json: %v, %v:\n%s", err, jsonErr, output)
	}
	if (err != nil) != (report.Level == "error") {
		t.Errorf("doctor: %v with the level %s", err, report.Level)
	}
	for _, f := range report.Findings {
		if f.Part == part && f.Level != "ok" {
			found = append(found, f)
		}
	}
	return found, report.Level
}

// A storage that QEMU's user cannot enter is found by doctor before the first job, whose
// failure says the same.
func TestUnreachableStorage(t *testing.T) {
	systemOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode)
		closed := filepath.Join(mode.Dir(t), "closed")
		if err := os.Mkdir(closed, 0o700); err != nil {
			t.Fatal(err)
		}
		s.Configure(t, `storage = "`+filepath.Join(closed, "storage")+`"`)
		found, worst := s.findings(t, "storage")
		if len(found) != 1 || worst != "error" || !strings.Contains(found[0].Text, "cannot enter "+closed) || !strings.Contains(found[0].Command, closed) {
			t.Fatalf("%s: %+v", worst, found)
		}
		result := s.runner(t).Run(deadline(t), s.job("true"))
		checkOutputs(t, result)
		failed, _ := failures(result)
		if result.Status != gitlab.SystemFailure {
			t.Errorf("got %s", result)
		}
		checkErrorLine(t, failed.Stderr, []string{"cannot enter " + closed, found[0].Command})
		mode.Run(t, "sh", "-c", found[0].Command)
		if found, _ := s.findings(t, "storage"); len(found) > 0 {
			t.Errorf("after %s: %+v", found[0].Command, found)
		}
	})
}

// Docker sets the policy of FORWARD to DROP. libvirt's own rules let guests through, unless
// they are in another table.
func TestDroppedForwarding(t *testing.T) {
	systemOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode)
		sh := func(command string) { t.Helper(); mode.Run(t, "sh", "-ec", command) }
		before := mode.Run(t, "iptables-save", "-t", "filter")
		t.Cleanup(func() {
			path := mode.WriteFile(t, filepath.Join(mode.Dir(t), "rules"), before)
			mode.Run(t, "iptables-restore", "-T", "filter", path)
		})
		sh("iptables -P FORWARD DROP")
		if found, _ := s.findings(t, "network"); len(found) > 0 {
			t.Errorf("libvirt's rules let guests through, and doctor finds %+v", found)
		}
		sh("iptables -D FORWARD -j LIBVIRT_FWO")
		found, worst := s.findings(t, "network")
		if len(found) != 1 || worst != "error" || !strings.Contains(found[0].Text, "FORWARD") {
			t.Fatalf("%s: %+v", worst, found)
		}
		sh(found[0].Command)
		if found, _ := s.findings(t, "network"); len(found) > 0 {
			t.Errorf("after the command: %+v", found)
		}
	})
}
