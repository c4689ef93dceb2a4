package guestssh

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"gitlab-sardine-executor/vm/errdefs"
)

// patience is the deadline of tests: far longer than anything here takes.
const patience = time.Minute

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

var goodLogin = Login{User: "ci", Password: "secret"}

func logIn(t *testing.T, s *sshServer, login Login, pinned ssh.PublicKey) (*Client, error) {
	t.Helper()
	ctx := testContext(t)
	conn, err := Dial(ctx, s.addr(), nil)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	client, err := Handshake(ctx, conn, login, pinned)
	if err == nil {
		t.Cleanup(func() { client.Close() })
	}
	return client, err
}

func TestHandshake(t *testing.T) {
	s := newSSHServer(t)
	t.Setenv("SSH_AUTH_SOCK", startAgent(t, s.userKey))
	other, otherPrivate, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	otherKey, err := ssh.NewPublicKey(other)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		login  Login
		pinned ssh.PublicKey
		want   error
	}{
		{"right password", goodLogin, nil, nil},
		{"right password, right host key", goodLogin, s.hostKey, nil},
		{"wrong host key", goodLogin, otherKey, ErrHostKey},
		{"wrong password", Login{User: "ci", Password: "guess"}, nil, ErrLogin},
		{"wrong user", Login{User: "root", Password: "secret"}, nil, ErrLogin},
		{"no credentials", Login{User: "ci"}, nil, ErrLogin},
		{"key file", Login{User: "ci", IdentityFile: keyFile(t, s.userKey, "")}, nil, nil},
		{"encrypted key file", Login{User: "ci", IdentityFile: keyFile(t, s.userKey, "passphrase")}, nil, errdefs.ErrInvalid},
		{"key file that is none", Login{User: "ci", IdentityFile: "/dev/null"}, nil, errdefs.ErrInvalid},
		{"key of the job", Login{User: "ci", Key: s.userKey}, nil, nil},
		{"another job's key", Login{User: "ci", Key: otherPrivate}, nil, ErrLogin},
		{"wrong key, right password", Login{User: "ci", Key: otherPrivate, Password: "secret"}, nil, nil},
		{"key of the agent", Login{User: "ci", Agent: true}, nil, nil},
		{"keyboard-interactive", Login{User: "pam", Password: "secret"}, nil, nil},
		{"keyboard-interactive, wrong password", Login{User: "pam", Password: "guess"}, nil, ErrLogin},
		{"still booting", Login{User: "early", Password: "secret"}, nil, ErrBooting},
		{"key file missing", Login{User: "ci", IdentityFile: filepath.Join(t.TempDir(), "none")}, nil, errdefs.ErrInvalid},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := logIn(t, s, test.login, test.pinned); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

func TestNoAgent(t *testing.T) {
	s := newSSHServer(t)
	for _, socket := range []string{"", filepath.Join(t.TempDir(), "none")} {
		t.Setenv("SSH_AUTH_SOCK", socket)
		if _, err := logIn(t, s, Login{User: "ci", Agent: true}, nil); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("SSH_AUTH_SOCK=%q: got %v, want %v", socket, err, errdefs.ErrInvalid)
		}
	}
}

// The error for an encrypted key says what to do.
func TestEncryptedKeySaysWhatToDo(t *testing.T) {
	s := newSSHServer(t)
	_, err := Login{User: "ci", IdentityFile: keyFile(t, s.userKey, "passphrase")}.methods(t.Context(), new(bool))
	if err == nil || !strings.Contains(err.Error(), "is encrypted") || !strings.Contains(err.Error(), "ssh-agent") {
		t.Errorf("got %v", err)
	}
}

// keyFile writes a private key as ssh-keygen does.
func keyFile(t *testing.T, key ed25519.PrivateKey, passphrase string) string {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(key, "")
	if passphrase != "" {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// startAgent serves an ssh-agent that holds key.
func startAgent(t *testing.T, key ed25519.PrivateKey) (socket string) {
	t.Helper()
	keyring := agent.NewKeyring()
	if err := keyring.Add(agent.AddedKey{PrivateKey: key}); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "agent") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go agent.ServeAgent(keyring, conn)
		}
	}()
	return l.Addr().String()
}

