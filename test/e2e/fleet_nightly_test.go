//go:build boot && nightly

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gitlab.com/gitlab-org/fleeting/nesting/api"
	"golang.org/x/crypto/ssh"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/host"
)

// fleetVariable names the directory of a host of the fleet, to this program that is started
// again as that host.
const fleetVariable = "TESTBED_FLEET_HOST"

// A host of the fleet has its own network, processes, mounts and libvirtd. Of its directory, which
// is its disk, it and the test see the same: config.toml, storage, the program, and sockets,
// which are its network cables.
func init() {
	dir := os.Getenv(fleetVariable)
	if dir == "" {
		return
	}
	code, err := runFleetHost(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "host of the fleet:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func runFleetHost(dir string) (int, error) {
	if !host.Inside() {
		return host.Rerun()
	}
	if err := host.StartLibvirtd(); err != nil {
		return 1, err
	}
	mirror, err := net.Listen("tcp", fleetMirror)
	if err != nil {
		return 1, err
	}
	go acceptAll(mirror, func(conn net.Conn) {
		if to, err := net.Dial("unix", filepath.Join(dir, "mirror.sock")); err == nil {
			pipe(conn, to)
		}
	})
	key, err := os.ReadFile(filepath.Join(dir, "authorized_key"))
	if err != nil {
		return 1, err
	}
	os.Remove(filepath.Join(dir, "ssh.sock"))
	sshd, err := net.Listen("unix", filepath.Join(dir, "ssh.sock"))
	if err != nil {
		return 1, err
	}
	go acceptAll(sshd, func(conn net.Conn) { serveSSH(conn, strings.TrimSpace(string(key))) })
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 1, err
	}
	cmd := exec.Command(filepath.Join(dir, "program"), "--config", filepath.Join(dir, "config.toml"), "serve")
	cmd.Env = append(os.Environ(), "CONTAINERS_REGISTRIES_CONF="+filepath.Join(dir, "registries.conf"))
	cmd.Stdout, cmd.Stderr = log, log
	return 0, cmd.Run()
}

func acceptAll(listener net.Listener, handle func(net.Conn)) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go handle(conn)
	}
}

// pipe copies in both directions until one side ends.
func pipe(a, b io.ReadWriteCloser) {
	var once sync.Once
	both := func() { a.Close(); b.Close() }
	go func() { _, _ = io.Copy(a, b); once.Do(both) }()
	_, _ = io.Copy(b, a)
	once.Do(both)
}

// serveSSH is what a runner manager needs of a host's sshd: connections to sockets and ports, as
// OpenSSH forwards them (RFC 4254, 7.2; OpenSSH's PROTOCOL, 2.4).
func serveSSH(conn net.Conn, authorized string) {
	defer conn.Close()
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) != authorized {
			return nil, errors.New("unknown key")
		}
		return nil, nil
	}}
	signer, err := newSigner()
	if err != nil {
		return
	}
	config.AddHostKey(signer)
	_, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for offered := range channels {
		go forwardChannel(offered)
	}
}

// forwardChannel connects a channel with the socket or port that its opener asks for.
func forwardChannel(offered ssh.NewChannel) {
	network, address := "", ""
	switch offered.ChannelType() {
	case "direct-streamlocal@openssh.com":
		var to struct {
			Path     string
			Reserved string
			Port     uint32
		}
		if ssh.Unmarshal(offered.ExtraData(), &to) == nil {
			network, address = "unix", to.Path
		}
	case "direct-tcpip":
		var to struct {
			Host       string
			Port       uint32
			Origin     string
			OriginPort uint32
		}
		if ssh.Unmarshal(offered.ExtraData(), &to) == nil {
			network, address = "tcp", net.JoinHostPort(to.Host, strconv.Itoa(int(to.Port)))
		}
	}
	to, err := net.DialTimeout(network, address, 10*time.Second)
	if err != nil {
		_ = offered.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	channel, requests, err := offered.Accept()
	if err != nil {
		to.Close()
		return
	}
	go ssh.DiscardRequests(requests)
	pipe(channel, to)
}

const (
	// fleetMirror is where hosts of the fleet find the mirror of fleetRegistry.
	fleetMirror   = "127.0.0.1:5000"
	fleetRegistry = "registry.example.com"
	fleetImage    = fleetRegistry + "/vms/guest:1"
	// fleetSocket is in the /run of each host.
	fleetSocket = "/run/gitlab-sardine-executor/nesting.sock"
)

// A fleetHost is a host as its runner manager sees it.
type fleetHost struct {
	dir    string
	key    ssh.Signer
	cmd    *exec.Cmd
	exited chan struct{}
}

// newFleetHost makes the disk of a host.
func newFleetHost(t *testing.T, mirror, network string, idle int) *fleetHost {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "fleet")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program, err := os.ReadFile(testbed.Program(t, program))
	if err != nil {
		t.Fatal(err)
	}
	h := &fleetHost{dir: dir}
	var line string
	h.key, line = newKey(t)
	for name, text := range map[string]string{
		"program":        string(program),
		"authorized_key": line,
		"registries.conf": fmt.Sprintf("[[registry]]\nlocation = %q\n[[registry.mirror]]\nlocation = %q\ninsecure = true\n",
			fleetRegistry, fleetMirror),
		"config.toml": fmt.Sprintf("[defaults]\nconnect = 'qemu:///system'\nstorage = %q\nnetwork = %q\naccel = 'tcg'\ntimeout = '10m'\nslots = 3\n"+
			"guest_builds_dir = '/builds'\nguest_cache_dir = '/cache'\nallowed_images = [%q]\n[[image]]\nmatch = %q\nidle_machines = %d\n"+
			"[serve]\nnesting = true\nnesting_authorized_keys = [%q]\n", filepath.Join(dir, "storage"), network, fleetImage, fleetImage, idle, line),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.Symlink(mirror, filepath.Join(dir, "mirror.sock"))); err != nil {
		t.Fatal(err)
	}
	return h
}

