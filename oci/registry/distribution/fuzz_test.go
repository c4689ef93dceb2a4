package distribution

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode"

	"gitlab-sardine-executor/oci/registry/netaddr"
)

// FuzzAnswer: what a log may show of an answer is one short line.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{`{"errors":[{"code":"DENIED","message":"a\nb"}]}`, `299 - "we close \"soon\""`, `{"token":"x"}`, "7", "Fri, 31 Dec 9999 23:59:59 GMT"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		warning, _ := warningText(text)
		for _, shown := range []string{detail([]byte(text)), warning} {
			if len(shown) > maxDetail+len("…") || strings.ContainsFunc(shown, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("%q is shown as %q", text, shown)
			}
		}
		if d := retryAfter(http.Header{"Retry-After": {text}}, time.Now()); d < 0 || d > 366*24*time.Hour {
			t.Errorf("%q: wait %v", text, d)
		}
		isToken([]byte(text))
	})
}

// FuzzCheckURL: what is followed is HTTPS, or insecure by registries.conf.
func FuzzCheckURL(f *testing.F) {
	for _, seed := range []string{"https://a/", "http://plain.test:5000/", "https://u:p@a/", "http://[::1]:80", "https://a:%zz", "//a", "HTTP://PLAIN.TEST.:5000"} {
		f.Add(seed)
	}
	p := &policy{name: "registry.example.com", registry: "registry.example.com:443", insecure: map[string]bool{"plain.test:5000": true}, named: map[string]bool{}}
	f.Fuzz(func(t *testing.T, text string) {
		u, err := url.Parse(text)
		if err != nil {
			return
		}
		err = p.checkURL(u)
		plain := u.Scheme == "http" && strings.EqualFold(strings.TrimSuffix(u.Hostname(), "."), "plain.test") && u.Port() == "5000"
		if err == nil && (u.User != nil || u.Hostname() == "" || u.Scheme != "https" && !plain) {
			t.Errorf("%q is followed", text)
		}
		if err != nil && strings.ContainsFunc(err.Error(), unicode.IsControl) {
			t.Errorf("%q: %q", text, err)
		}
		netaddr.ReachOfName(u.Hostname())
	})
}
