package distribution

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containers/image/v5/types"
	"github.com/opencontainers/go-digest"
)

func TestMain(m *testing.M) {
	// No proxy, no certificates, no registries.conf of whoever runs the tests.
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"} {
		os.Unsetenv(name)
	}
	home, err := os.MkdirTemp("", "distribution")
	if err != nil {
		log.Fatal(err)
	}
	os.Setenv("HOME", home)
	flag.Set("test.parallel", "8") // they mostly wait
	code := m.Run()
	os.RemoveAll(home)
	os.Exit(code)
}

// A network is one of names and addresses that tests make up; its servers are real
// ones on 127.0.0.1. The address that the policy is asked about is the made-up one,
// at the place where the real dialer asks about it.
type network struct {
	t     *testing.T
	ca    *authority
	mu    sync.Mutex
	names map[string][]netip.Addr // by host:port; the first of several is dropped once it was used
	at    map[string]string       // host:port of the network to the one of its server
	conf  strings.Builder         // registries.conf
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	return &network{t: t, ca: newAuthority(t), names: map[string][]netip.Addr{}, at: map[string]string{}}
}

// A server of the network. It counts the connections and what was asked.
type server struct {
	name  string // host:port
	url   string
	conns atomic.Int64
	over  chan struct{} // closed at the end of the test

	mu       sync.Mutex
	requests []*http.Request
}

// serve puts a server at name (host:port) with an address.
func (n *network) serve(name, address string, tlsToo bool, handler http.HandlerFunc) *server {
	n.t.Helper()
	host, _, err := net.SplitHostPort(name)
	if err != nil {
		n.t.Fatal(err)
	}
	s := &server{name: name, url: "http://" + name, over: make(chan struct{})}
	real := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, r.Clone(context.Background()))
		s.mu.Unlock()
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		// A server does not see that a client has gone whose body it does not read.
		go func() {
			select {
			case <-s.over:
			case <-ctx.Done():
			}
			cancel()
		}()
		handler(w, r.WithContext(ctx))
	}))
	real.Config.ErrorLog = log.New(io.Discard, "", 0)
	real.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.conns.Add(1)
		}
	}
	if tlsToo {
		s.url = "https://" + name
		real.TLS = &tls.Config{Certificates: []tls.Certificate{n.ca.certify(n.t, host)}}
		real.StartTLS()
	} else {
		real.Start()
	}
	n.t.Cleanup(func() {
		close(s.over)
		real.Close()
	})
	n.put(name, address, real.Listener.Addr().String())
	return s
}

// put connects name, and its address with that port, to a listener of this host.
func (n *network) put(name, address, listener string) {
	_, port, _ := net.SplitHostPort(name)
	addr := netip.MustParseAddr(address)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.names[name] = []netip.Addr{addr}
	n.at[net.JoinHostPort(addr.String(), port)] = listener
}

func (n *network) dial(ctx context.Context, network, address string, check allow) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	addrs := n.names[address]
	if len(addrs) > 1 {
		n.names[address] = addrs[1:]
	}
	n.mu.Unlock()
	if len(addrs) == 0 {
		addr, err := netip.ParseAddr(host)
		if err != nil {
			return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
		}
		addrs = []netip.Addr{addr}
	}
	if err := check(addrs[0]); err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	n.mu.Lock()
	listener := n.at[net.JoinHostPort(addrs[0].String(), port)]
	n.mu.Unlock()
	if listener == "" {
		return nil, &net.OpError{Op: "dial", Net: network, Err: fmt.Errorf("nothing is at %s", address)}
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", listener)
	if err != nil {
		return nil, err
	}
	number, _ := net.LookupPort("tcp", port)
	return elsewhere{conn, &net.TCPAddr{IP: addrs[0].AsSlice(), Port: number}}, nil
}

// elsewhere is a connection to an address of the network.
type elsewhere struct {
	net.Conn
	remote net.Addr
}

func (e elsewhere) RemoteAddr() net.Addr { return e.remote }

