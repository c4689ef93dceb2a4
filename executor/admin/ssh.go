package admin

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"gitlab-sardine-executor/executor"
	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
)

// SSH opens a shell in the machine of a job and returns its exit status. job is the
// name of the machine, or the number of the job if that is unique on this host.
func SSH(ctx context.Context, s *config.Settings, job string, stdin *os.File, stdout, stderr io.Writer) (int, error) {
	dirs, err := s.Dirs()
	if err != nil {
		return 0, err
	}
	host, err := executor.OpenHost(ctx, s)
	if err != nil {
		return 0, err
	}
	defer host.Close()
	name, err := findMachine(ctx, host, job)
	if err != nil {
		return 0, err
	}
	guest, err := executor.Connect(ctx, host, name, dirs.Job(name))
	if err != nil {
		return 0, err
	}
	defer guest.Close()
	return guest.Shell(ctx, stdin, stdout, stderr)
}

// findMachine returns the name of the machine.
func findMachine(ctx context.Context, host *virt.Host, job string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, executor.LibvirtTimeout)
	defer cancel()
	machines, err := record.List(ctx, host)
	if err != nil {
		return "", err
	}
	var found []string
	for _, m := range machines {
		if m.Record.Idle {
			continue
		}
		if m.Name == job || m.MachineName() == job || m.Record.Job == job {
			found = append(found, m.MachineName())
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("no machine of job %s is running on this host (keep_on_failure keeps the machines of failed jobs)", job)
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("more than one machine has a job %s; name one of them: %s", job, strings.Join(found, ", "))
}
