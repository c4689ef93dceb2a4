package netaddr

import (
	"net/url"
	"strings"
)

// Canonical returns host:port in lower case, with the default port of the scheme.
func Canonical(host, scheme string) string {
	u := url.URL{Scheme: scheme, Host: strings.ToLower(host)}
	return CanonicalURL(&u)
}

// CanonicalURL returns the canonical host:port of a URL.
func CanonicalURL(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	host := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + port
}

// Hostname returns the host of host:port.
func Hostname(hostport string) string {
	u := url.URL{Host: hostport}
	return u.Hostname()
}

// HostOf returns the host that serves a registry.
func HostOf(registry string) string {
	if registry == "docker.io" {
		return "registry-1.docker.io"
	}
	return registry
}

// Origin returns the part of a URL that may be shown.
func Origin(u *url.URL) string {
	const most = 300
	text := (&url.URL{Scheme: u.Scheme, Host: u.Host}).String()
	return text[:min(len(text), most)]
}

// SameOrigin reports whether credentials for one URL may be sent to the other.
func SameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && CanonicalURL(a) == CanonicalURL(b)
}
