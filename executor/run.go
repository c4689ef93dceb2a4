package executor

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/failure"
	"gitlab-sardine-executor/executor/guestshell"
	"gitlab-sardine-executor/executor/outcome"
	"gitlab-sardine-executor/executor/tools"
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
	if lost := outcome.LoadLoss(d.jobDir(dirs)); lost != nil {
		return lost
	}
	defer func() { err = d.machineError(ctx, dirs, name, err) }()
	script, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the script of the stage: %w", err)
	}
	defer script.Close()
	host, err := d.openHost(ctx, dirs)
	if err != nil {
		return err
	}
	defer host.Close()
	defer d.phase("run")()
	return d.runIn(ctx, host, dirs, script, name, stdout, stderr)
}

// machineError explains an error of a stage that lost its machine, and records the loss, so
// that later stages do not wait for the machine.
func (d *Driver) machineError(ctx context.Context, dirs config.Dirs, stage string, err error) error {
	if ctx.Err() != nil {
		return err
	}
	lost, err := outcome.LossIn(stage, err)
	if lost == nil {
		return err
	}
	if err := lost.Save(d.jobDir(dirs)); err != nil {
		d.admin().Warn("later stages will wait for a machine that is lost", "error", err)
	}
	return err
}

// runIn runs the script of the stage name in the job's machine.
func (d *Driver) runIn(ctx context.Context, host machineHost, dirs config.Dirs, script io.Reader, name string, stdout, stderr io.Writer) error {
	guest, err := host.Connect(ctx)
	if err != nil {
		return err
	}
	defer guest.Close()
	settings := d.Settings.For(d.Job.Image)
	needs := tools.Guest{Guest: guest, Settings: settings, JobDir: d.jobDir(dirs), Log: d.Log}
	if err := needs.Provide(ctx, name, script); err != nil {
		return err
	}
	sh := guestshell.For(settings.Shell)
	o := guestshell.Options{Merged: d.OneLog, Boot: guestshell.LoadBoot(d.jobDir(dirs))}
	status, err := sh.RunScript(ctx, guest, io.MultiReader(strings.NewReader(sh.Prefix), script), o, stdout, stderr)
	if err != nil {
		return err
	}
	if status != 0 {
		return failure.ScriptError(status)
	}
	return nil
}
