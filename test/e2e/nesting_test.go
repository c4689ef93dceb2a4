//go:build boot

package e2e

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gitlab.com/gitlab-org/fleeting/nesting/api"
	"gitlab.com/gitlab-org/fleeting/nesting/hypervisor"
	"golang.org/x/crypto/ssh"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"gitlab-sardine-executor/internal/testbed"
)

// A dialFunc opens connections from a host: to sockets, and to its guests.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// newSigner makes an SSH key.
func newSigner() (ssh.Signer, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return ssh.NewSignerFromKey(private)
}

// newKey makes an SSH key, and its line for authorized_keys.
func newKey(t testing.TB) (ssh.Signer, string) {
	t.Helper()
	signer, err := newSigner()
	if err != nil {
		t.Fatal(err)
	}
	return signer, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
}

// nestingClient connects to the nesting API as GitLab Runner does: by GitLab's client.
func nestingClient(t testing.TB, dial dialFunc, socket string) api.Client {
	t.Helper()
	conn, err := api.NewClientConn("unix://"+socket, api.Dialer(dial))
	if err != nil {
		t.Fatal(err)
	}
	client := api.New(conn)
	t.Cleanup(func() { client.Close() })
	return client
}

// inMachine runs a command in the machine of a client, and returns its output.
func inMachine(ctx context.Context, dial dialFunc, address string, auth ssh.AuthMethod, command string) (string, error) {
	conn, err := dial(ctx, "tcp", address)
	if err != nil {
		return "", fmt.Errorf("connect to the machine: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	// GitLab Runner does not know the host keys of guests either.
	c, channels, requests, err := ssh.NewClientConn(conn, address, &ssh.ClientConfig{User: "vagrant", Auth: []ssh.AuthMethod{auth}, HostKeyCallback: ssh.InsecureIgnoreHostKey()})
	if err != nil {
		return "", fmt.Errorf("log in to the machine: %w", err)
	}
	client := ssh.NewClient(c, channels, requests)
	defer client.Close()
	session, err := client.NewSession()
	if err != nil {
		return "", err
	}
	// Two goroutines write. One buffer as Stdout and Stderr would lose what is in it when the
	// empty one ends.
	output, err := session.CombinedOutput(command)
	return string(output), err
}

// configureNesting writes settings with the nesting API, for clients with that key.
func (s *site) configureNesting(t testing.TB, socket, key string, machines int, settings ...string) {
	t.Helper()
	s.configureIdle(t, machines, append(settings, `pull_policy = "if-not-present"`, fmt.Sprintf("allowed_images = [%q]", strings.TrimSuffix(s.image, "guest:1")+"*"))...)
	s.append(t, "[serve]", "nesting = true", fmt.Sprintf("nesting_socket = %q", socket), fmt.Sprintf("nesting_authorized_keys = [%q]", key))
}

// append adds lines to the settings.
func (s *site) append(t testing.TB, lines ...string) {
	t.Helper()
	text, err := os.ReadFile(s.Config)
	if err != nil {
		t.Fatal(err)
	}
	s.Mode.WriteFile(t, s.Config, string(text)+strings.Join(lines, "\n")+"\n")
}

// A client of the nesting API gets a machine that was ready before, and one that boots. They are
// like those of jobs, and outlive a serve that is killed.
func TestNesting(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode)
		c := &nestingUser{site: s, socket: filepath.Join(mode.Dir(t), "run", "nesting.sock"), dial: (&net.Dialer{}).DialContext, ctx: deadline(t)}
		c.key, c.line = newKey(t)
		s.configureNesting(t, c.socket, c.line, 1)
		v := s.serve(t)
		first := s.awaitIdle(t, 1)[0]
		c.Client = nestingClient(t, c.dial, c.socket)
		c.checkRefusals(t)
		idle := c.checkIdle(t, first)

		// The slot's machine is replaced by one that boots.
		booted, stomped, err := c.Create(c.ctx, s.image, new(int32))
		if err != nil || stomped == nil || *stomped != idle.GetId() || strings.Contains(mode.Virsh(t, "list", "--name"), first) {
			t.Fatalf("Create in the same slot: %v, %v, %v", booted, stomped, err)
		}
		until(t, "idle machines are gone", func() bool { return len(s.idleDomains(t)) == 0 })
		if output, err := inMachine(c.ctx, c.dial, booted.GetAddr(), ssh.PublicKeys(c.key), "cat /tmp/mark"); err == nil {
			t.Errorf("the machine is not fresh: %s", output)
		}
		v.kill(t)
		v = s.serve(t)
		c.checkAfterKill(t, booted)
		c.checkVanishing(t)
		v.stop(t)
	})
}

// A nestingUser is a client of the nesting API, with the key by which it logs in to machines.
type nestingUser struct {
	api.Client
	*site
	socket string
	dial   dialFunc
	key    ssh.Signer
	line   string // of the key in authorized_keys
	ctx    context.Context
}

// checkRefusals initializes the API, and asks for what it does not give.
func (c *nestingUser) checkRefusals(t *testing.T) {
	t.Helper()
	if _, _, err := c.Create(c.ctx, c.image, new(int32)); !errors.Is(err, api.ErrNotInitialized) {
		t.Errorf("Create before Init: %v", err)
	}
	if err := c.Init(c.ctx, []byte("null")); err != nil {
		t.Fatal(err)
	}
	for image, code := range map[string]codes.Code{
		strings.Replace(c.image, "guest:1", "missing:1", 1): codes.NotFound, "docker.io/library/debian": codes.InvalidArgument,
	} {
		if _, _, err := c.Create(c.ctx, image, nil); status.Code(err) != code || !strings.Contains(err.Error(), "(build failure)") {
			t.Errorf("Create %s: %v", image, err)
		}
	}
}

