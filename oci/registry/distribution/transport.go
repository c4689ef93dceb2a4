package distribution

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/http/httpproxy"

	"gitlab-sardine-executor/oci/registry/netaddr"
)

// How long the parts of a request may take. A body is watched by the meter.
const (
	connectTimeout = 15 * time.Second
	tlsTimeout     = 15 * time.Second
	headerTimeout  = 30 * time.Second
	tokenTimeout   = 30 * time.Second
	// manifestTimeout includes a token for it.
	manifestTimeout = time.Minute
	// commitTimeout is for a registry to store what it was sent.
	commitTimeout = 10 * time.Minute
)

const (
	maxHeader    = 256 << 10
	maxToken     = 128 << 10
	maxRedirects = 10
)

// apiHeader marks the requests to the registry, and what they are redirected to.
// Requests for a token have none.
const apiHeader = "Docker-Distribution-Api-Version"

// A dialer opens a connection. It calls check with each address that it is about
// to connect to, and does not connect if that fails.
type dialer func(ctx context.Context, network, address string, check allow) (net.Conn, error)

type allow func(netip.Addr) error

// dial asks for each address at the time of the connection: a name may lead
// elsewhere the second time.
func dial(ctx context.Context, network, address string, check allow) (net.Conn, error) {
	d := net.Dialer{
		KeepAlive: 30 * time.Second,
		Control: func(_, address string, _ syscall.RawConn) error {
			at, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("address %q: %w", address, err)
			}
			return check(at.Addr())
		},
	}
	return d.DialContext(ctx, network, address)
}

// transport sends each request of a client, redirects and requests for tokens
// included, under the policy.
type transport struct {
	client *Client
	proxy  func(*url.URL) (*url.URL, error)

	mu   sync.Mutex
	each map[string]*http.Transport // by proxy, scheme and host
}

func newTransport(c *Client) *transport {
	return &transport{client: c, proxy: httpproxy.FromEnvironment().ProxyFunc(), each: map[string]*http.Transport{}}
}

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	p := t.client.policy
	via, err := t.proxy(req.URL)
	if err == nil {
		err = p.checkURL(req.URL)
	}
	if err == nil && via != nil {
		err = p.checkProxied(req.URL)
	}
	var next http.RoundTripper
	if err == nil {
		next, err = t.next(req.URL, via)
	}
	if err != nil {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, err
	}
	if req.Header.Get(apiHeader) == "" {
		return t.client.roundTripToken(next, req)
	}
	var at net.Addr
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { at = info.Conn.RemoteAddr() }}
	resp, err := next.RoundTrip(req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
	if err != nil {
		return nil, err
	}
	if !p.isRegistry(req.URL) {
		// Another place must not choose who gets the password.
		resp.Header.Del("Www-Authenticate")
	} else if via == nil && at != nil {
		if addr, err := netip.ParseAddrPort(at.String()); err == nil {
			p.answered(addr.Addr())
		}
	}
	return resp, nil
}

// next is the transport for one host, with that host's certificates.
func (t *transport) next(u, via *url.URL) (http.RoundTripper, error) {
	key := u.Scheme + "://" + netaddr.CanonicalURL(u)
	if via != nil {
		key = via.String() + " " + key
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if known, ok := t.each[key]; ok {
		return known, nil
	}
	c := t.client
	host := strings.ToLower(u.Host)
	if c.policy.isRegistry(u) {
		host = c.options.Registry
	}
	config, err := tlsConfig(c.options.System, c.options.Registry, host, c.policy.isInsecure(u))
	if err != nil {
		return nil, err
	}
	// HTTP/1.1 alone: large blobs are faster by it than by HTTP/2 of net/http.
	next := &http.Transport{
		TLSClientConfig: config, TLSHandshakeTimeout: tlsTimeout, ResponseHeaderTimeout: c.headerTimeout, MaxResponseHeaderBytes: maxHeader,
		MaxIdleConnsPerHost: 16, IdleConnTimeout: 90 * time.Second,
		DisableCompression: true, // a digest is of what is sent
		DialContext:        c.dialChecked(netaddr.CanonicalURL(u)),
	}
	if via != nil {
		next.Proxy, next.DialContext = http.ProxyURL(via), c.dialProxy(via.Host)
		next.OnProxyConnectResponse = func(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
			if resp.StatusCode != http.StatusOK {
				return &StatusError{Place: "the proxy " + via.Host, Status: resp.StatusCode}
			}
			return nil
		}
	}
	t.each[key] = next
	return next, nil
}

type dialContext func(ctx context.Context, network, address string) (net.Conn, error)

func (c *Client) dialChecked(host string) dialContext {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		return c.dialWithin(ctx, network, address, host, func(addr netip.Addr) error { return c.policy.checkAddress(host, addr) })
	}
}

// dialProxy: the administrator names it, wherever it is.
func (c *Client) dialProxy(host string) dialContext {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		return c.dialWithin(ctx, network, address, "the proxy "+host, func(netip.Addr) error { return nil })
	}
}

func (c *Client) dialWithin(ctx context.Context, network, address, host string, check allow) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.connectTimeout)
	defer cancel()
	conn, err := c.dial(ctx, network, address, check)
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, &timeoutError{host, "no connection", c.connectTimeout}
	}
	return conn, err
}

// roundTripToken asks a token service. Its answer is read here, so that what it
// says is never shown, and is not waited for without an end.
func (c *Client) roundTripToken(next http.RoundTripper, req *http.Request) (*http.Response, error) {
	where := req.URL.Host
	late := &timeoutError{where, "no token", c.tokenTimeout}
	ctx, cancel := context.WithTimeoutCause(req.Context(), c.tokenTimeout, late)
	defer cancel()
	resp, err := next.RoundTrip(req.WithContext(ctx))
	if err != nil {
		return nil, orCause(ctx, err)
	}
	defer resp.Body.Close()
	if isRedirect(resp.StatusCode) {
		resp.Body = http.NoBody
		return resp, nil
	}
	if resp.StatusCode != http.StatusOK {
		e := &StatusError{Place: "the token service " + where, Registry: c.policy.name, Status: resp.StatusCode, RetryAfter: retryAfter(resp.Header, time.Now())}
		return nil, e
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxToken+1))
	if err = orCause(ctx, err); err != nil { // also at an end that came by hanging up
		return nil, err
	}
	if !isToken(body) {
		return nil, &tokenError{where}
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

// isToken reports whether a token service's answer has a token that fits a header.
func isToken(body []byte) bool {
	var answer struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	if len(body) > maxToken || json.Unmarshal(body, &answer) != nil {
		return false
	}
	for _, r := range answer.Token + answer.AccessToken {
		if r <= ' ' || r > '~' {
			return false
		}
	}
	return answer.Token+answer.AccessToken != ""
}

func orCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

func isRedirect(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

const passesOn = "a token service that is given a password must not pass it on"

// checkRedirect takes from a redirected request what is for another place only.
// net/http would send it to another port of the host, and to every name below it.
func (c *Client) checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return errTooManyRedirects
	}
	req.Header.Del("Referer")
	for _, before := range via {
		if netaddr.SameOrigin(before.URL, req.URL) {
			continue
		}
		// A refresh token stands in the body.
		if req.Header.Get(apiHeader) == "" && (before.Header.Get("Authorization") != "" || before.Method == http.MethodPost) {
			return c.policy.refuse(req.URL, passesOn)
		}
		req.Header.Del("Authorization")
	}
	return nil
}