// While a guest boots, connections are refused, then accepted and lost. At last a server
// answers.
func TestDialWaitsForTheServer(t *testing.T) {
	t.Parallel()
	addr, listen := reservePort(t)
	ctx := testContext(t)
	found := make(chan error, 1)
	go func() {
		conn, err := Dial(ctx, addr, nil)
		if err == nil {
			conn.Close()
		}
		found <- err
	}()
	l := listen()
	defer l.Close()
	for i := 0; ; i++ {
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if i < 3 {
			conn.Close()
			continue
		}
		defer conn.Close()
		// Like passt: nothing is sent before the client has sent something.
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte("SSH-2.0-test\r\n"))
		break
	}
	if err := <-found; err != nil {
		t.Errorf("dial: %v", err)
	}
}

// reservePort returns a port that refuses connections until listen is called.
func reservePort(t testing.TB) (addr string, listen func() net.Listener) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	socket := os.NewFile(uintptr(fd), "socket")
	t.Cleanup(func() { socket.Close() })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	bound, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr = fmt.Sprintf("127.0.0.1:%d", bound.(*syscall.SockaddrInet4).Port)
	return addr, func() net.Listener {
		if err := syscall.Listen(fd, 16); err != nil {
			t.Fatal(err)
		}
		l, err := net.FileListener(socket)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
}

func TestDialGivesUpAtTheDeadline(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts and never replies
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, l.Addr().String(), nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	s := newSSHServer(t)
	client, err := logIn(t, s, goodLogin, nil)
	if err != nil {
		t.Fatal(err)
	}
	binary := make([]byte, 3<<20)
	rand.Read(binary)
	for _, test := range []struct {
		name, line, stdin string
		status            int
		stdout, stderr    string
	}{
		{name: "status 0", line: "true"},
		{name: "status 7", line: "exit 7", status: 7},
		{name: "status 255", line: "exit 255", status: 255},
		{name: "killed", line: "kill -9 $$", status: 128 + 9},
		{name: "segmentation fault", line: "kill -SEGV $$", status: 128 + 11},
		{name: "streams apart", line: "echo out; echo err >&2", stdout: "out\n", stderr: "err\n"},
		{name: "script on stdin", line: "sh", stdin: "echo one\nexit 3\n", stdout: "one\n", status: 3},
		{name: "stdin that is not read", line: "exit 4", stdin: strings.Repeat("x", 4<<20), status: 4},
		{name: "binary", line: "cat", stdin: string(binary), stdout: string(binary)},
		{name: "not ASCII", line: "cat", stdin: "schön ‹日本›\x00\xff", stdout: "schön ‹日本›\x00\xff"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			status, err := client.Run(testContext(t), Command{
				Line: test.line, Stdin: strings.NewReader(test.stdin), Stdout: &stdout, Stderr: &stderr,
			})
			if err != nil || status != test.status {
				t.Errorf("got status %d, error %v; want status %d", status, err, test.status)
			}
			if stdout.String() != test.stdout || stderr.String() != test.stderr {
				t.Errorf("got %d bytes on stdout and %q on stderr; want %d and %q", stdout.Len(), stderr.String(), len(test.stdout), test.stderr)
			}
		})
	}
}

// 128 MiB arrive unchanged, and take no more memory than a few.
func TestLargeOutput(t *testing.T) {
	s := newSSHServer(t)
	client, err := logIn(t, s, goodLogin, nil)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 16<<20)
	rand.Read(block)
	path := filepath.Join(t.TempDir(), "block")
	if err := os.WriteFile(path, block, 0o600); err != nil {
		t.Fatal(err)
	}
	const blocks = 8
	stdout := &repeated{block: block}
	before := heapInUse()
	began := time.Now()
	status, err := client.Run(testContext(t), Command{Line: fmt.Sprintf("i=0; while [ $i -lt %d ]; do cat %s; i=$((i+1)); done", blocks, path), Stdout: stdout})
	if err != nil || status != 0 || stdout.n != blocks*int64(len(block)) {
		t.Fatalf("%d bytes, status %d, error %v", stdout.n, status, err)
	}
	if stdout.wrong {
		t.Error("the bytes are not those that the command wrote")
	}
	more := int64(stdout.heap) - int64(before)
	t.Logf("%d MiB in %v, %d MiB more memory at most", stdout.n>>20, time.Since(began).Round(time.Millisecond), more>>20)
	if more > 32<<20 {
		t.Errorf("it took %d MiB of memory", more>>20)
	}
}

