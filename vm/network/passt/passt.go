// Package passt runs passt, which connects a guest to a user network.
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
	// timeout bounds the start of passt, which is ready when it forks, and
	// the time until QEMU has connected to it.
	timeout = 10 * time.Second
	poll    = 10 * time.Millisecond
	// socketPathMax is what fits into sockaddr_un.sun_path on Linux, with its NUL.
	socketPathMax = 107
)

var (
	ErrPortTaken = errors.New("the port is taken")
	// ErrEnded: QEMU does not connect to another one.
	ErrEnded   = errors.New("passt, the guest's network, has ended (did the kernel kill it for want of memory? see dmesg)")
	ErrNoRoute = errors.New("passt finds no interface with a default route")
)

// A Passt is one passt process: it serves one guest and ends with it.
type Passt struct {
	note     string // path of the file where we note which process it is: in the job's directory
	pid      string // path of its own pid file
	Socket   string // for QEMU
	dir      string // where passt starts, from which
	bound    string // is the path of the socket that it is given, and that the kernel shows
	nameless bool   // the guest cannot ask any DNS server
	// owner asks that it runs as.
	owner func(context.Context) (virt.User, error)
}

// New are where a machine's passt keeps its socket, and where we keep its
// pid. The socket is needed only until QEMU has connected, so it lies among the
// overlays, which go when the machine runs, and to which QEMU's user has a way;
// the job's directory is open to nobody else.
//
// passt of Debian 12 cuts a path off after 98 bytes, without a word, and listens
// elsewhere: it gets a relative one, which always fits. Machines of one name in
// several storages have sockets of different names: the kernel shows no more of them.
func New(h *virt.Host, name, cloneDir, jobDir string) *Passt {
	storage := sha256.Sum256([]byte(cloneDir))
	dir := filepath.Join(name, "passt")
	bound := filepath.Join(dir, hex.EncodeToString(storage[:4]))
	return &Passt{
		note:   notePath(jobDir),
		pid:    filepath.Join(cloneDir, dir, "pid"),
		Socket: filepath.Join(cloneDir, bound),
		dir:    cloneDir,
		bound:  bound,
		owner:  h.QEMUUser,
	}
}

// Start starts the passt: it forwards 127.0.0.1:port to the guest's guestPort.
// It returns when passt listens on both sides.
func (p *Passt) Start(ctx context.Context, program string, owner virt.User, port, guestPort int) (err error) {
	if len(p.Socket) > socketPathMax {
		return fmt.Errorf("%w: the path of a socket may have %d bytes, %s has more: choose a shorter storage or overlay_dir", errdefs.ErrInvalid, socketPathMax, p.Socket)
	}
	dir := filepath.Dir(p.Socket)
	if err := makeOwned(dir, owner); err != nil {
		return fmt.Errorf("make the directory for the socket of passt: %w", err)
	}
	// Ends by itself after its one client (-1); does not map the gateway to this
	// host's loopback; goes into the background once it is ready, with file
	// descriptors of its own: a stage's pipes do not stay open because of it.
	args := []string{"--quiet", "--one-off", "--no-map-gw", "--socket", p.bound, "--pid", p.pid,
		"--tcp-ports", fmt.Sprintf("127.0.0.1/%d:%d", port, guestPort)}
	if os.Geteuid() == 0 {
		args = append(args, "--runas", fmt.Sprintf("%d:%d", owner.UID, owner.GID))
	}
	resolvers, ok := resolverOptions(resolvConf, uplinkResolvConf)
	p.nameless = !ok
	args = append(args, resolvers...)
	defer func() {
		if err != nil { // it may be in the background already
			err = errors.Join(err, p.Stop(context.WithoutCancel(ctx)))
		}
	}()
	if err := run(ctx, program, p.dir, args, port); err != nil {
		return err
	}
	if err := p.writeNote(owner); err != nil {
		return fmt.Errorf("note the process of passt: %w", err)
	}
	return nil
}

// makeOwned makes a directory that is the owner's alone, anew: passt does not
// bind a socket that is there.
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
	// The daemon lets go of our pipe when it is ready, and only then.
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

// Warnings are for the log of the job.
func (p *Passt) Warnings() []string {
	if p.nameless {
		return []string{resolverWarning}
	}
	return nil
}

// Connected waits until QEMU has connected. QEMU 7.2 does that on the side and
// starts the guest also if it fails.
func (p *Passt) Connected(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		sockets, err := os.ReadFile("/proc/net/unix")
		if err != nil {
			return fmt.Errorf("see whether QEMU has connected to passt: %w", err)
		}
		if hasConnection(string(sockets), p.bound) {
			return nil
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
			return fmt.Errorf("QEMU did not connect to passt's socket %s within %s (does AppArmor or SELinux keep it from that? a libvirt network needs no such socket)", p.Socket, timeout)
		}
	}
}

// hasConnection says whether somebody is connected to the socket of that path:
// a line of /proc/net/unix whose state, the sixth field, is SS_CONNECTED.
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
