//go:build boot

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

// A script that succeeds can power the machine off afterwards: the stages that follow fail at
// once, and that is the job's own failure. In session mode libvirt keeps its logs elsewhere.
func TestPowerOffBetweenStages(t *testing.T) {
	mostlyIn(t, "system", func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode)
		job := s.job("")
		job.ID = 1
		s.mustPrepare(t, job)
		if e := s.script(t, job, gitlab.StageBuildScript, "sudo -n setsid sh -c 'sleep 1; poweroff -f' >/dev/null 2>&1 </dev/null &\n"); e.ExitCode != 0 {
			t.Fatal(e)
		}
		until(t, "the machine is off", func() bool { return len(processes(isGuest(machineOf(job)))) == 0 })
		s.wantJobFailure(t, s.script(t, job, gitlab.StageAfterScript, "true"), "the guest was powered off by the job before after_script")
		s.wantJobFailure(t, s.script(t, job, gitlab.StageUploadArtifacts, "true"), "the machine was lost in after_script: the job had powered it off")
		s.mustCleanUp(t, job)
	})
}

// wantJobFailure wants a stage that is a failure of the job, and says so in one line.
func (s *site) wantJobFailure(t *testing.T, e gitlab.Execution, says string) {
	t.Helper()
	s.wantFailure(t, e, gitlab.BuildFailureExitCode, says)
}

func (s *site) wantFailure(t *testing.T, e gitlab.Execution, exit int, says string) {
	t.Helper()
	if e.ExitCode != exit || !strings.Contains(e.Stderr, says) || strings.Count(e.Stderr, "\n") != 1 {
		t.Errorf("want exit code %d with one line, …%s…, got %s", exit, says, e)
	}
}

// A guest that has rebooted and answers again before the next stage begins is told from one that
// has not: nothing of the next script runs.
func TestRebootBetweenStages(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode)
		s.push(t, keyedGuest.layout(t, hostKey(t)), s.registry.Image("vms/keyed:1"))
		for _, test := range []struct {
			name, image string
			exit        int
			says        string
		}{
			// As installed systems do.
			{"keeps its host key", s.registry.Image("vms/keyed:1"), gitlab.BuildFailureExitCode, "the guest was rebooted by the job before after_script"},
			// As systems do that run in memory. It could be another machine. (At night.)
			{"makes a host key when it boots", s.image, gitlab.SystemFailureExitCode, "rebooted a guest that makes keys at each boot"},
		} {
			if test.image == s.image && !nightly {
				continue
			}
			t.Run(test.name, func(t *testing.T) {
				job := s.job("")
				job.ID, job.Image.Name = 1, test.image
				s.mustPrepare(t, job)
				console := filepath.Join(s.Storage, "jobs", machineOf(job), "console.log")
				boots := func() int {
					text, err := os.ReadFile(console)
					if err != nil {
						t.Fatal(err)
					}
					return strings.Count(string(text), "guest: ready after")
				}
				until(t, "the guest is up", func() bool { return boots() == 1 })
				if e := s.script(t, job, gitlab.StageBuildScript, "sudo -n setsid sh -c 'sleep 1; reboot -f' >/dev/null 2>&1 </dev/null &\n"); e.ExitCode != 0 {
					t.Fatal(e)
				}
				until(t, "the guest is up again", func() bool { return boots() == 2 })
				s.wantFailure(t, s.script(t, job, gitlab.StageAfterScript, "echo ran"), test.exit, test.says)
				s.wantFailure(t, s.script(t, job, gitlab.StageUploadArtifacts, "echo ran"), test.exit, "the machine was lost in after_script")
				s.mustCleanUp(t, job)
			})
		}
	})
}

// keyedGuest has the same host key at each boot: $1, in base64.
var keyedGuest = changedGuest{change: `
mkdir -p etc/dropbear
echo "$1" | base64 -d >etc/dropbear/dropbear_ecdsa_host_key
chmod 600 etc/dropbear/dropbear_ecdsa_host_key
`}

// hostKey makes a host key in Dropbear's format, in base64. Of the keys of the guest this is the
// type that Go's client prefers.
func hostKey(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	private, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	// The public key as in RFC 5656, section 3.1, and the private one as an mpint.
	return base64.StdEncoding.EncodeToString(append(public.Marshal(), ssh.Marshal(struct{ D *big.Int }{new(big.Int).SetBytes(private)})...))
}
