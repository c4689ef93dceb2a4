package passt

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestConnection(t *testing.T) {
	const head = "Num       RefCount Protocol Flags    Type St Inode Path\n"
	const path = "/tmp/sardine-1 2.01234567.ABC/socket"
	for _, test := range []struct {
		name, table string
		want        uint32
	}{
		{"nothing", head, 0},
		{"listens", head + "0000000000000000: 00000002 00000000 00010000 0001 01 40000 " + path + "\n", 0},
		{"connected", head + "0000000000000000: 00000003 00000000 00000000 0001 03 40001 " + path + "\n", 40001},
		{"another's", head + "0000000000000000: 00000003 00000000 00000000 0001 03 40001 " + path + "2\n", 0},
		{"without a path", head + "0000000000000000: 00000003 00000000 00000000 0001 03 40001\n", 0},
	} {
		if got, ok := connection(test.table, path); got != test.want || ok != (test.want != 0) {
			t.Errorf("%s: got %d, %t", test.name, got, ok)
		}
	}
}

// Messages of passt in Debian 12 (2023-03-09) and Debian 13 (2025-05-03). Where there is no
// syslog, lines about that are between them.
func TestReason(t *testing.T) {
	const noise = "Failed to send 47 bytes to syslog\n"
	for _, test := range []struct {
		text string
		want error
	}{
		{"Failed to bind any port for '-t 127.0.0.1/33059:22', exiting", ErrPortTaken},
		{"Failed to bind port 33059 (Address already in use) for option '-t 127.0.0.1/33059:22'", ErrPortTaken},
		{"UNIX socket bind: Permission denied", errDenied},
		{"Failed to bind UNIX domain socket: Permission denied", errDenied},
		{"PID file open: Permission denied", errDenied},
		{"Couldn't open PID file /tmp/x/pid: Permission denied", errDenied},
		{"External interface not usable", ErrNoRoute},
		{"Multiple default IPv4 routes, picked first\nsegmentation fault", nil},
	} {
		err := reason(errors.New("exit status 1"), noise+test.text+"\n"+noise, "/tmp/x/socket", 33059)
		for _, kind := range []error{ErrPortTaken, errDenied, ErrNoRoute} {
			if errors.Is(err, kind) != (kind == test.want) {
				t.Errorf("%s: got %v", test.text, err)
			}
		}
	}
}

// A started passt is one whose socket a test has opened in place of QEMU.
type started struct {
	*Passt
	addr string // that it forwards
	qemu *net.UnixConn
	// again starts another one, for a machine of that name in another storage.
	again func(port int) (*Passt, error)
}

// self is the user that the test runs as.
func self() syscall.Credential {
	return syscall.Credential{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())}
}

func always(owner syscall.Credential) func(context.Context) (syscall.Credential, error) {
	return func(context.Context) (syscall.Credential, error) { return owner, nil }
}

func start(t *testing.T) started {
	t.Helper()
	program, err := exec.LookPath("passt")
	if err != nil {
		t.Fatal(err)
	}
	owner := self()
	if owner.Uid == 0 {
		owner = syscall.Credential{Uid: 65534, Gid: 65534}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	listener.Close()
	again := func(port int) (*Passt, error) {
		p := New(always(owner), "sardine-0123abcd-12345678901", t.TempDir(), t.TempDir())
		return p, p.Start(t.Context(), program, owner, port, 22)
	}
	p, err := again(port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop(context.WithoutCancel(t.Context())) })
	qemu, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: p.Socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { qemu.Close() })
	return started{p, fmt.Sprintf("127.0.0.1:%d", port), qemu, again}
}

// The socket is in a directory that only QEMU's user can search, where AppArmor's profile of
// passt allows it, and only until QEMU has connected.
func TestStart(t *testing.T) {
	p := start(t)
	dir := filepath.Dir(p.Socket)
	info, err := os.Stat(dir)
	if err != nil || info.Mode() != fs.ModeDir|0o700 || filepath.Dir(dir) != "/tmp" {
		t.Errorf("directory %s: %v, %v", dir, info, err)
	}
	if uid := int(info.Sys().(*syscall.Stat_t).Uid); os.Geteuid() == 0 && uid != 65534 {
		t.Errorf("it belongs to user %d", uid)
	}
	if err := p.Connected(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
	if !p.Runs() {
		t.Error("the process is not found by its note")
	}
	other := filepath.Dir(p.Socket) + "x" // its start was interrupted
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	// The driver was killed before it wrote the note.
	if err := os.Remove(p.note); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	p.qemu.SetReadDeadline(time.Now().Add(timeout))
	if _, err := p.qemu.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("passt is not ended without its note: %v", err)
	}
	if _, err := os.Lstat(other); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the other directory is still there: %v", err)
	}
}

