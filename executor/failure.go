package executor

import (
	"context"
	"errors"
	"os"
	"strconv"
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
	// SystemFailure: this host, a registry or the network. The runner tries
	// prepare again, and may retry the job.
	SystemFailure Class = iota
	// BuildFailure: the job, its image or the settings. Trying again changes
	// nothing.
	BuildFailure
)

func (c Class) String() string {
	if c == BuildFailure {
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

// jobFault marks err as a [BuildFailure].
func jobFault(err error) error { return jobError{err} }

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
			return SystemFailure
		}
	}
	if errors.As(err, &fault) || errors.As(err, &refused) {
		return BuildFailure
	}
	for _, final := range []error{
		oci.ErrReference, oci.ErrNotFound, oci.ErrDenied, oci.ErrFormat, oci.ErrHostile,
		guestssh.ErrLogin, vm.ErrSpec, config.ErrSettings, job.ErrNotGitLab,
	} {
		if errors.Is(err, final) {
			return BuildFailure
		}
	}
	return SystemFailure
}

// ReportFailure writes the last lines of a stage that failed: what the guest last said on
// its console, if it is about a guest; then, in one line, whose side the failure
// is on, what was tried, and what to do.
func ReportFailure(log *joblog.Log, err error) {
	if console := vm.ConsoleOf(err); console != "" {
		log.Say("The guest's console ended with:")
		for _, line := range strings.Split(console, "\n") {
			log.Say("    %s", line)
		}
	}
	log.Error("%s (%s)", joblog.OneLine(err.Error()), Classify(err))
}

// ExitCodes are the exit statuses by which a stage tells GitLab Runner the class
// of a failure.
type ExitCodes struct{ Build, System int }

// ExitCodesFromEnv reads them from the environment, where the runner puts them;
// their defaults are the runner's, 1 and 2.
func ExitCodesFromEnv() ExitCodes {
	return ExitCodes{
		Build:  exitCodeFromEnv("BUILD_FAILURE_EXIT_CODE", 1),
		System: exitCodeFromEnv("SYSTEM_FAILURE_EXIT_CODE", 2),
	}
}

func exitCodeFromEnv(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil && n > 0 && n < 256 {
		return n
	}
	return otherwise
}

// Of is the exit status for a failure.
func (c ExitCodes) Of(err error) int {
	var script ScriptError
	if errors.As(err, &script) || Classify(err) == BuildFailure {
		return c.Build
	}
	return c.System
}
