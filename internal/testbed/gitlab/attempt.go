package gitlab

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

func (b *Build) newAttempt(number int) (*attempt, error) {
	dir, err := os.MkdirTemp(b.runner.Dir, "custom-executor") // 0700
	if err != nil {
		return nil, err
	}
	a := &attempt{number: number, dir: dir}
	response, err := b.job.response()
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(a.responseFile(), response, 0o600); err != nil {
		return nil, err
	}
	return a, b.giveToRunner(dir, a.responseFile())
}

func (a *attempt) responseFile() string { return filepath.Join(a.dir, "response.json") }
func (a *attempt) codeFile() string     { return filepath.Join(a.dir, "exit_code") }

// environment of a stage. The last value of a name wins.
func (b *Build) environment(a *attempt, dirs directories) []string {
	env := append([]string(nil), b.runner.Env...)
	env = append(env,
		"TMPDIR="+a.dir,
		"BUILD_FAILURE_EXIT_CODE="+strconv.Itoa(BuildFailureExitCode),
		"SYSTEM_FAILURE_EXIT_CODE="+strconv.Itoa(SystemFailureExitCode),
		"BUILD_EXIT_CODE_FILE="+a.codeFile(),
		"JOB_RESPONSE_FILE="+a.responseFile(),
	)
	for name, value := range a.config.JobEnv {
		env = append(env, name+"="+value)
	}
	for _, v := range b.job.variables(dirs) {
		env = append(env, "CUSTOM_ENV_"+v.Key+"="+v.Value)
	}
	return env
}

// writeScript writes a stage's script where GitLab Runner does.
func (b *Build) writeScript(a *attempt, name, content string) (string, error) {
	dir, err := os.MkdirTemp(a.dir, "script")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o700); err != nil {
		return "", err
	}
	return path, b.giveToRunner(dir, path)
}

// giveToRunner makes files the property of the user as whom the runner runs.
func (b *Build) giveToRunner(paths ...string) error {
	user := b.runner.Credential
	if user == nil {
		return nil
	}
	for _, path := range paths {
		if err := os.Chown(path, int(user.Uid), int(user.Gid)); err != nil {
			return fmt.Errorf("give to the runner's user: %w", err)
		}
	}
	return nil
}
