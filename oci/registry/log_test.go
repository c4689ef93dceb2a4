package registry

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestLogTo asks a registry that sends a warning, which containers/image logs.
func TestLogTo(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Warning", `299 - "we close on Friday"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(server.Close)
	var log bytes.Buffer
	LogTo(slog.New(slog.NewTextHandler(&log, nil)))
	t.Cleanup(func() { LogTo(slog.New(slog.DiscardHandler)) })
	host := strings.TrimPrefix(server.URL, "http://")
	if _, err := Login(t.Context(), host, "u", "s3cret", Credentials{Insecure: true, AuthFile: t.TempDir() + "/auth.json"}); err == nil {
		t.Error("logged in")
	}
	if text := log.String(); !strings.Contains(text, "level=WARN") || !strings.Contains(text, "we close on Friday") {
		t.Errorf("logged %q", text)
	}
	if strings.Contains(log.String(), "s3cret") {
		t.Errorf("logged the password: %s", log.String())
	}
}
