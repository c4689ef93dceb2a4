package failure

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/job"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/vm/domainxml"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/guestssh"
)

func TestClassify(t *testing.T) {
	other := errors.New("connection refused")
	for _, test := range []struct {
		err  error
		want Class
	}{
		{oci.ErrReference, Build},
		{oci.ErrNotFound, Build},
		{oci.ErrDenied, Build},
		{oci.ErrFormat, Build},
		{oci.ErrInvalid, Build},
		{guestssh.ErrLogin, Build},
		{errdefs.ErrInvalid, Build},
		{&domainxml.RefusedError{Element: "os/kernel"}, Build},
		{config.ErrSettings, Build},
		{job.ErrNotGitLab, Build},
		{OfJob(errors.New("not allowed")), Build},
		{other, System},
		{errdefs.ErrNoAnswer, System},
		{errdefs.ErrGuestStopped, System},
		{guestssh.ErrLost, System},
		{guestssh.ErrHostKey, System},
		{errdefs.ErrNoDomain, System},
		{errdefs.ErrNotOurs, System},
		{context.DeadlineExceeded, System},
		{ErrCancelled, System},
		{errors.Join(ErrCancelled, oci.ErrNotFound), System}, // the signal decides
	} {
		for _, err := range []error{test.err, fmt.Errorf("prepare: %w", test.err), errors.Join(test.err, other)} {
			if got := Classify(err); got != test.want {
				t.Errorf("%v: %v, want %v", err, got, test.want)
			}
		}
	}
}

// A failure of the host is a system failure whatever the operation.
func TestClassifyHostErrors(t *testing.T) {
	for _, errno := range []syscall.Errno{
		syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.EROFS, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM,
	} {
		cause := &fs.PathError{Op: "open", Path: "/srv/file", Err: errno}
		for _, err := range []error{
			fmt.Errorf("%w: prepare_script: %w", config.ErrSettings, cause),
			fmt.Errorf("%w: write a layer: %w", oci.ErrFormat, cause),
			OfJob(cause),
		} {
			if got := Classify(err); got != System {
				t.Errorf("%v: %v", err, got)
			}
		}
	}
	for _, errno := range []syscall.Errno{syscall.ENOENT, syscall.EACCES, syscall.ENOTDIR, syscall.EISDIR, syscall.ELOOP} {
		err := fmt.Errorf("%w: prepare_script: %w", config.ErrSettings, &fs.PathError{Op: "open", Path: "/srv/file", Err: errno})
		if got := Classify(err); got != Build {
			t.Errorf("%v: %v", err, got)
		}
	}
}

func TestExitCodes(t *testing.T) {
	for _, test := range []struct {
		build, system string
		want          ExitCodes
	}{
		{"", "", ExitCodes{1, 2}},
		{"41", "42", ExitCodes{41, 42}},
		{"0", "x", ExitCodes{1, 2}},
		{"300", "-1", ExitCodes{1, 2}},
	} {
		t.Setenv("BUILD_FAILURE_EXIT_CODE", test.build)
		t.Setenv("SYSTEM_FAILURE_EXIT_CODE", test.system)
		if got := ExitCodesFromEnv(); got != test.want {
			t.Errorf("%q, %q: got %v, want %v", test.build, test.system, got, test.want)
		}
	}
	codes := ExitCodes{Build: 41, System: 42}
	for err, want := range map[error]int{ScriptError(7): 41, oci.ErrNotFound: 41, guestssh.ErrLost: 42, ErrCancelled: 42} {
		if got := codes.Of(err); got != want {
			t.Errorf("%v: %d, want %d", err, got, want)
		}
	}
}
