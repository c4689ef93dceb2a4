package guestshell

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/vm/guestssh"
)

const (
	thisBoot = "0b7e1c1a-5a45-4a39-9a0b-d2e0a2f6a1c3"
	nextBoot = "9f2f6f4e-3a58-4a0e-8c66-0e7f4c1b2d4a"
)

// bootGuest is a guest that runs commands on this host, in the boot that the file at path
// names.
func bootGuest(t *testing.T, path, shell string) guestFunc {
	home := t.TempDir()
	return func(ctx context.Context, c guestssh.Command) (int, error) {
		text, err := io.ReadAll(c.Stdin)
		if err != nil {
			return 0, err
		}
		of := strings.NewReplacer("/proc/sys/kernel/random/boot_id", path)
		line := strings.Replace(of.Replace(c.Line), "exec sh -l", "exec "+shell+" -l", 1)
		cmd := exec.CommandContext(ctx, "sh", "-c", line)
		cmd.Env = []string{"HOME=" + home, "PATH=" + os.Getenv("PATH")}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(of.Replace(string(text))), c.Stdout, c.Stderr
		err = cmd.Run()
		if exit := new(exec.ExitError); errors.As(err, &exit) {
			return exit.ExitCode(), nil
		}
		return 0, err
	}
}

// A script runs in the boot that prepare has seen, and in no other. A guest that does not
// tell its boot runs it.
func TestOtherBoot(t *testing.T) {
	settings := config.Resolved{Shell: "bash", WaitFor: "login", GuestBuildsDir: t.TempDir(), GuestCacheDir: t.TempDir()}
	for _, local := range localShells {
		if !isHere(local.command) {
			continue
		}
		t.Run(local.command, func(t *testing.T) {
			path := t.TempDir() + "/boot_id"
			write := func(id string) {
				t.Helper()
				if err := os.WriteFile(path, []byte(id+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			guest := bootGuest(t, path, local.command)
			write(thisBoot)
			dir := t.TempDir()
			if err := Settle(t.Context(), guest, settings, dir, joblog.New(io.Discard)); err != nil || LoadBoot(dir) != thisBoot {
				t.Fatalf("prepare saw the boot %q, %v", LoadBoot(dir), err)
			}
			run := func(boot Boot, size int, end string) (string, int, error) {
				var output strings.Builder
				script := "echo ran ${REPLY-unset}\n" + end + "\n" + strings.Repeat("#\n", size/2)
				status, err := shells[local.shell].RunScript(t.Context(), guest, strings.NewReader(script), Options{Boot: boot}, &output, &output)
				return output.String(), status, err
			}
			for _, size := range []int{0, smallMax, largeMin} {
				// A status that means another boot, and does not here.
				if output, status, err := run(LoadBoot(dir), size, "exit 213"); output != "ran unset\n" || status != 213 || err != nil {
					t.Errorf("%d bytes, the same boot: %q, %d, %v", size, output, status, err)
				}
				write(nextBoot)
				if output, _, err := run(LoadBoot(dir), size, "exit 0"); output != "" || !errors.Is(err, ErrOtherBoot) {
					t.Errorf("%d bytes, another boot: %q, %v", size, output, err)
				}
				if output, status, err := run("", size, "exit 3"); output != "ran unset\n" || status != 3 || err != nil {
					t.Errorf("%d bytes, any boot: %q, %d, %v", size, output, status, err)
				}
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
				if output, status, err := run(LoadBoot(dir), size, "exit 0"); output != "ran unset\n" || status != 0 || err != nil {
					t.Errorf("%d bytes, a guest that does not tell: %q, %d, %v", size, output, status, err)
				}
				write(thisBoot)
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if err := Settle(t.Context(), guest, settings, dir, joblog.New(io.Discard)); LoadBoot(dir) != "" || err != nil {
				t.Errorf("a guest without boot IDs: %q, %v", LoadBoot(dir), err)
			}
		})
	}
}

// What a guest says of its boot gets into command lines only if it is a boot ID.
func TestBootIsNoCommand(t *testing.T) {
	for _, said := range []string{"", "'; reboot; '", thisBoot + "'", "$(reboot)", strings.ToUpper(thisBoot)} {
		if boot := bootIn(answerMark + "boot " + said + "\n"); boot != "" {
			t.Errorf("%q became %q", said, boot)
		}
	}
}
