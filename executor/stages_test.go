package executor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/executor/failure"
	"gitlab-sardine-executor/executor/guestshell"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/guestssh"
)

var durations = regexp.MustCompile(`\([0-9.]+ s\)`)

// The steps of a prepare that succeeds, and what its author reads.
func TestPrepare(t *testing.T) {
	script := filepath.Join(t.TempDir(), "prepare.sh")
	if err := os.WriteFile(script, []byte("echo from the script\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := newStageBed(t, fmt.Sprintf("prepare_script = %q", script))
	b.Job.Services = []string{"postgres:16", "re\x1bdis"}
	b.host.script = func(stdin string, stdout, _ io.Writer) int {
		if strings.Contains(stdin, "from the script") {
			io.WriteString(stdout, "output of the script\n")
		}
		return 0
	}
	if err := b.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.wantCalls(t, "open", "sweep", "remove", "cpus", "start", "ready", "run sh", "run bash", "log out", "gauges", "close")
	b.wantLog(t,
		"WARNING: services: is ignored (postgres:16, redis): GitLab Runner starts no services for a custom executor",
		"Machine "+b.Job.VMName(),
		"Guest ready at 192.0.2.7:22 as ci (…)",
		"Prepare script",
		"output of the script",
	)
	if _, err := guestssh.LoadLogin(b.host.jobDir); err != nil {
		t.Errorf("no login for the later stages: %v", err)
	}
}

// One deadline holds for all that prepare waits for after the machine has started, the
// administrator's script included.
func TestPrepareHasOneDeadline(t *testing.T) {
	b := newStageBed(t, "timeout = '5m'\nprepare_script = '/dev/null'")
	began := time.Now()
	if err := b.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	latest := time.Now().Add(5 * time.Minute)
	for _, call := range []string{"ready", "run sh", "run bash"} {
		if d := b.host.deadlines[call]; d.Before(began.Add(5*time.Minute)) || d.After(latest) {
			t.Errorf("%s has the deadline %v, want 5 minutes from %v", call, d, began)
		}
	}
}

// A prepare that fails removes its machine, whatever failed, and its error has the right
// class.
func TestPrepareFails(t *testing.T) {
	const stale = "remove the machine of an earlier attempt"
	for _, test := range []struct {
		call  string
		err   error
		class failure.Class
		calls []string // after "open"
		text  string
	}{
		{"start", oci.ErrNotFound, failure.Build, []string{"sweep", "remove", "cpus", "start", "gauges", "remove", "close"}, ""},
		{"start", oci.ErrDenied, failure.Build, []string{"sweep", "remove", "cpus", "start", "gauges", "remove", "close"}, ""},
		{"start", errors.New("registry: 503"), failure.System, []string{"sweep", "remove", "cpus", "start", "gauges", "remove", "close"}, ""},
		{"ready", errdefs.ErrNoAnswer, failure.System, []string{"sweep", "remove", "cpus", "start", "ready", "log out", "gauges", "remove", "close"}, "(waited 5m0s: the setting timeout)"},
		{"ready", guestssh.ErrLogin, failure.Build, []string{"sweep", "remove", "cpus", "start", "ready", "log out", "gauges", "remove", "close"}, ""},
		{"ready", errdefs.ErrGuestStopped, failure.System, []string{"sweep", "remove", "cpus", "start", "ready", "log out", "gauges", "remove", "close"}, ""},
		{"run sh", guestssh.ErrLost, failure.System, []string{"sweep", "remove", "cpus", "start", "ready", "run sh", "log out", "gauges", "remove", "close"}, "create the directories"},
		{"remove", errors.New("libvirt is busy"), failure.System, []string{"sweep", "remove", "close"}, stale},
		// A failed sweep does not matter.
		{"sweep", errors.New("libvirt is busy"), failure.System, nil, ""},
	} {
		t.Run(test.call+" "+test.err.Error(), func(t *testing.T) {
			b := newStageBed(t, "")
			b.host.fail[test.call] = test.err
			err := b.Prepare(t.Context())
			if test.calls == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, test.err) || failure.Classify(err) != test.class || !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %v, %v", err, failure.Classify(err))
			}
			b.wantCalls(t, append([]string{"open"}, test.calls...)...)
			if test.call != "remove" && (b.host.exists || isDir(b.host.jobDir)) {
				t.Error("the machine is still there")
			}
		})
	}
}

