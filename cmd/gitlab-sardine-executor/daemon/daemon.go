// Package daemon has the command that is a service of the host.
package daemon

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"

	"gitlab-sardine-executor/cmd/gitlab-sardine-executor/command"
	"gitlab-sardine-executor/executor/adminlog"
	"gitlab-sardine-executor/executor/keeper"
	"gitlab-sardine-executor/executor/metrics"
	"gitlab-sardine-executor/executor/nesting"
	"gitlab-sardine-executor/executor/serve"
)

// Serve is the command serve.
func Serve(cfg *command.Settings, version string, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:  "serve",
		Usage: "keep machines ready for jobs, and look after this host (a service)",
		Description: command.Describe("serve keeps idle_machines of each image section booted, so that jobs start without waiting for a boot, sweeps,\n"+
			"and answers /metrics and /healthz at the setting listen of the table [serve]. Run it as the user that runs\n"+
			"GitLab Runner; docs/serve.md has units for systemd. Jobs work without it.\n\n"+
			"SIGTERM ends it and removes idle machines; machines of jobs stay. SIGHUP, or a change of the settings file,\n"+
			"makes it read the settings again. Its log goes to log_file, or to stderr without one.",
			"serve"),
		Action: command.WithArguments(0, 0, func(c *cli.Context, _ []string) error {
			return run(c.Context, cfg, version, stderr)
		}),
	}
}

func run(ctx context.Context, cfg *command.Settings, version string, stderr io.Writer) error {
	settings, err := serve.NewCurrent(cfg.Load)
	if err != nil {
		return err
	}
	logger, closer, err := cfg.OpenAdminLog(settings.Get(), adminlog.Options{Stderr: stderr, IsService: true})
	if err != nil {
		return err
	}
	defer closer.Close()
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	defer signal.Stop(reload)
	env := serve.Env{Version: version, Settings: settings, Log: logger, Metrics: &metrics.Live{}}
	server := &serve.Server{Env: env, Components: components(env), Reload: reload}
	return server.Run(ctx)
}

// components are the parts of the service.
func components(env serve.Env) []serve.Component {
	return []serve.Component{&serve.Housekeeper{Env: env}, keeper.New(env), nesting.New(env)}
}
