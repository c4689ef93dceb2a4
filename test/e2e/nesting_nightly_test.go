//go:build boot && nightly

package e2e

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"gitlab-sardine-executor/internal/testbed"
)

// A machine that no client removes goes when it has expired, without serve.
func TestNestingExpires(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode)
		socket := filepath.Join(mode.Dir(t), "run", "nesting.sock")
		_, line := newKey(t)
		s.configureNesting(t, socket, line, 0)
		s.append(t, `nesting_timeout = "1s"`)
		v := s.serve(t)
		client, ctx := nestingClient(t, (&net.Dialer{}).DialContext, socket), deadline(t)
		until(t, "serve listens", func() bool { return status.Code(client.Init(ctx, nil)) != codes.Unavailable })
		vm, _, err := client.Create(ctx, s.image, nil)
		if err != nil {
			t.Fatal(err)
		}
		v.kill(t)
		until(t, "the machine has expired", func() bool { return strings.Contains(s.Run(t, "sweep"), vm.GetId()) })
		if left := s.left(t); left != "nothing" {
			t.Errorf("left is %s", left)
		}
	})
}

// A service that is killed while it evicts an idle machine for a client leaves nothing in the
// way: the next one makes the client's machine, and offers only machines that are well.
func TestKilledServeAtAnEviction(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		const guest = 256 << 20
		s := sharedSite(t, mode)
		socket := filepath.Join(mode.Dir(t), "run", "nesting.sock")
		key, line := newKey(t)
		s.configureNesting(t, socket, line, 2, `memory = "256MiB"`, fmt.Sprintf("host_reserve = '%dB'", hostMemory(t, mode)-2*guest-guest/2))
		v := s.serve(t)
		names := s.awaitIdle(t, 2)
		dial, ctx := (&net.Dialer{}).DialContext, deadline(t)
		client := nestingClient(t, dial, socket)
		if err := client.Init(ctx, nil); err != nil {
			t.Fatal(err)
		}
		victim := names[0]
		evicted := one(t, "guest", isGuest(victim))
		evicted.signal(t, syscall.SIGSTOP) // so that it does not end before serve does
		ended := make(chan error, 1)
		go func() { _, _, err := client.Create(ctx, s.slowImage, nil); ended <- err }()
		until(t, "QEMU is told to end", func() bool {
			if len(ended) > 0 {
				t.Fatalf("Create ended without an eviction: %v", <-ended)
			}
			return evicted.pending(syscall.SIGTERM)
		})
		v.kill(t)
		if err := <-ended; status.Code(err) != codes.Unavailable {
			t.Errorf("Create after serve was killed: %v", err)
		}

		v = s.serve(t)
		client = nestingClient(t, dial, socket)
		until(t, "serve listens again", func() bool { return status.Code(client.Init(ctx, nil)) != codes.Unavailable })
		vm, _, err := client.Create(ctx, s.slowImage, nil)
		if err != nil {
			t.Fatal(err)
		}
		if output, err := inMachine(ctx, dial, vm.GetAddr(), ssh.PublicKeys(key), "echo well"); output != "well\n" || err != nil {
			t.Errorf("the machine of the client: %q, %v", output, err)
		}
		if err := client.Delete(ctx, vm.GetId()); err != nil {
			t.Error(err)
		}
		until(t, "two other machines are ready", func() bool {
			names := s.idle()
			return len(names) == 2 && !slices.Contains(names, victim)
		})
		v.stop(t)
		if left := s.left(t); left != "nothing" {
			t.Errorf("left: %s", left)
		}
	})
}