// start switches the host on, and waits until its nesting API answers.
func (h *fleetHost) start(t *testing.T) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h.cmd = exec.Command(self)
	h.cmd.Env = append(slices.DeleteFunc(os.Environ(), func(pair string) bool { return strings.HasPrefix(pair, "TESTBED_HOST=") }), fleetVariable+"="+h.dir)
	output := &bytes.Buffer{}
	h.cmd.Stdout, h.cmd.Stderr = output, output
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited, cmd := make(chan struct{}), h.cmd
	h.exited = exited
	go func() { _ = cmd.Wait(); close(exited) }()
	t.Cleanup(func() {
		h.kill()
		if log, _ := os.ReadFile(filepath.Join(h.dir, "log")); t.Failed() {
			t.Logf("%s:\n%s\n%s", h.dir, output, log)
		}
	})
	client := h.client(t)
	until(t, "the host "+h.dir+" is up", func() bool {
		select {
		case <-exited:
			t.Fatalf("the host has ended: %s", output)
		default:
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		err := client.Init(ctx, []byte("null"))
		return err == nil || errors.Is(err, api.ErrAlreadyInitialized)
	})
}

// kill is a power failure: the kernel ends all processes of the host at once.
func (h *fleetHost) kill() {
	_ = h.cmd.Process.Kill()
	<-h.exited
}

// dial connects through the host's SSH server, as a runner manager does.
func (h *fleetHost) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(h.dir, "ssh.sock"))
	if err != nil {
		return nil, err
	}
	c, channels, requests, err := ssh.NewClientConn(conn, "host", &ssh.ClientConfig{
		User: "runner-manager", Auth: []ssh.AuthMethod{ssh.PublicKeys(h.key)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	})
	if err != nil {
		conn.Close()
		return nil, err
	}
	client := ssh.NewClient(c, channels, requests)
	forwarded, err := client.Dial(network, address)
	if err != nil {
		client.Close()
		return nil, err
	}
	return tunnel{forwarded, client}, nil
}

// A tunnel ends with its connection to the host.
type tunnel struct {
	net.Conn
	client *ssh.Client
}

func (t tunnel) Close() error { return errors.Join(t.Conn.Close(), t.client.Close()) }

func (h *fleetHost) client(t *testing.T) api.Client { return nestingClient(t, h.dial, fleetSocket) }

// job is what the runner does for one job; during is called while there is a machine.
func (h *fleetHost) job(ctx context.Context, client api.Client, number int, slot int32, during func()) error {
	vm, _, err := client.Create(ctx, fleetImage, &slot)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	during()
	output, err := inMachine(ctx, h.dial, vm.GetAddr(), ssh.PublicKeys(h.key), fmt.Sprintf("cat /tmp/job 2>/dev/null; echo %d >/tmp/job; cat /tmp/job", number))
	if err == nil && output != fmt.Sprintf("%d\n", number) {
		err = fmt.Errorf("its script wrote %q", output)
	}
	return errors.Join(err, client.Delete(ctx, vm.GetId()))
}

// machineFiles are what the storage of the host has of machines.
func (h *fleetHost) machineFiles() []string {
	jobs, _ := filepath.Glob(filepath.Join(h.dir, "storage", "jobs", "sardine-*"))
	clones, _ := filepath.Glob(filepath.Join(h.dir, "storage", "clones", "sardine-*"))
	return append(jobs, clones...)
}

// A fleet is the work of a runner manager: jobs that wait for a host, and how they went.
type fleet struct {
	hosts []*fleetHost
	todo  chan int       // numbers of jobs
	open  sync.WaitGroup // jobs that have not ended well

	mu     sync.Mutex
	counts []int // of jobs that ended well, by host
	lost   int   // attempts, on the host that dies
	dead   bool
}

