package guestssh

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

	"gitlab-sardine-executor/vm/errdefs"
)

const (
	clientVersion = "SSH-2.0-gitlab-sardine-executor"

	// handshakeTimeout bounds key exchange and authentication once the server
	// has greeted; an emulated guest that is still booting needs seconds.
	handshakeTimeout = 30 * time.Second
)

// A Client is a connection to the SSH server of a guest that has accepted a login.
type Client struct {
	// HostKey is the host key that the server presented.
	HostKey ssh.PublicKey

	conn *ssh.Client
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Handshake logs in on conn, which it closes on failure. pinned is the required host
// key; nil accepts any.
func Handshake(ctx context.Context, conn net.Conn, login Login, pinned ssh.PublicKey) (*Client, error) {
	auth, err := login.methods(ctx)
	if err != nil {
		conn.Close()
		return nil, err
	}
	var seen ssh.PublicKey
	var banner string
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
		BannerCallback: func(text string) error { banner = text; return nil },
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
		return nil, classifyHandshake(err, login.User, banner)
	}
	return &Client{HostKey: seen, conn: ssh.NewClient(inner, channels, requests)}, nil
}

// classifyHandshake finds out whether the server refused us. The library has no
// type for that: the text is all there is, and a test keeps it true. banner is
// what the server said before.
func classifyHandshake(err error, user, banner string) error {
	switch {
	case errors.Is(err, ErrHostKey):
		return err
	case strings.Contains(banner, "pam_nologin(8)"):
		// The text of /run/nologin, which systemd removes when it has booted.
		return fmt.Errorf("%w: %w", ErrBooting, err)
	case strings.Contains(err.Error(), "unable to authenticate"):
		return fmt.Errorf("%w: user %q: %w (who logs in: the first user in the image's VM config, or the settings username, password and identity_file)", ErrLogin, user, err)
	}
	return fmt.Errorf("log in as %q: %w", user, err)
}

// FormatKey formats a public key as one line, as in authorized_keys, without a comment.
func FormatKey(key ssh.PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// ParseHostKey parses a host key that [FormatKey] formatted.
func ParseHostKey(line string) (ssh.PublicKey, error) {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return nil, fmt.Errorf("read the host key of the record: %w", err)
	}
	return key, nil
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
			return nil, fmt.Errorf("%w: read identity_file: %w", errdefs.ErrInvalid, err)
		}
		signer, err := ssh.ParsePrivateKey(pem)
		if missing := new(ssh.PassphraseMissingError); errors.As(err, &missing) {
			return nil, fmt.Errorf("%w: identity_file %s is encrypted, and nobody is here to type the passphrase: "+
				"remove it (ssh-keygen -p -f FILE), or add the key to an ssh-agent and set ssh_agent = true", errdefs.ErrInvalid, l.IdentityFile)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: identity_file %s: %w", errdefs.ErrInvalid, l.IdentityFile, err)
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
		return nil, fmt.Errorf("%w: ask the ssh-agent: SSH_AUTH_SOCK is not set", errdefs.ErrInvalid)
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("%w: ask the ssh-agent: %w", errdefs.ErrInvalid, err)
	}
	signers, err := agent.NewClient(conn).Signers()
	if err != nil {
		return nil, fmt.Errorf("%w: ask the ssh-agent at %s: %w", errdefs.ErrInvalid, socket, err)
	}
	return signers, nil
}
