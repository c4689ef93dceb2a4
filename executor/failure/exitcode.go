package failure

import (
	"errors"
	"fmt"
	"os"
	"strconv"
)

// ExitCodes are the exit statuses for the classes.
type ExitCodes struct{ Build, System int }

// ExitCodesFromEnv reads them from GitLab Runner's environment; the defaults are 1 and 2,
// as in GitLab Runner.
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

// Of returns the exit status for an error.
func (c ExitCodes) Of(err error) int {
	var script ScriptError
	if errors.As(err, &script) || Classify(err) == Build {
		return c.Build
	}
	return c.System
}

// ScriptError is the exit status of a script that failed.
type ScriptError int

func (e ScriptError) Error() string {
	return fmt.Sprintf("the script ended with exit status %d", int(e))
}

// WriteExitCode writes the status of a script to path, BUILD_EXIT_CODE_FILE, where GitLab
// Runner reads it. It overwrites that of an earlier stage. path is empty with old
// runners.
func WriteExitCode(path string, status int) error {
	if path == "" {
		return nil
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(status)+"\n"), 0o600); err != nil {
		return fmt.Errorf("tell the runner the exit status (BUILD_EXIT_CODE_FILE): %w", err)
	}
	return nil
}
