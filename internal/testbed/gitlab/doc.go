// Package gitlab plays GitLab Runner's part for a custom executor driver, to the
// letter of what GitLab Runner 17.9 and 19.4 do with one
// (https://docs.gitlab.com/runner/executors/custom/ and the runner's source,
// executors/custom): the environment, the arguments, the working directory, the
// job response file, the process group, output read to its end, signals, retries
// and the meaning of exit codes.
//
// It knows nothing of the driver: that is an executable file.
package gitlab
