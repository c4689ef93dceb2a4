package nesting

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gitlab.com/gitlab-org/fleeting/nesting/api"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/failure"
	"gitlab-sardine-executor/executor/job"
	"gitlab-sardine-executor/executor/metrics"
	"gitlab-sardine-executor/executor/serve"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
	"gitlab-sardine-executor/vm/virt/virttest"
)

// A fixture is a running component with libvirt's in-memory driver.
type fixture struct {
	env    serve.Env
	socket string
	stop   func() error
}

// newEnv has settings for a component; more are lines for [defaults].
func newEnv(t *testing.T, more string) (env serve.Env, socket string) {
	t.Helper()
	dir := t.TempDir()
	socket = filepath.Join(dir, "run", "nesting.sock")
	file := filepath.Join(dir, "config.toml")
	// Longer than the path of a socket may be.
	storage := filepath.Join(dir, strings.Repeat("storage-", 12))
	text := fmt.Sprintf("[serve]\nnesting = true\nnesting_socket = %q\n[defaults]\nstorage = %q\nconnect = 'test:///default'\n%s", socket, storage, more)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(storage, "jobs"), 0o700); err != nil {
		t.Fatal(err)
	}
	current, err := serve.NewCurrent(func() (*config.Settings, error) { return config.Load(file) })
	if err != nil {
		t.Fatal(err)
	}
	return serve.Env{Settings: current, Log: slog.New(slog.DiscardHandler), Metrics: &metrics.Live{}}, socket
}

func start(t *testing.T, more string) *fixture {
	t.Helper()
	env, socket := newEnv(t, more)
	f := &fixture{env: env, socket: socket}
	f.run(t)
	return f
}

