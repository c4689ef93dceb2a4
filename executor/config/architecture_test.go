package config

import (
	"strings"
	"testing"
)

// TestArchitecture: the setting is one of image sections.
func TestArchitecture(t *testing.T) {
	s := parse(t, "[[image]]\nmatch = 'example.com/arm:*'\narchitecture = 'arm64'")
	if got := s.For("example.com/arm:1").Architecture; got != "arm64" {
		t.Errorf("got %q", got)
	}
	if got := s.For("example.com/other:1").Architecture; got != "" {
		t.Errorf("another image: got %q", got)
	}
	for text, want := range map[string]string{
		"[[image]]\nmatch = 'a'\narchitecture = 'aarch64'": `architecture is "aarch64": want amd64 or arm64`,
		"[defaults]\narchitecture = 'arm64'":               "architecture",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}
