package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

const (
	// userNetdev is the QEMU id of the network back end that we add.
	userNetdev = "sardine0"
	// passtTimeout bounds the start of passt, which is ready when it forks.
	passtTimeout = 10 * time.Second
	// portTries is how often a port that somebody else was faster to take is
	// replaced by another.
	portTries = 5
	// socketPathMax is what fits into sockaddr_un.sun_path on Linux, with its NUL.
	socketPathMax = 107
)

// slirpWarning is for the log of a job whose guest has QEMU's own user network.
const slirpWarning = "passt is not in use: QEMU's built-in user network lets the guest reach services " +
	"on this host's loopback address"

// userNetwork gives one guest a private network without any privileges: passt,
// or QEMU's built-in slirp where there is no passt, translates to sockets of
// ordinary processes. A port on 127.0.0.1 leads to the guest's SSH server.
type userNetwork struct {
	port  int // on 127.0.0.1
	guest int
	passt *passt // nil: slirp
	tries int    // ports that slirp could not have
}

func newUserNetwork(ctx context.Context, dir string, guestPort int) (*userNetwork, []string, error) {
	program, err := exec.LookPath("passt")
	if err != nil {
		port, err := freePort()
		return &userNetwork{port: port, guest: guestPort},
			[]string{slirpWarning + " (install passt to prevent that)"}, err
	}
	var last error
	for range portTries {
		port, err := freePort()
		if err != nil {
			return nil, nil, err
		}
		p, err := startPasst(ctx, program, dir, port, guestPort)
		if err == nil {
			return &userNetwork{port: port, guest: guestPort, passt: p}, nil, nil
		}
		last = err
		switch {
		case errors.Is(err, errPortTaken):
			continue
		case errors.Is(err, errNoRoute):
			return &userNetwork{port: port, guest: guestPort},
				[]string{slirpWarning + " (passt needs a default route, and this host has none)"}, nil
		}
		return nil, nil, err
	}
	return nil, nil, last
}

// freePort is a TCP port that was free on 127.0.0.1 a moment ago.
func freePort() (int, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port on 127.0.0.1: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// attach connects the first NIC to the network. The others, which have nothing
// to be connected to, go.
//
// libvirt 9.0 knows neither passt nor forwarded ports, so the back end goes to
// QEMU directly, and the NIC is told to use that one in place of libvirt's:
// like this libvirt still places the NIC, and a guest that knows its interface
// by the place (enp1s0) finds it there.
func (n *userNetwork) attach(d *libvirtxml.Domain) error {
	if len(d.Devices.Interfaces) == 0 {
		return fmt.Errorf("%w: the domain has no network interface, so that no job could run in it", ErrSpec)
	}
	d.Devices.Interfaces = d.Devices.Interfaces[:1]
	nic := &d.Devices.Interfaces[0]
	nic.Source = &libvirtxml.DomainInterfaceSource{User: &libvirtxml.DomainInterfaceSourceUser{}}
	nic.Alias = &libvirtxml.DomainAlias{Name: "ua-sardine-nic"}

	if d.QEMUCommandline == nil {
		d.QEMUCommandline = &libvirtxml.DomainQEMUCommandline{}
	}
	d.QEMUCommandline.Args = append(d.QEMUCommandline.Args,
		libvirtxml.DomainQEMUCommandlineArg{Value: "-netdev"},
		libvirtxml.DomainQEMUCommandlineArg{Value: n.netdev()})
	if d.QEMUOverride == nil {
		d.QEMUOverride = &libvirtxml.DomainQEMUOverride{}
	}
	d.QEMUOverride.Devices = append(d.QEMUOverride.Devices, libvirtxml.DomainQEMUOverrideDevice{
		Alias: nic.Alias.Name,
		Frontend: libvirtxml.DomainQEMUOverrideFrontend{Properties: []libvirtxml.DomainQEMUOverrideProperty{
			{Name: "netdev", Type: "string", Value: userNetdev},
		}},
	})
	return nil
}

func (n *userNetwork) netdev() string {
	if n.passt != nil {
		// A comma in a value of a QEMU option is written twice.
		socket := strings.ReplaceAll(n.passt.socket, ",", ",,")
		return "stream,id=" + userNetdev + ",server=off,addr.type=unix,addr.path=" + socket
	}
	return fmt.Sprintf("user,id=%s,hostfwd=tcp:127.0.0.1:%d-:%d", userNetdev, n.port, n.guest)
}

func (n *userNetwork) address(context.Context, *libvirt.Domain) (string, error) {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(n.port)), nil
}

