package guestshell

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/vm/guestssh"
)

// tool writes a program for the PATH of a script.
func tool(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// The guest's boot is waited for as systemd and cloud-init see it, whatever their version;
// a guest without them is not.
func TestWaitBoot(t *testing.T) {
	// The first call says the first state, each further one the next.
	const states = `n=$(cat $0.calls 2>/dev/null || echo 1)
case $1 in
list-units) printf 'a.service loaded failed failed A\nb.mount loaded failed failed B\n' ;;
*) echo $((n + 1)) >$0.calls; set -- $STATES; shift $((n - 1)); echo $1 ;;
esac
`
	for _, test := range []struct {
		name    string
		systemd string // states
		result  string // of cloud-init; empty: it has not ended
		cloud   bool
		said    string
		calls   string // of systemctl, and of cloud-init
	}{
		{"neither", "", "", false, "", ""},
		{"running", "running", "", false, "", "2"},
		{"systemd before 240", "initializing starting running", "", false, "", "4"},
		{"degraded", "degraded", "", false, "say The guest booted with failed units: a.service b.mount\n", "2"},
		{"no D-Bus", "offline", "", false, "", "2"},
		{"cloud-init has ended", "running", `{"v1": {"errors": []}}`, true, "", "2"},
		{"cloud-init runs, without systemd", "", "", true, "", "cloud-init"},
		{"cloud-init with errors", "", "{\n \"v1\": {\n  \"errors\": [\n   \"x\"\n  ]\n }\n}\n", true, "say cloud-init reports errors (in the guest: cloud-init status --long)\n", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			run, bin := t.TempDir(), t.TempDir()
			tool(t, bin, "systemctl", states)
			tool(t, bin, "cloud-init", "echo cloud-init >"+bin+"/systemctl.calls; echo status: done")
			tool(t, bin, "sleep", "")
			if test.systemd != "" {
				os.MkdirAll(filepath.Join(run, "systemd/system"), 0o755)
			}
			if test.cloud {
				os.MkdirAll(filepath.Join(run, "cloud-init"), 0o755)
				if test.result != "" {
					os.WriteFile(filepath.Join(run, "cloud-init/result.json"), []byte(test.result), 0o644)
				}
			}
			cmd := exec.Command("sh")
			cmd.Env = []string{"PATH=" + bin + ":/usr/bin:/bin", "STATES=" + test.systemd}
			cmd.Stdin = strings.NewReader(strings.ReplaceAll(waitBoot, "/run/", run+"/") + "echo next\n")
			output, err := cmd.CombinedOutput()
			calls, _ := os.ReadFile(filepath.Join(bin, "systemctl.calls"))
			if err != nil || string(output) != test.said+"next\n" || strings.TrimSpace(string(calls)) != test.calls {
				t.Errorf("%v, calls %q, said %q; want %q", err, calls, output, test.said)
			}
		})
	}
}

// A guestFunc is a guest that runs commands by a function.
type guestFunc func(ctx context.Context, c guestssh.Command) (int, error)

func (f guestFunc) Run(ctx context.Context, c guestssh.Command) (int, error) { return f(ctx, c) }

func TestSettle(t *testing.T) {
	settings := config.Resolved{Shell: "bash", WaitFor: config.WaitBoot, GuestBuildsDir: "/builds", GuestCacheDir: "/cache"}
	login := settings
	login.WaitFor = "login"
	answer := func(status int, stdout, stderr string) guestFunc {
		return func(_ context.Context, c guestssh.Command) (int, error) {
			io.WriteString(c.Stdout, stdout)
			io.WriteString(c.Stderr, stderr)
			return status, nil
		}
	}
	const expired = "WARNING: Your password has expired.\nPassword change required but no TTY available.\n"
	for _, test := range []struct {
		name     string
		settings config.Resolved
		guest    guestFunc
		want     error
		log      string
	}{
		{"ready", settings, answer(0, "", ""), nil, ""},
		{"degraded", settings, answer(0, "say The guest booted with failed units: a.service\n", ""), nil, "The guest booted with failed units: a.service\n"},
		{"expired password", settings, answer(1, "", expired), guestssh.ErrLogin, ""},
		{"expired password, wait_for login", login, answer(1, expired, ""), guestssh.ErrLogin, ""},
		{"the boot does not end", settings, func(context.Context, guestssh.Command) (int, error) { return 0, context.DeadlineExceeded }, errBooting, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var log strings.Builder
			waits := false
			guest := guestFunc(func(ctx context.Context, c guestssh.Command) (int, error) {
				text, err := io.ReadAll(c.Stdin)
				if err != nil {
					t.Fatal(err)
				}
				waits = strings.Contains(string(text), "is-system-running")
				return test.guest(ctx, c)
			})
			err := Settle(t.Context(), guest, test.settings, t.TempDir(), joblog.New(&log))
			if !errors.Is(err, test.want) || log.String() != test.log {
				t.Errorf("got %v, %q", err, &log)
			}
			if want := test.settings.WaitFor == config.WaitBoot; waits != want {
				t.Errorf("it waits for the boot: %v, want %v", waits, want)
			}
		})
	}
}
