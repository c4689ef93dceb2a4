package vm

import (
	"errors"
	"path/filepath"

	"gitlab-sardine-executor/vm/console"
)

// withConsole adds the last lines of the guest's console to an error.
func withConsole(err error, jobDir string) error {
	tail := console.Tail(filepath.Join(jobDir, ConsoleFile))
	if tail == "" {
		return err
	}
	return &consoleError{err: err, tail: tail}
}

// consoleError keeps the guest's text apart from the message: a log shows both, a one-line
// message only the latter.
type consoleError struct {
	err  error
	tail string
}

func (e *consoleError) Error() string { return e.err.Error() }
func (e *consoleError) Unwrap() error { return e.err }

// ConsoleOf returns the last lines of the console of the guest that err is about; empty if
// there are none.
func ConsoleOf(err error) string {
	var e *consoleError
	if errors.As(err, &e) {
		return e.tail
	}
	return ""
}