// retry takes another port when somebody was faster to take slirp's: QEMU binds
// it only when it starts.
func (n *userNetwork) retry(err error, d *libvirtxml.Domain) (string, bool) {
	if n.passt != nil || n.tries >= portTries || !strings.Contains(err.Error(), "host forwarding rule") {
		return "", false
	}
	n.tries++
	before := n.netdev()
	if n.port, err = freePort(); err != nil {
		return "", false
	}
	for i := range d.QEMUCommandline.Args {
		if arg := &d.QEMUCommandline.Args[i]; arg.Value == before {
			arg.Value = n.netdev()
		}
	}
	return "", true
}

func (n *userNetwork) stop() error {
	if n.passt == nil {
		return nil
	}
	return n.passt.stop()
}

// passt is one passt process: it serves one guest and ends with it.
type passt struct {
	pidFile string
	socket  string
}

var (
	errPortTaken = errors.New("the port is taken")
	errNoRoute   = errors.New("passt finds no interface with a default route")
)

// passtFiles are where a machine's passt keeps its pid and its socket.
func passtFiles(jobDir string) (pidFile, socket string) {
	return filepath.Join(jobDir, "passt.pid"), filepath.Join(jobDir, "passt.sock")
}

// startPasst starts a passt that forwards 127.0.0.1:port to guestPort. It
// returns when passt listens on both sides.
func startPasst(ctx context.Context, program, jobDir string, port, guestPort int) (*passt, error) {
	p := &passt{}
	p.pidFile, p.socket = passtFiles(jobDir)
	if len(p.socket) > socketPathMax {
		return nil, fmt.Errorf("%w: the path of a socket may have %d bytes, %s has more: choose a shorter storage", ErrSpec, socketPathMax, p.socket)
	}
	// Ends by itself after its one client (-1); does not map the gateway to this
	// host's loopback; goes into the background once it is ready, with file
	// descriptors of its own: a stage's pipes do not stay open because of it.
	ctx, cancel := context.WithTimeout(ctx, passtTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "--quiet", "--one-off", "--no-map-gw",
		"--socket", p.socket, "--pid", p.pidFile,
		"--tcp-ports", fmt.Sprintf("127.0.0.1/%d:%d", port, guestPort))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Dir = "/"
	var said bytes.Buffer
	cmd.Stderr = &said
	// The daemon lets go of our pipe when it is ready, and only then.
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		text := said.String()
		switch {
		case strings.Contains(text, "Failed to bind"):
			return nil, fmt.Errorf("start passt: %w: 127.0.0.1:%d", errPortTaken, port)
		case strings.Contains(text, "interface not usable"), strings.Contains(text, "No external routable"):
			return nil, errNoRoute
		}
		return nil, fmt.Errorf("start passt: %w: %s", err, lastLine(text))
	}
	return p, nil
}

// stop ends the passt that the pid file names, if it is still the one: a
// process of that number and with our socket on its command line.
func (p *passt) stop() error {
	text, err := os.ReadFile(p.pidFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop passt: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 1 {
		return fmt.Errorf("stop passt: %s holds no process number: %q", p.pidFile, text)
	}
	// Found before it is looked at: the handle stays with this very process,
	// whoever gets its number next.
	process, err := os.FindProcess(pid)
	if err != nil {
		return nil
	}
	defer process.Release()
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !bytes.Contains(cmdline, []byte("\x00"+p.socket+"\x00")) {
		return nil
	}
	if err := process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop passt (process %d): %w", pid, err)
	}
	return nil
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
