package vm

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

	"libvirt.org/go/libvirtxml"
)

const (
	// passtTimeout bounds the start of passt, which is ready when it forks, and
	// the time until QEMU has connected to it.
	passtTimeout = 10 * time.Second
	passtPoll    = 10 * time.Millisecond
	// socketPathMax is what fits into sockaddr_un.sun_path on Linux, with its NUL.
	socketPathMax = 107
)

var (
	errPortTaken = errors.New("the port is taken")
	// errPasstEnded: QEMU does not connect to another one.
	errPasstEnded = errors.New("passt, the guest's network, has ended (did the kernel kill it for want of memory? see dmesg)")
	errNoRoute    = errors.New("passt finds no interface with a default route")
)

// passt is one passt process: it serves one guest and ends with it.
type passt struct {
	notePath string // where we note which process it is: in the job's directory
	pid      string // path of its own pid file
	socket   string // for QEMU
	dir      string // where passt starts, from which
	bound    string // is the path of the socket that it is given, and that the kernel shows
	nameless bool   // the guest cannot ask any DNS server
	// owner asks as whom it runs.
	owner func(context.Context) (passtOwner, error)
}

// passtFiles are where a machine's passt keeps its socket, and where we keep its
// pid. The socket is needed only until QEMU has connected, so it lies among the
// overlays, which go when the machine runs, and to which QEMU's user has a way;
// the job's directory is open to nobody else.
//
// passt of Debian 12 cuts a path off after 98 bytes, without a word, and listens
// elsewhere: it gets a relative one, which always fits. Machines of one name in
// several storages have sockets of different names: the kernel shows no more of them.
func passtFiles(h *Host, name, cloneDir, jobDir string) *passt {
	storage := sha256.Sum256([]byte(cloneDir))
	dir := filepath.Join(name, "passt")
	bound := filepath.Join(dir, hex.EncodeToString(storage[:4]))
	return &passt{
		notePath: passtNotePath(jobDir),
		pid:      filepath.Join(cloneDir, dir, "pid"),
		socket:   filepath.Join(cloneDir, bound),
		dir:      cloneDir,
		bound:    bound,
		owner:    h.qemuOwner,
	}
}

// passtOwner is as whom passt runs: the user of the QEMU that has to connect to
// it. As root, passt would choose "nobody", which could not write its socket
// where QEMU finds it and others do not.
type passtOwner struct{ uid, gid int }

// qemuOwner is the user as whom the daemon of h runs QEMU; the daemon says it
// among its capabilities, as the base label of the security model "dac".
func (h *Host) qemuOwner(ctx context.Context) (passtOwner, error) {
	if !h.System() {
		return passtOwner{os.Geteuid(), os.Getegid()}, nil
	}
	text, err := await(ctx, "ask libvirt for its capabilities", h.conn.GetCapabilities)
	if err != nil {
		return passtOwner{}, err
	}
	var caps libvirtxml.Caps
	if err := caps.Unmarshal(text); err != nil {
		return passtOwner{}, fmt.Errorf("read the capabilities of libvirt: %w", err)
	}
	for _, model := range caps.Host.SecModel {
		for _, label := range model.Labels {
			var o passtOwner
			if model.Name != "dac" {
				continue
			}
			if _, err := fmt.Sscanf(label.Value, "+%d:+%d", &o.uid, &o.gid); err == nil {
				return o, nil
			}
		}
	}
	return passtOwner{0, 0}, nil // no dynamic ownership: QEMU runs as the daemon does
}

// start starts the passt: it forwards 127.0.0.1:port to the guest's guestPort.
// It returns when passt listens on both sides.
func (p *passt) start(ctx context.Context, program string, owner passtOwner, port, guestPort int) (err error) {
	if len(p.socket) > socketPathMax {
		return fmt.Errorf("%w: the path of a socket may have %d bytes, %s has more: choose a shorter storage or overlay_dir", ErrSpec, socketPathMax, p.socket)
	}
	dir := filepath.Dir(p.socket)
	if err := makeOwned(dir, owner); err != nil {
		return fmt.Errorf("make the directory for the socket of passt: %w", err)
	}
	// Ends by itself after its one client (-1); does not map the gateway to this
	// host's loopback; goes into the background once it is ready, with file
	// descriptors of its own: a stage's pipes do not stay open because of it.
	args := []string{"--quiet", "--one-off", "--no-map-gw", "--socket", p.bound, "--pid", p.pid,
		"--tcp-ports", fmt.Sprintf("127.0.0.1/%d:%d", port, guestPort)}
	if os.Geteuid() == 0 {
		args = append(args, "--runas", fmt.Sprintf("%d:%d", owner.uid, owner.gid))
	}
	resolvers, ok := resolverOptions(resolvConf, uplinkResolvConf)
	p.nameless = !ok
	args = append(args, resolvers...)
	defer func() {
		if err != nil { // it may be in the background already
			err = errors.Join(err, p.stop(context.WithoutCancel(ctx)))
		}
	}()
	if err := runPasst(ctx, program, p.dir, args, port); err != nil {
		return err
	}
	if err := p.note(owner); err != nil {
		return fmt.Errorf("note the process of passt: %w", err)
	}
	return nil
}

// makeOwned makes a directory that is the owner's alone, anew: passt does not
// bind a socket that is there.
func makeOwned(dir string, owner passtOwner) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if owner.uid == os.Geteuid() {
		return nil
	}
	return os.Chown(dir, owner.uid, owner.gid)
}

func runPasst(ctx context.Context, program, dir string, args []string, port int) error {
	ctx, cancel := context.WithTimeout(ctx, passtTimeout)
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
		return fmt.Errorf("start passt: %w: 127.0.0.1:%d", errPortTaken, port)
	case strings.Contains(text, "interface not usable"):
		return errNoRoute
	}
	return fmt.Errorf("start passt: %w: %s", err, lastLine(text))
}

// warnings are for the log of the job.
func (p *passt) warnings() []string {
	if p.nameless {
		return []string{resolverWarning}
	}
	return nil
}

// connected waits until QEMU has connected. QEMU 7.2 does that on the side and
// starts the guest also if it fails.
func (p *passt) connected(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, passtTimeout)
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
		case <-time.After(passtPoll):
		case <-ctx.Done():
			return fmt.Errorf("QEMU did not connect to passt's socket %s within %s (does AppArmor or SELinux keep it from that? a libvirt network needs no such socket)", p.socket, passtTimeout)
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