// run starts the component, and waits until it listens.
func (f *fixture) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- New(f.env).Run(ctx) }()
	f.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(20 * time.Second):
			return errors.New("the component did not end")
		}
	})
	t.Cleanup(func() {
		if err := f.stop(); err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		conn, err := net.Dial("unix", f.socket)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// client connects as GitLab Runner does.
func (f *fixture) client(t *testing.T) api.Client {
	t.Helper()
	conn, err := api.NewClientConn("unix://"+f.socket, func(_ context.Context, network, address string) (net.Conn, error) {
		return net.Dial(network, address)
	})
	if err != nil {
		t.Fatal(err)
	}
	client := api.New(conn)
	t.Cleanup(func() { client.Close() })
	return client
}

func (f *fixture) initialized(t *testing.T) api.Client {
	t.Helper()
	client := f.client(t)
	if err := client.Init(t.Context(), []byte("null")); err != nil {
		t.Fatal(err)
	}
	return client
}

func TestInit(t *testing.T) {
	f := start(t, "")
	client := f.client(t)
	if _, _, err := client.Create(t.Context(), "x", nil); !errors.Is(err, api.ErrNotInitialized) {
		t.Errorf("Create before Init: %v", err)
	}
	for _, hostile := range []string{"[]", "7", "{", `{"hypervisor": "tart"}`, `{"a\u001b[31m": 1}`, strings.Repeat("[", 1<<20), "\xff\x00"} {
		err := client.Init(t.Context(), []byte(hostile))
		if status.Code(err) != codes.InvalidArgument || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' }) {
			t.Errorf("Init %.30q: %.300v", hostile, err)
		}
	}
	if err := client.Init(t.Context(), []byte("{}")); err != nil {
		t.Error(err)
	}
	if err := client.Init(t.Context(), nil); !errors.Is(err, api.ErrAlreadyInitialized) {
		t.Errorf("the second Init: %v", err)
	}
	if err := errors.Join(client.Shutdown(t.Context()), client.Init(t.Context(), []byte("null"))); err != nil {
		t.Errorf("Init after Shutdown: %v", err)
	}
}

// What the author of a job can write into image: is refused as in prepare, with the line that
// the log of a job would get, and leaves nothing.
func TestHostileImages(t *testing.T) {
	f := start(t, "allowed_images = ['registry.example.com/**']\n")
	client := f.initialized(t)
	for _, test := range []struct {
		image string
		code  codes.Code
		want  string
	}{
		{"", codes.InvalidArgument, "the job names no image"},
		{"evil.example.com/a:1", codes.InvalidArgument, `image evil.example.com/a:1 is not allowed here (allowed_images: ["registry.example.com/**"]) (build failure)`},
		{"oci:/etc:1", codes.InvalidArgument, "not allowed"},
		{"file:/etc/shadow", codes.InvalidArgument, "not allowed"},
		{"registry.example.com/../../etc/passwd", codes.InvalidArgument, "(build failure)"},
		{"registry.example.com/a\x1b]0;owned\a\r\nERROR: x", codes.InvalidArgument, "(build failure)"},
		{"registry.example.com/$(reboot)", codes.InvalidArgument, "(build failure)"},
		{"registry.example.com/" + strings.Repeat("a", 4000), codes.InvalidArgument, "longer than 1024 bytes"},
		{strings.Repeat("é", 1<<20), codes.InvalidArgument, "longer than 1024 bytes"},
		{strings.Repeat("a", 5<<20), codes.ResourceExhausted, "larger than max"},
	} {
		_, _, err := client.Create(t.Context(), test.image, nil)
		message := status.Convert(err).Message()
		if status.Code(err) != test.code || !strings.Contains(message, test.want) {
			t.Errorf("Create %.60q: %.500v; want %s, %q", test.image, err, test.code, test.want)
		}
		if strings.ContainsFunc(message, func(r rune) bool { return r < ' ' || r == 0x7f }) || len(message) > 8<<10 {
			t.Errorf("Create %.60q: the message is %.500q", test.image, message)
		}
	}
	if vms, err := client.List(t.Context()); err != nil || len(vms) > 0 {
		t.Errorf("List: %v, %v", vms, err)
	}
	dirs, err := f.env.Settings.Get().Dirs()
	if err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dirs.Jobs, "sardine-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// machine starts a domain with the record of a machine.
func machine(t *testing.T, h *virt.Host, name string, r record.Record) {
	t.Helper()
	r.Created = time.Now().UTC().Truncate(time.Second)
	r.Expires = r.Created.Add(time.Hour)
	metadata, err := r.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	virttest.Start(t, h, &libvirtxml.Domain{Name: name, Metadata: metadata}).Free()
}

func exists(t *testing.T, h *virt.Host, name string) bool {
	t.Helper()
	dom, err := h.Domain(t.Context(), name)
	if err == nil {
		dom.Free()
	} else if !errors.Is(err, errdefs.ErrNoDomain) {
		t.Fatal(err)
	}
	return err == nil
}

// machineOf is the name of a machine of this API.
func machineOf(number string) string { return job.Job{ID: number, Server: server}.VMName() }

// After a restart the machines are known from libvirt: List shows those that are ready, Delete
// removes them without Init, and those that were not ready are gone. A machine of a job of the
// custom executor, or without an owner, cannot be removed.
func TestMachinesOfAnEarlierServe(t *testing.T) {
	env, socket := newEnv(t, "")
	h := virttest.Open(t)
	ready, half, idle, claimed := machineOf("7"), machineOf("8"), "sardine-idle-0123456789ab", "sardine-idle-0123456789ac"
	jobs := job.Job{ID: "7", Server: "https://gitlab.example.com"}.VMName()
	machine(t, h, ready, record.Record{Job: "7", Server: server, Image: "registry.example.com/a:1", Address: "127.0.0.1:2222", User: "ci"})
	machine(t, h, half, record.Record{Job: "8", Server: server, Image: "registry.example.com/a:1"})
	machine(t, h, jobs, record.Record{Job: "7", Server: "https://gitlab.example.com", Address: "127.0.0.1:2223", User: "ci"})
	machine(t, h, idle, record.Record{Idle: true, Address: "127.0.0.1:2224", User: "ci"})
	machine(t, h, claimed, record.Record{Job: "9", Server: server, Machine: machineOf("9"), Address: "127.0.0.1:2225", User: "ci"})
	virttest.Start(t, h, &libvirtxml.Domain{Name: machineOf("10")}).Free()
	// The link that a job leaves when it takes an idle machine.
	dirs, err := env.Settings.Get().Dirs()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(claimed, filepath.Join(dirs.Jobs, machineOf("9"))); err != nil {
		t.Fatal(err)
	}
	f := &fixture{env: env, socket: socket}
	f.run(t)
	client := f.client(t)
	vms, err := client.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]string{}
	for _, vm := range vms {
		listed[vm.GetId()] = vm.GetName() + " " + vm.GetAddr()
	}
	if len(listed) != 2 || listed[ready] != "registry.example.com/a:1 127.0.0.1:2222" || listed[machineOf("9")] != " 127.0.0.1:2225" {
		t.Errorf("List: %v", listed)
	}
	if exists(t, h, half) {
		t.Error("a machine that was not ready is still there")
	}
	for _, id := range []string{"", "x", jobs, idle, claimed, "../" + ready, ready + "\n", strings.Repeat("9", 1<<20), machineOf("007x")} {
		if err := client.Delete(t.Context(), id); status.Code(err) != codes.InvalidArgument {
			t.Errorf("Delete %.60q: %.300v", id, err)
		}
	}
	if err := client.Delete(t.Context(), machineOf("10")); err == nil || !exists(t, h, machineOf("10")) {
		t.Errorf("Delete of a domain that is not a job's: %v", err)
	}
	for _, id := range []string{ready, ready, machineOf("9"), machineOf("9"), machineOf("11")} {
		if err := client.Delete(t.Context(), id); err != nil {
			t.Errorf("Delete %s: %v", id, err)
		}
	}
	for name, want := range map[string]bool{ready: false, claimed: false, jobs: true, idle: true} {
		if exists(t, h, name) != want {
			t.Errorf("%s exists: %v", name, !want)
		}
	}
}

func TestTooManyCreates(t *testing.T) {
	env, _ := newEnv(t, "")
	m := newMachines(env, t.Context())
	for range maxCreates {
		m.making <- struct{}{}
	}
	if _, err := m.Create(t.Context(), "registry.example.com/a:1"); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("got %v", err)
	}
}