// client is one for a registry of the network, with this account.
func (n *network) client(registry string, change ...func(*Options)) *Client {
	n.t.Helper()
	dir := n.t.TempDir()
	conf := filepath.Join(dir, "registries.conf")
	n.write(conf, n.conf.String())
	n.write(filepath.Join(dir, registry, "ca.crt"), string(n.ca.pem))
	o := Options{
		Registry: registry, Repository: "vms/debian", Auth: types.DockerAuthConfig{Username: "alice", Password: "pa55word"},
		System: &types.SystemContext{SystemRegistriesConfPath: conf, SystemRegistriesConfDirPath: filepath.Join(dir, "none"), DockerPerHostCertDirPath: dir},
	}
	o.Insecure = strings.Contains(n.conf.String(), fmt.Sprintf("location = %q\ninsecure = true", registry))
	for _, c := range change {
		c(&o)
	}
	c, err := New(o)
	if err != nil {
		n.t.Fatal(err)
	}
	c.dial = n.dial
	c.policy.own = func(netip.Addr) bool { return false }
	n.t.Cleanup(func() { c.Close() })
	return c
}

func push(o *Options) { o.Push = true }

func (n *network) write(path, text string) {
	n.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

// insecure adds an entry to registries.conf.
func (n *network) insecure(host string) {
	fmt.Fprintf(&n.conf, "[[registry]]\nlocation = %q\ninsecure = true\n", host)
}

// sawSecret reports whether a server was given a password or a token.
func (s *server) sawSecret() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		if r.Header.Get("Authorization") != "" || strings.Contains(r.URL.RawQuery, "pa55word") {
			return true
		}
	}
	return false
}

func (s *server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.requests)
}

// An authority signs certificates of test servers.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{key, cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (a *authority) certify(t *testing.T, host string) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	if ip := net.ParseIP(host); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: a.key}
}

// Addresses of the network: documentation ranges stand for public ones.
const (
	publicAddr, otherPublicAddr = "203.0.113.7", "198.51.100.9"
	privateAddr                 = "10.1.2.3"
)

const emptyManifest = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}`

var blobContent = strings.Repeat("content of a blob. ", 1000)

var blobDigest = digest.FromString(blobContent)

// honest is a registry with one manifest and one blob, which takes everything.
func honest(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodPost:
		w.Header().Set("Location", r.URL.Path+"1")
		w.WriteHeader(http.StatusAccepted)
	case r.Method == http.MethodPatch:
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Location", r.URL.Path)
		w.WriteHeader(http.StatusAccepted)
	case r.Method == http.MethodPut:
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusCreated)
	case strings.Contains(r.URL.Path, "/manifests/"):
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		_, _ = io.WriteString(w, emptyManifest)
	case strings.Contains(r.URL.Path, "/blobs/"):
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(blobContent))
	}
}

// actions are everything that a client does, each beginning with a request of the
// kind that step says.
var actions = map[string]func(ctx context.Context, c *Client) error{
	"manifest": func(ctx context.Context, c *Client) error {
		_, _, err := c.Manifest(ctx, "1", 1<<20)
		return err
	},
	"blob": func(ctx context.Context, c *Client) error { return readBlob(ctx, c, 0) },
	"rest of a blob": func(ctx context.Context, c *Client) error {
		return readBlob(ctx, c, 100)
	},
	"login":    func(ctx context.Context, c *Client) error { return c.CheckAuth(ctx) },
	"has blob": func(ctx context.Context, c *Client) error { _, _, err := c.HasBlob(ctx, blobDigest); return err },
	"put blob": func(ctx context.Context, c *Client) error {
		return c.PutBlob(ctx, blobDigest, int64(len(blobContent)), strings.NewReader(blobContent))
	},
	"put manifest": func(ctx context.Context, c *Client) error {
		return c.PutManifest(ctx, "1", "application/vnd.oci.image.manifest.v1+json", []byte(emptyManifest))
	},
}

func readBlob(ctx context.Context, c *Client, offset int64) error {
	body, err := c.Blob(ctx, blobDigest, offset, int64(len(blobContent)))
	if err != nil {
		return err
	}
	defer body.Close()
	got, err := io.ReadAll(body)
	if err == nil && string(got) != blobContent[offset:] {
		err = fmt.Errorf("%d bytes of another content", len(got))
	}
	return err
}

func redirectTo(target string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", target)
		w.WriteHeader(http.StatusTemporaryRedirect)
	}
}

func mustURL(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
