package command

import (
	"io"
	"log/slog"

	"github.com/urfave/cli/v2"

	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/oci/registry"
)

// RegistryFlags are the flags of commands that use a registry, as in skopeo and podman.
type RegistryFlags struct {
	authFile  string
	tlsVerify bool
}

// Flags returns the flags to define.
func (f *RegistryFlags) Flags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{
			Name:        "authfile",
			Usage:       "read passwords from `FILE` (default: $REGISTRY_AUTH_FILE, or the files of skopeo and podman)",
			Destination: &f.authFile,
		},
		&cli.BoolFlag{
			Name:        "tls-verify",
			Usage:       "require HTTPS and valid certificates; --tls-verify=false does not",
			Value:       true,
			Destination: &f.tlsVerify,
		},
	}
}

// Credentials returns the values of the flags.
func (f *RegistryFlags) Credentials() registry.Credentials {
	return registry.Credentials{AuthFile: f.authFile, Insecure: !f.tlsVerify}
}

// ProgressFlags are the flags of commands that transfer images.
type ProgressFlags struct {
	quiet bool
}

// Flags returns the flags to define.
func (f *ProgressFlags) Flags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "do not show progress", Destination: &f.quiet},
	}
}

// Progress shows transfers on stderr, or nothing with --quiet.
func (f *ProgressFlags) Progress(stderr io.Writer, what string) joblog.Progress {
	if f.quiet {
		return joblog.NoProgress()
	}
	return joblog.NewProgress(stderr, what)
}

// LogWarnings prints the warnings of the registry library on stderr.
func LogWarnings(stderr io.Writer) cli.BeforeFunc {
	return func(*cli.Context) error {
		registry.LogTo(slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{
			Level: slog.LevelWarn,
			ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
				if len(groups) == 0 && a.Key == slog.TimeKey {
					return slog.Attr{} // of no use at a terminal
				}
				return a
			},
		})))
		return nil
	}
}
