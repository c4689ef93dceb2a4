// Package failure decides what an error means to GitLab Runner: its class, its exit status
// and the last line of the log.
package failure

import (
	"context"
	"errors"
	"strings"
	"syscall"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/job"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/vm/console"
	"gitlab-sardine-executor/vm/domainxml"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/guestssh"
)

// A Class decides what GitLab Runner does after a failure.
type Class int

const (
	// System is a failure of the host, a registry or the network. GitLab Runner retries
	// prepare, and may retry the job.
	System Class = iota
	// Build is a failure of the job, its image or the settings: a retry does not help.
	Build
)

func (c Class) String() string {
	if c == Build {
		return "build failure"
	}
	return "system failure"
}

// ErrCancelled says that the stage got SIGTERM or SIGINT. GitLab Runner sends SIGTERM for a
// canceled job, a timeout and its own end alike, and does not say which.
var ErrCancelled = errors.New("ended by a signal: canceled, timed out, or the runner stopped")

// A jobError is a failure that the job's author or the administrator has to fix.
type jobError struct{ err error }

func (e jobError) Error() string { return e.err.Error() }
func (e jobError) Unwrap() error { return e.err }

// OfJob marks err as a [Build] failure.
func OfJob(err error) error { return jobError{err} }

// hostErrors are failures of the host whatever the operation: disk full or broken, no
// memory, too many open files.
var hostErrors = []error{
	syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.EROFS, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM,
}

// Classify is the only place where an error becomes a class (docs/reliability.md). An
// unknown error is a [System] failure, because a retry may help.
func Classify(err error) Class {
	var fault jobError
	var refused *domainxml.RefusedError
	for _, passing := range append([]error{ErrCancelled, context.Canceled}, hostErrors...) {
		if errors.Is(err, passing) {
			return System
		}
	}
	if errors.As(err, &fault) || errors.As(err, &refused) {
		return Build
	}
	for _, final := range []error{
		oci.ErrReference, oci.ErrNotFound, oci.ErrDenied, oci.ErrFormat, oci.ErrInvalid,
		guestssh.ErrLogin, errdefs.ErrInvalid, errdefs.ErrNoBoot, config.ErrSettings, job.ErrNotGitLab,
	} {
		if errors.Is(err, final) {
			return Build
		}
	}
	return System
}

// Report writes the last lines of a failed stage: the end of the guest's console, if err
// has it, and one line with the error and its class. A stage that a signal ended has not
// failed: Report writes one line without a class.
func Report(log *joblog.Log, err error) {
	if errors.Is(err, ErrCancelled) {
		log.Say("Job %s", ErrCancelled)
		return
	}
	if tail := console.TailOf(err); tail != "" {
		log.Say("The guest's console ended with:")
		for _, line := range strings.Split(tail, "\n") {
			log.Say("    %s", line)
		}
	}
	log.Error("%s (%s)", joblog.OneLine(err.Error()), Classify(err))
}