// repeated compares what is written to it with a repeated block, and records how much
// memory is in use.
type repeated struct {
	block []byte
	n     int64
	wrong bool
	heap  uint64 // the most
}

func (r *repeated) Write(p []byte) (int, error) {
	written := len(p)
	for len(p) > 0 {
		at := int(r.n % int64(len(r.block)))
		if at == 0 {
			r.heap = max(r.heap, heapInUse())
		}
		n := min(len(p), len(r.block)-at)
		r.wrong = r.wrong || !bytes.Equal(p[:n], r.block[at:at+n])
		r.n += int64(n)
		p = p[n:]
	}
	return written, nil
}

func heapInUse() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

// A daemon that a script leaves in the background holds the pipes of the session. The job
// ends with the script and loses none of its output, nor what comes a moment later.
func TestRunDoesNotWaitForDaemons(t *testing.T) {
	t.Parallel()
	const size = 1000000
	for name, cmd := range map[string]Command{
		"silent":  {Line: fmt.Sprintf("(sleep 0.1; echo late; exec sleep 1000) & head -c %d /dev/zero; exit 5", size-len("late\n")), drainTimeout: time.Hour},
		"talking": {Line: fmt.Sprintf("head -c %d /dev/zero; while :; do echo; sleep 0.01; done & exit 5", size), drainTimeout: 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSSHServer(t)
			client, err := logIn(t, s, goodLogin, nil)
			if err != nil {
				t.Fatal(err)
			}
			var stdout counter
			cmd.Stdout = &stdout
			ctx := testContext(t)
			status, err := client.Run(ctx, cmd)
			t.Cleanup(func() { syscall.Kill(-<-s.pids, syscall.SIGKILL) })
			if ctx.Err() != nil {
				t.Error("it waited for the daemon")
			}
			if n := stdout.n.Load(); err != nil || status != 5 || n < size || name == "silent" && n > size {
				t.Errorf("got status %d, %d bytes, error %v; want 5, %d", status, n, err, size)
			}
		})
	}
}

// counter counts bytes, also those that come after Run.
type counter struct{ n atomic.Int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

// slowWriter is a runner that reads slowly.
type slowWriter struct {
	pause time.Duration
	n     int
}

func (w *slowWriter) Write(p []byte) (int, error) {
	time.Sleep(w.pause)
	w.n += len(p)
	return len(p), nil
}

func TestRunWaitsForASlowReader(t *testing.T) {
	t.Parallel()
	s := newSSHServer(t)
	client, err := logIn(t, s, goodLogin, nil)
	if err != nil {
		t.Fatal(err)
	}
	const idle = 300 * time.Millisecond
	w := &slowWriter{pause: 2 * idle}
	status, err := client.Run(testContext(t), Command{Line: "sleep 1000 & head -c 40000 /dev/zero", Stdout: w, drainIdle: idle})
	t.Cleanup(func() { syscall.Kill(-<-s.pids, syscall.SIGKILL) })
	if err != nil || status != 0 || w.n != 40000 {
		t.Errorf("got status %d, %d bytes, error %v; want 0, 40000", status, w.n, err)
	}
}

func TestRunSaysThatTheGuestIsLost(t *testing.T) {
	t.Parallel()
	s := newSSHServer(t)
	client, err := logIn(t, s, goodLogin, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	go func() { // the first output shows that the command runs
		io.ReadFull(r, make([]byte, 1))
		s.drop()
		io.Copy(io.Discard, r)
	}()
	_, err = client.Run(testContext(t), Command{Line: "echo; exec sleep 1000", Stdout: w})
	syscall.Kill(-<-s.pids, syscall.SIGKILL)
	if !errors.Is(err, ErrLost) {
		t.Errorf("got %v, want %v", err, ErrLost)
	}
}

// A server that accepts the login and then sends nothing does not block Run, neither
// while a command starts nor while it ends.
func TestRunDoesNotWaitForAMuteServer(t *testing.T) {
	t.Parallel()
	for name, answers := range map[string]int{"no session": 0, "no command": 1, "no exit": 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSSHServer(t)
			s.mute = &answers
			client, err := logIn(t, s, goodLogin, nil)
			if err != nil {
				t.Fatal(err)
			}
			cause := errors.New("the cause")
			ctx, cancel := context.WithTimeoutCause(testContext(t), 100*time.Millisecond, cause)
			defer cancel()
			if _, err := client.Run(ctx, Command{Line: "true", Stdin: rand.Reader}); !errors.Is(err, cause) {
				t.Errorf("the time was up: got %v, want %v", err, cause)
			}
			if client, err = logIn(t, s, goodLogin, nil); err != nil {
				t.Fatal(err)
			}
			keepalive := Keepalive{Interval: 10 * time.Millisecond, Timeout: 100 * time.Millisecond}
			if _, err := client.Run(testContext(t), Command{Line: "true", Stdin: rand.Reader, Keepalive: keepalive}); !errors.Is(err, ErrLost) {
				t.Errorf("no sign of life: got %v, want %v", err, ErrLost)
			}
		})
	}
}

