package distribution

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containers/image/v5/types"
)

// needsBasic is an honest registry behind a password.
func needsBasic(w http.ResponseWriter, r *http.Request) {
	if user, password, _ := r.BasicAuth(); user != "alice" || password != "pa55word" {
		w.Header().Set("WWW-Authenticate", "Basic realm=x")
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	honest(w, r)
}

// TestSecretsStayHome redirects requests with a password, or with a token, to other
// ports and names. net/http would send them to the first two of these.
func TestSecretsStayHome(t *testing.T) {
	t.Parallel()
	for _, elsewhere := range []string{"registry.example.com:8443", "storage.registry.example.com:443", "storage.example.net:443"} {
		for _, scheme := range []string{"Basic", "Bearer"} {
			for _, steps := range []int{1, 2} {
				t.Run(fmt.Sprintf("%s to %s in %d", scheme, elsewhere, steps), func(t *testing.T) {
					n := newNetwork(t)
					other := n.serve(elsewhere, otherPublicAddr, true, func(w http.ResponseWriter, r *http.Request) {
						if r.Header.Get("Referer") != "" {
							t.Errorf("Referer: %s", r.Header.Get("Referer"))
						}
						honest(w, r)
					})
					target := other.url
					var hop *server
					if steps == 2 {
						hop = n.serve("hop.example.org:443", otherPublicAddr, true, redirectTo(other.url+"/x/blobs/"))
						target = hop.url
					}
					registry := n.serve("registry.example.com:443", publicAddr, true, func(w http.ResponseWriter, r *http.Request) {
						switch {
						case r.URL.Path == "/token":
							fmt.Fprint(w, `{"access_token":"t0ken"}`)
						case r.Header.Get("Authorization") == "" && scheme == "Basic":
							needsBasic(w, r)
						case r.Header.Get("Authorization") == "":
							w.Header().Set("WWW-Authenticate", `Bearer realm="https://registry.example.com/token"`)
							w.WriteHeader(http.StatusUnauthorized)
						default:
							redirectTo(target+r.URL.Path)(w, r)
						}
					})
					c := n.client("registry.example.com")
					for range 2 {
						if err := actions["blob"](t.Context(), c); err != nil && steps == 1 {
							t.Fatal(err)
						}
					}
					if !registry.sawSecret() {
						t.Error("the registry was not given the secret")
					}
					if other.sawSecret() || hop != nil && hop.sawSecret() {
						t.Error("another place was given the secret")
					}
				})
			}
		}
	}
}

// TestForeignChallenge: another place answers 401 and asks for the password.
func TestForeignChallenge(t *testing.T) {
	for _, challenge := range []string{"Basic realm=x", `Bearer realm="https://evil.example.net/token"`} {
		n := newNetwork(t)
		evil := n.serve("evil.example.net:443", otherPublicAddr, true, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("WWW-Authenticate", challenge)
			w.WriteHeader(http.StatusUnauthorized)
		})
		n.serve("registry.example.com:443", publicAddr, true, func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Method == http.MethodPost:
				w.Header().Set("Location", evil.url+"/upload")
				w.WriteHeader(http.StatusAccepted)
			case r.Method == http.MethodHead:
				w.WriteHeader(http.StatusNotFound)
			default:
				redirectTo(evil.url)(w, r)
			}
		})
		for step, act := range actions {
			if err := act(t.Context(), n.client("registry.example.com", push)); err == nil && step != "has blob" {
				t.Errorf("%s: no error", step)
			}
		}
		if evil.count() == 0 || evil.sawSecret() {
			t.Errorf("%d requests, secret: %t", evil.count(), evil.sawSecret())
		}
	}
}

// TestUploadElsewhere writes to a place on another host, without the password.
func TestUploadElsewhere(t *testing.T) {
	n := newNetwork(t)
	storage := n.serve("registry.example.com:8443", publicAddr, true, honest)
	n.serve("registry.example.com:443", publicAddr, true, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && r.Header.Get("Authorization") != "" {
			w.Header().Set("Location", storage.url+"/upload")
			w.WriteHeader(http.StatusAccepted)
			return
		}
		needsBasic(w, r)
	})
	if err := actions["put blob"](t.Context(), n.client("registry.example.com", push)); err != nil {
		t.Fatal(err)
	}
	if storage.count() != 2 || storage.sawSecret() {
		t.Errorf("%d requests, secret: %t", storage.count(), storage.sawSecret())
	}
}