// The work for a call ends with its client, and with serve, as a stage ends by a signal.
func TestBound(t *testing.T) {
	ending, end := context.WithCancel(t.Context())
	m := &machines{ending: ending}
	client, leave := context.WithCancel(t.Context())
	first, release := m.bound(client)
	defer release()
	leave()
	<-first.Done()
	if cause := context.Cause(first); !errors.Is(cause, failure.ErrCancelled) || errors.Is(cause, errEnding) {
		t.Errorf("the client is gone: %v", cause)
	}
	second, release := m.bound(t.Context())
	defer release()
	end()
	<-second.Done()
	if cause := context.Cause(second); !errors.Is(cause, errEnding) {
		t.Errorf("serve is ending: %v", cause)
	}
}

// A Create ends with its client, and with serve: here it waits for a registry that does not
// answer.
func TestCreateEnds(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	asked := make(chan struct{}, 100)
	go func() {
		for {
			conn, err := silent.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			asked <- struct{}{}
		}
	}()
	f := start(t, "accel = 'tcg'\nnetwork = 'user'\n")
	client := f.initialized(t)
	image := silent.Addr().String() + "/a:1"
	begin := func(ctx context.Context) chan error {
		ended := make(chan error, 1)
		go func() { _, _, err := client.Create(ctx, image, nil); ended <- err }()
		select {
		case <-asked:
		case err := <-ended:
			t.Fatalf("the registry was not asked: %v", err)
		}
		return ended
	}
	ctx, cancel := context.WithCancel(t.Context())
	first := begin(ctx)
	cancel()
	if err := <-first; status.Code(err) != codes.Canceled {
		t.Errorf("after the client's cancel: %v", err)
	}
	second := begin(t.Context())
	if err := f.stop(); err != nil {
		t.Error(err)
	}
	if err := <-second; status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "serve is ending") {
		t.Errorf("at the end of serve: %v", err)
	}
	if _, err := os.Lstat(f.socket); err == nil {
		t.Error("the socket is still there")
	}
}

// The socket has its mode and group before anything can connect; a stale one is replaced, and
// one that is in use is an error which says so.
func TestSocket(t *testing.T) {
	env, socket := newEnv(t, "")
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: socket}); err != nil {
		t.Fatal(err)
	}
	syscall.Close(fd)
	f := &fixture{env: env, socket: socket}
	f.run(t)
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	err = New(env).Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "another process listens there") {
		t.Errorf("a second one: %v", err)
	}
	if _, err := f.client(t).List(t.Context()); !errors.Is(err, api.ErrNotInitialized) {
		t.Errorf("the first one, after that: %v", err)
	}
}

func TestGroup(t *testing.T) {
	if _, err := groupID("no-such-group-here"); err == nil || !strings.Contains(err.Error(), "nesting_group") {
		t.Errorf("got %v", err)
	}
	own, err := user.LookupGroupId(fmt.Sprint(os.Getgid()))
	if err != nil {
		t.Fatal(err)
	}
	if id, err := groupID(own.Name); err != nil || id != os.Getgid() {
		t.Errorf("%s: %d, %v", own.Name, id, err)
	}
}

// A component without the setting does nothing.
func TestOff(t *testing.T) {
	env, socket := newEnv(t, "")
	env.Settings.Get().Serve.Nesting = false
	if err := New(env).Run(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(socket); err == nil {
		t.Error("there is a socket")
	}
}