// What the administrator forbids is refused before the host is asked.
func TestPrepareRefuses(t *testing.T) {
	for _, test := range []struct{ settings, want string }{
		{"allowed_images = ['registry.example.org/**']", "is not allowed here (allowed_images"},
		{"network = 'user'\npull_policy = 'never'", "pull policy"},
		{"keep_on_failure = '1m'", "SARDINE_KEEP_ON_FAILURE, which is not allowed here"},
	} {
		b := newStageBed(t, test.settings)
		b.Job.PullPolicies = []oci.PullPolicy{oci.PullAlways}
		b.Job.Variables = map[string]string{"SARDINE_KEEP_ON_FAILURE": "30m"}
		err := b.Prepare(t.Context())
		if err == nil || failure.Classify(err) != failure.Build || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", test.settings, err)
		}
		b.wantCalls(t)
	}
}

// A signal ends prepare at any step. It leaves no machine, and it takes no longer than a
// stage has after a signal.
func TestPrepareCancelled(t *testing.T) {
	for _, at := range []string{"start", "ready", "run sh", "run bash", "gauges"} {
		t.Run(at, func(t *testing.T) {
			b := newStageBed(t, "prepare_script = '/dev/null'")
			ctx, cancel := context.WithCancelCause(t.Context())
			b.host.called[at] = func() { cancel(failure.ErrCancelled) }
			err := b.Prepare(ctx)
			if err == nil {
				t.Error("prepare succeeded after the signal")
			}
			if calls := b.host.calls; !slices.Equal(calls[len(calls)-2:], []string{"remove", "close"}) {
				t.Errorf("calls %q", calls)
			}
			if b.host.exists || b.host.removeLeft > abortTimeout {
				t.Errorf("the machine exists: %v; its removal had %v", b.host.exists, b.host.removeLeft)
			}
		})
	}
}

// libvirtd may restart while prepare runs: the machine is removed by the new daemon.
func TestPrepareDisconnected(t *testing.T) {
	b := newStageBed(t, "")
	b.host.fail["ready"] = errdefs.ErrDisconnected
	b.host.called["ready"] = func() { b.host.fail["remove"] = errdefs.ErrDisconnected }
	opened := 0
	open := b.newHost
	b.newHost = func(ctx context.Context) (machineHost, error) {
		if opened++; opened == 2 {
			delete(b.host.fail, "remove")
		}
		return open(ctx)
	}
	if err := b.Prepare(t.Context()); !errors.Is(err, errdefs.ErrDisconnected) || failure.Classify(err) != failure.System {
		t.Error(err)
	}
	if b.host.exists || opened != 2 {
		t.Errorf("the machine exists: %v; libvirt was opened %d times", b.host.exists, opened)
	}
}

// A machine that does not resume from its snapshot is replaced by one that boots.
func TestPrepareRetriesWithColdBoot(t *testing.T) {
	b := newStageBed(t, "memory_snapshot = true\nnetwork = 'user'")
	b.host.info.SnapshotTime = time.Now()
	b.host.fail["resumed"] = errdefs.ErrNoAnswer
	if err := b.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.wantCalls(t, "open", "sweep", "remove",
		"cpus", "start", "resumed", "distrust", "log out", "remove",
		"cpus", "start", "ready", "run sh", "log out", "gauges", "close")
	if !b.host.started[0].Settings.MemorySnapshot || b.host.started[1].Settings.MemorySnapshot {
		t.Error("want one start with a snapshot and one without")
	}
	if log := b.log.String(); !strings.Contains(log, "WARNING: the machine did not resume from its snapshot") || !strings.Contains(log, "booting a machine instead") {
		t.Errorf("log:\n%s", log)
	}
}

