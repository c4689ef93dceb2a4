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

const clientVersion = "SSH-2.0-gitlab-sardine-executor"

// A Client is a connection to the SSH server of a guest that has accepted a login.
type Client struct {
	// HostKey is the host key that the server presented.
	HostKey ssh.PublicKey

	conn *ssh.Client
}

// Close ends the connection.
func (c *Client) Close() error {
	if err := c.conn.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil // the guest had closed it
}

// Handshake logs in on conn, which it closes on failure. Only ctx bounds it. pinned is the
// required host key; nil accepts any.
func Handshake(ctx context.Context, conn net.Conn, login Login, pinned ssh.PublicKey) (*Client, error) {
	var expired bool
	auth, err := login.methods(ctx, &expired)
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
				return fmt.Errorf("%w: it is %s, and was %s", ErrHostKey, ssh.FingerprintSHA256(key), ssh.FingerprintSHA256(pinned))
			}
			return nil
		},
		BannerCallback: func(text string) error { banner = text; return nil },
	}
	if pinned != nil {
		config.HostKeyAlgorithms = signatureAlgorithms(pinned)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	inner, channels, requests, err := ssh.NewClientConn(conn, conn.RemoteAddr().String(), config)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		if expired {
			return nil, fmt.Errorf("%w: %w: user %q", ErrLogin, errExpired, login.User)
		}
		return nil, classifyHandshake(err, login.User, banner)
	}
	return &Client{HostKey: seen, conn: ssh.NewClient(inner, channels, requests)}, nil
}

// classifyHandshake determines whether the server refused the login. The library reports
// that as text only; a test checks that the text is still the same. banner is the text
// that the server sent before.
func classifyHandshake(err error, user, banner string) error {
	switch {
	case errors.Is(err, ErrHostKey):
		return err
	case strings.Contains(banner, "pam_nologin(8)"):
		// The text of /run/nologin, which systemd removes at the end of the boot.
		return fmt.Errorf("%w: %w", ErrBooting, err)
	case strings.Contains(err.Error(), "unable to authenticate"):
		return fmt.Errorf("%w: user %q, by %s (the login comes from the first user in the image's VM config, or from the settings username, password and identity_file)", ErrLogin, user, methodsIn(err))
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

// CheckAuthorizedKey checks one line for authorized_keys(5). The error does not show the line,
// which may be a private key by mistake.
func CheckAuthorizedKey(line string) error {
	_, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil || strings.ContainsAny(line, "\r\n") || len(rest) > 0 {
		return errors.New("want one public key, as in a file .pub of ssh-keygen")
	}
	return nil
}

// signatureAlgorithms returns the algorithms with which a server can prove that it has
// key. RSA has three, and new servers refuse the one that has the name of the key type.
func signatureAlgorithms(key ssh.PublicKey) []string {
	if key.Type() == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSA}
	}
	return []string{key.Type()}
}

// errExpired: the guest wants a new password.
var errExpired = errors.New("the password has expired, and the guest wants a new one")

// PasswordExpired returns the error for a guest that answers a command with a demand for a
// new password, as OpenSSH does after the login; nil for other texts.
func PasswordExpired(output string) error {
	for _, sign := range []string{"password has expired", "Password change required", "required to change your password"} {
		if strings.Contains(output, sign) {
			return fmt.Errorf("%w: %w (in the image: chage -M -1 USER)", ErrLogin, errExpired)
		}
	}
	return nil
}

// methods returns the authentication methods, keys first, in the order of ssh. expired is
// set if the server asks for a new password.
func (l Login) methods(ctx context.Context, expired *bool) ([]ssh.AuthMethod, error) {
	var signers []ssh.Signer
	if l.Key != nil {
		signer, err := ssh.NewSignerFromKey(l.Key)
		if err != nil {
			return nil, fmt.Errorf("use the job's key: %w", err)
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
			return nil, fmt.Errorf("%w: identity_file %s is encrypted, and the driver cannot ask for the passphrase: "+
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
			// Servers with PAM and without PasswordAuthentication ask this way.
			ssh.KeyboardInteractive(func(_, _ string, questions []string, _ []bool) ([]string, error) {
				answers := make([]string, len(questions))
				for i := range answers {
					if strings.Contains(strings.ToLower(questions[i]), "new") {
						*expired = true
						return nil, errExpired
					}
					answers[i] = l.Password
				}
				return answers, nil
			}))
	}
	return methods, nil
}

// agentSigners returns the keys of the ssh-agent of the user that runs this process. The
// connection stays open until the process ends: signing needs it.
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
