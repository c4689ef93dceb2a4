package distribution

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"oras.land/oras-go/v2/registry/remote/auth"
)

// A StatusError is an answer with an HTTP status that was not wanted.
type StatusError struct {
	// Place that answered, as host:port or host.
	Place string
	// Registry that sent us there; empty if it answered itself.
	Registry string
	Status   int
	// Detail is what the registry itself says about it in the form that the
	// distribution specification wants, in one short line. It is empty for every
	// other place: what stands in the answers of those must not be shown.
	Detail string
	// RetryAfter is how long the place wants to be left alone; 0 if it does not say.
	RetryAfter time.Duration
}

func (e *StatusError) Error() string {
	text := e.Place
	if e.Registry != "" {
		text += fmt.Sprintf(" (named by %s)", e.Registry)
	}
	text += strings.TrimRight(fmt.Sprintf(" answers %d %s", e.Status, http.StatusText(e.Status)), " ")
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	return text
}

// A timeoutError says that a step was not done in time. Another try may be.
type timeoutError struct {
	// Place that was asked, as host:port or host.
	Place string
	// What did not come, such as "no connection".
	What  string
	After time.Duration
}

func (e *timeoutError) Error() string {
	return fmt.Sprintf("%s: %s within %s", e.Place, e.What, seconds(e.After))
}

// Timeout makes it a net.Error.
func (e *timeoutError) Timeout() bool { return true }

// Temporary makes it a net.Error.
func (e *timeoutError) Temporary() bool { return true }

// A tokenError says that a token service answered, but with no token.
type tokenError struct{ Place string }

func (e *tokenError) Error() string {
	return fmt.Sprintf("the token service %s gave no token", e.Place)
}

// A protocolError says that an answer is none of this protocol. What came is not
// shown.
type protocolError struct {
	Place, Reason string
}

func (e *protocolError) Error() string { return e.Place + ": " + e.Reason }

// maxDetail bounds what is shown of a registry's own words, in bytes.
const maxDetail = 200

// statusError reads, and closes, an answer that was not wanted.
func (c *Client) statusError(resp *http.Response) error {
	defer resp.Body.Close()
	e := &StatusError{Place: resp.Request.URL.Host, Status: resp.StatusCode, RetryAfter: retryAfter(resp.Header, time.Now())}
	if !c.policy.isRegistry(resp.Request.URL) {
		e.Registry = c.policy.name
		return e
	}
	e.Place = c.policy.name
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<10))
	if err != nil {
		return e
	}
	e.Detail = detail(body)
	return e
}

// detail reads the errors of the distribution specification; a body of any other
// form gives none.
func detail(body []byte) string {
	var answer struct {
		Errors []struct{ Code, Message string } `json:"errors"`
	}
	if json.Unmarshal(body, &answer) != nil || len(answer.Errors) == 0 {
		return ""
	}
	first := answer.Errors[0]
	text := first.Message
	if text == "" {
		text = first.Code
	}
	return oneLine(text)
}

// oneLine is what a registry says, fit for a log.
func oneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
	if len(text) > maxDetail {
		text = strings.ToValidUTF8(text[:maxDetail], "") + "…"
	}
	return text
}

// retryAfter reads the header of that name: seconds, or a date.
func retryAfter(header http.Header, now time.Time) time.Duration {
	const most = 366 * 24 * time.Hour
	text := header.Get("Retry-After")
	if after, err := strconv.ParseUint(text, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(min(after, uint64(most/time.Second))) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return min(max(at.Sub(now), 0), most)
	}
	return 0
}

// explain turns what a request failed with into an error that says where it went,
// without path, query, password, or anything that was answered.
func (c *Client) explain(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	var own ownError
	if errors.As(err, &own) {
		return own
	}
	// A token that is good no more is found out in the midst of an upload, which
	// cannot be sent twice.
	if errors.Is(err, auth.ErrBasicCredentialNotFound) || strings.HasSuffix(err.Error(), "body is not rewindable") {
		return &StatusError{Place: c.policy.name, Status: http.StatusUnauthorized}
	}
	if reason := refusalOf(err); reason != "" {
		return &RefusedError{Registry: c.policy.name, Reason: reason}
	}
	where := c.policy.name
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err
		if u, parseErr := url.Parse(request.URL); parseErr == nil && u.Host != "" {
			where = u.Host
		}
	}
	return explainTransport(where, err)
}

// refusalOf knows what oras' client itself refuses of a realm; its texts show URLs.
func refusalOf(err error) string {
	switch text := err.Error(); {
	case strings.Contains(text, "refusing to resend a token request body"):
		return passesOn
	case strings.Contains(text, "uses http but registry was contacted over https"):
		return "its token service, or a place to which that redirects, speaks plain HTTP, though the registry speaks HTTPS"
	case strings.Contains(text, "bearer realm"):
		return "the URL of its token service is not one to follow"
	}
	return ""
}

// An ownError is one of this package, which says where it was met. What others
// wrap around it may show a URL.
type ownError interface {
	error
	own()
}

func (*RefusedError) own()  {}
func (*StatusError) own()   {}
func (*timeoutError) own()  {}
func (*StallError) own()    {}
func (*tokenError) own()    {}
func (*protocolError) own() {}

// explainTransport passes on errors of the network and of TLS. Others of net/http
// may quote what the server sent.
func explainTransport(where string, err error) error {
	var (
		operation *net.OpError
		dns       *net.DNSError
		untrusted *tls.CertificateVerificationError
		authority x509.UnknownAuthorityError
		record    tls.RecordHeaderError
		alert     tls.AlertError
		number    syscall.Errno
	)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		// It hung up in the midst of things.
		return fmt.Errorf("%s broke off the connection: %w", where, io.ErrUnexpectedEOF)
	case strings.HasSuffix(err.Error(), "TLS handshake timeout"):
		return &timeoutError{where, "no TLS handshake", tlsTimeout}
	case strings.HasSuffix(err.Error(), "timeout awaiting response headers"):
		return &timeoutError{where, "no answer", headerTimeout}
	case errors.Is(err, http.ErrSchemeMismatch),
		errors.As(err, &operation), errors.As(err, &dns), errors.As(err, &untrusted), errors.As(err, &authority),
		errors.As(err, &record), errors.As(err, &alert), errors.As(err, &number),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w", where, err)
	case errors.Is(err, errTooManyRedirects):
		return &protocolError{where, errTooManyRedirects.Error()}
	}
	return &protocolError{where, "the answer is not valid HTTP"}
}
