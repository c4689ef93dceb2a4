package distribution

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"sync"

	"github.com/containers/image/v5/pkg/sysregistriesv2"
	"github.com/containers/image/v5/types"

	"gitlab-sardine-executor/oci/registry/netaddr"
)

// A RefusedError says that a registry named a place to which this host does not
// connect for it. Trying again changes nothing.
type RefusedError struct {
	// Registry that was asked, as host:port or host.
	Registry string
	// Place it named, as scheme://host:port; neither path nor query, which may hold
	// secrets.
	Place string
	// Reason, and what an administrator can do.
	Reason string
}

func (e *RefusedError) Error() string {
	if e.Place == "" {
		return fmt.Sprintf("%s: %s", e.Registry, e.Reason)
	}
	return fmt.Sprintf("%s sends its clients to %s: %s", e.Registry, e.Place, e.Reason)
}

// A policy decides where a client may connect on behalf of one registry.
type policy struct {
	registry string // host:port in the canonical form
	name     string // as people write it
	// insecure are the hosts and ports that registries.conf marks insecure, named
	// those that it names at all.
	insecure, named map[string]bool
	// anyInsecure: the caller accepts plain HTTP and any certificate everywhere.
	anyInsecure bool
	own         func(netip.Addr) bool // an address of this host

	mu   sync.Mutex
	home netip.Addr // where the registry answered; invalid before that
}

// newPolicy reads registries.conf.
func newPolicy(o Options) (*policy, error) {
	p := &policy{
		name: o.Registry, insecure: map[string]bool{}, named: map[string]bool{},
		anyInsecure: o.System.DockerInsecureSkipTLSVerify == types.OptionalBoolTrue, own: netaddr.IsOwn,
	}
	p.registry = netaddr.Canonical(netaddr.HostOf(o.Registry), "https")
	registries, err := sysregistriesv2.GetRegistries(o.System)
	if err != nil {
		return nil, fmt.Errorf("reading registries.conf: %w", err)
	}
	for _, r := range registries {
		p.add(r.Endpoint)
		for _, mirror := range r.Mirrors {
			p.add(mirror)
		}
	}
	// Of the registry itself, only the part in question may be insecure, or not.
	for _, scheme := range []string{"https", "http"} {
		p.insecure[netaddr.Canonical(netaddr.HostOf(o.Registry), scheme)] = o.Insecure
	}
	return p, nil
}

func (p *policy) add(e sysregistriesv2.Endpoint) {
	host, _, _ := strings.Cut(e.Location, "/")
	if host == "" {
		return // a wildcard, which names no port
	}
	p.named[netaddr.Canonical(host, "https")] = true
	if e.Insecure {
		p.markInsecure(host)
	}
}

// markInsecure allows HTTPS with any certificate and plain HTTP, each on its usual
// port if host names none.
func (p *policy) markInsecure(host string) {
	for _, scheme := range []string{"https", "http"} {
		p.insecure[netaddr.Canonical(host, scheme)] = true
	}
}

func (p *policy) isInsecure(u *url.URL) bool {
	return p.anyInsecure || p.insecure[netaddr.CanonicalURL(u)]
}

// isRegistry reports whether a URL is of the registry itself, host and port
// exactly.
func (p *policy) isRegistry(u *url.URL) bool {
	at := netaddr.CanonicalURL(u)
	return at == p.registry || u.Scheme == "http" && p.insecure[at] && netaddr.Canonical(u.Hostname(), "https") == p.registry
}

// checkURL decides by what a URL says; checkAddress has the second word, once the
// name is resolved.
func (p *policy) checkURL(u *url.URL) error {
	switch {
	case u.Hostname() == "":
		return p.refuse(u, "a URL without a host")
	case u.User != nil:
		return p.refuse(u, "a URL with a user name or password in it is not followed")
	case u.Scheme == "http" && !p.isInsecure(u):
		return p.refuse(u, "plain HTTP is for registries that registries.conf marks insecure, host and port exactly; have it use HTTPS")
	case u.Scheme != "http" && u.Scheme != "https":
		return p.refuse(u, "want HTTPS")
	}
	return nil
}

// checkProxied decides about a URL that a proxy is asked for.
func (p *policy) checkProxied(u *url.URL) error {
	r, home := netaddr.ReachOfName(u.Hostname()), p.homeReach()
	if own := p.isRegistry(u); own && (r <= netaddr.Loopback || p.named[p.registry]) || !own && r <= home {
		return nil
	}
	return p.refuseReach(netaddr.CanonicalURL(u), r, home)
}

// checkAddress decides whether to open a connection to an address that host, as
// host:port, leads to.
func (p *policy) checkAddress(host string, addr netip.Addr) error {
	addr = addr.Unmap()
	p.mu.Lock()
	home := p.home
	p.mu.Unlock()
	r := netaddr.ReachOf(addr, p.own)
	switch {
	case r == netaddr.Nowhere:
		return p.refuseReach(host, r, p.homeReach())
	case r == netaddr.LinkLocal:
		// 169.254.169.254 and its like never, unless the administrator named it.
		if p.isHost(host) && p.named[p.registry] || addr == home {
			return nil
		}
		return p.refuseReach(host, r, p.homeReach())
	case p.isHost(host) && !home.IsValid():
		return nil // the registry may be anywhere
	case r > p.homeReach():
		return p.refuseReach(host, r, p.homeReach())
	}
	return nil
}

func (p *policy) isHost(host string) bool {
	return host == p.registry || p.insecure[host] && netaddr.Canonical(netaddr.Hostname(host), "https") == p.registry
}

// answered remembers where the registry is: there it gave an answer, over TLS that
// was verified unless it is insecure.
func (p *policy) answered(addr netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.home.IsValid() {
		p.home = addr.Unmap()
	}
}

// homeReach is how far the registry itself can be reached from.
func (p *policy) homeReach() netaddr.Reach {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.home.IsValid() {
		return min(netaddr.ReachOfName(netaddr.Hostname(p.registry)), netaddr.Loopback)
	}
	return min(netaddr.ReachOf(p.home, p.own), netaddr.Loopback)
}

func (p *policy) refuse(u *url.URL, reason string) error {
	return &RefusedError{Registry: p.name, Place: netaddr.Origin(u), Reason: reason}
}

func (p *policy) refuseReach(host string, r, home netaddr.Reach) error {
	switch {
	case r == netaddr.Nowhere:
		return &RefusedError{p.name, host, "this is no address that a host can have"}
	case r == netaddr.LinkLocal:
		return &RefusedError{p.name, host, "link-local addresses are not connected to, since credentials of this host may be served there"}
	case p.isHost(host):
		return &RefusedError{p.name, "", fmt.Sprintf("its name led to a %s address before, and leads to a %s one now", home, r)}
	}
	return &RefusedError{p.name, host, fmt.Sprintf("this name leads to a %s address, but the registry itself has a %s one", r, home)}
}

var errTooManyRedirects = errors.New("more than 10 redirects")
