package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"time"
)

// defaultNetwork is the file with which libvirt comes.
const defaultNetwork = "/usr/share/libvirt/networks/default.xml"

// StartLibvirtd starts this host's libvirtd, qemu:///system, and its network
// "default", once. It ends with the host.
var StartLibvirtd = sync.OnceValue(func() error {
	if !Inside() {
		return errors.New("libvirtd is started only on a host of its own")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, command := range [][]string{
		{"virtlogd", "--daemon"},
		{"libvirtd", "--daemon"}, // returns when it listens
		{"virsh", "--connect", "qemu:///system", "net-define", defaultNetwork},
		{"virsh", "--connect", "qemu:///system", "net-start", "default"},
	} {
		if err := runQuietly(ctx, command); err != nil {
			return fmt.Errorf("start libvirtd: %w", err)
		}
	}
	return nil
})

// runQuietly runs a command whose output matters only if it fails. It goes to a
// file: a daemon would hold a pipe open.
func runQuietly(ctx context.Context, command []string) error {
	output, err := os.CreateTemp("", "output")
	if err != nil {
		return err
	}
	defer os.Remove(output.Name())
	defer output.Close()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(output.Name())
		return fmt.Errorf("%s: %w: %s", command[0], err, bytes.TrimSpace(text))
	}
	return nil
}
