package distribution

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gitlab-sardine-executor/oci/registry/netaddr"
)

func TestReach(t *testing.T) {
	own := netip.MustParseAddr("203.0.113.1")
	for want, addrs := range map[netaddr.Reach]string{
		netaddr.Public:   "8.8.8.8 203.0.113.2 2001:db8::1 2606:4700::1 64:ff9b::8.8.8.8 172.32.0.1 100.128.0.1",
		netaddr.Private:  "10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 fc00::1 fd12::1 fec0::1 203.0.113.1 ::ffff:203.0.113.1 64:ff9b::10.0.0.1 2002:a00:1::1 2001::1 198.18.0.1",
		netaddr.Loopback: "127.0.0.1 127.255.255.254 ::1 ::ffff:127.0.0.1 ::127.0.0.1 64:ff9b::127.0.0.1 2002:7f00:1::",
		netaddr.LinkLocal: "169.254.169.254 169.254.0.1 fe80::1 fe80::1%eth0 ::ffff:169.254.169.254 64:ff9b::169.254.169.254 " +
			"2002:a9fe:a9fe::",
		netaddr.Nowhere: "0.0.0.0 0.1.2.3 :: ::ffff:0.0.0.0 224.0.0.1 255.255.255.255 240.0.0.1 ff02::1",
	} {
		for addr := range strings.FieldsSeq(addrs) {
			if got := netaddr.ReachOf(netip.MustParseAddr(addr), func(a netip.Addr) bool { return a == own }); got != want {
				t.Errorf("%s is %s, want %s", addr, got, want)
			}
		}
	}
}

func TestReachOfName(t *testing.T) {
	for want, names := range map[netaddr.Reach]string{
		netaddr.Public:    "example.com example.com. 8.8.8.8 xn--0xa.example",
		netaddr.Loopback:  "localhost LOCALHOST. a.localhost 127.0.0.1 ::1",
		netaddr.Private:   "10.1.2.3",
		netaddr.LinkLocal: "169.254.169.254 fe80::1",
		netaddr.Nowhere:   "127.1 2130706433 0x7f000001 0x7f.1 017700000001 0.0.0.0 0",
	} {
		for name := range strings.FieldsSeq(names) {
			if got := netaddr.ReachOfName(name); got != want {
				t.Errorf("%s is %s, want %s", name, got, want)
			}
		}
	}
}

// victims are places that a public registry names, and that must not be asked.
var victims = map[string]struct{ name, address string }{
	"loopback":             {"rebound.example.com:8080", "127.0.0.1"},
	"loopback, IPv6":       {"rebound.example.com:8080", "::1"},
	"loopback, mapped":     {"rebound.example.com:8080", "::ffff:127.0.0.1"},
	"loopback, literal":    {"127.0.0.1:8080", "127.0.0.1"},
	"metadata":             {"metadata.example.com:443", "169.254.169.254"},
	"unspecified":          {"0.0.0.0:8080", "0.0.0.0"},
	"private":              {"intranet.example.com:443", privateAddr},
	"private, IPv6":        {"intranet.example.com:443", "fd00::1"},
	"through a translator": {"intranet.example.com:443", "64:ff9b::10.1.2.3"},
}

// TestRedirectsInside has a public registry redirect every request to places that
// this host can reach and the registry should not.
func TestRedirectsInside(t *testing.T) {
	t.Parallel()
	for kind, v := range victims {
		for _, tls := range []bool{true, false} {
			n := newNetwork(t)
			victim := n.serve(v.name, v.address, tls, honest)
			n.serve("evil.example.com:443", publicAddr, true, redirectTo(victim.url+"/secret?token=t0ken"))
			for step, act := range actions {
				t.Run(fmt.Sprintf("%s, TLS %t, %s", kind, tls, step), func(t *testing.T) {
					checkRefused(t, act(t.Context(), n.client("evil.example.com", push)), victim)
				})
			}
		}
	}
}