// A cancelled stage must not leave its script running: after_script may follow.
func TestCancelledRunEndsTheCommand(t *testing.T) {
	t.Parallel()
	s := newSSHServer(t)
	client, err := logIn(t, s, goodLogin, nil)
	if err != nil {
		t.Fatal(err)
	}
	cause := errors.New("the cause")
	ctx, cancel := context.WithCancelCause(testContext(t))
	marker := filepath.Join(t.TempDir(), "ended")
	r, w := io.Pipe()
	go func() {
		io.ReadFull(r, make([]byte, 1))
		cancel(cause)
		io.Copy(io.Discard, r)
	}()
	line := "trap 'touch " + marker + "; exit' TERM; echo; while :; do sleep 0.05; done"
	if _, err := client.Run(ctx, Command{Line: line, Stdout: w}); !errors.Is(err, cause) {
		t.Errorf("got %v, want %v", err, cause)
	}
	// Run waits a moment only: on a busy host the command handles the signal later.
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(marker); err == nil {
			return
		} else if time.Now().After(deadline) {
			t.Errorf("the command did not end: %v", err)
			syscall.Kill(-<-s.pids, syscall.SIGKILL)
			return
		}
	}
}

// Nothing is sent to a guest that stands still, and it is given its time. One that comes
// back goes on; one that does not is lost, and the error says for how long.
func TestKeepaliveOfAGuestThatStandsStill(t *testing.T) {
	t.Parallel()
	s := newSSHServer(t)
	client, err := logIn(t, s, goodLogin, nil)
	if err != nil {
		t.Fatal(err)
	}
	marker := filepath.Join(t.TempDir(), "go")
	looks := 0
	back := Keepalive{Interval: time.Millisecond, Timeout: time.Minute, Still: func(context.Context) bool {
		looks++
		if looks == 20 {
			if s.asked.Load() > 0 {
				t.Errorf("%d requests to a guest that stands still", s.asked.Load())
			}
			if err := os.WriteFile(marker, nil, 0o600); err != nil {
				t.Error(err)
			}
		}
		return looks < 20
	}}
	line := "while ! [ -e " + marker + " ]; do sleep 0.05; done"
	if status, err := client.Run(testContext(t), Command{Line: line, Keepalive: back}); status != 0 || err != nil {
		t.Errorf("it comes back: got %d, %v", status, err)
	}

	answers := 2
	s.mute = &answers
	if client, err = logIn(t, s, goodLogin, nil); err != nil {
		t.Fatal(err)
	}
	gone := Keepalive{Interval: 10 * time.Millisecond, Timeout: 500 * time.Millisecond, Still: func(context.Context) bool { return true }}
	_, err = client.Run(testContext(t), Command{Line: "true", Stdin: rand.Reader, Keepalive: gone})
	if !errors.Is(err, ErrLost) || !errors.Is(err, ErrSilent) || !strings.Contains(err.Error(), "no answer for") {
		t.Errorf("it does not come back: got %v", err)
	}
}
