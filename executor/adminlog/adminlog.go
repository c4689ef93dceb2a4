// Package adminlog opens the administrator's log, which shows no secret.
package adminlog

import (
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
)

// Options say where the log goes.
type Options struct {
	// File is appended to; empty for none. Level and Format ("json", else text) are
	// for the file alone.
	File   string
	Level  slog.Level
	Format string
	// Debug sends everything to Stderr instead of File: for an administrator who runs
	// a command by hand.
	Debug bool
	// Stderr of the command. It is the job's log in the stages before cleanup. In
	// cleanup it is GitLab Runner's own (IsRunner) and gets warnings if there is no
	// file, or if the file cannot be opened.
	Stderr   io.Writer
	IsRunner bool
	// IsService sends the log to Stderr, which systemd keeps, if there is no file.
	IsService bool
	// Secrets are not shown.
	Secrets []string
}

// Open opens the log. Closing it closes the file. What the author of a job may read
// is never written to this log alone.
//
// The error says that the file cannot be opened. The log is then as if there were no
// file; no job fails for that.
func Open(o Options) (*slog.Logger, io.Closer, error) {
	none := io.NopCloser(nil)
	hide := hideSecrets(o.Secrets)
	if o.Debug {
		return slog.New(slog.NewTextHandler(o.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: hide})), none, nil
	}
	var lost error
	if o.File != "" {
		file, err := os.OpenFile(o.File, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
		if err == nil {
			return slog.New(o.fileHandler(file, hide)), file, nil
		}
		lost = fmt.Errorf("the setting log_file: %w", err)
	}
	if o.IsService {
		return slog.New(o.fileHandler(o.Stderr, hide)), none, lost
	}
	if !o.IsRunner {
		return slog.New(slog.DiscardHandler), none, lost
	}
	logger := slog.New(slog.NewTextHandler(o.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: hide}))
	if lost != nil {
		logger.Warn("cannot open the log file", "error", lost)
	}
	return logger, none, lost
}

func (o Options) fileHandler(w io.Writer, replace replaceAttr) slog.Handler {
	options := &slog.HandlerOptions{Level: o.Level, ReplaceAttr: replace}
	if o.Format == "json" {
		return slog.NewJSONHandler(w, options)
	}
	return slog.NewTextHandler(w, options)
}

const (
	// masked replaces a secret, as in GitLab Runner's job logs.
	masked = "[MASKED]"
	// lineMin is the length, in bytes, of the shortest line of a longer secret, such as
	// a key, that is masked on its own: errors are often written line by line.
	lineMin = 16
	// secretMin is the length, in bytes, of the shortest secret to mask: shorter ones
	// occur in ordinary words. GitLab masks variables of 8 characters or more.
	secretMin = 4
)

// A replaceAttr is called by [slog.HandlerOptions] for each attribute and the message.
type replaceAttr = func(groups []string, a slog.Attr) slog.Attr

// identity lists the attributes that name the job. They contain no secret, and remain: the
// author of a job could hide it from the administrator otherwise.
var identity = []string{"job", "project", "machine", "stage"}

// hideSecrets masks secrets in everything that is logged. The driver logs none itself,
// but a library or the error of another program can contain one.
func hideSecrets(secrets []string) replaceAttr {
	secrets = slices.DeleteFunc(withLines(secrets), func(s string) bool { return len(s) < secretMin })
	// The longest first: one can be part of another.
	slices.SortFunc(secrets, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	var pairs []string
	for _, secret := range secrets {
		pairs = append(pairs, secret, masked)
	}
	replacer := strings.NewReplacer(pairs...)
	return func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && slices.Contains(identity, a.Key) {
			return a
		}
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

// withLines adds the lines of secrets that have several.
func withLines(secrets []string) []string {
	all := slices.Clone(secrets)
	for _, secret := range secrets {
		if !strings.Contains(secret, "\n") {
			continue
		}
		for line := range strings.Lines(secret) {
			if line = strings.TrimSpace(line); len(line) >= lineMin {
				all = append(all, line)
			}
		}
	}
	return all
}
