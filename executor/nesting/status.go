package nesting

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"gitlab-sardine-executor/executor/failure"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/vm/admission"
)

// maxMessage bounds the message of a status, in characters. GitLab Runner copies it to the log
// of the job.
const maxMessage = 2000

// statusOf is the status for an error of a call: the last line of a job's log, and a code.
func statusOf(ctx context.Context, err error) error {
	return status.Error(codeOf(ctx, err), readable(fmt.Sprintf("%s (%s)", joblog.OneLine(err.Error()), failure.Classify(err))))
}

// codeOf never returns FailedPrecondition, which the module uses for its own errors.
func codeOf(ctx context.Context, err error) codes.Code {
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, errEnding):
		return codes.Unavailable
	case errors.Is(cause, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case cause != nil:
		return codes.Canceled
	case errors.Is(err, admission.ErrNoRoom):
		return codes.ResourceExhausted
	case errors.Is(err, oci.ErrNotFound):
		return codes.NotFound
	case errors.Is(err, oci.ErrDenied):
		return codes.PermissionDenied
	case failure.Classify(err) == failure.Build:
		return codes.InvalidArgument
	}
	return codes.Unavailable
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