func TestStartOnTakenPort(t *testing.T) {
	p := start(t)
	other, err := p.again(port(t, p.addr))
	if !errors.Is(err, ErrPortTaken) || errors.Is(err, errDenied) {
		t.Errorf("got %v", err)
	}
	if dirs, _ := filepath.Glob(other.prefix + "*"); len(dirs) != 0 {
		t.Errorf("left: %q", dirs)
	}
}

func TestStartDenied(t *testing.T) {
	program, err := exec.LookPath("passt")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	owner := self()
	if owner.Uid == 0 {
		owner = syscall.Credential{Uid: 65534, Gid: 65534}
	}
	socket := filepath.Join(dir, "socket")
	// That of Debian 12 only notices it with the pid file.
	err = run(t.Context(), program, []string{"--quiet", "--one-off", "--socket", socket, "--pid", filepath.Join(dir, "pid")}, owner, socket, 0)
	if !errors.Is(err, errDenied) || errors.Is(err, ErrPortTaken) || !strings.Contains(err.Error(), socket) {
		t.Errorf("got %v", err)
	}
}

func port(t *testing.T, addr string) int {
	t.Helper()
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return int(at.Port())
}

// A guest that takes no packets is known before what is sent to it fills the queue: the
// passt of Debian 13 crashes then.
func TestStalled(t *testing.T) {
	p := start(t)
	if err := p.Connected(t.Context()); err != nil {
		t.Fatal(err)
	}
	later := StalledIn(filepath.Dir(p.note)) // as another process knows it
	// knock connects to the guest, and gives up at once.
	knock := func() {
		conn, err := net.Dial("tcp", p.addr)
		if err != nil {
			t.Fatal(err)
		}
		conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	}
	stalled := func() bool { return p.Stalled() && later() }
	if stalled() {
		t.Error("it is stalled with an empty queue")
	}
	deadline := time.Now().Add(timeout)
	for knock(); !stalled(); time.Sleep(poll) {
		if time.Now().After(deadline) {
			t.Fatal("the kernel shows no data in the queue")
		}
	}
	if !stalled() {
		t.Error("it is stalled no more, and nothing was read")
	}
	// The guest reads slower than it gets packets.
	for range 5 {
		knock()
	}
	settle(t, p.Passt)
	if _, err := p.qemu.Read(make([]byte, 256)); err != nil {
		t.Fatal(err)
	}
	if p.Stalled() {
		t.Error("it is stalled after a packet was read")
	}
	go io.Copy(io.Discard, p.qemu)
	for p.Stalled() || p.queue.last > 0 {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are in the queue of a guest that reads", p.queue.last)
		}
		time.Sleep(poll)
	}
}

// settle waits until the queue does not grow any more.
func settle(t *testing.T, p *Passt) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for same, last := 0, uint32(0); same < 10; time.Sleep(poll) {
		if p.Stalled(); p.queue.last == last {
			same++
		} else {
			same, last = 0, p.queue.last
		}
		if time.Now().After(deadline) {
			t.Fatal("the queue grows without end")
		}
	}
}