// TestTokenServiceRedirects: a service that got a password, or a refresh token in
// a body, does not pass it on.
func TestTokenServiceRedirects(t *testing.T) {
	for name, account := range map[string]types.DockerAuthConfig{
		"password": {Username: "alice", Password: "pa55word"}, "refresh token": {IdentityToken: "pa55word"},
	} {
		for _, to := range []string{"auth.example.com:8443", "evil.example.net:443"} {
			t.Run(name+" to "+to, func(t *testing.T) {
				n := newNetwork(t)
				evil := n.serve(to, otherPublicAddr, true, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"token":"x"}`) })
				auth := n.serve("auth.example.com:443", otherPublicAddr, true, redirectTo(evil.url))
				n.serve("registry.example.com:443", publicAddr, true, func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer realm=%q", auth.url))
					w.WriteHeader(http.StatusUnauthorized)
				})
				err := actions["manifest"](t.Context(), n.client("registry.example.com", func(o *Options) { o.Auth = account }))
				checkRefused(t, err, evil)
			})
		}
	}
}

// TestInsecureRegistry: what registries.conf marks insecure may speak plain HTTP or
// show any certificate, on its own port; it gets its password there.
func TestInsecureRegistry(t *testing.T) {
	for name, tls := range map[string]bool{"plain HTTP": false, "any certificate": true} {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t)
			registry := n.serve("registry.test:5000", privateAddr, tls, needsBasic)
			other := n.serve("other.test:5001", privateAddr, tls, honest)
			n.ca = newAuthority(t) // not the one that vouches for them
			if err := actions["manifest"](t.Context(), n.client("registry.test:5000")); err == nil || registry.count() > 0 {
				t.Fatalf("not named insecure: %v, %d requests", err, registry.count())
			}
			n.insecure("registry.test:5000")
			for step, act := range actions {
				if err := act(t.Context(), n.client("registry.test:5000", push)); err != nil {
					t.Errorf("%s: %v", step, err)
				}
			}
			n.serve("redirects.test:5002", privateAddr, tls, redirectTo(other.url))
			n.insecure("redirects.test:5002")
			if err := actions["manifest"](t.Context(), n.client("redirects.test:5002")); err == nil || other.count() > 0 {
				t.Errorf("redirected to a place that is not insecure: %v, %d requests", err, other.count())
			}
		})
	}
}

// TestGitLab is its flow: a realm on another host and port, tokens of it for the
// registry, and blobs from object storage, which gets neither.
func TestGitLab(t *testing.T) {
	n := newNetwork(t)
	storage := n.serve("storage.example.net:443", otherPublicAddr, true, honest)
	var tokens int
	gitlab := n.serve("gitlab.example.com:8443", otherPublicAddr, true, func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		query := r.URL.Query()
		if r.URL.Path != "/jwt/auth" || user != "alice" || password != "pa55word" || query.Get("service") != "container_registry" {
			t.Errorf("asked for a token: %s", r.URL)
			w.WriteHeader(http.StatusForbidden)
			return
		}
		if scope := query.Get("scope"); scope != "" && !strings.HasPrefix(scope, "repository:vms/debian:pull") {
			t.Errorf("scope %q", scope)
		}
		tokens++
		_ = json.NewEncoder(w).Encode(map[string]any{"token": "t0ken", "expires_in": 300})
	})
	registry := n.serve("registry.example.com:443", publicAddr, true, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") != "Bearer t0ken":
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/jwt/auth",service="container_registry",scope="repository:vms/debian:pull"`, gitlab.url))
			w.WriteHeader(http.StatusUnauthorized)
		case r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/"):
			redirectTo(storage.url+r.URL.Path+"?X-Amz-Signature=5ecret")(w, r)
		default:
			honest(w, r)
		}
	})
	c := n.client("registry.example.com")
	for _, step := range []string{"manifest", "blob", "rest of a blob", "blob", "login"} {
		if err := actions[step](t.Context(), c); err != nil {
			t.Errorf("%s: %v", step, err)
		}
	}
	if tokens != 1 {
		t.Errorf("%d tokens for one pull", tokens)
	}
	if storage.count() != 3 || storage.sawSecret() {
		t.Errorf("the storage got %d requests, a secret: %t", storage.count(), storage.sawSecret())
	}
	for _, r := range registry.requests {
		if strings.HasPrefix(r.Header.Get("Authorization"), "Basic") {
			t.Error("the registry was given the password")
		}
	}
	pusher := n.client("registry.example.com", push)
	for _, step := range []string{"has blob", "put blob", "put manifest"} {
		if err := actions[step](t.Context(), pusher); err != nil {
			t.Errorf("%s: %v", step, err)
		}
	}
}

