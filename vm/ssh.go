package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

const (
	clientVersion = "SSH-2.0-gitlab-sardine-executor"

	// knockInterval is the time between two attempts to reach a guest that may
	// still be booting, and so the most that a ready guest goes unnoticed.
	knockInterval = 100 * time.Millisecond
	// knockTimeout is how long one attempt may wait for the server's banner. An
	// attempt made while the guest boots is not refused but lost: passt accepts
	// it at once and finds nobody to hand it to.
	knockTimeout = 2 * time.Second
	// knocksAtOnce bounds the attempts under way, and so what a server that has
	// just come up finds in its queue (OpenSSH's MaxStartups is 10).
	knocksAtOnce = 5
	// handshakeTimeout bounds key exchange and authentication once the server
	// has greeted; an emulated guest that is still booting needs seconds.
	handshakeTimeout = 30 * time.Second
)

// knock connects to the SSH server at addr as soon as there is one, and returns
// the connection on which it greeted. It tries again until ctx ends.
//
// Each attempt is a connection of its own and sends our version line at once:
// passt, as in Debian 12, delivers nothing of the guest until the client has
// sent something, so that whoever waits for the banner first waits for ever.
func knock(ctx context.Context, addr string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		conn net.Conn
		err  error
	}
	answers := make(chan answer, knocksAtOnce)
	underWay := 0
	var last error
	ticker := time.NewTicker(knockInterval)
	defer ticker.Stop()
	defer func() { // whoever answers after all is not needed any more
		go func(n int) {
			for ; n > 0; n-- {
				if a := <-answers; a.conn != nil {
					a.conn.Close()
				}
			}
		}(underWay)
	}()
	for {
		if underWay < knocksAtOnce {
			underWay++
			go func() {
				conn, err := knockOnce(ctx, addr)
				answers <- answer{conn, err}
			}()
		}
		select {
		case a := <-answers:
			underWay--
			if a.err == nil {
				return a.conn, nil
			}
			last = a.err
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), last)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), last)
		}
	}
}

func knockOnce(ctx context.Context, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, knockTimeout)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	greeting := make([]byte, 256)
	n := 0
	if _, err = conn.Write([]byte(clientVersion + "\r\n")); err == nil {
		n, err = conn.Read(greeting)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &greetedConn{Conn: conn, sent: len(clientVersion) + 2, received: greeting[:n]}, nil
}

// greetedConn is a connection on which the version lines have gone over the
// wire already. x/crypto/ssh, which wants to exchange them itself, is told so.
type greetedConn struct {
	net.Conn
	sent     int    // bytes that are to be written again, and are not
	received []byte // bytes that were read and are to be read again
}

func (c *greetedConn) Write(p []byte) (int, error) {
	skip := min(c.sent, len(p))
	c.sent -= skip
	if skip == len(p) {
		return skip, nil
	}
	n, err := c.Conn.Write(p[skip:])
	return skip + n, err
}

func (c *greetedConn) Read(p []byte) (int, error) {
	if len(c.received) > 0 {
		n := copy(p, c.received)
		c.received = c.received[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// handshake logs in on conn, which it closes on failure. pinned is the host key
// to insist on, nil to accept any; the key that was seen is returned.
func handshake(ctx context.Context, conn net.Conn, login Login, pinned ssh.PublicKey) (*ssh.Client, ssh.PublicKey, error) {
	auth, err := login.methods(ctx)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	var seen ssh.PublicKey
	config := &ssh.ClientConfig{
		User:          login.User,
		Auth:          auth,
		ClientVersion: clientVersion,
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			seen = key
			if pinned != nil && !bytes.Equal(pinned.Marshal(), key.Marshal()) {
				return fmt.Errorf("%w: %s now, %s then", ErrHostKey, ssh.FingerprintSHA256(key), ssh.FingerprintSHA256(pinned))
			}
			return nil
		},
	}
	if pinned != nil {
		config.HostKeyAlgorithms = signatureAlgorithms(pinned)
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	inner, channels, requests, err := ssh.NewClientConn(conn, conn.RemoteAddr().String(), config)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, seen, classifyHandshake(err, login.User)
	}
	return ssh.NewClient(inner, channels, requests), seen, nil
}

// classifyHandshake finds out whether the server refused us. The library has no
// type for that: the text is all there is, and a test keeps it true.
func classifyHandshake(err error, user string) error {
	if strings.Contains(err.Error(), "unable to authenticate") {
		return fmt.Errorf("%w: user %q: %w", ErrLogin, user, err)
	}
	return fmt.Errorf("log in as %q: %w", user, err)
}

// signatureAlgorithms are those by which a server can prove that it has key. An
// RSA key has three, and the newest servers refuse the one called like the key.
func signatureAlgorithms(key ssh.PublicKey) []string {
	if key.Type() == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSA}
	}
	return []string{key.Type()}
}

// methods are the ways to authenticate, keys first, as ssh does it.
func (l Login) methods(ctx context.Context) ([]ssh.AuthMethod, error) {
	var signers []ssh.Signer
	if l.Key != nil {
		signer, err := ssh.NewSignerFromKey(l.Key)
		if err != nil {
			return nil, fmt.Errorf("use the key of this job: %w", err)
		}
		signers = append(signers, signer)
	}
	if l.IdentityFile != "" {
		pem, err := os.ReadFile(l.IdentityFile)
		if err != nil {
			return nil, fmt.Errorf("%w: read identity_file: %w", ErrSpec, err)
		}
		signer, err := ssh.ParsePrivateKey(pem)
		if err != nil {
			return nil, fmt.Errorf("%w: identity_file %s: %w", ErrSpec, l.IdentityFile, err)
		}
		signers = append(signers, signer)
	}
	if l.Agent {
		held, err := agentSigners(ctx)
		if err != nil {
			return nil, err
		}
		signers = append(signers, held...)
	}
	var methods []ssh.AuthMethod
	if len(signers) > 0 {
		methods = append(methods, ssh.PublicKeys(signers...))
	}
	if l.Password != "" {
		methods = append(methods, ssh.Password(l.Password),
			// PAM servers with PasswordAuthentication off ask for it this way.
			ssh.KeyboardInteractive(func(_, _ string, questions []string, _ []bool) ([]string, error) {
				answers := make([]string, len(questions))
				for i := range answers {
					answers[i] = l.Password
				}
				return answers, nil
			}))
	}
	return methods, nil
}

// agentSigners are the keys of the driver's user's ssh-agent. The connection
// stays open for as long as this process: signing needs it.
func agentSigners(ctx context.Context) ([]ssh.Signer, error) {
	socket := os.Getenv("SSH_AUTH_SOCK")
	if socket == "" {
		return nil, fmt.Errorf("%w: ask the ssh-agent: SSH_AUTH_SOCK is not set", ErrSpec)
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("%w: ask the ssh-agent: %w", ErrSpec, err)
	}
	signers, err := agent.NewClient(conn).Signers()
	if err != nil {
		return nil, fmt.Errorf("%w: ask the ssh-agent at %s: %w", ErrSpec, socket, err)
	}
	return signers, nil
}
