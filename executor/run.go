package executor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/failure"
	"gitlab-sardine-executor/executor/guestshell"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/virt"
)

// Run is the run stage: it runs the script in the file path in the job's guest. name is
// GitLab's name of the stage, such as build_script. The output of the script goes to
// stdout and stderr unchanged. The error is a [failure.ScriptError] if the script
// failed.
func (d *Driver) Run(ctx context.Context, path, name string, stdout, stderr io.Writer) (err error) {
	dirs, err := d.Settings.Dirs()
	if err != nil {
		return err
	}
	end := d.beginStage(dirs, name)
	defer func() { end(ctx, err) }()
	script, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the script of the stage: %w", err)
	}
	defer script.Close()
	host, err := OpenHost(ctx, d.Settings)
	if err != nil {
		return err
	}
	defer host.Close()
	defer d.phase("run")()
	return d.runIn(ctx, host, dirs, script, name, stdout, stderr)
}

// runIn runs the script of the stage name in the job's machine.
func (d *Driver) runIn(ctx context.Context, host *virt.Host, dirs config.Dirs, script io.Reader, name string, stdout, stderr io.Writer) error {
	guest, err := Connect(ctx, host, d.Job.VMName(), d.jobDir(dirs))
	if err != nil {
		return err
	}
	defer guest.Close()
	settings := d.Settings.For(d.Job.Image)
	if err := d.copyRunner(ctx, guest, dirs, settings, name); err != nil {
		return err
	}
	sh := guestshell.For(settings.Shell)
	status, err := guest.Run(ctx, guestssh.Command{
		Line:   sh.Command,
		Stdin:  io.MultiReader(strings.NewReader(sh.Prefix), script),
		Stdout: stdout,
		Stderr: stderr,
	})
	if err != nil {
		return err
	}
	if status != 0 {
		return failure.ScriptError(status)
	}
	return nil
}

// Connect logs in to a machine that prepare started.
func Connect(ctx context.Context, host *virt.Host, name, jobDir string) (*vm.Guest, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	guest, err := vm.Find(ctx, host, name, jobDir)
	if errors.Is(err, virt.ErrNoDomain) {
		return nil, fmt.Errorf("the job's machine is gone (it powered off, its QEMU died, or prepare never ran): %w", err)
	}
	if err != nil {
		return nil, err
	}
	login, err := guestssh.LoadLogin(jobDir)
	if err != nil {
		return nil, err
	}
	return guest, guest.Connect(ctx, login)
}