// TestErrorsShowNoBody: what other places answer must not be shown, nor what the
// registry answers in any form but that of the distribution specification.
func TestErrorsShowNoBody(t *testing.T) {
	t.Parallel()
	const secret = "root:x:0:0"
	for name, text := range map[string]string{
		"text": secret, "errors": `{"errors":[{"code":"` + secret + `","message":"` + secret + `"}]}`,
		"details": `{"details":"` + secret + `"}`, "token": `{"token":"` + secret + `\n"}`, "JSON": secret[:4] + `{"x":1}`,
	} {
		for _, status := range []int{200, 401, 403, 500} {
			answer := func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token",error_description="`+secret+`"`)
				w.WriteHeader(status)
				_, _ = io.WriteString(w, text)
			}
			n := newNetwork(t)
			other := n.serve("other.example.net:443", otherPublicAddr, true, answer)
			for kind, handler := range map[string]http.HandlerFunc{
				"redirect": redirectTo(other.url + "/" + secret), "itself": answer,
				"realm": func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer realm=%q", other.url+"/"+secret))
					w.WriteHeader(http.StatusUnauthorized)
				},
			} {
				n.serve("registry.example.com:443", publicAddr, true, handler)
				for _, step := range []string{"manifest", "blob", "put blob"} {
					err := actions[step](t.Context(), n.client("registry.example.com", push))
					if err == nil && (status != 200 || kind == "realm") {
						t.Errorf("%s, %s, %s, %d: no error", name, kind, step, status)
					}
					if err != nil && strings.Contains(err.Error(), "root") && !(kind == "itself" && name == "errors") {
						t.Errorf("%s, %s, %s, %d: %v", name, kind, step, status, err)
					}
				}
			}
		}
	}
}

// TestErrorsShowNoHeader: errors of net/http quote what they do not understand.
func TestErrorsShowNoHeader(t *testing.T) {
	const secret = "SSH-2.0-5ecret"
	raw := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.WriteString(conn, text)
			_ = conn.Close()
		}
	}
	for name, handler := range map[string]http.HandlerFunc{
		"no HTTP":       raw(secret + "\r\n\r\n"),
		"status":        raw("HTTP/1.1 " + secret + "\r\n\r\n"),
		"reason":        raw("HTTP/1.1 500 " + secret + "\r\n\r\n"),
		"header":        raw("HTTP/1.1 200 OK\r\n" + secret + "\r\n\r\n"),
		"length":        raw("HTTP/1.1 200 OK\r\nContent-Length: " + secret + "\r\n\r\n"),
		"encoding":      raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: " + secret + "\r\n\r\n"),
		"chunk":         raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + secret + "\r\n\r\n"),
		"Location":      redirectTo("https://%zz" + secret),
		"Location port": redirectTo("https://x:" + secret),
		"scheme":        redirectTo(strings.ToLower(strings.ReplaceAll(secret, ".", "")) + "://x/" + secret),
	} {
		n := newNetwork(t)
		n.serve("registry.example.com:443", publicAddr, true, handler)
		for _, step := range []string{"manifest", "blob"} {
			err := actions[step](t.Context(), n.client("registry.example.com", push))
			if err == nil || strings.Contains(err.Error(), secret) {
				t.Errorf("%s, %s: %v", name, step, err)
			}
		}
	}
}

func TestDetail(t *testing.T) {
	for body, want := range map[string]string{
		`{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`: "requested access to the resource is denied",
		`{"errors":[{"code":"DENIED"}]}`:                                   "DENIED",
		`{"errors":[{"code":"DENIED","message":"a\nb\u001b[2Jc\u2028d"}]}`: "a b [2Jc d",
		`{"errors":[{"message":"` + strings.Repeat("ä", 1000) + `"}]}`:     strings.Repeat("ä", 100) + "…",
		`{"errors":[]}`: "", `{"error":"x"}`: "", `[]`: "", "": "", "plain": "", `{"details":"x"}`: "",
	} {
		if got := detail([]byte(body)); got != want {
			t.Errorf("%.80s: %q, want %q", body, got, want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, "-1": 0, "x": 0, "1.5": 0,
		"99999999999999999999":                      366 * 24 * time.Hour,
		"9223372036854775807":                       366 * 24 * time.Hour,
		now.Add(time.Hour).Format(time.RFC1123):     0,
		now.Add(time.Hour).Format(http.TimeFormat):  time.Hour,
		now.Add(-time.Hour).Format(http.TimeFormat): 0,
		"Fri, 31 Dec 9999 23:59:59 GMT":             366 * 24 * time.Hour,
	} {
		if got := retryAfter(http.Header{"Retry-After": {text}}, now); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}