// checkRefused wants the refusal, with no word of the URL but its place.
func checkRefused(t *testing.T, err error, victims ...*server) {
	t.Helper()
	var refused *RefusedError
	if !errors.As(err, &refused) {
		t.Errorf("%v; want a refusal", err)
	} else if text := err.Error(); strings.Contains(text, "secret") || strings.Contains(text, "t0ken") || strings.Contains(text, "pa55word") {
		t.Errorf("too much is said: %s", text)
	}
	for _, victim := range victims {
		if victim.conns.Load() > 0 {
			t.Errorf("%s got %d connections", victim.name, victim.conns.Load())
		}
	}
}

// TestRealmsInside has it name token services there, and redirect from an honest
// one.
func TestRealmsInside(t *testing.T) {
	t.Parallel()
	for kind, v := range victims {
		for _, tls := range []bool{true, false} {
			n := newNetwork(t)
			victim := n.serve(v.name, v.address, tls, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"token":"stolen"}`) })
			hop := n.serve("hop.example.com:443", otherPublicAddr, true, redirectTo(victim.url+"/secret"))
			for realm, url := range map[string]string{"realm": victim.url + "/secret", "redirect of a realm": hop.url} {
				evil := n.serve("evil.example.com:443", publicAddr, true, func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer realm=%q", url))
					w.WriteHeader(http.StatusUnauthorized)
				})
				for _, step := range []string{"manifest", "put manifest"} {
					t.Run(fmt.Sprintf("%s, TLS %t, %s, %s", kind, tls, realm, step), func(t *testing.T) {
						checkRefused(t, actions[step](t.Context(), n.client("evil.example.com")), victim)
						if evil.sawSecret() {
							t.Error("a token went to the registry")
						}
					})
				}
			}
		}
	}
}

// TestUploadsInside: the places of an upload are named by a Location, twice.
func TestUploadsInside(t *testing.T) {
	for kind, v := range victims {
		for _, method := range []string{http.MethodPost, http.MethodPatch} {
			t.Run(kind+", answer to "+method, func(t *testing.T) {
				n := newNetwork(t)
				victim := n.serve(v.name, v.address, true, honest)
				n.serve("evil.example.com:443", publicAddr, true, func(w http.ResponseWriter, r *http.Request) {
					if r.Method == method {
						w.Header().Set("Location", victim.url+"/secret")
						w.WriteHeader(http.StatusAccepted)
						return
					}
					honest(w, r)
				})
				checkRefused(t, actions["put blob"](t.Context(), n.client("evil.example.com", push)), victim)
			})
		}
	}
}

// TestRebinding: the name of a registry that was public leads to loopback for the
// next connection, where its certificate would be accepted.
func TestRebinding(t *testing.T) {
	n := newNetwork(t)
	victim := n.serve("evil.example.com:8080", "127.0.0.1", true, honest)
	n.serve("evil.example.com:443", publicAddr, true, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		honest(w, r)
	})
	n.put("evil.example.com:443", "127.0.0.1", n.at["127.0.0.1:8080"])
	n.names["evil.example.com:443"] = []netip.Addr{netip.MustParseAddr(publicAddr), netip.MustParseAddr("127.0.0.1")}
	c := n.client("evil.example.com")
	if err := actions["manifest"](t.Context(), c); err != nil {
		t.Fatal(err)
	}
	checkRefused(t, actions["blob"](t.Context(), c), victim)
}

// TestURLs: what a redirect, a realm or an upload may look like.
func TestURLs(t *testing.T) {
	n := newNetwork(t)
	n.insecure("plain.example.com:5000")
	n.insecure("plain.example.org")
	p := n.client("registry.example.com:5000").policy
	for text, ok := range map[string]bool{
		"https://storage.example.net/x":                true,
		"https://storage.example.net:8443/x":           true,
		"http://storage.example.net/x":                 false,
		"http://registry.example.com:5000/v2/":         false,
		"http://plain.example.com:5000/x":              true,
		"http://PLAIN.example.com.:5000/x":             true,
		"http://plain.example.com/x":                   false,
		"http://plain.example.com:5001/x":              false,
		"http://plain.example.org/x":                   true,
		"http://plain.example.org:80/x":                true,
		"http://plain.example.org:5000/x":              false,
		"http://sub.plain.example.org/x":               false,
		"https://user:pa55word@storage.example.net/x":  false,
		"https://user@registry.example.com:5000/x":     false,
		"ftp://storage.example.net/x":                  false,
		"file:///etc/passwd":                           false,
		"gopher://127.0.0.1/":                          false,
		"https:///x":                                   false,
		"unix:/run/docker.sock":                        false,
		"https://registry.example.com:5000@127.0.0.1/": false,
	} {
		if err := p.checkURL(mustURL(t, text)); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		} else if err != nil && strings.Contains(err.Error(), "pa55word") {
			t.Errorf("%v", err)
		}
	}
}

// TestInsideMayNameInside: a registry on a private or loopback address names
// others there; a private one no loopback address, and none the metadata service.
func TestInsideMayNameInside(t *testing.T) {
	for _, test := range []struct {
		registry, target string
		ok               bool
	}{
		{privateAddr, "10.9.9.9", true}, {privateAddr, "fd00::1", true}, {privateAddr, publicAddr, true},
		{privateAddr, "127.0.0.1", false}, {privateAddr, "169.254.169.254", false},
		{"127.0.0.1", "127.0.0.1", true}, {"127.0.0.1", "::1", true}, {"::1", "10.9.9.9", true}, {"127.0.0.1", publicAddr, true},
		{"127.0.0.1", "169.254.169.254", false}, {"127.0.0.1", "0.0.0.0", false},
		{publicAddr, otherPublicAddr, true},
	} {
		t.Run(test.registry+" to "+test.target, func(t *testing.T) {
			n := newNetwork(t)
			storage := n.serve("storage.example.net:8443", test.target, true, honest)
			n.serve("registry.example.com:443", test.registry, true, redirectTo(storage.url))
			err := actions["manifest"](t.Context(), n.client("registry.example.com"))
			if test.ok && err != nil {
				t.Error(err)
			} else if !test.ok {
				checkRefused(t, err, storage)
			}
		})
	}
}

// TestLinkLocalRegistry: a job that names the metadata service as its registry is
// refused, unless registries.conf names it.
func TestLinkLocalRegistry(t *testing.T) {
	for _, registry := range []string{"metadata.example.com", "169.254.169.254"} {
		n := newNetwork(t)
		metadata := n.serve(registry+":443", "169.254.169.254", true, honest)
		checkRefused(t, actions["manifest"](t.Context(), n.client(registry)), metadata)
		n.conf.WriteString(fmt.Sprintf("[[registry]]\nlocation = %q\n", registry))
		if err := actions["manifest"](t.Context(), n.client(registry)); err != nil {
			t.Errorf("named: %v", err)
		}
	}
}

// TestOwnAddress: a public address of this host counts as private.
func TestOwnAddress(t *testing.T) {
	n := newNetwork(t)
	victim := n.serve("host.example.com:443", otherPublicAddr, true, honest)
	n.serve("evil.example.com:443", publicAddr, true, redirectTo(victim.url))
	c := n.client("evil.example.com")
	c.policy.own = func(a netip.Addr) bool { return a.String() == otherPublicAddr }
	checkRefused(t, actions["manifest"](t.Context(), c), victim)
}

// TestRealDialer asks the address at the time of the connection.
func TestRealDialer(t *testing.T) {
	asked := ""
	conn, err := dial(t.Context(), "tcp", "localhost:1", func(a netip.Addr) error {
		asked = a.String()
		return &RefusedError{Registry: "x", Reason: "no"}
	})
	var refused *RefusedError
	if conn != nil || !errors.As(err, &refused) || asked != "127.0.0.1" && asked != "::1" {
		t.Errorf("asked for %q: %v", asked, err)
	}
}

// TestProxied: behind a proxy, the proxy resolves names; an address is judged here.
func TestProxied(t *testing.T) {
	n := newNetwork(t)
	c := n.client("evil.example.com")
	c.transport.proxy = func(*url.URL) (*url.URL, error) { return url.Parse("http://127.0.0.1:1") }
	for _, target := range []string{"https://127.0.0.1/", "https://10.1.2.3/", "https://[::1]/", "https://127.1/", "https://2130706433/", "https://localhost/", "https://169.254.169.254/"} {
		if err := c.policy.checkProxied(mustURL(t, target)); err == nil {
			t.Errorf("%s is left to the proxy", target)
		}
	}
	for _, target := range []string{"https://storage.example.net/", "https://evil.example.com/v2/"} {
		if err := c.policy.checkProxied(mustURL(t, target)); err != nil {
			t.Error(err)
		}
	}
	for _, registry := range []string{"169.254.169.254", "127.1:5000"} {
		if err := n.client(registry).policy.checkProxied(mustURL(t, "https://"+registry+"/v2/")); err == nil {
			t.Errorf("the registry %s is left to the proxy", registry)
		}
	}
}

// TestThroughProxy pulls through a proxy, which may be anywhere and gets no password
// of the registry; a private address that the registry names is not asked of it.
func TestThroughProxy(t *testing.T) {
	n := newNetwork(t)
	var asked atomic.Int64
	refuse := atomic.Bool{}
	n.serve("proxy.test:3128", "127.0.0.1", false, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.Method != http.MethodConnect || r.Header.Get("Authorization") != "" || refuse.Load() {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		far, err := n.dial(r.Context(), "tcp", r.URL.Host, func(netip.Addr) error { return nil })
		if err != nil {
			t.Error(err)
			return
		}
		defer far.Close()
		near, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer near.Close()
		if _, err := io.WriteString(near, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
			return
		}
		go func() { _, _ = io.Copy(far, near) }()
		_, _ = io.Copy(near, far)
	})
	n.serve("registry.example.com:443", publicAddr, true, needsBasic)
	victim := n.serve("10.9.9.9:443", "10.9.9.9", true, honest)
	n.serve("evil.example.com:443", otherPublicAddr, true, redirectTo(victim.url))
	client := func(registry string) *Client {
		c := n.client(registry)
		c.transport.proxy = func(*url.URL) (*url.URL, error) { return url.Parse("http://proxy.test:3128") }
		return c
	}
	c := client("registry.example.com")
	for _, step := range []string{"manifest", "blob"} {
		if err := actions[step](t.Context(), c); err != nil {
			t.Errorf("%s: %v", step, err)
		}
	}
	if asked.Load() == 0 {
		t.Error("the proxy was not asked")
	}
	checkRefused(t, actions["manifest"](t.Context(), client("evil.example.com")), victim)
	refuse.Store(true)
	if err := actions["manifest"](t.Context(), client("registry.example.com")); err == nil || err.Error() != "the proxy proxy.test:3128 answers 403 Forbidden" {
		t.Errorf("refused by the proxy: %v", err)
	}
}

// TestEndless: redirects and 401s without an end, and headers without one.
func TestEndless(t *testing.T) {
	tests := map[string]http.HandlerFunc{
		"redirects to itself": func(w http.ResponseWriter, r *http.Request) { redirectTo(r.URL.Path+"x")(w, r) },
		"401, basic": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", "Basic realm=x")
			w.WriteHeader(http.StatusUnauthorized)
		},
		"401, no challenge": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) },
		"401, bearer": func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				fmt.Fprint(w, `{"token":"x"}`)
				return
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="https://evil.example.com/token"`)
			w.WriteHeader(http.StatusUnauthorized)
		},
		"headers": func(w http.ResponseWriter, _ *http.Request) {
			for i := range 100 {
				w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 10_000))
			}
		},
	}
	for name, handler := range tests {
		n := newNetwork(t)
		evil := n.serve("evil.example.com:443", publicAddr, true, handler)
		for step, act := range actions {
			t.Run(name+", "+step, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				before := evil.count()
				if err := act(ctx, n.client("evil.example.com")); err == nil || ctx.Err() != nil {
					t.Errorf("%v", err)
				}
				if n := evil.count() - before; n > maxRedirects+2 {
					t.Errorf("asked %d times", n)
				}
			})
		}
	}
}