// A job asks for an idle machine, says if it got one, and prepares its guest like any other. A
// second attempt boots.
func TestPrepareWithAnIdleMachine(t *testing.T) {
	for name, test := range map[string]struct {
		info instanceInfo
		want []string // of the guest
	}{
		"settled":        {instanceInfo{Settled: true}, nil},
		"with a warning": {instanceInfo{}, []string{"run sh"}},
		"with a cache":   {instanceInfo{Settled: true, Cache: guestshell.Cache{Mode: "disk"}}, []string{"run sh", "run sh"}},
	} {
		b := newStageBed(t, "")
		test.info.Login, test.info.Address, test.info.Idle = b.host.info.Login, b.host.info.Address, true
		b.host.info = test.info
		if err := b.Prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Log(name)
		b.wantCalls(t, slices.Concat([]string{"open", "sweep", "remove", "cpus", "start", "ready"}, test.want, []string{"log out", "gauges", "close"})...)
		b.wantLog(t, "Machine "+b.Job.VMName(), "The machine was ready before the job", "Guest ready at 192.0.2.7:22 as ci (…)")
	}
	b := newStageBed(t, "")
	b.host.fail["ready"] = errdefs.ErrNetworkEnded
	b.host.called["ready"] = func() { delete(b.host.fail, "ready") }
	if err := b.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(b.host.started) != 2 || !b.host.started[0].TakeIdle || b.host.started[1].TakeIdle {
		t.Errorf("started %d machines", len(b.host.started))
	}
}

// A machine that loses its network before its guest is ready is started once more, and only
// once. Its cache is not to blame.
func TestPrepareRetriesOnNewNetwork(t *testing.T) {
	lost := fmt.Errorf("watch: %w", errdefs.ErrNetworkEnded)
	for _, test := range []struct {
		name  string
		call  string
		fails int // how often
		want  []string
	}{
		{"while the guest boots", "ready", 1, []string{"open", "sweep", "remove", "cpus", "start", "ready", "log out", "remove",
			"cpus", "start", "ready", "run sh", "log out", "gauges", "close"}},
		{"while the machine starts", "start", 1, []string{"open", "sweep", "remove", "cpus", "start", "remove",
			"cpus", "start", "ready", "run sh", "log out", "gauges", "close"}},
		{"twice", "ready", 2, []string{"open", "sweep", "remove", "cpus", "start", "ready", "log out", "remove",
			"cpus", "start", "ready", "log out", "gauges", "remove", "close"}},
		{"in a ready guest", "run sh", 1, []string{"open", "sweep", "remove", "cpus", "start", "ready", "run sh", "log out", "gauges", "remove", "close"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newStageBed(t, "")
			b.host.fail[test.call] = lost
			calls := 0
			b.host.called[test.call] = func() {
				if calls++; calls >= test.fails {
					delete(b.host.fail, test.call)
				}
			}
			err := b.Prepare(t.Context())
			again := test.call != "run sh"
			if succeeds := again && test.fails == 1; (err == nil) != succeeds || err != nil && failure.Classify(err) != failure.System {
				t.Errorf("prepare: %v", err)
			}
			b.wantCalls(t, test.want...)
			if strings.Contains(b.log.String(), "starting the machine once more") != again {
				t.Errorf("log:\n%s", b.log.String())
			}
		})
	}
}

// A guest that does not become ready may have a damaged cache: no other job gets it. After
// a signal the cache is not to blame.
func TestPrepareDropsCache(t *testing.T) {
	for _, cancelled := range []bool{false, true} {
		b := newStageBed(t, "")
		b.host.info.Cache.Mode, b.host.info.CacheName = "disk", "0"
		b.host.fail["ready"] = errdefs.ErrGuestStopped
		ctx, cancel := context.WithCancelCause(t.Context())
		if cancelled {
			b.host.called["ready"] = func() { cancel(failure.ErrCancelled) }
		}
		if err := b.Prepare(ctx); err == nil {
			t.Error("no error")
		}
		if dropped := slices.Contains(b.host.calls, "drop cache"); dropped == cancelled {
			t.Errorf("cancelled: %v, dropped: %v", cancelled, dropped)
		}
		cancel(nil)
	}
}

