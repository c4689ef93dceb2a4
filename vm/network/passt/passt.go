package passt

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/virt"
)

const (
	// timeout bounds the start of passt, which is ready when it forks, and the connection of
	// QEMU to it.
	timeout = 10 * time.Second
	poll    = 10 * time.Millisecond
	// socketPathMax is the maximum length of a socket path on Linux (sockaddr_un.sun_path).
	socketPathMax = 107
)

var (
	// ErrPortTaken: another process listens on the port.
	ErrPortTaken = errors.New("the port is taken")
	// ErrEnded: the process has ended, and QEMU does not connect to another one.
	ErrEnded = errors.New("passt, the guest's network, has ended (did the kernel kill it for lack of memory? see dmesg)")
	// ErrNoRoute: the host has no default route.
	ErrNoRoute = errors.New("passt finds no interface with a default route")
)

// A Passt is one passt process: it serves one guest and ends with it.
type Passt struct {
	// Socket is the path of the socket for QEMU.
	Socket string

	note     string // path of the file that identifies the process
	pid      string // path of passt's pid file
	dir      string // working directory of passt
	bound    string // path of the socket, relative to dir; the kernel shows this path
	nameless bool   // the guest reaches no DNS server
	// owner returns the user that it runs as.
	owner func(context.Context) (virt.User, error)
}

// New returns the passt of the machine of that name, which may not run. Its socket is needed
// only until QEMU has connected. It is therefore in the directory of the overlays, which is
// removed when the machine runs, and which the user of QEMU can search. The note on the
// process is in the job directory, which is private.
//
// The passt of Debian 12 silently truncates a socket path to 98 bytes. It therefore gets a
// short relative path. The path differs between storages, since the kernel shows only the
// relative path and machines in several storages can have the same name.
func New(h *virt.Host, name, overlayDir, jobDir string) *Passt {
	storage := sha256.Sum256([]byte(overlayDir))
	dir := filepath.Join(name, "passt")
	bound := filepath.Join(dir, hex.EncodeToString(storage[:4]))
	return &Passt{
		note:   notePath(jobDir),
		pid:    filepath.Join(overlayDir, dir, "pid"),
		Socket: filepath.Join(overlayDir, bound),
		dir:    overlayDir,
		bound:  bound,
		owner:  h.QEMUUser,
	}
}

// Start starts passt, which forwards 127.0.0.1:port to guestPort of the guest. It returns when
// passt listens on both sides.
func (p *Passt) Start(ctx context.Context, program string, owner virt.User, port, guestPort int) (err error) {
	if len(p.Socket) > socketPathMax {
		return fmt.Errorf("%w: the path of a socket may have %d bytes, %s has more: choose a shorter storage or overlay_dir", errdefs.ErrInvalid, socketPathMax, p.Socket)
	}
	dir := filepath.Dir(p.Socket)
	if err := makeOwned(dir, owner); err != nil {
		return fmt.Errorf("make the directory for the socket of passt: %w", err)
	}
	// passt ends after its only client (--one-off) and does not map the gateway's address to
	// the host's loopback address. It goes to the background when it is ready and closes
	// inherited file descriptors, so that it does not keep the pipes of a stage open.
	args := []string{"--quiet", "--one-off", "--no-map-gw", "--socket", p.bound, "--pid", p.pid,
		"--tcp-ports", fmt.Sprintf("127.0.0.1/%d:%d", port, guestPort)}
	if os.Geteuid() == 0 {
		args = append(args, "--runas", fmt.Sprintf("%d:%d", owner.UID, owner.GID))
	}
	resolvers, ok := resolverOptions(resolvConf, uplinkResolvConf)
	p.nameless = !ok
	args = append(args, resolvers...)
	defer func() {
		if err != nil { // passt may already be in the background
			err = errors.Join(err, p.Stop(context.WithoutCancel(ctx)))
		}
	}()
	if err := run(ctx, program, p.dir, args, port); err != nil {
		return err
	}
	if err := p.writeNote(owner); err != nil {
		return fmt.Errorf("record the process of passt: %w", err)
	}
	return nil
}

// makeOwned creates a private directory of the owner, and removes an existing one: passt does
// not bind an existing socket.
func makeOwned(dir string, owner virt.User) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if owner.UID == os.Geteuid() {
		return nil
	}
	return os.Chown(dir, owner.UID, owner.GID)
}

func run(ctx context.Context, program, dir string, args []string, port int) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Dir = dir
	var said bytes.Buffer
	cmd.Stderr = &said
	// passt closes the pipe when it is ready.
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	text := said.String()
	switch {
	case err == nil:
		return nil
	case strings.Contains(text, "Failed to bind"):
		return fmt.Errorf("start passt: %w: 127.0.0.1:%d", ErrPortTaken, port)
	case strings.Contains(text, "interface not usable"):
		return ErrNoRoute
	}
	return fmt.Errorf("start passt: %w: %s", err, lastLine(text))
}

// Warnings returns the warnings for the job log.
func (p *Passt) Warnings() []string {
	if p.nameless {
		return []string{resolverWarning}
	}
	return nil
}

// Connected waits until QEMU has connected. QEMU 7.2 connects asynchronously and starts the
// guest even if that fails.
func (p *Passt) Connected(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		sockets, err := os.ReadFile("/proc/net/unix")
		if err != nil {
			return fmt.Errorf("check whether QEMU has connected to passt: %w", err)
		}
		if hasConnection(string(sockets), p.bound) {
			return nil
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
			return fmt.Errorf("QEMU did not connect to passt's socket %s within %s (does AppArmor or SELinux prevent it? a libvirt network needs no such socket)", p.Socket, timeout)
		}
	}
}

// hasConnection reports whether a process is connected to the socket with that path: a line of
// /proc/net/unix with the state (sixth field) SS_CONNECTED.
func hasConnection(table, path string) bool {
	for line := range strings.Lines(table) {
		field := strings.Fields(line)
		if len(field) > 7 && field[5] == "03" && strings.HasSuffix(strings.TrimRight(line, "\n"), " "+path) {
			return true
		}
	}
	return false
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
