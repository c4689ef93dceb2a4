package nesting

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"gitlab-sardine-executor/executor/failure"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/internal/rpc"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/vm/admission"
)

// maxMessage bounds the message of a status, in characters. GitLab Runner copies it to the log
// of the job.
const maxMessage = 2000

// statusOf is the status for an error of a call: the last line of a job's log, and a code.
func statusOf(ctx context.Context, err error) error {
	return rpc.Errorf(codeOf(ctx, err), "%s", readable(fmt.Sprintf("%s (%s)", joblog.OneLine(err.Error()), failure.Classify(err))))
}

// codeOf never returns FailedPrecondition, which the protocol has for calls before Init.
func codeOf(ctx context.Context, err error) rpc.Code {
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, errEnding):
		return rpc.Unavailable
	case errors.Is(cause, context.DeadlineExceeded):
		return rpc.DeadlineExceeded
	case cause != nil:
		return rpc.Canceled
	case errors.Is(err, admission.ErrNoRoom):
		return rpc.ResourceExhausted
	case errors.Is(err, oci.ErrNotFound):
		return rpc.NotFound
	case errors.Is(err, oci.ErrDenied):
		return rpc.PermissionDenied
	case failure.Classify(err) == failure.Build:
		return rpc.InvalidArgument
	}
	return rpc.Unavailable
}

// readable replaces what does not print: names come from the authors of jobs, and parts of
// errors from registries and guests.
func readable(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, text)
	if runes := []rune(text); len(runes) > maxMessage {
		return string(runes[:maxMessage]) + "…"
	}
	return text
}
