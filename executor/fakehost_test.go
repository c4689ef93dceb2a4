package executor

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/executor/guestshell"
	"gitlab-sardine-executor/executor/job"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/executor/metrics"
	"gitlab-sardine-executor/executor/sweep"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/guestssh"
)

// A fakeHost records the calls of a stage and fails as the test wants.
type fakeHost struct {
	calls []string
	// fail has the error of a call; called runs in the call, and may change fail for the
	// next one.
	fail   map[string]error
	called map[string]func()
	// script answers a command of the guest with its exit status.
	script func(stdin string, stdout, stderr io.Writer) int

	jobDir  string
	started []FetchAndCloneOptions
	info    instanceInfo // of the next machine
	exists  bool         // Start creates the machine, Remove removes it
	kept    time.Time
	// removeLeft is the time that the last Remove had.
	removeLeft time.Duration
	// deadlines of the calls, by name; zero without one.
	deadlines map[string]time.Time
}

// call records a call and returns its error, or that of a context that has ended.
func (h *fakeHost) call(ctx context.Context, name string) error {
	h.calls = append(h.calls, name)
	if h.deadlines == nil {
		h.deadlines = map[string]time.Time{}
	}
	h.deadlines[name], _ = ctx.Deadline()
	err := h.fail[name]
	if run := h.called[name]; run != nil {
		run()
	}
	if err != nil {
		return err
	}
	return ctx.Err()
}

func (h *fakeHost) CPUs(ctx context.Context) (uint, error) { return 4, h.call(ctx, "cpus") }

func (h *fakeHost) Start(ctx context.Context, o FetchAndCloneOptions) (instance, error) {
	h.started = append(h.started, o)
	h.exists = true
	if err := os.MkdirAll(h.jobDir, 0o700); err != nil {
		return nil, err
	}
	if err := h.call(ctx, "start"); err != nil {
		return nil, err
	}
	info := h.info
	if !o.Settings.MemorySnapshot {
		info.SnapshotTime = time.Time{}
	}
	return &fakeInstance{h, info}, nil
}

func (h *fakeHost) Connect(ctx context.Context) (guest, error) {
	if err := h.call(ctx, "connect"); err != nil {
		return nil, err
	}
	return &fakeInstance{h, instanceInfo{}}, nil
}

func (h *fakeHost) FlushCache(ctx context.Context, _ string) error { return h.call(ctx, "flush") }

func (h *fakeHost) Keep(ctx context.Context, until time.Time) error {
	if !h.exists {
		return errdefs.ErrNoDomain
	}
	h.kept = until
	return h.call(ctx, "keep")
}

func (h *fakeHost) Remove(ctx context.Context, _ bool) error {
	deadline, _ := ctx.Deadline()
	h.removeLeft = time.Until(deadline)
	if err := h.call(ctx, "remove"); err != nil {
		return err
	}
	h.exists = false
	return os.RemoveAll(h.jobDir)
}

func (h *fakeHost) Sweep(ctx context.Context, _ *metrics.Changes) ([]sweep.Swept, error) {
	return nil, h.call(ctx, "sweep")
}

func (h *fakeHost) UpdateGauges(ctx context.Context, _ *metrics.Changes) error {
	return h.call(ctx, "gauges")
}

func (h *fakeHost) Close() error { h.calls = append(h.calls, "close"); return nil }

// A fakeInstance is a machine of a fakeHost.
type fakeInstance struct {
	host *fakeHost
	info instanceInfo
}

func (i *fakeInstance) Info() instanceInfo { return i.info }

func (i *fakeInstance) WaitReady(ctx context.Context, _ guestssh.Login) error {
	name := "ready"
	if i.info.resumed() {
		name = "resumed"
	}
	return i.host.call(ctx, name)
}

func (i *fakeInstance) Run(ctx context.Context, command guestssh.Command) (int, error) {
	text, err := io.ReadAll(command.Stdin)
	if err != nil {
		return 0, err
	}
	// The shell tells the commands apart: sh makes directories, bash runs scripts.
	name := "run " + strings.Fields(strings.TrimPrefix(command.Line, "exec "))[0]
	if err := i.host.call(ctx, name); err != nil {
		return 0, err
	}
	if i.host.script == nil {
		return 0, nil
	}
	return i.host.script(strings.TrimSuffix(string(text), "\x00"), command.Stdout, command.Stderr), nil
}

func (i *fakeInstance) DistrustSnapshot(error) error {
	i.host.calls = append(i.host.calls, "distrust")
	return nil
}

func (i *fakeInstance) DropCache() error {
	i.host.calls = append(i.host.calls, "drop cache")
	return nil
}

func (i *fakeInstance) Close() error {
	i.host.calls = append(i.host.calls, "log out")
	return nil
}

var _ guestshell.Guest = &fakeInstance{}

// A stageBed is a driver with a fakeHost and buffers for its logs.
type stageBed struct {
	*Driver
	host *fakeHost
	log  bytes.Buffer
}

// newStageBed makes a driver for a job with an image, with the settings in [defaults].
func newStageBed(t *testing.T, settings string) *stageBed {
	t.Helper()
	root := t.TempDir()
	b := &stageBed{}
	b.Driver = &Driver{
		Settings: parse(t, fmt.Sprintf("[defaults]\nstorage = %q\nmetrics_textfile = %q\n%s", root, filepath.Join(root, "sardine.prom"), settings)),
		Job:      job.Job{ID: "7", Server: "https://gitlab.example.com", Image: "registry.example.com/vms/debian:12", Timeout: time.Hour},
		Log:      joblog.New(&b.log),
	}
	dirs, err := b.Settings.Dirs()
	if err != nil {
		t.Fatal(err)
	}
	b.host = &fakeHost{
		fail: map[string]error{}, called: map[string]func(){},
		jobDir: b.jobDir(dirs),
		info:   instanceInfo{Login: guestssh.Login{User: "ci", Password: "c"}, Address: "192.0.2.7:22"},
	}
	b.newHost = func(context.Context) (machineHost, error) {
		b.host.calls = append(b.host.calls, "open")
		return b.host, b.host.fail["open"]
	}
	return b
}

// wantCalls compares the calls of the stage, in order.
func (b *stageBed) wantCalls(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(b.host.calls, want) {
		t.Errorf("calls\n got %q\nwant %q", b.host.calls, want)
	}
}

// wantLog compares the lines of the job's log; durations are written as "…".
func (b *stageBed) wantLog(t *testing.T, want ...string) {
	t.Helper()
	got := strings.Split(strings.TrimSuffix(durations.ReplaceAllString(b.log.String(), "(…)"), "\n"), "\n")
	if !slices.Equal(got, want) {
		t.Errorf("log\n got %q\nwant %q", got, want)
	}
}
