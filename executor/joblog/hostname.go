package joblog

import "os"

// Hostname tells in the job's log which of several runners ran the job.
func Hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "this host"
	}
	return name
}
