package passt

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"gitlab-sardine-executor/vm/errdefs"
)

const (
	// timeout bounds the start of passt, which is ready when it forks, and the connection of
	// QEMU to it.
	timeout = 10 * time.Second
	poll    = 10 * time.Millisecond
	// socketPathMax is the maximum length of a socket path on Linux (sockaddr_un.sun_path).
	// passt may need one more byte for the end of the string.
	socketPathMax = 107
	// parent is the directory for the sockets. Debian's AppArmor profile of passt allows
	// sockets in /tmp and home directories, not in /var/lib. os.TempDir can be elsewhere.
	parent = "/tmp"
	// dirTries is how often another random name is tried.
	dirTries = 5
)

var (
	// ErrPortTaken: another process listens on the port.
	ErrPortTaken = errors.New("the port is taken")
	// errDenied: passt may not create its socket or its pid file.
	errDenied = errors.New("passt may not create its socket (is it AppArmor or SELinux? journalctl --dmesg shows what they deny)")
	// ErrNoRoute: the host has no default route.
	ErrNoRoute = errors.New("passt finds no interface with a default route")
)

// A Passt is one passt process: it serves one guest and ends with it.
type Passt struct {
	// Socket is the path of the socket for QEMU; empty before Start.
	Socket string
	// HostAccess: the guest gets an address of its own and not that of the host, which it
	// reaches then.
	HostAccess bool

	note     string // path of the file that identifies the process
	prefix   string // of the path of its directory; the rest is random
	pid      string // path of passt's pid file
	nameless bool   // the guest reaches no DNS server
	// owner returns the user that it runs as.
	owner func(context.Context) (syscall.Credential, error)
	queue queue
}

// New returns the passt of the machine of that name, which may not run. owner returns the user
// that QEMU and it run as. The note on the process is in the job directory, which is private.
//
// Socket and pid file are in a private directory of QEMU's user below /tmp, which is needed
// only until QEMU has connected. Its name begins with that of the machine, and with a hash of
// the storage, since machines in several storages can have the same name. The rest is random:
// nobody can create the directory first.
func New(owner func(context.Context) (syscall.Credential, error), name, overlayDir, jobDir string) *Passt {
	return &Passt{note: notePath(jobDir), prefix: dirPrefix(name, overlayDir), owner: owner}
}

func dirPrefix(name, overlayDir string) string {
	storage := sha256.Sum256([]byte(overlayDir))
	return filepath.Join(parent, name+"."+hex.EncodeToString(storage[:4])+".")
}

// Start starts passt, which forwards 127.0.0.1:port to guestPort of the guest. It returns when
// passt listens on both sides.
func (p *Passt) Start(ctx context.Context, program string, owner syscall.Credential, port, guestPort int) (err error) {
	defer func() {
		if err != nil { // passt may already be in the background
			err = errors.Join(err, p.Stop(context.WithoutCancel(ctx)))
		}
	}()
	dir, err := makeOwned(p.prefix, owner)
	if err != nil {
		return fmt.Errorf("make the directory for the socket of passt: %w", err)
	}
	p.Socket, p.pid = filepath.Join(dir, "socket"), filepath.Join(dir, "pid")
	if len(p.Socket) > socketPathMax {
		return fmt.Errorf("%w: the path of a socket may have %d bytes, %s has more: choose a shorter name of the machine", errdefs.ErrInvalid, socketPathMax, p.Socket)
	}
	// passt ends after its only client (--one-off) and does not map the gateway's address to
	// the host's loopback address. It goes to the background when it is ready and closes
	// inherited file descriptors, so that it does not keep the pipes of a stage open.
	args := []string{"--quiet", "--one-off", "--no-map-gw", "--socket", p.Socket, "--pid", p.pid,
		"--tcp-ports", fmt.Sprintf("127.0.0.1/%d:%d", port, guestPort)}
	if os.Geteuid() == 0 && owner.Uid == 0 {
		args = append(args, "--runas", "0:0") // else it runs as nobody
	}
	if p.HostAccess {
		args = append(args, addressOptions(HostAddresses())...)
	}
	resolvers, ok := resolverOptions(resolvConf, uplinkResolvConf)
	p.nameless = !ok
	args = append(args, resolvers...)
	if err := run(ctx, program, args, owner, p.Socket, port); err != nil {
		return err
	}
	if err := p.writeNote(owner); err != nil {
		return fmt.Errorf("record the process of passt: %w", err)
	}
	return nil
}

