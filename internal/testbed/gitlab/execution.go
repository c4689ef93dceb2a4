package gitlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// An execution is what is to be run.
type execution struct {
	stage   string
	verb    string // argument after the runner's Args; the stage if empty
	args    []string
	env     []string
	timeout time.Duration // 0: that of the job
	// stdout and stderr get the output as it comes, besides the record; nil for
	// none.
	stdout, stderr io.Writer
}

// execute runs the driver once and records it. A done context means SIGTERM to
// the process group, and SIGKILL if that does not help. The exit code is
// believed all the same.
func (b *Build) execute(ctx context.Context, a *attempt, x execution) Execution {
	if x.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, x.timeout)
		defer cancel()
	}
	setDefault(&x.verb, x.stage)
	record := Execution{Stage: x.stage, Attempt: a.number, Dir: a.dir, ExitCode: -1}
	place := b.place(record)
	cmd := exec.Command(b.runner.Exec, slices.Concat(b.runner.Args, []string{x.verb}, x.args)...)
	cmd.Dir, cmd.Env = a.dir, x.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: b.runner.Credential}

	out, err := newOutput(x.stdout, x.stderr)
	if err != nil {
		record.Err = err
		return b.record(place, record)
	}
	cmd.Stdout, cmd.Stderr = out.stdout.w, out.stderr.w
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		record.Err = fmt.Errorf("start the driver: %w", err)
		out.start()
		out.wait(b.runner.OutputTimeout)
		return b.record(place, record)
	}
	b.setCurrent(cmd.Process)
	out.start()
	b.wait(ctx, cmd, &record)
	record.Duration = time.Since(begin)
	b.setCurrent(nil)
	record.OutputHeld = out.wait(b.runner.OutputTimeout)
	record.OutputDelay = time.Since(begin) - record.Duration
	record.Stdout, record.Stderr = out.stdout.text.String(), out.stderr.text.String()
	if code, err := os.ReadFile(a.codeFile()); err == nil {
		record.CodeFile = string(code)
	}
	return b.record(place, record)
}

// place is where in the result an execution stands that begins now.
func (b *Build) place(e Execution) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.result.Executions = append(b.result.Executions, e)
	return len(b.result.Executions) - 1
}

func (b *Build) record(place int, e Execution) Execution {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.result.Executions[place] = e
	return e
}

func (b *Build) setCurrent(process *os.Process) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.current = process
}

// wait waits for the driver's process, or ends it when the context is done.
func (b *Build) wait(ctx context.Context, cmd *exec.Cmd, record *Execution) {
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	var err error
	select {
	case err = <-exited:
	case <-ctx.Done():
		record.Terminated = true
		err = b.terminate(cmd.Process.Pid, exited, record)
	}
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		record.Err = err
		return
	}
	record.ExitCode = cmd.ProcessState.ExitCode()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		record.Signal = status.Signal()
	}
}

var errNotKilled = errors.New("the driver could not be killed")

func (b *Build) terminate(pid int, exited <-chan error, record *Execution) error {
	_ = syscall.Kill(-pid, syscall.SIGTERM)
	select {
	case err := <-exited:
		return err
	case <-time.After(b.runner.GracefulKillTimeout):
	}
	record.Killed = true
	_ = syscall.Kill(-pid, syscall.SIGKILL)
	select {
	case err := <-exited:
		return err
	case <-time.After(b.runner.ForceKillTimeout):
		return errNotKilled
	}
}

// An output is the two pipes of a stage, which are read until everybody who has
// inherited their other ends has closed them.
type output struct {
	stdout, stderr *stream
	readers        sync.WaitGroup
}

type stream struct {
	r, w *os.File
	text lockedBuilder
	copy io.Writer
}

func newOutput(stdout, stderr io.Writer) (*output, error) {
	var out output
	var err error
	if out.stdout, err = newStream(stdout); err != nil {
		return nil, err
	}
	if out.stderr, err = newStream(stderr); err != nil {
		out.stdout.r.Close()
		out.stdout.w.Close()
		return nil, err
	}
	return &out, nil
}

func newStream(copy io.Writer) (*stream, error) {
	if copy == nil {
		copy = io.Discard
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe for the driver's output: %w", err)
	}
	return &stream{r: r, w: w, copy: copy}, nil
}

// start begins to read, after the process has got the writing ends.
func (o *output) start() {
	for _, s := range []*stream{o.stdout, o.stderr} {
		s.w.Close()
		o.readers.Go(func() {
			defer s.r.Close()
			_, _ = io.Copy(io.MultiWriter(&s.text, s.copy), s.r)
		})
	}
}

// wait waits for the end of both; true means that it did not come in time.
func (o *output) wait(timeout time.Duration) (held bool) {
	ended := make(chan struct{})
	go func() { o.readers.Wait(); close(ended) }()
	select {
	case <-ended:
		return false
	case <-time.After(timeout):
		o.stdout.r.Close()
		o.stderr.r.Close()
		<-ended
		return true
	}
}

// A lockedBuilder is a strings.Builder for several writers.
type lockedBuilder struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *lockedBuilder) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuilder) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
