package executor

import (
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/oci"
)

// AdminLogOptions say where an [AdminLog] goes.
type AdminLogOptions struct {
	// Debug sends everything to Stderr, whatever the settings say: for an
	// administrator who runs a command by hand.
	Debug bool
	// Stderr of the command. It is the job's log in the stages before cleanup, and
	// GitLab Runner's own in cleanup, which gets warnings if there is no file; one
	// is that a file cannot be opened.
	Stderr   io.Writer
	IsRunner bool
	// Secrets are not shown: those of the job. Those of the settings never are.
	Secrets []string
}

// OpenAdminLog opens the administrator's log: the file log_file of the settings,
// appended to; without one nothing but what [AdminLogOptions] say. What the author
// of a job may read is never written there only, and no secret ever. Closing it
// ends the log.
//
// The error says that the file cannot be opened. The log is then as if the settings
// named none, and no job shall fail of that.
func OpenAdminLog(s *config.Settings, o AdminLogOptions) (*slog.Logger, io.Closer, error) {
	logger, closer, err := openAdminLog(s, o)
	oci.LogTo(logger)
	return logger, closer, err
}

func openAdminLog(s *config.Settings, o AdminLogOptions) (*slog.Logger, io.Closer, error) {
	none := io.NopCloser(nil)
	hide := hideSecrets(append(s.Passwords(), o.Secrets...))
	if o.Debug {
		return slog.New(slog.NewTextHandler(o.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: hide})), none, nil
	}
	var lost error
	if s.Defaults.LogFile != "" {
		file, err := os.OpenFile(s.Defaults.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
		if err == nil {
			return slog.New(logHandler(s.Defaults, file, hide)), file, nil
		}
		lost = fmt.Errorf("the setting log_file: %w", err)
	}
	if !o.IsRunner {
		return slog.New(slog.DiscardHandler), none, lost
	}
	logger := slog.New(slog.NewTextHandler(o.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: hide}))
	if lost != nil {
		logger.Warn("the log is not written", "error", lost)
	}
	return logger, none, lost
}

func logHandler(t config.Defaults, w io.Writer, replace replaceAttr) slog.Handler {
	options := &slog.HandlerOptions{Level: t.LogLevel, ReplaceAttr: replace}
	if t.LogFormat == "json" {
		return slog.NewJSONHandler(w, options)
	}
	return slog.NewTextHandler(w, options)
}

const (
	// masked stands in for a secret, as in GitLab Runner's job logs.
	masked = "[MASKED]"
	// secretMin is the least length, in bytes, of what is hidden: something shorter
	// stands in many a word. GitLab masks no variable of less than 8 characters.
	secretMin = 4
)

// A replaceAttr is what [slog.HandlerOptions] calls for each attribute, the message
// included.
type replaceAttr = func(groups []string, a slog.Attr) slog.Attr

// hideSecrets replaces the secrets in all that is logged. Nothing here logs a secret
// knowingly; but a library, or the text of another program's error, can hold one.
func hideSecrets(secrets []string) replaceAttr {
	secrets = slices.DeleteFunc(secrets, func(s string) bool { return len(s) < secretMin })
	// The longest first: one may be a part of another.
	slices.SortFunc(secrets, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	var pairs []string
	for _, secret := range secrets {
		pairs = append(pairs, secret, masked)
	}
	replacer := strings.NewReplacer(pairs...)
	return func(_ []string, a slog.Attr) slog.Attr {
		text := ""
		switch a.Value.Kind() {
		case slog.KindString:
			text = a.Value.String()
		case slog.KindAny:
			if _, isLevel := a.Value.Any().(slog.Level); isLevel || a.Value.Any() == nil {
				return a
			}
			text = fmt.Sprint(a.Value.Any())
		default:
			return a
		}
		if hidden := replacer.Replace(text); hidden != text {
			a.Value = slog.StringValue(hidden)
		}
		return a
	}
}