// checkIdle takes the machine that waits in that domain, for slot 0, and leaves a mark in it.
func (c *nestingUser) checkIdle(t *testing.T, domain string) hypervisor.VirtualMachine {
	t.Helper()
	vm, _, err := c.Create(c.ctx, c.image, new(int32))
	if err != nil {
		t.Fatal(err)
	}
	c.configureNesting(t, c.socket, c.line, 0)
	if titles := c.Mode.Virsh(t, "list", "--title"); !strings.Contains(titles, domain) || !strings.Contains(titles, vm.GetId()) {
		t.Errorf("%s is not %s:\n%s", vm.GetId(), domain, titles)
	}
	for name, auth := range map[string]ssh.AuthMethod{"key": ssh.PublicKeys(c.key), "password": ssh.Password("vagrant")} {
		if output, err := inMachine(c.ctx, c.dial, vm.GetAddr(), auth, "echo mark >>/tmp/mark; cat /tmp/mark | tail -n 1"); output != "mark\n" || err != nil {
			t.Errorf("by %s: %q, %v", name, output, err)
		}
	}
	c.checkStatus(t, vm.GetId())
	number := vm.GetId()[strings.LastIndexByte(vm.GetId(), '-')+1:]
	cmd := c.Mode.Command(c.ctx, c.Driver, "--config", c.Config, "ssh", number)
	cmd.Stdin = strings.NewReader("cat /tmp/mark\n")
	if output, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(output), "mark") {
		t.Errorf("the command ssh: %v, %s", err, output)
	}
	return vm
}

// checkAfterKill wants a new serve to know the machine of the one that was killed.
func (c *nestingUser) checkAfterKill(t *testing.T, vm hypervisor.VirtualMachine) {
	t.Helper()
	c.Client = nestingClient(t, c.dial, c.socket)
	until(t, "serve listens again", func() bool { _, err := c.List(c.ctx); return status.Code(err) != codes.Unavailable })
	vms, err := c.List(c.ctx)
	if err != nil || len(vms) != 1 || vms[0].GetId() != vm.GetId() || vms[0].GetAddr() != vm.GetAddr() || vms[0].GetName() != c.image {
		t.Errorf("List after a kill of serve: %v, %v", vms, err)
	}
	for range 2 {
		if err := c.Delete(c.ctx, vm.GetId()); err != nil {
			t.Errorf("Delete: %v", err)
		}
	}
}

// checkVanishing is a client that vanishes while its machine boots.
func (c *nestingUser) checkVanishing(t *testing.T) {
	t.Helper()
	ctx, vanish := context.WithCancel(c.ctx)
	defer vanish()
	ended := make(chan error, 1)
	go func() { _, _, err := c.Create(ctx, c.image, nil); ended <- err }()
	until(t, "the machine boots", func() bool { return strings.Contains(c.Mode.Virsh(t, "list", "--name"), "sardine-") })
	vanish()
	if err := <-ended; status.Code(err) != codes.Canceled {
		t.Errorf("a Create that was cancelled: %v", err)
	}
	until(t, "its machine is gone", func() bool { return c.left(t) == "nothing" })
}

// checkStatus wants status to show the machine as it shows those of jobs.
func (s *site) checkStatus(t testing.TB, machine string) {
	t.Helper()
	if text := s.Run(t, "status", "--json"); !strings.Contains(text, `"nesting"`) || !strings.Contains(text, machine[strings.LastIndexByte(machine, '-')+1:]) {
		t.Errorf("status does not show %s: %s", machine, text)
	}
}

// BenchmarkNesting measures Create with an idle machine, against a login by ssh to the same
// machine, and Delete.
func BenchmarkNesting(b *testing.B) {
	mode := testbed.Session(b)
	s := newSite(b, mode)
	socket := filepath.Join(mode.Dir(b), "run", "nesting.sock")
	_, line := newKey(b)
	s.configureNesting(b, socket, line, 1)
	v := s.serve(b)
	shell := newSSH(b, mode)
	client := nestingClient(b, (&net.Dialer{}).DialContext, socket)
	until(b, "serve listens", func() bool { return status.Code(client.Init(b.Context(), nil)) != codes.Unavailable })
	times := map[string][]time.Duration{}
	for b.Loop() {
		for range rounds {
			s.awaitIdle(b, 1)
			began := time.Now()
			vm, _, err := client.Create(b.Context(), s.image, nil)
			times["create"] = append(times["create"], time.Since(began))
			if err != nil {
				b.Fatal(err)
			}
			times["ssh true"] = append(times["ssh true"], shell.run(b, vm.GetAddr()))
			began = time.Now()
			if err := client.Delete(b.Context(), vm.GetId()); err != nil {
				b.Fatal(err)
			}
			times["delete"] = append(times["delete"], time.Since(began))
		}
	}
	slices.Sort(times["create"])
	b.Logf("create: %v", times["create"])
	compare(b, times, "create", "ssh true")
	compare(b, times, "delete", "")
	v.stop(b)
}
