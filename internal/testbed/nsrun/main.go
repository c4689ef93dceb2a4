// Command nsrun runs a command on a host of its own, where libvirtd is
// started:
//
//	go run ./internal/testbed/nsrun COMMAND [ARGUMENT...]
//
// When the command ends, so does everything that it left.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"gitlab-sardine-executor/internal/testbed/host"
)

func main() {
	code, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "nsrun:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run() (int, error) {
	if len(os.Args) < 2 {
		return 64, errors.New("which command?")
	}
	if !host.Inside() {
		return host.Rerun()
	}
	if err := host.StartLibvirtd(); err != nil {
		return 1, err
	}
	cmd := exec.Command(os.Args[1], os.Args[2:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}
