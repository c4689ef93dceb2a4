package failure

import (
	"errors"
	"fmt"
	"os"
	"strconv"
)

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
	if errors.As(err, &script) || Classify(err) == Build {
		return c.Build
	}
	return c.System
}

// ScriptError is the status of a script that did not end with 0.
type ScriptError int

func (e ScriptError) Error() string {
	return fmt.Sprintf("the script ended with exit status %d", int(e))
}

// WriteExitCode puts the status of a script where GitLab Runner reads it, over
// whatever an earlier stage put there: BUILD_EXIT_CODE_FILE, the path of which
// may be empty (older runners).
func WriteExitCode(path string, status int) error {
	if path == "" {
		return nil
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(status)+"\n"), 0o600); err != nil {
		return fmt.Errorf("tell the runner the exit status (BUILD_EXIT_CODE_FILE): %w", err)
	}
	return nil
}
