package distribution

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"time"

	"github.com/containers/image/v5/types"
	"github.com/sirupsen/logrus"
	"oras.land/oras-go/v2/registry/remote/auth"

	"gitlab-sardine-executor/oci/registry/netaddr"
)

// DefaultStallTimeout is how long a client waits for progress worth the name.
const DefaultStallTimeout = time.Minute

// Options of a [Client].
type Options struct {
	// Registry is its host, with its port if it is not the usual one.
	Registry string
	// Repository within it; empty if only [Client.CheckAuth] is called.
	Repository string
	// Push asks for the right to write as well.
	Push bool
	// Auth is the account for Registry; the zero value for none.
	Auth types.DockerAuthConfig
	// Insecure accepts plain HTTP and any certificate from Registry, and from no
	// other place.
	Insecure bool
	// System says where registries.conf and certs.d are, the name of this program,
	// and whether every place may be insecure. It must not be nil.
	System *types.SystemContext
	// StallTimeout is how long the requests of this client may wait, all together,
	// for 1000 bytes for each of its seconds; 0 means [DefaultStallTimeout].
	StallTimeout time.Duration
}

// A Client talks to one registry about one repository. It is safe for concurrent
// use.
type Client struct {
	options   Options
	policy    *policy
	transport *transport
	http      *http.Client
	auth      *auth.Client
	meter     *meter
	dial      dialer

	connectTimeout, headerTimeout, tokenTimeout, manifestTimeout, commitTimeout time.Duration

	mu     sync.Mutex
	scheme string // empty until known

	warned sync.Map // warnings of the registry that were logged
}

// New makes a client; it does not connect.
func New(o Options) (*Client, error) {
	p, err := newPolicy(o)
	if err != nil {
		return nil, err
	}
	if o.StallTimeout <= 0 {
		o.StallTimeout = DefaultStallTimeout
	}
	c := &Client{
		options: o, policy: p, meter: newMeter(o.StallTimeout), dial: dial,
		connectTimeout: connectTimeout, tokenTimeout: tokenTimeout, commitTimeout: commitTimeout,
		// A registry that fetches from another one is slow to answer; where the
		// administrator allows for that, so do these.
		headerTimeout: max(headerTimeout, o.StallTimeout/2), manifestTimeout: max(manifestTimeout, o.StallTimeout),
	}
	if o.Push {
		c.headerTimeout = commitTimeout // the meter has the shorter deadline
	}
	if !p.isInsecure(&url.URL{Scheme: "https", Host: netaddr.HostOf(o.Registry)}) {
		c.scheme = "https"
	}
	c.transport = newTransport(c)
	c.http = &http.Client{Transport: c.transport, CheckRedirect: c.checkRedirect}
	c.auth = &auth.Client{
		Client: c.http, Credential: c.credential, Cache: auth.NewCache(), ClientID: o.System.DockerRegistryUserAgent,
		// The policy judges addresses, and when they are connected to.
		BlockedRealmPrefixes: []netip.Prefix{},
	}
	if o.System.DockerRegistryUserAgent != "" {
		c.auth.SetUserAgent(o.System.DockerRegistryUserAgent)
	}
	return c, nil
}

// Close lets connections go.
func (c *Client) Close() error {
	c.transport.mu.Lock()
	defer c.transport.mu.Unlock()
	for _, t := range c.transport.each {
		t.CloseIdleConnections()
	}
	return nil
}

// credential is the account, for the registry's own host and port alone.
func (c *Client) credential(_ context.Context, host string) (auth.Credential, error) {
	scheme := c.scheme
	if host == "" || netaddr.Canonical(host, scheme) != netaddr.Canonical(netaddr.HostOf(c.options.Registry), scheme) {
		return auth.EmptyCredential, nil
	}
	a := c.options.Auth
	if a.IdentityToken != "" {
		return auth.Credential{RefreshToken: a.IdentityToken}, nil
	}
	return auth.Credential{Username: a.Username, Password: a.Password}, nil
}

// CheckAuth asks the registry whether it knows the account.
func (c *Client) CheckAuth(ctx context.Context) error {
	ctx, cancel := c.withDeadline(ctx, "no answer")
	defer cancel()
	resp, err := c.request(ctx, http.MethodGet, "/v2/", nil)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return c.statusError(resp)
	}
	return resp.Body.Close()
}

// withDeadline is for an answer that is read whole.
func (c *Client) withDeadline(ctx context.Context, what string) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, c.manifestTimeout, &timeoutError{c.policy.name, what, c.manifestTimeout})
}

// base is the URL of the registry, by the scheme that it speaks.
func (c *Client) base(ctx context.Context) (*url.URL, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.scheme == "" {
		err := c.ping(ctx, "https")
		var refused *RefusedError
		if err != nil && ctx.Err() == nil && !errors.As(err, &refused) {
			logrus.Debugf("no HTTPS at %s: %v", c.policy.name, err)
			if err = c.ping(ctx, "http"); err == nil {
				c.scheme = "http"
			}
		} else if err == nil {
			c.scheme = "https"
		}
		if err != nil {
			return nil, err
		}
	}
	return &url.URL{Scheme: c.scheme, Host: netaddr.HostOf(c.options.Registry)}, nil
}

