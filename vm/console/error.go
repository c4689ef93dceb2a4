package console

import "errors"

// WithTail adds the last lines of the log at path to an error, if there are any.
func WithTail(err error, path string) error {
	tail := Tail(path)
	if tail == "" {
		return err
	}
	return &tailError{err: err, tail: tail}
}

// tailError keeps the guest's text apart from the message: a log shows both, a one-line
// message only the latter.
type tailError struct {
	err  error
	tail string
}

func (e *tailError) Error() string { return e.err.Error() }
func (e *tailError) Unwrap() error { return e.err }

// TailOf returns the last lines of the console of the guest that err is about; empty if
// there are none.
func TailOf(err error) string {
	var e *tailError
	if errors.As(err, &e) {
		return e.tail
	}
	return ""
}
