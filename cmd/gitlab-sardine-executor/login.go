package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"gitlab-sardine-executor/cmd/gitlab-sardine-executor/command"
	"gitlab-sardine-executor/executor/job"
	"gitlab-sardine-executor/oci/registry"
)

const registryCategory = "Registries"

type loginFlags struct {
	command.RegistryFlags
	username string
	stdin    bool
}

func loginCommand(cfg *command.Settings, stdout, stderr io.Writer) *cli.Command {
	f := &loginFlags{}
	return &cli.Command{
		Name:      "login",
		Category:  registryCategory,
		Usage:     "store the password for a registry, in the file of skopeo and podman",
		ArgsUsage: "REGISTRY",
		Description: command.Describe("REGISTRY is HOST[:PORT], or HOST[:PORT]/PATH for the images below that path.\n"+
			"login asks for the password, or reads it from stdin, and checks it before it stores it.",
			"login registry.example.com --username ci"),
		Flags: append(f.Flags(),
			&cli.StringFlag{Name: "username", Aliases: []string{"u"}, Usage: "log in as `USER`", Destination: &f.username},
			&cli.BoolFlag{Name: "password-stdin", Usage: "read the password from stdin", Destination: &f.stdin},
		),
		Before: command.LogWarnings(stderr),
		Action: command.WithArguments(1, 1, func(c *cli.Context, args []string) error {
			if job.IsJob(args[0]) { // the name of ssh in early versions
				fmt.Fprintf(stderr, "login is for registries; for machines of jobs use: gitlab-sardine-executor ssh %s\n", args[0])
				return sshToMachine(c.Context, cfg, args[0], stdout, stderr)
			}
			return login(c.Context, f, args[0], os.Stdin, stdout, stderr)
		}),
	}
}

func login(ctx context.Context, f *loginFlags, host string, stdin *os.File, stdout, stderr io.Writer) error {
	if f.username == "" {
		return errors.New("login needs a user name: --username USER")
	}
	password, err := readPassword(f.stdin, stdin, stderr)
	if err != nil {
		return err
	}
	stored, err := registry.Login(ctx, host, f.username, password, f.Credentials())
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "Logged in to %s as %s (%s)\n", host, f.username, stored)
	return err
}

// maxPassword bounds a password on stdin, in bytes; tokens are some KiB long.
const maxPassword = 64 << 10

// readPassword asks for a password without echo, or reads it from a pipe. It is never
// an argument: every user of the host can see those.
func readPassword(piped bool, stdin *os.File, stderr io.Writer) (string, error) {
	if piped {
		text, err := io.ReadAll(io.LimitReader(stdin, maxPassword+1))
		if err != nil {
			return "", fmt.Errorf("read the password from stdin: %w", err)
		}
		if len(text) > maxPassword {
			return "", fmt.Errorf("read the password from stdin: it is longer than %d bytes", maxPassword)
		}
		return strings.TrimRight(string(text), "\r\n"), nil
	}
	if !term.IsTerminal(int(stdin.Fd())) {
		return "", errors.New("no terminal to ask for the password: pipe it in with --password-stdin")
	}
	fmt.Fprint(stderr, "Password: ")
	text, err := term.ReadPassword(int(stdin.Fd()))
	fmt.Fprintln(stderr)
	if err != nil {
		return "", fmt.Errorf("ask for the password: %w", err)
	}
	return string(text), nil
}

type logoutFlags struct {
	authFile string
	all      bool
}

func logoutCommand(stdout io.Writer) *cli.Command {
	f := &logoutFlags{}
	return &cli.Command{
		Name:        "logout",
		Category:    registryCategory,
		Usage:       "remove the password for a registry",
		ArgsUsage:   "REGISTRY | --all",
		Description: command.Describe("", "logout registry.example.com"),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "authfile", Usage: "remove it from `FILE` (default: as with login)", Destination: &f.authFile},
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "remove all passwords", Destination: &f.all},
		},
		Action: command.WithArguments(0, 1, func(c *cli.Context, args []string) error {
			if f.all == (len(args) == 1) {
				return fmt.Errorf("logout needs a registry or --all (usage: %s)", command.UsageOf(c))
			}
			return logout(f, args, stdout)
		}),
	}
}

// logout removes the password for the registry in args, or all passwords.
func logout(f *logoutFlags, args []string, stdout io.Writer) error {
	creds := registry.Credentials{AuthFile: f.authFile}
	if f.all {
		if err := registry.LogoutAll(creds); err != nil {
			return err
		}
		_, err := fmt.Fprintln(stdout, "Logged out of all registries")
		return err
	}
	if err := registry.Logout(args[0], creds); err != nil {
		return err
	}
	_, err := fmt.Fprintf(stdout, "Logged out of %s\n", args[0])
	return err
}