// ping finds out whether an insecure registry speaks a scheme.
func (c *Client) ping(ctx context.Context, scheme string) error {
	u := &url.URL{Scheme: scheme, Host: netaddr.HostOf(c.options.Registry), Path: "/v2/"}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set(apiHeader, "registry/2.0")
	w := &wait{place: c.policy.name}
	resp, err := c.watched(req, w, c.http.Do)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusUnauthorized {
		return c.statusError(resp)
	}
	return resp.Body.Close()
}

// A call is one request to the registry, or to a place that it named for an upload.
type call struct {
	method string
	url    *url.URL
	header http.Header
	// body, of size bytes; nil for none.
	body io.Reader
	size int64
	// commits: the registry may take its time before it answers.
	commits bool
}

// request asks the registry something that has no body.
func (c *Client) request(ctx context.Context, method, path string, header http.Header) (*http.Response, error) {
	u, err := c.base(ctx)
	if err != nil {
		return nil, err
	}
	return c.do(ctx, call{method: method, url: u.JoinPath(path), header: header})
}

// do sends a request with the account's token or password. Close the body of the
// response.
func (c *Client) do(ctx context.Context, call call) (*http.Response, error) {
	actions := []string{auth.ActionPull}
	if c.options.Push {
		actions = append(actions, auth.ActionPush)
	}
	if c.options.Repository != "" {
		ctx = auth.WithScopesForHost(ctx, call.url.Host, auth.ScopeRepository(c.options.Repository, actions...))
	}
	req, err := http.NewRequestWithContext(ctx, call.method, call.url.String(), call.body)
	if err != nil {
		return nil, &protocolError{c.policy.name, "a URL that cannot be asked for"}
	}
	for name, values := range call.header {
		req.Header[name] = values
	}
	if call.body != nil {
		req.ContentLength = call.size
	}
	req.Header.Set(apiHeader, "registry/2.0")
	logrus.Debugf("%s %s%s", call.method, netaddr.Origin(call.url), call.url.Path)
	w := &wait{place: c.policy.name}
	if up, ok := call.body.(*upload); ok {
		w.sending = true
		up.sent = func() { c.commit(w) }
	}
	if call.commits {
		w.commits = true
	}
	resp, err := c.watched(req, w, c.auth.Do)
	if err != nil {
		return nil, err
	}
	if c.policy.isRegistry(resp.Request.URL) {
		c.logWarnings(resp.Header)
	}
	return resp, nil
}

// commit gives the registry time to store what it was sent: some copy a blob to
// its final place, or receive it whole before they look at it.
func (c *Client) commit(w *wait) {
	c.meter.end(w, 0)
	late := &timeoutError{w.place, "what was sent was not stored", c.commitTimeout}
	w.deadline.Store(time.AfterFunc(c.commitTimeout, func() { w.cancel(late) }))
}

// watched sends a request that ends when the client makes no progress; the same
// holds for the body of the response.
func (c *Client) watched(req *http.Request, w *wait, send func(*http.Request) (*http.Response, error)) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	w.cancel = cancel
	if w.commits {
		c.commit(w)
	} else {
		c.meter.begin(w)
	}
	resp, err := send(req.WithContext(ctx))
	c.meter.end(w, 0)
	if err != nil {
		err = c.explain(ctx, err)
		w.stop()
		return nil, err
	}
	w.sending = false
	if resp.Request != nil {
		w.place = resp.Request.URL.Host
	}
	resp.Body = &body{ReadCloser: resp.Body, ctx: ctx, client: c, wait: w}
	return resp, nil
}

// A body is one that is watched.
type body struct {
	io.ReadCloser
	ctx    context.Context
	client *Client
	wait   *wait
	err    error
}

func (b *body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	b.client.meter.begin(b.wait)
	n, err := b.ReadCloser.Read(p)
	b.client.meter.end(b.wait, int64(n))
	switch {
	case err != nil && context.Cause(b.ctx) != nil:
		err = context.Cause(b.ctx) // also at an end that came by hanging up
	case errors.Is(err, io.EOF):
		b.client.meter.answered()
	case err != nil:
		err = explainTransport(b.wait.place, err)
	}
	b.err = err
	return n, err
}

func (b *body) Close() error {
	err := b.ReadCloser.Close()
	b.wait.stop()
	return err
}

// logWarnings tells the administrator what the registry has to say, once
// (distribution specification, "Warnings").
func (c *Client) logWarnings(header http.Header) {
	for _, value := range header.Values("Warning") {
		text, ok := warningText(value)
		if _, again := c.warned.LoadOrStore(text, true); ok && !again {
			logrus.Warnf("%s warns: %s", c.policy.name, text)
		}
	}
}

var errNoLocation = errors.New("no Location")

// follow is the URL that an answer names.
func follow(resp *http.Response) (*url.URL, error) {
	location, err := resp.Location()
	if err != nil {
		return nil, fmt.Errorf("%w in the answer of %s", errNoLocation, resp.Request.URL.Host)
	}
	return location, nil
}
