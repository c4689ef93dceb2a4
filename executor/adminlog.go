package executor

import (
	"fmt"
	"io"
	"log/slog"
	"os"

	"gitlab-sardine-executor/oci"
)

// AdminLogOptions say where an [AdminLog] goes.
type AdminLogOptions struct {
	// Debug sends everything to Stderr, whatever the settings say: for an
	// administrator who runs a command by hand.
	Debug bool
	// Stderr of the command. It is the job's log in the stages before cleanup, and
	// GitLab Runner's own in cleanup, which gets warnings if there is no file.
	Stderr   io.Writer
	IsRunner bool
}

// OpenAdminLog opens the administrator's log: the file log_file of the settings,
// appended to; without one nothing but what [AdminLogOptions] say. What the author
// of a job may read is never written there only, and no secret ever. Closing it
// ends the log.
func (s *Settings) OpenAdminLog(o AdminLogOptions) (*slog.Logger, io.Closer, error) {
	logger, closer, err := s.openAdminLog(o)
	if err == nil {
		oci.LogTo(logger)
	}
	return logger, closer, err
}

func (s *Settings) openAdminLog(o AdminLogOptions) (*slog.Logger, io.Closer, error) {
	none := io.NopCloser(nil)
	switch {
	case o.Debug:
		return slog.New(slog.NewTextHandler(o.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})), none, nil
	case s.Defaults.LogFile != "":
		file, err := os.OpenFile(s.Defaults.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: log_file: %w", ErrSettings, err)
		}
		return slog.New(s.Defaults.logHandler(file)), file, nil
	case o.IsRunner:
		return slog.New(slog.NewTextHandler(o.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})), none, nil
	}
	return slog.New(slog.DiscardHandler), none, nil
}

func (t DefaultsTable) logHandler(w io.Writer) slog.Handler {
	options := &slog.HandlerOptions{Level: t.LogLevel}
	if t.LogFormat == "json" {
		return slog.NewJSONHandler(w, options)
	}
	return slog.NewTextHandler(w, options)
}
