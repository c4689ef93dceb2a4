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
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/domainxml"
	"gitlab-sardine-executor/vm/guestssh"
)

// A Class says whose side a failure is on, and so what GitLab Runner does next.
type Class int

const (
	// System: this host, a registry or the network. The runner tries
	// prepare again, and may retry the job.
	System Class = iota
	// Build: the job, its image or the settings. Trying again changes
	// nothing.
	Build
)

func (c Class) String() string {
	if c == Build {
		return "build failure"
	}
	return "system failure"
}

// ErrCancelled: the stage was told to end (SIGTERM, SIGINT).
var ErrCancelled = errors.New("cancelled by a signal")

// A jobError is a failure that is the job's or the administrator's to mend.
type jobError struct{ err error }

func (e jobError) Error() string { return e.err.Error() }
func (e jobError) Unwrap() error { return e.err }

// OfJob marks err as a [Build].
func OfJob(err error) error { return jobError{err} }

// hostErrors are what this host lacks at the moment, whoever was about to use it: room,
// memory, open files, a disk that works.
var hostErrors = []error{
	syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.EROFS, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM,
}

// Classify is the one place where an error becomes a failure class (the table
// "Failure classes" of the design). What is not known to be final may pass.
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
		oci.ErrReference, oci.ErrNotFound, oci.ErrDenied, oci.ErrFormat, oci.ErrHostile,
		guestssh.ErrLogin, vm.ErrSpec, config.ErrSettings, job.ErrNotGitLab,
	} {
		if errors.Is(err, final) {
			return Build
		}
	}
	return System
}

// Report writes the last lines of a stage that failed: what the guest last said on
// its console, if it is about a guest; then, in one line, whose side the failure
// is on, what was tried, and what to do.
func Report(log *joblog.Log, err error) {
	if console := vm.ConsoleOf(err); console != "" {
		log.Say("The guest's console ended with:")
		for _, line := range strings.Split(console, "\n") {
			log.Say("    %s", line)
		}
	}
	log.Error("%s (%s)", joblog.OneLine(err.Error()), Classify(err))
}