// prepared is a bed whose machine is prepared, with a script to run.
func prepared(t *testing.T, settings string) (b *stageBed, script string) {
	t.Helper()
	b = newStageBed(t, settings)
	if err := b.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.host.calls = nil
	b.log.Reset()
	script = filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("make test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return b, script
}

// The script's output and status are passed on; its failure is not the host's.
func TestRun(t *testing.T) {
	b, script := prepared(t, "")
	b.host.script = func(stdin string, stdout, stderr io.Writer) int {
		if !strings.HasSuffix(stdin, "\nmake test\n") {
			t.Errorf("the guest got %q", stdin)
		}
		io.WriteString(stdout, "out")
		io.WriteString(stderr, "err")
		return 9
	}
	var stdout, stderr bytes.Buffer
	err := b.Run(t.Context(), script, "build_script", &stdout, &stderr)
	var status failure.ScriptError
	if !errors.As(err, &status) || status != 9 || stdout.String() != "out" || stderr.String() != "err" {
		t.Errorf("got %v, %q, %q", err, &stdout, &stderr)
	}
	b.wantCalls(t, "open", "connect", "run bash", "log out", "close")
	if b.log.Len() > 0 {
		t.Errorf("log: %s", &b.log)
	}
	for call, cause := range map[string]error{"open": errdefs.ErrUnreachable, "connect": errdefs.ErrNoDomain, "run bash": guestssh.ErrLost} {
		b.host.fail = map[string]error{call: cause}
		os.Remove(filepath.Join(b.host.jobDir, "lost.json"))
		if err := b.Run(t.Context(), script, "build_script", io.Discard, io.Discard); !errors.Is(err, cause) || failure.Classify(err) != failure.System {
			t.Errorf("%s: %v", call, err)
		}
	}
}

// cleanup removes the machine; after a failure it keeps it if the settings say so, and the
// log says how to log in.
func TestCleanup(t *testing.T) {
	for _, test := range []struct {
		settings string
		status   int
		kept     bool
	}{
		{"", 0, false},
		{"", 1, false},
		{"keep_on_failure = '30m'", 0, false},
		{"keep_on_failure = '30m'", 1, true},
	} {
		b, script := prepared(t, test.settings)
		b.host.script = func(string, io.Writer, io.Writer) int { return test.status }
		err := b.Run(t.Context(), script, "build_script", io.Discard, io.Discard)
		if (err != nil) != (test.status != 0) {
			t.Error(err)
		}
		b.host.calls = nil
		if err := b.Cleanup(t.Context()); err != nil {
			t.Error(err)
		}
		if test.kept {
			b.wantCalls(t, "open", "keep", "gauges", "close")
			if left := time.Until(b.host.kept); left < 29*time.Minute || left > 30*time.Minute {
				t.Errorf("kept for %v", left)
			}
			if !strings.Contains(b.log.String(), "gitlab-sardine-executor ssh 7\n") {
				t.Errorf("log: %q", b.log.String())
			}
			continue
		}
		b.wantCalls(t, "open", "flush", "remove", "gauges", "close")
		if b.host.exists || b.log.Len() > 0 {
			t.Errorf("the machine exists: %v; log %q", b.host.exists, b.log.String())
		}
	}
}

// GitLab Runner does not retry cleanup, so cleanup waits for a libvirtd that restarts; but
// not for one that is down, if there never was a machine.
func TestCleanupRetries(t *testing.T) {
	t.Parallel()
	b, _ := prepared(t, "")
	b.host.fail["remove"] = errdefs.ErrDisconnected
	b.host.called["remove"] = func() { // once disconnected, once down
		if b.host.fail["remove"] != nil {
			b.host.fail = map[string]error{"open": errdefs.ErrUnreachable}
			os.RemoveAll(b.host.jobDir) // the first removal got that far
		}
	}
	open := b.newHost
	b.newHost = func(ctx context.Context) (machineHost, error) {
		defer delete(b.host.fail, "open")
		return open(ctx)
	}
	if err := b.Cleanup(t.Context()); err != nil {
		t.Error(err)
	}
	b.wantCalls(t, "open", "flush", "remove", "close", "open", "open", "flush", "remove", "gauges", "close")

	b = newStageBed(t, "")
	b.host.fail["open"] = errdefs.ErrUnreachable
	if err := b.Cleanup(t.Context()); !errors.Is(err, errdefs.ErrUnreachable) {
		t.Error(err)
	}
	b.wantCalls(t, "open")
}

// A stage that loses its machine says how, and whether that is a failure of the job. Later
// stages fail at once, in one short line, and do not connect.
func TestRunLosesTheMachine(t *testing.T) {
	for _, test := range []struct {
		name   string
		call   string
		err    error
		class  failure.Class
		says   string
		second string
	}{
		{"powered off", "run bash", errdefs.ErrPoweredOff, failure.Build, "the machine powered off during build_script", "the machine was lost in build_script: it powered off"},
		{"rebooted", "run bash", errdefs.ErrRebooted, failure.Build, "the machine rebooted during build_script", "the machine was lost in build_script: it rebooted"},
		{"QEMU died", "run bash", fmt.Errorf("%w: its QEMU died", errdefs.ErrGuestStopped), failure.System, "its QEMU died", "the machine was lost in build_script: its guest stopped"},
		{"no SSH", "connect", guestssh.ErrLost, failure.System, "lost", "the machine was lost in build_script: no connection"},
		{"powered off before", "connect", fmt.Errorf("%w: %w", errdefs.ErrBeforeLogin, errdefs.ErrPoweredOff), failure.Build,
			"the guest was powered off by the job before build_script", "the machine was lost in build_script: the job had powered it off"},
		{"rebooted before", "connect", fmt.Errorf("%w: %w", errdefs.ErrBeforeLogin, errdefs.ErrRebooted), failure.Build,
			"the guest was rebooted by the job before build_script", "the machine was lost in build_script: the job had rebooted it"},
		{"rebooted before, and up again", "run bash", guestshell.ErrOtherBoot, failure.Build,
			"the guest was rebooted by the job before build_script", "the machine was lost in build_script: the job had rebooted it"},
		{"another host key", "connect", guestssh.ErrHostKey, failure.System,
			"an earlier stage rebooted a guest that makes keys at each boot", "the machine was lost in build_script: its host key had changed"},
		{"gone", "connect", errdefs.ErrNoDomain, failure.System, "", "the machine was lost in build_script: it is gone"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b, script := prepared(t, "")
			b.host.fail[test.call] = test.err
			err := b.Run(t.Context(), script, "build_script", io.Discard, nil)
			if err == nil || failure.Classify(err) != test.class || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, %v", err, failure.Classify(err))
			}
			b.host.calls = nil
			err = b.Run(t.Context(), script, "after_script", io.Discard, nil)
			if err == nil || err.Error() != test.second || failure.Classify(err) != test.class {
				t.Errorf("the next stage: got %v, %v", err, failure.Classify(err))
			}
			b.wantCalls(t)
		})
	}
	// A script that fails loses nothing, and neither does a signal.
	b, script := prepared(t, "")
	ctx, cancel := context.WithCancelCause(t.Context())
	b.host.fail["run bash"] = guestssh.ErrLost
	b.host.called["run bash"] = func() { cancel(failure.ErrCancelled) }
	if err := b.Run(ctx, script, "build_script", io.Discard, nil); err == nil {
		t.Error("no error")
	}
	b.host.fail, b.host.called, b.host.calls = nil, nil, nil
	if err := b.Run(t.Context(), script, "after_script", io.Discard, nil); err != nil {
		t.Error(err)
	}
	b.wantCalls(t, "open", "connect", "run bash", "log out", "close")
}
