package host

import (
	"bytes"
	"context"
	_ "embed" // the network
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// defaultNetwork is libvirt's own "default", but without two waits of seconds:
// dnsmasq does not look whether an address is free before it offers it, and the
// bridge does not look for loops (STP) before it forwards.
//
//go:embed default-network.xml
var defaultNetwork []byte

// StartLibvirtd starts this host's libvirtd, qemu:///system, and its network
// "default", once. It ends with the host.
var StartLibvirtd = sync.OnceValue(func() error {
	if !Inside() {
		return errors.New("libvirtd is started only on a host of its own")
	}
	network := filepath.Join(TempDir, "default-network.xml")
	if err := os.WriteFile(network, defaultNetwork, 0o644); err != nil {
		return err
	}
	defer os.Remove(network)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, command := range [][]string{
		{"virtlogd", "--daemon"},
		{"libvirtd", "--daemon"}, // returns when it listens
		{"virsh", "--connect", "qemu:///system", "net-define", network},
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
