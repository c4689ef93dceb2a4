package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"al.essio.dev/pkg/shellescape"

	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/internal/fileutil"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/guestssh"
)

// A Step changes the guest: [Run] and [Copy].
type Step interface {
	// String is the step as on the command line.
	String() string
	// check fails if the step cannot succeed, before there is a machine.
	check() error
	// do runs the step in the guest, and shows what it says. The error is an exitError if
	// only the command in the guest failed.
	do(ctx context.Context, guest guest, log *joblog.Log) error
}

// A guest runs commands. They run as its login user.
type guest interface {
	Run(ctx context.Context, command guestssh.Command) (int, error)
}

// An exitError is the exit status of a command in the guest.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// asRoot returns a command line that runs a POSIX shell script as root; $1, $2, … are args.
func asRoot(script string, args ...string) string {
	command := shellescape.QuoteCommand(append([]string{"sh", "-c", script, "sh"}, args...))
	return "exec sh -c " + shellescape.Quote(`if [ "$(id -u)" = 0 ]; then exec `+command+`; else exec sudo -n `+command+`; fi`)
}

// runAsRoot runs a script as root, with its output in the log.
func runAsRoot(ctx context.Context, guest guest, log *joblog.Log, stdin io.Reader, script string, args ...string) error {
	status, err := guest.Run(ctx, guestssh.Command{Line: asRoot(script, args...), Stdin: stdin, Stdout: log.Writer(), Stderr: log.Writer()})
	if err != nil {
		return err
	}
	if status != 0 {
		return exitError(status)
	}
	return nil
}

// Run runs a script of this host in the guest, as root.
type Run struct {
	// Path of the script on this host.
	Path string

	text []byte
}

// maxScript is the maximum size of a script in bytes. More is probably not a script.
const maxScript = 16 << 20

func (r *Run) String() string { return "--run " + shellescape.Quote(r.Path) }

// check reads the script: it must not change during the build.
func (r *Run) check() error {
	file, info, err := fileutil.OpenRegular(r.Path)
	if err != nil {
		return fmt.Errorf("%s: %w", r, err)
	}
	defer file.Close()
	if info.Size() > maxScript {
		return fmt.Errorf("%s: a script of more than %d MiB", r, maxScript>>20)
	}
	if r.text, err = io.ReadAll(io.LimitReader(file, maxScript)); err != nil {
		return fmt.Errorf("%s: %w", r, err)
	}
	if len(bytes.TrimSpace(r.text)) == 0 {
		return fmt.Errorf("%s: the script is empty", r)
	}
	return nil
}

// runScript stores the script from standard input in a file and runs it: commands in it find
// an empty standard input, and its first line may name an interpreter. $1 is its name.
const runScript = `umask 077
dir=$(mktemp -d) || exit
trap 'rm -rf "$dir"' EXIT
cat >"$dir/$1" && chmod 700 "$dir/$1" || exit
umask 022
cd /
HOME=/root PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
export HOME PATH
"$dir/$1" </dev/null 2>&1`

func (r *Run) do(ctx context.Context, guest guest, log *joblog.Log) error {
	return runAsRoot(ctx, guest, log, bytes.NewReader(r.text), runScript, filepath.Base(r.Path))
}

// do runs step n, for [Options.Timeout] at most.
func (m *machine) do(ctx context.Context, n int, step Step) error {
	began := time.Now()
	end := m.b.Log.Section(fmt.Sprintf("sardine_build_%d", n+1), fmt.Sprintf("Step %d of %d: %s", n+1, len(m.b.Steps), step))
	defer end()
	limited, cancel := context.WithTimeout(ctx, m.b.Timeout)
	defer cancel()
	err := step.do(limited, m.started.Instance, m.b.Log)
	switch {
	case err == nil:
		m.b.Log.Say("Step %d done (%s)", n+1, joblog.Seconds(time.Since(began)))
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, context.DeadlineExceeded):
		err = fmt.Errorf("not done after %s (--timeout)", m.b.Timeout)
	case errors.Is(err, errdefs.ErrRebooted), errors.Is(err, errdefs.ErrPoweredOff):
		err = fmt.Errorf("%w, which a step must not do: build powers it off after the last one", err)
	}
	return fmt.Errorf("step %d, %s: %w", n+1, step, err)
}
