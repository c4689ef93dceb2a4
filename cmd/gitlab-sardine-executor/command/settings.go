package command

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/urfave/cli/v2"

	"gitlab-sardine-executor/executor/adminlog"
	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/oci/registry"
)

// Settings are the global flags, and load the settings file that they name.
type Settings struct {
	path  string
	debug bool
}

// Flags returns the flags to define.
func (f *Settings) Flags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{
			Name:        "config",
			Usage:       "read the settings from `FILE` (default: $" + config.FileEnv + ", ~/.config/gitlab-sardine-executor/config.toml, /etc/gitlab-sardine-executor/config.toml)",
			Destination: &f.path,
		},
		&cli.BoolFlag{
			Name:        "debug",
			Usage:       "log everything to stderr (in a stage: to the job's log)",
			Destination: &f.debug,
		},
	}
}

// Load reads the settings; see [config.Load].
func (f *Settings) Load() (*config.Settings, error) { return config.Load(f.path) }

// OpenAdminLog opens the administrator's log as the settings and --debug want it, and
// sends the registry library's warnings there. It masks the settings' passwords and
// o.Secrets.
func (f *Settings) OpenAdminLog(s *config.Settings, o adminlog.Options) (*slog.Logger, io.Closer, error) {
	o.File, o.Level, o.Format = s.Defaults.LogFile, s.Defaults.LogLevel, s.Defaults.LogFormat
	o.Debug = f.debug
	o.Secrets = append(o.Secrets, s.Passwords()...)
	logger, closer, err := adminlog.Open(o)
	registry.LogTo(logger)
	return logger, closer, err
}

// ExitError ends the program with a status, after the message was printed.
type ExitError struct{ Status int }

func (e ExitError) Error() string { return fmt.Sprintf("exit status %d", e.Status) }
