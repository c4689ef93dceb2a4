package guestssh

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"
)

// A sshServer is an SSH server on 127.0.0.1 that runs commands on this machine. It treats
// exit statuses and pipes as OpenSSH does: it sends the status when the command ends, and
// closes the channel when no process holds its pipes.
type sshServer struct {
	t        *testing.T
	config   *ssh.ServerConfig
	hostKey  ssh.PublicKey
	userKey  ed25519.PrivateKey // lets "ci" in
	userLine string             // its public key
	listener net.Listener
	// pids of the commands that were started.
	pids chan int
	// asked counts the requests of connections, which are keepalives.
	asked atomic.Int32
	// mute stops it from replying to a client that has logged in, after 0, 1 or 2 replies
	// (session, command). nil: never.
	mute *int

	mu    sync.Mutex
	conns []net.Conn
}

func newSSHServer(t *testing.T) *sshServer {
	t.Helper()
	s := &sshServer{t: t, pids: make(chan int, 100)}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	s.hostKey = signer.PublicKey()
	s.config = s.users()
	s.config.AddHostKey(signer)
	if s.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	go s.accept()
	t.Cleanup(func() { s.listener.Close(); s.drop() })
	return s
}

// users are "ci", with the password "secret" or a key; "pam", with the same password,
// asked for interactively; "expired", who has to set a new one; and "early", which is refused because the system still boots.
func (s *sshServer) users() *ssh.ServerConfig {
	var err error
	if _, s.userKey, err = ed25519.GenerateKey(rand.Reader); err != nil {
		s.t.Fatal(err)
	}
	public, err := ssh.NewPublicKey(s.userKey.Public())
	if err != nil {
		s.t.Fatal(err)
	}
	s.userLine = FormatKey(public)
	return &ssh.ServerConfig{
		MaxAuthTries: 10,
		BannerCallback: func(c ssh.ConnMetadata) string {
			if c.User() == "early" {
				return "System is booting up. Unprivileged users are not permitted to log in yet. For technical details, see pam_nologin(8).\n"
			}
			return ""
		},
		PasswordCallback: func(c ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
			if c.User() == "ci" && string(password) == "secret" {
				return nil, nil
			}
			return nil, errors.New("no")
		},
		PublicKeyCallback: func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if c.User() == "ci" && FormatKey(key) == s.userLine {
				return nil, nil
			}
			return nil, errors.New("no")
		},
		KeyboardInteractiveCallback: func(c ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
			answers, err := ask("", "", []string{"Password: "}, []bool{false})
			if err == nil && c.User() == "expired" {
				_, err = ask("", "You are required to change your password immediately", []string{"New password: "}, []bool{false})
			}
			if err == nil && c.User() == "pam" && answers[0] == "secret" {
				return nil, nil
			}
			return nil, errors.New("no")
		},
	}
}

func (s *sshServer) addr() string { return s.listener.Addr().String() }

// drop cuts every connection.
func (s *sshServer) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		c.Close()
	}
	s.conns = nil
}

func (s *sshServer) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns = append(s.conns, conn)
		s.mu.Unlock()
		go s.serve(conn)
	}
}

func (s *sshServer) serve(conn net.Conn) {
	_, channels, requests, err := ssh.NewServerConn(conn, s.config)
	if err != nil {
		conn.Close()
		return
	}
	if s.mute != nil {
		s.serveMute(channels)
		return
	}
	go func() {
		for r := range requests {
			s.asked.Add(1)
			if r.WantReply {
				r.Reply(false, nil)
			}
		}
	}()
	for c := range channels {
		channel, requests, err := c.Accept()
		if err != nil {
			return
		}
		go s.session(channel, requests)
	}
}

// serveMute reads no more of a connection than it answers.
func (s *sshServer) serveMute(channels <-chan ssh.NewChannel) {
	if *s.mute == 0 {
		return
	}
	_, requests, err := (<-channels).Accept()
	if err == nil && *s.mute > 1 {
		(<-requests).Reply(true, nil)
	}
}

func (s *sshServer) session(channel ssh.Channel, requests <-chan *ssh.Request) {
	var cmd *exec.Cmd
	for r := range requests {
		switch r.Type {
		case "exec":
			var m struct{ Line string }
			ssh.Unmarshal(r.Payload, &m)
			cmd = s.start(channel, m.Line)
			r.Reply(cmd != nil, nil)
		case "signal":
			if cmd != nil {
				syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
			}
		default:
			if r.WantReply {
				r.Reply(false, nil)
			}
		}
	}
}

func (s *sshServer) start(channel ssh.Channel, line string) *exec.Cmd {
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		return nil
	}
	cmd := exec.Command("sh", "-c", line)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stdout, cmd.Stderr = outW, errW
	stdin, err := cmd.StdinPipe()
	if err != nil || cmd.Start() != nil {
		return nil
	}
	s.pids <- cmd.Process.Pid
	outW.Close()
	errW.Close()
	go func() { io.Copy(stdin, channel); stdin.Close() }()
	var pipes sync.WaitGroup
	pipes.Go(func() { io.Copy(channel, outR) })
	pipes.Go(func() { io.Copy(channel.Stderr(), errR) })
	go func() {
		state, _ := cmd.Process.Wait()
		s.reportExit(channel, state.Sys().(syscall.WaitStatus))
		pipes.Wait()
		channel.Close()
	}()
	return cmd
}

func (s *sshServer) reportExit(channel ssh.Channel, status syscall.WaitStatus) {
	if !status.Signaled() {
		channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(status.ExitStatus())}))
		return
	}
	name := map[syscall.Signal]string{syscall.SIGKILL: "KILL", syscall.SIGTERM: "TERM", syscall.SIGSEGV: "SEGV"}[status.Signal()]
	channel.SendRequest("exit-signal", false, ssh.Marshal(struct {
		Name          string
		Core          bool
		Message, Lang string
	}{Name: name}))
}