const (
	fleetJobs = 20
	// fleetWorkers is the number of jobs that each host has at a time.
	fleetWorkers = 2
	// fleetVictim is the host that dies when it has a machine for the job after so many.
	fleetVictim, fleetVictimJobs = 1, 2
)

// run runs the jobs. All hosts have jobs until all jobs have ended well.
func (f *fleet) run(t *testing.T) {
	f.todo, f.counts = make(chan int, fleetJobs), make([]int, len(f.hosts))
	f.open.Add(fleetJobs)
	for n := range fleetJobs {
		f.todo <- n
	}
	finished := make(chan struct{})
	go func() { f.open.Wait(); close(finished) }()
	var workers sync.WaitGroup
	for which := range f.hosts {
		for slot := range fleetWorkers {
			client := f.hosts[which].client(t)
			workers.Go(func() { f.work(t, client, which, int32(slot), finished) })
		}
	}
	workers.Wait()
}

// work runs jobs on one host until all have ended well, or the host is dead.
func (f *fleet) work(t *testing.T, client api.Client, which int, slot int32, finished <-chan struct{}) {
	for {
		select {
		case n := <-f.todo:
			err := f.hosts[which].job(t.Context(), client, n, slot, func() { f.powerFailure(which) })
			if f.ended(which, err) {
				f.todo <- n // as retry: runner_system_failure does
				return
			}
			if err != nil {
				t.Errorf("job %d on host %d: %v", n, which, err)
			}
			f.open.Done()
		case <-finished:
			return
		}
	}
}

// powerFailure ends the victim, in the middle of its jobs.
func (f *fleet) powerFailure(which int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if which == fleetVictim && f.counts[which] >= fleetVictimJobs && !f.dead {
		f.dead = true
		f.hosts[which].kill()
	}
}

// ended counts an attempt, and reports whether the death of the host has ended it.
func (f *fleet) ended(which int, err error) (died bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	died = err != nil && f.dead && which == fleetVictim
	switch {
	case died:
		f.lost++
	case err == nil:
		f.counts[which]++
	}
	return died
}

// Twenty jobs on two hosts with one registry behind a mirror. One host dies while it runs jobs:
// they run again on the other one, which loses nothing. The dead one has nothing of them when it
// is back, and takes jobs.
func TestTwoHosts(t *testing.T) {
	testbed.System(t)
	registry := testbed.StartRegistry(t)
	site := testbed.NewSite(t, testbed.Session(t), program)
	site.Mode.Trust(t, registry)
	site.Run(t, "push", "--quiet", "oci:"+guestLayout(t)+":1", registry.Image("vms/guest:1"))
	mirror := startMirror(t, registry)
	f := &fleet{hosts: []*fleetHost{newFleetHost(t, mirror, "user", 1), newFleetHost(t, mirror, "default", 0)}}
	for _, h := range f.hosts {
		h.start(t)
	}
	f.run(t)
	if !f.dead || f.lost == 0 || f.counts[0]+f.counts[1] != fleetJobs {
		t.Errorf("%v jobs on the hosts, %d lost, one host died: %v", f.counts, f.lost, f.dead)
	}
	if vms, err := f.hosts[0].client(t).List(t.Context()); err != nil || len(vms) > 0 {
		t.Errorf("on the host that lived: %v, %v", vms, err)
	}
	f.hosts[fleetVictim].checkAfterDeath(t)
	gets := strings.Count(registry.Log(t), `http.request.method=GET http.request.remoteaddr`)
	t.Logf("jobs on the hosts: %v, lost and repeated: %d; requests to the registry: %d", f.counts, f.lost, gets)
}

// checkAfterDeath switches a host on that died while it had machines.
func (h *fleetHost) checkAfterDeath(t *testing.T) {
	t.Helper()
	if len(h.machineFiles()) == 0 {
		t.Error("the dead host has no files of its machines: the test shows nothing")
	}
	h.start(t)
	client, ctx := h.client(t), t.Context()
	until(t, "the dead host is swept", func() bool { return len(h.machineFiles()) == 0 })
	if vms, err := client.List(ctx); err != nil || len(vms) > 0 {
		t.Errorf("on the host that died: %v, %v", vms, err)
	}
	if err := h.job(ctx, client, fleetJobs, 0, func() {}); err != nil {
		t.Errorf("a job on the host that died: %v", err)
	}
	if _, _, err := client.Create(ctx, fleetRegistry+"/vms/other:1", nil); status.Code(err) != codes.InvalidArgument {
		t.Errorf("an image that is not allowed: %v", err)
	}
}

// startMirror starts a pull-through cache of the registry, which listens at a socket.
func startMirror(t *testing.T, registry *testbed.Registry) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "mirror")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "s")
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {net: unix, addr: %q}\nproxy: {remoteurl: %q}\n",
		filepath.Join(dir, "storage"), socket, "http://"+registry.Host)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "docker-registry", "serve", config)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
	})
	until(t, "the mirror listens", func() bool {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return socket
}