// A passt is identified by its PID, start time, user and the absolute path on its command line.
// Another process can have any of these alone.
func TestStopEndsOnlyItsOwnPasst(t *testing.T) {
	dir := t.TempDir()
	p := New(always(self()), "name", filepath.Join(dir, "clones"), dir)
	p.pid = p.prefix + "random/pid"
	// A machine with the same name in the storage of another user.
	stranger := New(always(self()), "name", filepath.Join(dir, "others"), dir)
	stranger.pid = stranger.prefix + "random/pid"
	self := self()
	other := self
	other.Uid++
	right := func(note *note) string { return noteText(t, *note) }
	for _, test := range []struct {
		name    string
		program string // empty: passt
		of      *Passt
		note    func(seen *note) string // what is noted of the process; nil: nothing
		owner   syscall.Credential      // as whom ours runs
		ends    bool
	}{
		{"noted", "", p, right, self, true},
		{"noted, of a build for one processor", "passt.avx2", p, right, self, true},
		{"noted, and its number is another's now", "", p, func(n *note) string { n.Start--; return noteText(t, *n) }, self, false},
		{"noted, and its number is another user's now", "", p, func(n *note) string { n.UID++; return noteText(t, *n) }, self, false},
		{"noted, and its number is that of another storage's", "", stranger, func(n *note) string { n.Pid = p.pid; return noteText(t, *n) }, self, false},
		{"not noted", "", p, nil, self, true},
		{"not noted, of another user", "", p, nil, other, false},
		{"not noted, of another storage", "", stranger, nil, self, false},
		{"not noted, another program", "editor", p, nil, self, false},
		{"empty note", "", p, func(*note) string { return "" }, self, true},
		{"damaged note", "", p, func(*note) string { return "{" }, self, true},
		{"note of every process", "", p, func(n *note) string { n.PID = -1; return noteText(t, *n) }, self, true},
		{"note of init", "", p, func(n *note) string { n.PID = 1; return noteText(t, *n) }, self, true},
		{"note of its own group", "", p, func(n *note) string { n.PID = 0; return noteText(t, *n) }, self, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			p.owner = always(test.owner)
			cmd := exec.Command("sh", "-c", "read x", "--pid", test.of.pid, "x")
			cmd.Args[0] = cmp.Or(test.program, "passt")
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			os.Remove(p.note)
			seen := imitation(t, cmd)
			if test.note != nil {
				if err := os.WriteFile(p.note, []byte(test.note(seen)), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.Stop(t.Context()); err != nil {
				t.Error(err)
			}
			if !test.ends {
				stdin.Close() // its end by itself
			}
			err = cmd.Wait()
			stdin.Close()
			if killed := err != nil && err.Error() == "signal: terminated"; killed != test.ends {
				t.Errorf("the process ended with %v", err)
			}
		})
	}
}

// imitation starts a process that looks like passt and returns what /proc shows of it. Its
// command line appears a moment after the start. (Other programs have no pid file.)
func imitation(t *testing.T, cmd *exec.Cmd) *note {
	t.Helper()
	for range 1000 {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		if len(line) > 0 {
			seen, _ := lookAt(cmd.Process.Pid)
			return seen
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("the process has no command line")
	return nil
}

func noteText(t *testing.T, note note) string {
	t.Helper()
	text, err := json.Marshal(note)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestStartInStat(t *testing.T) {
	const rest = " S 1 7 7 0 -1 4194560 105 0 0 0 0 0 0 0 20 0 1 0 123456 2699264 0"
	for _, name := range []string{"passt.avx2", "a) S 1 2 (b", "", "with space"} {
		if start, err := startIn("7 (" + name + ")" + rest); err != nil || start != 123456 {
			t.Errorf("%q started at %d, %v", name, start, err)
		}
	}
	for _, bad := range []string{"", "7", "7 (x)", "7 (x) S 1"} {
		if start, err := startIn(bad); err == nil {
			t.Errorf("%q: %d", bad, start)
		}
	}
}

// The AppArmor profile that comes with passt in Debian allows what passt writes: files of its
// own user below /tmp. (The tests' host does not enforce it.)
func TestProfileAllowsTheSocket(t *testing.T) {
	profile, err := os.ReadFile("/etc/apparmor.d/usr.bin.passt")
	if err != nil {
		t.Skip("passt has no AppArmor profile here")
	}
	rule := regexp.MustCompile(`(?m)^\s*owner\s+(/\S+?)/\*\*\s+\w*w`)
	var allowed []string
	for _, found := range rule.FindAllSubmatch(profile, -1) {
		allowed = append(allowed, string(found[1])+"/")
	}
	if path := dirPrefix("sardine-0123abcd-1", "/var/lib/gitlab-sardine-executor/clones"); !slices.ContainsFunc(allowed, func(dir string) bool { return strings.HasPrefix(path, dir) }) {
		t.Errorf("%s… is not below %q", path, allowed)
	}
}