// makeOwned creates a private directory of the owner: prefix and random letters.
func makeOwned(prefix string, owner syscall.Credential) (dir string, err error) {
	for range dirTries {
		dir = prefix + rand.Text()[:10]
		if err = os.Mkdir(dir, 0o700); !errors.Is(err, fs.ErrExist) {
			break
		}
	}
	if err != nil || int(owner.Uid) == os.Geteuid() {
		return dir, err
	}
	return dir, os.Chown(dir, int(owner.Uid), int(owner.Gid))
}

// run starts passt as the owner. With --runas, passt would drop its capabilities first, then
// create the socket as root, and only then change its user (2024 and later): in a directory of
// the owner it could not.
func run(ctx context.Context, program string, args []string, owner syscall.Credential, socket string, port int) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if os.Geteuid() == 0 && owner.Uid != 0 {
		cmd.SysProcAttr.Credential = &owner
	}
	cmd.Dir = "/"
	var said bytes.Buffer
	cmd.Stderr = &said
	// passt closes the pipe when it is ready.
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("start passt: %w", reason(err, said.String(), socket, port))
	}
	return nil
}

// reason returns why passt did not start. It exits with the same status for every reason.
func reason(err error, text, socket string, port int) error {
	last := lastLine(text)
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case isDenied(line):
			return fmt.Errorf("%w: %s: %s", errDenied, socket, line)
		case strings.Contains(line, "Failed to bind port"), strings.Contains(line, "Failed to bind any port"):
			return fmt.Errorf("%w: 127.0.0.1:%d", ErrPortTaken, port)
		case strings.Contains(line, "interface not usable"):
			return ErrNoRoute
		}
	}
	return fmt.Errorf("%w: %s", err, last)
}

// Warnings returns the warnings for the job log.
func (p *Passt) Warnings() []string {
	if p.nameless {
		return []string{resolverWarning}
	}
	return nil
}

// Connected waits until QEMU has connected, and removes the socket. QEMU 7.2 connects
// asynchronously and starts the guest even if that fails.
func (p *Passt) Connected(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		sockets, err := os.ReadFile("/proc/net/unix")
		if err != nil {
			return fmt.Errorf("check whether QEMU has connected to passt: %w", err)
		}
		if inode, ok := connection(string(sockets), p.Socket); ok {
			return errors.Join(p.connected(inode), p.removeDirs(ctx))
		}
		if !p.Runs() {
			return errdefs.ErrNetworkEnded
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
			return fmt.Errorf("QEMU did not connect to passt's socket %s within %s "+
				"(does AppArmor or SELinux prevent it, or has this service a /tmp of its own, PrivateTmp=? a libvirt network needs no such socket)", p.Socket, timeout)
		}
	}
}

// connected records the socket that passt has accepted.
func (p *Passt) connected(inode uint32) error {
	p.queue.inode = inode
	known, err := readNote(p.note)
	if known == nil {
		return err
	}
	known.Socket = inode
	if err := known.write(); err != nil {
		return fmt.Errorf("record the socket of passt: %w", err)
	}
	return nil
}

// connection looks for a connected socket with that path, which is the one of passt: a line of
// /proc/net/unix with the state (sixth field) SS_CONNECTED. It returns the inode of the socket.
func connection(table, path string) (inode uint32, ok bool) {
	for line := range strings.Lines(table) {
		field := strings.Fields(line)
		if len(field) > 7 && field[5] == "03" && strings.HasSuffix(strings.TrimRight(line, "\n"), " "+path) {
			number, err := strconv.ParseUint(field[6], 10, 32)
			return uint32(number), err == nil
		}
	}
	return 0, false
}

// isDenied reports whether a message of passt says that the kernel refused to create its
// socket or its pid file.
func isDenied(line string) bool {
	return strings.Contains(line, "Permission denied") && (strings.Contains(line, "UNIX") || strings.Contains(line, "PID file"))
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
